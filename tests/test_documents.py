"""Documents: what is read of each type, that spans lead back to the source, and what a bad file says."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kdgen.documents import Chunk
from kdgen.documents.files import Doc, load, markdown, plain
from kdgen.errors import UserError
from kdgen.parse import tokens_of
from kdgen.record import Record
from kdgen.seeds import Seeds, read, scan

GUIDE = """---
title: no heading
---
# Bees

A hive has one queen.

## Honey

Bees make honey from nectar. They store it in combs.

```sh
# not a heading
```

Wax
---

Wax is made by workers.
"""
CODE = '''"""Doc."""

import os


def one():
    x = 1

    return x


class Two:
    def three(self):
        return os.sep
'''
PAGE = """<!doctype html>
<html><head><title>Bees &amp; wax</title><style>p {}</style></head>
<body><nav>Home | About</nav>
<header><h1>Bees</h1></header>
<p>A hive has
   one <b>queen</b>.<br>She lays.</p>
<ul><li>drones</li><li>workers</li></ul>
<h2>Honey</h2>
<table><tr><th>Month</th><th>kg</th></tr><tr><td>May</td><td>4</td></tr></table>
<pre>a
  b</pre>
<script>let x</script><p hidden>no</p><footer>Imprint</footer></body></html>
"""


def pdf(*pages: str, encrypt: bool = False) -> bytes:
    """A PDF with a line of text a page; an empty text makes a page without any."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    made, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R{' /Encrypt 99 0 R' if encrypt else ''} >>"
    made += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n{trailer}\nstartxref\n".encode()
    return made + f"{made.index(b'xref')}\n%%EOF\n".encode()


def records(path: Path, **spec: Any) -> list[Record]:
    seeds = Seeds(path=str(path), **spec)
    rows = list(read(seeds, path, scan(seeds, path)))
    return [row for row in rows if isinstance(row, Record)]


def made(tmp_path: Path, name: str, content: str | bytes, **spec: Any) -> list[Record]:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return records(path, **spec)


def spans(found: list[Record]) -> list[Any]:
    return [record.meta["span"] for record in found]


SMALL = Chunk(size=40, least=0)


def test_markdown_is_cut_at_its_headings(tmp_path: Path) -> None:
    found = made(tmp_path, "guide.md", GUIDE, chunk=Chunk(least=8))
    assert [record.text.split("\n")[0] for record in found] == ["# Bees", "## Honey", "Wax"]
    assert spans(found)[1:] == [
        {"file": "guide.md", "start": 57, "end": 146, "line": 8, "end_line": 14, "section": "Bees > Honey"},
        {"file": "guide.md", "start": 148, "end": 180, "line": 16, "end_line": 19, "section": "Bees > Wax"},
    ]
    for record in found:
        span: Any = record.meta["span"]
        assert GUIDE[span["start"] : span["end"]] == record.text
        assert "\n".join(GUIDE.split("\n")[span["line"] - 1 : span["end_line"]]) == record.text
        assert record.extra == {"title": "Bees"}


def test_a_small_section_goes_along_with_the_next_and_the_last_with_the_one_before(tmp_path: Path) -> None:
    text = "# Title\n\n## One\n\n" + "word " * 30 + "\n\n## Two\n\n" + "more " * 30 + "\n\n## End\n\nShort.\n"
    found = made(tmp_path, "a.md", text, chunk=Chunk(size=60, least=10))
    assert [record.text.split("\n")[0] for record in found] == ["# Title", "## Two"]
    assert [span["section"] for span in spans(found)] == ["Title > One", "Title > Two"]
    assert found[1].text.endswith("Short.")


def test_source_code_is_cut_at_the_margin(tmp_path: Path) -> None:
    found = made(tmp_path, "a.py", CODE, chunk=Chunk(size=40, least=2))
    assert [span["section"] for span in spans(found)] == ['"""Doc."""', "import os", "def one():", "class Two:"]
    assert found[2].text == "def one():\n    x = 1\n\n    return x"
    assert (spans(found)[2]["line"], spans(found)[2]["end_line"]) == (6, 9)


def test_lines_keep_their_indentation(tmp_path: Path) -> None:
    found = made(tmp_path, "a.py", CODE, chunk=Chunk(by="lines", size=4, overlap=1, least=2))
    assert [(span["line"], span["end_line"]) for span in spans(found)] == [
        (1, 3), (3, 6), (6, 9), (9, 12), (12, 14)
    ]  # fmt: skip
    assert found[1].text == "import os\n\n\ndef one():"


def test_html_is_its_text_with_the_lines_of_the_page(tmp_path: Path) -> None:
    (one, two) = made(tmp_path, "p.html", PAGE, chunk=Chunk(size=60, least=4))
    assert one.text == "# Bees\n\nA hive has one queen.\nShe lays.\n\n- drones\n- workers"
    assert two.text == "## Honey\n\nMonth | kg\nMay | 4\n\na\n  b"
    assert one.extra == {"title": "Bees & wax"}
    assert spans([one, two]) == [
        {"file": "p.html", "line": 4, "end_line": 7, "section": "Bees"},
        {"file": "p.html", "line": 8, "end_line": 10, "section": "Bees > Honey"},
    ]
    latin = b'<meta charset="latin-1"><p>caf\xe9</p>'
    assert made(tmp_path, "l.html", latin)[0].text == "café"


def test_pdf_is_cut_at_its_pages(tmp_path: Path) -> None:
    content = pdf("Bees make honey from nectar.", "", "Wax is made by workers.")
    found = made(tmp_path, "b.pdf", content, chunk=Chunk(size=40, least=2))
    assert [record.text for record in found] == ["Bees make honey from nectar.", "Wax is made by workers."]
    assert spans(found) == [{"file": "b.pdf", "page": 1, "end_page": 1}, {"file": "b.pdf", "page": 3, "end_page": 3}]
    (whole,) = records(tmp_path / "b.pdf")
    assert whole.meta["span"] == {"file": "b.pdf", "page": 1, "end_page": 3}


def test_a_folder_is_read_in_order_and_what_is_not_read_is_counted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/y.txt", ".git/x.txt", "a/.x.txt", "c.png"):
        made(tmp_path, f"docs/{name}", f"This is {name}.") if not name.endswith("png") else None
    (tmp_path / "docs/c.png").write_bytes(b"\x89PNG")
    os.symlink(tmp_path / "docs", tmp_path / "docs/loop")
    spec, path = Seeds(path=str(tmp_path / "docs")), tmp_path / "docs"
    found = scan(spec, path)
    assert found.rows == 4 and found.bad == {4: ("unread_file", "c.png: files of this type are not read")}
    assert [span["file"] for span in spans(records(path))] == ["a/y.txt", "a/z.md", "b.txt"]
    assert [span["file"] for span in spans(records(path, files=("a/*",)))] == ["a/y.txt", "a/z.md"]
    assert scan(Seeds(path="x", files=("*.md", "*.txt")), path).bad == {}
    assert scan(spec, path).sha256 == found.sha256
    (path / "b.txt").write_text("other")
    assert scan(spec, path).sha256 != found.sha256


def test_a_chunk_is_itself_whatever_changes_around_it(tmp_path: Path) -> None:
    before = made(tmp_path, "guide.md", GUIDE, chunk=Chunk(least=8))
    after = made(tmp_path, "other.md", GUIDE.replace("one queen", "a queen"), chunk=Chunk(least=8))
    assert [a.id == b.id for a, b in zip(before, after, strict=True)] == [False, True, True]


def test_the_same_text_twice_is_a_duplicate_with_both_places(tmp_path: Path) -> None:
    made(tmp_path, "docs/a.txt", "Licence: MIT.")
    made(tmp_path, "docs/b.txt", "\nLicence: MIT.\n")
    found = scan(Seeds(path="x"), tmp_path / "docs")
    assert found.bad == {2: ("duplicate_seed", "b.txt:2: the same text as a.txt:1")}


def test_rows_that_are_a_text_are_cut_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{"id": "d", "title": "Bees", "text": GUIDE}, {"text": "Short and sweet."}]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    assert len(made(tmp_path, "s.jsonl", content)) == 2
    found = records(tmp_path / "s.jsonl", chunk=Chunk(least=8))
    assert [record.id.startswith("d#") for record in found] == [True, True, True, False]
    assert all(record.extra == {"title": "Bees"} for record in found[:3])
    assert spans(found)[1] == {"file": "s.jsonl", "line": 1, "start": 57, "end": 146, "section": "Bees > Honey"}
    with pytest.raises(UserError, match=r"s\.jsonl:1: the row is a task, and `chunk` cuts texts"):
        made(tmp_path, "s.jsonl", '{"instruction": "x"}\n', chunk=SMALL)


def test_gzip_and_other_spellings(tmp_path: Path) -> None:
    (found,) = made(tmp_path, "a.TXT.gz", gzip.compress(b"\xef\xbb\xbfOne\r\ntwo\r\n"))
    assert found.text == "One\r\ntwo" and found.meta["span"] == {
        "file": "a.TXT.gz", "start": 0, "end": 8, "line": 1, "end_line": 2
    }  # fmt: skip


NOPE = (
    b"Length 32 >>\nstream\nBT /F1 12 Tf 72 700 Td (y)",
    b"Length 11 /Filter /Nope >>\nstream\nBT    12345678",
)
BAD: list[tuple[str, bytes, str]] = [
    ("a.txt", b"", "a.txt: there is no text in it"),
    ("a.md", b"one\ncaf\xe9", "a.md:2: invalid UTF-8 at byte 8\n  hint: save the file as UTF-8"),
    ("a.txt", "x".encode("utf-16"), "a.txt:1: the file is UTF-16"),
    ("a.py", b"x\n\0", "a.py:2: the file is not a text"),
    ("a.txt.gz", b"x", "a.txt.gz: cannot be read: Not a gzipped file"),
    ("a.html", b'<meta charset="nonsense"><p>x', "a.html: the file says that it is 'nonsense', which is no encoding"),
    ("a.html", b"<body><script>1</script>", "a.html: there is no text in it"),
    ("a.html", b"<div>" * 5000 + b"x", "a.html: the page is nested too deeply"),
    ("a.pdf", b"%PDF-1.4 no", "a.pdf: not a PDF that can be read: "),
    ("a.pdf", pdf("", ""), "a.pdf: no page has text in it\n  hint: scanned pages need OCR"),
    ("a.pdf", pdf("x", "y").replace(*NOPE), "a.pdf: page 2: the page cannot be read: "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), BAD, ids=[f"{case[0]}-{n}" for n, case in enumerate(BAD)])
def test_bad_documents(label: Callable[..., Any], tmp_path: Path, name: str, content: bytes, said: str) -> None:
    told = label(name, content)
    assert told.code == 2 and said in told.err and told.err.startswith(f"error: {tmp_path}/{name}"), told.err
    assert not (tmp_path / "out").exists() and not (tmp_path / "ledger.db").exists()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / name).write_bytes(content)
    (tmp_path / "docs/good.txt").write_text("This is good.")
    told = label("docs")
    assert told.code == 2 and f"docs/{said.splitlines()[0]}" in told.err
    told = label("docs", None, "--on-bad-seed", "skip")
    assert told.code == 0, told.err
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert said.splitlines()[0] in rejects[0]["detail"] and rejects[0]["reason"] == "bad_seed"


def test_a_locked_pdf_says_so(tmp_path: Path) -> None:
    import pypdf

    writer = pypdf.PdfWriter()
    writer.add_blank_page(72, 72)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "a.pdf")
    with pytest.raises(UserError, match=r"a\.pdf: the PDF is locked with a password") as found:
        records(tmp_path / "a.pdf")
    assert "qpdf" in found.value.hint


@pytest.mark.parametrize(("name", "module"), [("a.pdf", "pypdf"), ("a.html", "bs4")])
def test_a_library_that_is_missing_is_named(
    label: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    told = label(name, b"x", "--on-bad-seed", "skip")
    assert told.code == 2 and "which is not installed\n  hint: pip install 'kdgen[documents]'" in told.err


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ({"path": "d", "files": ["*.pdf"]}, "d: no file fits '*.pdf'"),
        ({"path": "d/a.txt", "files": ["*.txt"]}, "files has no effect: the path is one file"),
        ({"path": "s.jsonl", "files": ["*.txt"]}, "files has no effect: the path is one file"),
        ({"path": "d", "map": {"text": "x"}}, "map has no effect: a document has no columns"),
        ({"path": "d", "chunk": {"size": 9, "overlap": 9}}, "overlap is not below size"),
        ({"path": "d", "chunk": {"size": 9, "lest": 1}}, "did you mean least?"),
        ({"path": "e"}, "e: there is no seed in it"),
    ],
)
def test_settings_without_effect_are_errors(
    kdgen: Callable[..., Any], script: Callable[..., str], tmp_path: Path, seeds: Any, said: str
) -> None:
    made(tmp_path, "d/a.txt", "Hello there.")
    (tmp_path / "e").mkdir()
    (tmp_path / "s.jsonl").write_text('{"text": "x"}\n')
    recipe = {
        "name": "r",
        "seeds": seeds,
        "teachers": {"teacher": {"provider": "scripted", "path": script().split(":", 1)[1]}},
        "stages": [{"stage": "label", "method": "answer", "prompt": "label/answer"}],
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    told = kdgen("run", "./r.yaml")
    assert told.code == 2 and said in told.err, told.err


TEXTS = st.text(st.sampled_from("ab .\n\n#-é四\t1")) | st.lists(
    st.sampled_from(["One two.", "# H", "", "x" * 90, "  y"])
).map("\n".join)


@given(text=TEXTS, by=st.sampled_from(["sections", "tokens", "lines"]), size=st.integers(1, 12), data=st.data())
def test_chunks_hold_all_of_a_text_and_no_more_than_their_size(text: str, by: Any, size: int, data: Any) -> None:
    overlap, least = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    chunk = Chunk(by=by, size=size, overlap=overlap, least=least)
    doc: Doc = data.draw(st.sampled_from([markdown, lambda text: plain(text, code=True)]))(text)
    found = chunk.cut(doc)
    covered = set[int]()
    for start, end, _ in found:
        assert text[start:end].strip()
        covered |= {*range(start, end)}
    assert all(at in covered or text[at].isspace() for at in range(len(text)))
    assert [start for start, *_ in found] == sorted(start for start, *_ in found)
    if not least:
        for start, end, _ in found:
            weight = tokens_of(text[start:end]) if by != "lines" else text[start:end].count("\n") + 1
            assert weight <= size


def test_an_overlap_begins_with_the_end_of_the_chunk_before(tmp_path: Path) -> None:
    text = " ".join(f"Sentence number {number} is here." for number in range(40))
    found = made(tmp_path, "a.txt", text, chunk=Chunk(by="tokens", size=40, overlap=15, least=0))
    starts = [(span["start"], span["end"]) for span in spans(found)]
    for (_, end), (start, _) in pairwise(starts):
        assert start < end and tokens_of(text[start:end]) <= 15 and text[start:].startswith("Sentence")


def test_a_word_over_the_size_is_cut(tmp_path: Path) -> None:
    blob = "".join(chr(97 + number * number % 26) + chr(97 + number % 26) for number in range(800))
    found = made(tmp_path, "a.txt", f"Look: {blob} done.", chunk=Chunk(by="tokens", size=20, least=0))
    assert all(tokens_of(record.text) <= 20 for record in found)
    assert "".join(record.text for record in found) == f"Look:{blob}done."


def test_a_document_over_the_most_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdgen.documents import files

    monkeypatch.setattr(files, "MAX_DOCUMENT", 10)
    bomb = tmp_path / "a.txt.gz"
    bomb.write_bytes(gzip.compress(zlib.compress(b"x") * 100))
    with pytest.raises(files.BadRow, match="is read whole"):
        load(bomb, "a.txt.gz")


def test_a_small_size_lowers_the_least() -> None:
    assert (Chunk().least, Chunk(size=10).least) == (32, 5)
    with pytest.raises(ValidationError):
        Chunk(size=10, least=10)
