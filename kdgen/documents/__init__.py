"""Documents as seeds: files and folders of text, Markdown, HTML, PDF and source code, cut into chunks with spans.

Each chunk is a record whose `text` it is. `meta.span` leads back to the source: the file, and in it the first and last
line (for a text also the characters `start` to `end`, so that `source[start:end]` is the chunk) or page, and the
section. A chunk's id depends on its text alone: renaming a file, or a change elsewhere in it, asks nothing again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import JsonValue

from kdgen.documents.chunks import Chunk
from kdgen.documents.files import SUFFIXES, Doc, load, markdown, suffix_of
from kdgen.errors import UserError
from kdgen.readers import BadRow
from kdgen.record import BLANK, Record, digest

__all__ = ["SUFFIXES", "Chunk", "is_document", "pieces", "place_of", "read", "sha256"]


def is_document(path: Path) -> bool:
    """Whether a path is a folder, or a file that is cut into chunks and not read by rows."""
    return path.is_dir() or suffix_of(path) in SUFFIXES


def read(path: Path, files: Sequence[str], chunk: Chunk) -> Iterator[tuple[int, Record | BadRow]]:
    """The chunks of a file, or of a folder's files in the order of their names, each with its number.

    A file that cannot be read as what it is named is a BadRow; of a folder's files, one of a type that is not read is too.
    """
    number = 0
    for file in _listed(path, files):
        name = file.relative_to(path).as_posix() if path.is_dir() else path.name
        try:
            if suffix_of(file) not in SUFFIXES:
                raise BadRow("files of this type are not read", where=name, reason="unread_file")
            doc, bad = load(file, name)
        except BadRow as error:
            number += 1
            yield number, error
            continue
        for lost in bad:
            number += 1
            yield number, lost
        for record in _records(doc, name, chunk):
            number += 1
            yield number, record


def pieces(record: Record, given: bool, place: dict[str, JsonValue], chunk: Chunk) -> Iterator[Record]:
    """The chunks of a row that is a text; `place` says where the row stands. Sections are Markdown's."""
    for start, end, section in chunk.cut(markdown(record.text)):
        text = record.text[start:end]
        made = f"{record.id}#{digest(text)[:8]}" if given else digest(text, record.extra)
        span = place | {"start": start, "end": end} | ({"section": section} if section else {})
        fields = {**record.__dict__, "id": made, "seeds": (made,), "text": text, "meta": {"span": span}}
        yield Record.trusted(fields)


def place_of(record: Record) -> str:
    """Where a chunk begins, as `file:line`, `file: page n` or `file: row n`; empty for what is no chunk."""
    span = record.meta.get("span")
    if not isinstance(span, dict):
        return ""
    return next((f"{span['file']}: {unit} {span[unit]}" for unit in ("page", "row") if unit in span), "") or (
        f"{span['file']}:{span['line']}"
    )


def sha256(path: Path, files: Sequence[str]) -> str:
    """Stands for the names and bytes of what is read, as hex."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = [f"{sha256(file, ())}  {file.relative_to(path).as_posix()}\n" for file in _listed(path, files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _records(doc: Doc, name: str, chunk: Chunk) -> Iterator[Record]:
    extra = {"title": doc.title} if doc.title else {}
    for start, end, section in chunk.cut(doc):
        text = doc.text[start:end]
        made = digest(text)
        span: dict[str, JsonValue] = {"file": name, **doc.where(start, end)}
        meta = {"span": span | ({"section": section} if section else {})}
        yield Record.trusted({**BLANK, "id": made, "seeds": (made,), "text": text, "extra": extra, "meta": meta})


def _listed(path: Path, files: Sequence[str]) -> list[Path]:
    """The files below a folder in the order of their names, what begins with a dot aside. A file is its own list."""
    if path.is_file():
        if files:
            hint = "take it out, or name the folder"
            raise UserError("files has no effect: the path is one file", where=str(path), hint=hint)
        return [path]
    found: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    found = sorted(each for each in found if each.is_file())
    for pattern in files:
        if not any(_fits(each.relative_to(path), pattern) for each in found):
            raise UserError(f"no file fits {pattern!r}", where=str(path), hint='`*` stands for slashes too: "*.md"')
    return [each for each in found if not files or any(_fits(each.relative_to(path), pattern) for pattern in files)]


def _fits(path: Path, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path.as_posix(), pattern)
