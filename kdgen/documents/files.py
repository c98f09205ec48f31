"""Files as texts, with where in the file each part of the text stands: plain text, Markdown, source code, HTML, PDF."""

from __future__ import annotations

import gzip
import importlib
import logging
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kdgen.errors import UserError
from kdgen.readers import BadRow

MAX_DOCUMENT = 64 * 1024 * 1024
TEXT = {".txt", ".text", ".rst", ".tex", ".org"}
MARKDOWN = {".md", ".markdown"}
HTML = {".html", ".htm", ".xhtml"}
PDF = {".pdf"}
CODE = set(
    ".c .cc .clj .cpp .cs .cxx .dart .erl .ex .exs .f90 .go .h .hpp .hs .java .jl .js .jsx .kt .lua .m .ml .php .pl .py .r "
    ".rb .rs .scala .sh .sql .swift .ts .tsx .vb .zig".split()
)
SUFFIXES = TEXT | MARKDOWN | HTML | PDF | CODE

FENCE = re.compile(r" {0,3}(```|~~~)")
HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
MATTER = re.compile(r"\A---\r?\n.*?^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
MARGIN = re.compile(r"(?:\A|\n[ \t]*\r?\n)(?=[^\s)\]}])")

LEFT_OUT = {"script", "style", "nav", "footer", "aside", "form", "noscript", "template", "svg", "button", "head"}
BLOCKS = set(
    "address article blockquote body center dd details div dl dt fieldset figcaption figure h1 h2 h3 h4 h5 h6 hr html li "
    "main ol p pre section summary table tbody td tfoot th thead tr ul".split()
)


class Doc(NamedTuple):
    """A document's text: its sections, and which line or page of the file begins where in the text.

    `exact` says that the text is the file's own, so that characters are counted alike; the document begins at `begin`.
    """

    text: str
    title: str
    sections: list[tuple[int, str]]
    marks: list[tuple[int, int]]
    unit: str
    exact: bool
    begin: int = 0

    def where(self, start: int, end: int) -> dict[str, Any]:
        """The part of a span that says where in the file the text from `start` to `end` stands."""
        starts = [at for at, _ in self.marks]
        first, last = (self.marks[max(0, bisect_right(starts, at) - 1)][1] for at in (start, max(start, end - 1)))
        span = {"start": start, "end": end} if self.exact else {}
        return {**span, self.unit: first, f"end_{self.unit}": last}


def suffix_of(path: Path) -> str:
    """`.md` and the like, a final `.gz` aside."""
    return next((each.lower() for each in reversed(path.suffixes) if each.lower() != ".gz"), "")


def load(path: Path, name: str) -> tuple[Doc, list[BadRow]]:
    """A file's document, and the parts of it that cannot be read. Raises BadRow where none of it can be."""
    suffix = suffix_of(path)
    try:
        if suffix in PDF:
            return _pdf(path, name)
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            source = file.read(MAX_DOCUMENT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BadRow(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=name) from None
    if len(source) > MAX_DOCUMENT:
        raise BadRow(f"the file is over {MAX_DOCUMENT / 1e6:.0f} MB, and a document is read whole", where=name)
    if suffix in HTML:
        doc = _html(source, path, name)
    else:
        text = _decoded(source, "utf-8", name)
        doc = markdown(text) if suffix in MARKDOWN else plain(text, code=suffix in CODE)
    if not doc.text[doc.begin :].strip():
        raise BadRow("there is no text in it", where=name)
    return doc, []


def plain(text: str, *, code: bool) -> Doc:
    """A text without headings. Of source code, what begins at the margin after a blank line is a section."""
    begins = [found.end() for found in MARGIN.finditer(text)] if code else []
    sections = [(at, text[at : at + 200].split("\n", 1)[0].strip()[:80]) for at in begins]
    return Doc(text, "", sections, _lines(text), "line", True)


def markdown(text: str) -> Doc:
    """A text whose sections begin at Markdown's headings; front matter is not part of it."""
    found: list[tuple[int, int, str]] = []
    matter = MATTER.match(text)
    at = begin = matter.end() if matter else 0
    fence = before = ""
    for line in text[at:].splitlines(keepends=True):
        if opened := FENCE.match(line):
            fence = "" if fence == opened[1] else fence or opened[1]
        elif not fence:
            if heading := HEADING.match(line.rstrip("\r\n")):
                found.append((at, len(heading[1]), heading[2]))
            elif before.strip() and not before.lstrip().startswith(("|", "-", ">", "#")) and UNDERLINE.match(line):
                found.append((at - len(before), 1 if "=" in line else 2, before.strip()))
        at, before = at + len(line), line
    return Doc(text, found[0][2] if found else "", list(_paths(found)), _lines(text), "line", True, begin)


def _paths(headings: Iterable[tuple[int, int, str]]) -> Iterator[tuple[int, str]]:
    """Each heading (start, level, words) with those that it stands under."""
    above: list[tuple[int, str]] = []
    for at, level, words in headings:
        above = [*(each for each in above if each[0] < level), (level, words)]
        yield at, " > ".join(each[1] for each in above)


def _lines(text: str) -> list[tuple[int, int]]:
    return [(0, 1), *((found.end(), number) for number, found in enumerate(re.finditer("\n", text), 2))]


def _decoded(source: bytes, encoding: str, name: str) -> str:
    if source[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadRow("the file is UTF-16", where=f"{name}:1", hint="save the file as UTF-8")
    if (zero := source.find(b"\0")) >= 0:
        line = source.count(b"\n", 0, zero) + 1
        raise BadRow("the file is not a text", where=f"{name}:{line}")
    try:
        return source.removeprefix(b"\xef\xbb\xbf").decode(encoding)
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        hint = "save the file as UTF-8"
        raise BadRow(
            f"invalid {encoding.upper()} at byte {error.start + 1}", where=f"{name}:{line}", hint=hint
        ) from None
    except LookupError:
        raise BadRow(f"the file says that it is {encoding!r}, which is no encoding", where=name) from None


def _library(module: str, package: str, what: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        hint = "pip install 'kdgen[documents]'"
        raise UserError(f"reading {what} needs {package}, which is not installed", where=str(path), hint=hint) from None


class _Text:
    """The text of an HTML page as it grows block by block."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.size = 0
        self.marks: list[tuple[int, int]] = []
        self.headings: list[tuple[int, int, str]] = []
        self.line, self.prefix, self.parts = 1, "", list[str]()

    def flush(self, *, level: int = 0, verbatim: bool = False, end: str = "\n\n") -> None:
        """End a block."""
        joined = "".join(self.parts)
        text = (
            joined.strip("\n") if verbatim else "\n".join(" ".join(line.split()) for line in joined.split("\n")).strip()
        )
        self.parts = []
        if not text.strip():
            return
        if level:
            self.headings.append((self.size, level, text))
        text = ("#" * level + " " if level else self.prefix) + text + end
        self.marks.append((self.size, self.line))
        self.blocks.append(text)
        self.size += len(text)
        self.prefix = ""

    def walk(self, node: Any, tags: Any) -> None:
        """Everything below `node`."""
        for child in node.children:
            if isinstance(child, tags):
                self.element(child, tags)
            elif type(child).__name__ in ("NavigableString", "CData"):
                self.parts.append(str(child) if node.name == "pre" else re.sub(r"\s+", " ", str(child)))

    def element(self, node: Any, tags: Any) -> None:
        """One element; a block's text is its own paragraph, and what stands beside a page's text is left out."""
        name = node.name
        if name in LEFT_OUT or "hidden" in node.attrs:
            return
        if name == "br":
            self.parts.append("\n")
            return
        if name not in BLOCKS:
            self.walk(node, tags)
            return
        end = "\n" if name in ("li", "dt", "dd", "tr") else "\n\n"
        if name in ("td", "th") and any(part.strip() for part in self.parts):
            self.parts.append(" | ")
        elif name not in ("td", "th"):
            self.flush()
            self.line = node.sourceline or self.line
            self.prefix = "- " if name == "li" else self.prefix
        if name == "pre":
            self.parts.append(node.get_text())
            self.flush(verbatim=True)
            return
        self.walk(node, tags)
        if name not in ("td", "th"):
            self.flush(level=int(name[1]) if re.fullmatch("h[1-6]", name) else 0, end=end)
        if name in ("ul", "ol", "dl", "table") and self.blocks and not self.blocks[-1].endswith("\n\n"):
            self.blocks[-1] += "\n"
            self.size += 1


def _html(source: bytes, path: Path, name: str) -> Doc:
    soup = _library("bs4", "beautifulsoup4", "HTML", path)
    dammit = importlib.import_module("bs4.dammit")
    encoding = dammit.EncodingDetector.find_declared_encoding(source, is_html=True) or "utf-8"
    try:
        page = soup.BeautifulSoup(_decoded(source, encoding, name), "html.parser")
        made = _Text()
        made.walk(page.find("main") or page.find("article") or page.body or page, soup.Tag)
        made.flush()
    except RecursionError:
        raise BadRow("the page is nested too deeply", where=name) from None
    title = page.title.get_text().strip() if page.title else made.headings[0][2] if made.headings else ""
    return Doc("".join(made.blocks), title, list(_paths(made.headings)), made.marks or [(0, 1)], "line", False)


def _pdf(path: Path, name: str) -> tuple[Doc, list[BadRow]]:
    pypdf = _library("pypdf", "pypdf", "PDF", path)
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it says of small flaws is nothing to act on
    text, marks, bad = "", list[tuple[int, int]](), list[BadRow]()
    # A broken file makes the parser raise whatever its damage leads to: KeyError, ValueError, RecursionError…
    try:
        reader = pypdf.PdfReader(path)
        locked = reader.is_encrypted and not reader.decrypt("")
        pages = [] if locked else list(reader.pages)
        title = "" if locked else str((reader.metadata or {}).get("/Title") or "").strip()
    except Exception as error:
        raise BadRow(f"not a PDF that can be read: {_said(error)}", where=name) from None
    if locked:
        raise BadRow("the PDF is locked with a password", where=name, hint="qpdf --decrypt --password=… IN OUT")
    for number, page in enumerate(pages, 1):
        try:
            said = page.extract_text().strip()
        except Exception as error:
            bad.append(BadRow(f"the page cannot be read: {_said(error)}", where=f"{name}: page {number}"))
            continue
        if said:
            marks.append((len(text), number))
            text += said + "\n\n"
    if not marks and not bad:
        raise BadRow("no page has text in it", where=name, hint="scanned pages need OCR first: ocrmypdf IN OUT")
    return Doc(text, title, [(at, "") for at, _ in marks], marks or [(0, 1)], "page", False), bad


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:200]
