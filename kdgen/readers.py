"""Row readers by file type. Each yields (line or row number, raw row) and, .json aside, never holds the file.

JSON is parsed by line with orjson: a broken line is an error with its number, never a silent loss.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import orjson

from kdgen.errors import UserError
from kdgen.resources import did_you_mean

MAX_ROW = 16 * 1024 * 1024
LEAST, DEEPEST = -(2**63), 200  # a record holds its columns a few levels down, and orjson writes 254
MAX_JSON = 256 * 1024 * 1024
BOM = b"\xef\xbb\xbf"
UNREADABLE = (OSError, EOFError, zlib.error)
BARE = re.compile(rb'(?<![\w"])-?(NaN|Infinity)(?![\w"])')


class BadRow(Exception):
    """One row that is no seed, with the cause and what to do; `where` it stands, if that is not its number.

    `bad_seed` is a mistake of the user's. What has another reason (a file that is not read, a conversation that
    cleaning loses) is none: it is counted, whatever else is to be done with a bad row.
    """

    def __init__(self, cause: str, *, hint: str = "", where: str = "", reason: str = "bad_seed") -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint
        self.where = where
        self.reason = reason


def suffix_of(path: Path) -> str:
    """`.jsonl` and the like, a final `.gz` aside. Raises UserError for a type that is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in READERS:
        hint = did_you_mean(suffix, READERS) or f"kdgen reads {', '.join(READERS)}, documents and - for JSONL on stdin"
        raise UserError(f"seeds of type {suffix or 'none'!r} are not read", where=str(path), hint=hint)
    return suffix


@contextmanager
def spooled_stdin() -> Iterator[Path]:
    """Standard input as a temporary JSONL file, since seeds are read twice."""
    stdin = cast(io.BufferedReader, sys.stdin.buffer)
    with tempfile.NamedTemporaryFile("wb", prefix="kdgen-stdin-", suffix=".jsonl") as file:
        while block := stdin.read1(1 << 20):  # `read` would not look at signals before a whole block is in
            file.write(block)
        file.flush()
        yield Path(file.name)


def parsed(item: Any) -> dict[str, Any]:
    """The row as an object. `item` is a line's bytes, an object, or a BadRow that the reader met."""
    if isinstance(item, BadRow):
        raise item
    line = item if isinstance(item, bytes) else b""
    if line:
        try:
            item = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise _not_json(line, error) from None
    if not isinstance(item, dict):
        raise BadRow("the row is not a JSON object", hint='a row looks like {"instruction": "…"}')
    odd = _odd(item)
    if odd == "deep":
        raise BadRow(f"the row is nested deeper than {DEEPEST}", hint="leave that column out")
    if odd:
        for name, value in (json.loads(line) if line else item).items():
            if _odd(value, whole=True):
                raise BadRow(f"a number in {name!r} is beyond 64 bits", hint="write it in quotes, as a text")
    return item


def _odd(value: Any, *, whole: bool = False) -> str:
    """What JSON can say and kdgen cannot: `deep`, or a `number` that 64 bits cannot hold.

    Of a whole number that large orjson makes a float; with `whole`, only one that is still whole counts.
    """
    found, level = "", [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for each in level:
            kind = type(each)
            if kind is dict:
                below += each.values()
            elif kind is list:
                below += each
            elif (kind is float and not whole and abs(each) >= 2**63) or (kind is int and not LEAST <= each < 2**64):
                found = "number"
        if not below:
            return found
        level = below
    return "deep"


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
    return cast(IO[bytes], gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _unreadable(error: Exception, where: str) -> UserError:
    return UserError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=where)


def _plain(start: bytes, path: Path) -> bytes:
    """The start of a file without a BOM. Raises UserError where it is UTF-16."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start[:2]:
        raise UserError("the file is UTF-16", where=f"{path}:1", hint="save the file as UTF-8")
    return start.removeprefix(BOM)


def _lines(path: Path) -> Iterator[tuple[int, bytes | BadRow]]:
    """The lines of a file by number, a BOM aside; a line over 16 MiB is a BadRow and never held."""
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_ROW + 1):
                number += 1
                if number == 1:
                    line = _plain(line, path)
                if len(line) <= MAX_ROW:
                    yield number, line
                    continue
                size = len(line)
                while not line.endswith(b"\n") and (line := file.readline(MAX_ROW)):
                    size += len(line)
                big = f"the line is {size / 1e6:.0f} MB; a seed may have {MAX_ROW / 1e6:.0f}"
                yield number, BadRow(big, hint="a line this long is rarely one task; cut the text into rows")
    except UNREADABLE as error:
        raise _unreadable(error, f"{path}:{number + 1}") from None


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """The non-blank lines of a file as bytes, CRLF and a BOM aside; a line over 16 MiB is a BadRow."""
    for number, line in _lines(path):
        if isinstance(line, BadRow) or line.strip():
            yield number, line


def read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a JSON file: a list of objects, or an object that holds one such list."""
    try:
        with _open(path) as file:
            source = _plain(file.read(MAX_JSON + 1), path)
    except UNREADABLE as error:
        raise _unreadable(error, str(path)) from None
    if len(source) > MAX_JSON:
        hint = "a .jsonl is read row by row: jq -c '.[]' FILE.json > FILE.jsonl"
        raise UserError(f"it is over {MAX_JSON / 1e6:.0f} MB, and a .json is read whole", where=str(path), hint=hint)
    if not source.strip():
        return
    try:
        rows = orjson.loads(source)
    except orjson.JSONDecodeError as error:
        bad, line = _not_json(source, error), _line_of(source, error.pos)
        raise UserError(bad.cause, where=f"{path}:{line}", hint=bad.hint or "one object a line is a .jsonl") from None
    rows = json.loads(source) if _odd(rows) == "number" else rows
    if isinstance(rows, dict):
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = lists[0] if len(lists) == 1 else [rows]
    if not isinstance(rows, list):
        raise UserError("it is not a list of objects", where=str(path), hint='[{"instruction": "…"}, …] is one')
    yield from enumerate(rows, 1)


def _line_of(source: bytes, place: int) -> int:
    """The line of the character at `place`, or of the first byte that is not UTF-8."""
    try:
        return source.decode("utf-8").count("\n", 0, place) + 1
    except UnicodeDecodeError as wrong:
        return source.count(b"\n", 0, wrong.start) + 1


def read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a CSV file with a header, by the line on which each begins.

    A row with more or fewer cells than the header, or that is not UTF-8, is a BadRow.
    """
    csv.field_size_limit(MAX_ROW)
    rows = csv.reader(_csv_lines(path), strict=True)
    start, header = 1, list[str]()
    try:
        header = next(rows, [])
        _check_header(header, path)
        start = rows.line_num + 1
        for cells in rows:
            if cells:
                yield start, _csv_row(cells, header)
            start = rows.line_num + 1
    except csv.Error as error:
        begun = f"the row begins on line {start}; " if start < rows.line_num else ""
        hint = (
            f'{begun}a cell with a comma, a quote or a line break stands in quotes, its own quotes doubled: "a ""b"""'
        )
        raise UserError(f"invalid CSV: {error}", where=f"{path}:{rows.line_num}", hint=hint) from None


def _csv_lines(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        if isinstance(line, BadRow):
            raise UserError(line.cause, where=f"{path}:{number}", hint=line.hint)
        yield line.decode("utf-8", "surrogateescape")


def _check_header(header: list[str], path: Path) -> None:
    if not _is_utf8(header):
        raise UserError("invalid UTF-8", where=f"{path}:1", hint="save the file as UTF-8")
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise UserError(f"two columns are named {twice!r}", where=f"{path}:1", hint="the first line names the columns")


def _csv_row(cells: list[str], header: list[str]) -> dict[str, str] | BadRow:
    if len(cells) != len(header):
        return BadRow(f"the row has {len(cells)} cells, the header has {len(header)}")
    if not _is_utf8(cells):
        return BadRow("invalid UTF-8", hint="save the file as UTF-8")
    return dict(zip(header, cells, strict=True))


def _is_utf8(cells: list[str]) -> bool:
    """Whether no cell has what `surrogateescape` leaves of broken bytes."""
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


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
                    yield number, _as_json(row)
    except (OSError, ValueError) as error:
        raise UserError(f"invalid Parquet: {error}", where=str(path)) from None


def _as_json(row: dict[str, Any]) -> Any:
    """The row as JSON has it: dates and decimals as text, NaN as null; a row with bytes in it is a BadRow."""
    try:
        return orjson.loads(orjson.dumps(row, default=_as_text))
    except orjson.JSONEncodeError as error:
        return BadRow(f"JSON cannot hold the row: {error.__cause__ or error}", hint="leave that column out of the file")


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        raise TypeError("a column of bytes")
    return str(value)


READERS = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
BY_ROW = {".json", ".parquet"}  # their rows are counted, not their lines
