"""Row readers by file type. Each yields (line or row number, raw row) and never holds the file.

JSON is parsed by line with orjson: a broken line is an error with its number, never a silent loss.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import orjson

from kdgen.errors import UserError
from kdgen.resources import did_you_mean

MAX_ROW = 16 * 1024 * 1024
BOM = b"\xef\xbb\xbf"
BARE = re.compile(rb'(?<![\w"])-?(NaN|Infinity)(?![\w"])')


class BadRow(Exception):
    """One row that is no seed, with the cause and what to do."""

    def __init__(self, cause: str, *, hint: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint


def suffix_of(path: Path) -> str:
    """`.jsonl` and the like, a final `.gz` aside. Raises UserError for a type that is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in READERS:
        hint = did_you_mean(suffix, READERS) or f"kdgen reads {', '.join(READERS)} and - for JSONL on stdin"
        raise UserError(f"seeds of type {suffix or 'none'!r} are not read", where=str(path), hint=hint)
    return suffix


def spool_stdin() -> Path:
    """Standard input as a temporary JSONL file, since seeds are read twice."""
    with tempfile.NamedTemporaryFile("wb", prefix="kdgen-stdin-", suffix=".jsonl", delete=False) as file:
        while block := sys.stdin.buffer.read(1 << 20):
            file.write(block)
    return Path(file.name)


def parsed(item: Any) -> dict[str, Any]:
    """The row as an object. `item` is a line's bytes, an object, or a BadRow that the reader met."""
    if isinstance(item, BadRow):
        raise item
    if isinstance(item, bytes):
        try:
            item = orjson.loads(item)
        except orjson.JSONDecodeError as error:
            raise _not_json(item, error) from None
    if not isinstance(item, dict):
        raise BadRow("the row is not a JSON object", hint='a row looks like {"instruction": "…"}')
    return item


def _not_json(line: bytes, error: orjson.JSONDecodeError) -> BadRow:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return BadRow(f"invalid UTF-8 at byte {wrong.start + 1}", hint="save the file as UTF-8")
    number = BARE.search(line)
    if number:
        return BadRow(f"{number.group(1).decode()} is not JSON", hint="write null, or leave the column out")
    return BadRow(f"invalid JSON: {error.msg} (column {error.colno})")


def _open(path: Path) -> IO[bytes]:
    try:
        return cast(IO[bytes], gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """The non-blank lines of a file as bytes, CRLF and a BOM aside; a line over 16 MiB is a BadRow."""
    with _open(path) as file:
        number = 0
        try:
            while line := file.readline(MAX_ROW + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(BOM)
                    if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                        raise UserError("the file is UTF-16", where=f"{path}:1", hint="save the file as UTF-8")
                if len(line) > MAX_ROW:
                    size = len(line)
                    while rest := file.readline(MAX_ROW):
                        size += len(rest)
                        if rest.endswith(b"\n"):
                            break
                    big = f"the line is {size / 1e6:.0f} MB; a seed may have {MAX_ROW / 1e6:.0f}"
                    yield number, BadRow(big, hint="a line this long is rarely one task; cut the text into rows")
                elif line.strip():
                    yield number, line
        except (gzip.BadGzipFile, EOFError, OSError) as error:
            raise UserError(f"cannot be read: {error}", where=f"{path}:{number + 1}") from None


def read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a JSON file: a list of objects, or an object that holds one such list."""
    with _open(path) as file:
        source = file.read().removeprefix(BOM)
    if not source.strip():
        return
    try:
        rows = orjson.loads(source)
    except orjson.JSONDecodeError as error:
        bad = _not_json(source, error)
        line = source.count(b"\n", 0, error.pos) + 1
        raise UserError(bad.cause, where=f"{path}:{line}", hint=bad.hint or "one object a line is a .jsonl") from None
    if isinstance(rows, dict):
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = lists[0] if len(lists) == 1 else [rows]
    if not isinstance(rows, list):
        raise UserError("it is not a list of objects", where=str(path))
    yield from enumerate(rows, 1)


def read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a CSV file with a header; a row with more or fewer cells than the header is a BadRow."""
    csv.field_size_limit(MAX_ROW)
    with _open(path) as binary:
        lines = (line.decode("utf-8") for line in binary)
        try:
            rows = csv.reader(lines, strict=True)
            header = next(rows, None)
            if not header:
                return
            header[0] = header[0].removeprefix("\ufeff")
            for cells in rows:
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield rows.line_num, BadRow(f"the row has {len(cells)} cells, the header has {len(header)}")
                else:
                    yield rows.line_num, dict(zip(header, cells, strict=True))
        except UnicodeDecodeError as error:
            raise UserError(f"invalid UTF-8: {error}", where=str(path), hint="save the file as UTF-8") from None
        except csv.Error as error:
            raise UserError(f"invalid CSV: {error}", where=f"{path}:{rows.line_num}") from None


def read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a Parquet file, a batch at a time."""
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        hint = "pip install 'kdgen[parquet]'"
        raise UserError("reading Parquet needs pyarrow, which is not installed", where=str(path), hint=hint) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, ValueError) as error:
        raise UserError(f"invalid Parquet: {error}", where=str(path)) from None


READERS = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
