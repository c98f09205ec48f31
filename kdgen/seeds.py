"""Reading seeds: one pass that checks every row and sends nothing, then a second that streams records.

Row shapes recognised, in this order: a `map` of the user's that says where the task is, `instruction[/input/output]`,
`prompt`, `question/answer`, `messages`, `conversations`, `text`. What else a map names comes over the shape's own;
columns that nothing uses are carried along. Documents have no rows: their chunks are seeds (see `kdgen.documents`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic
from pydantic import ValidationError

from kdgen import documents
from kdgen.cleaning import Clean
from kdgen.documents import Chunk
from kdgen.errors import UserError
from kdgen.readers import BY_ROW, READERS, BadRow, parsed, suffix_of
from kdgen.record import BLANK, Frozen, Record, Reject, Row, digest
from kdgen.resources import builtins
from kdgen.selection import Coverage, Select
from kdgen.shapes import MAIN, Field, conversation, kind_of, mapped, recognised, text_of


class Seeds(Frozen):
    """Where seeds come from and how their columns are read.

    `path` is a file (.jsonl, .json, .csv, .parquet, each also .gz where it is text), `-` for standard input, a built-in's
    bare name, or `package:NAME/path` for a file that an installed package carries. It may also be the folder of a dataset
    that kdgen made, whose records are the seeds; a document (text, Markdown, HTML, PDF, source code) or a folder of them,
    of which `files` names those to read (`["*.md", "guide/*"]`). `chunk` says how documents are cut, and has rows that are
    a text cut too.
    `clean` cleans conversations. `limit` takes the first so many; of these, `select` chooses those that cover them all.
    `licence` is theirs, as the manifest and every export say it; of seeds that ship it is known.
    """

    path: str
    files: tuple[str, ...] = ()
    chunk: Chunk | None = None
    clean: Clean | None = None
    map: dict[Field, str] = {}
    on_bad: Literal["fail", "skip"] = "fail"
    limit: int | None = pydantic.Field(None, ge=1)
    select: Select | None = None
    licence: str = ""

    @property
    def under(self) -> str:
        """Their licence, or nothing where nobody said it."""
        return self.licence or ("CC0-1.0" if self.path in builtins("seeds") else "")


# What a row has that kdgen wrote as a record, and what of it a seed is made of.
OWN = {"id", "instruction", "output", "stage", "method", "seeds", "calls", "writers", "meta"}
FIELDS_OF_OWN = (
    "instruction", "input", "output", "reasoning", "system", "history", "text", "candidates", "writers", "finish", "extra",
)  # fmt: skip


class Scan(NamedTuple):
    """What the first pass found: rows, the file's SHA-256, and the rows that do not become records."""

    rows: int
    sha256: str
    bad: dict[int, tuple[str, str]]
    coverage: Coverage | None = None


def scan(spec: Seeds, path: Path, *, name: str = "") -> Scan:
    """Check every row of `path`.

    Raises UserError with file and line at the first row that is no seed, unless `on_bad` is "skip": then such rows are
    listed with their reason and become rejects. Memory: 8 bytes a row and its id's hash (with `clean`, its opening's).
    """
    name = name or str(path)
    unit = _unit(path)
    ids: set[int] = set()
    bad: dict[int, tuple[str, str]] = {}
    twins: dict[int, tuple[int, str, str]] = {}
    openings: dict[int, int] = {}
    count = 0
    for number, item in _rows(spec, path):
        count += 1
        try:
            record, given = _record(spec, item)
        except BadRow as error:
            if spec.on_bad == "fail" and error.reason == "bad_seed":
                hint = error.hint or "mend it, or go on without it: --on-bad-seed skip"
                where = error.where or _place(Path(name).name, unit, number)
                raise UserError(error.cause, where=_whole(where, spec, path), hint=hint) from None
            bad[number] = (error.reason, f"{error.where or _place(Path(name).name, unit, number)}: {error.cause}")
            continue
        opening = spec.clean.opening(record) if spec.clean else ""
        if opening and (earlier := openings.setdefault(_short(opening), number)) != number:
            bad[number] = ("same_opening", f"{_place(Path(name).name, unit, number)}: opens as {unit} {earlier} does")
            continue
        short = _short(record.id)
        if short in ids:
            if given and spec.on_bad == "fail":
                raise UserError(
                    f"the id {record.id!r} is taken by {_firsts(spec, path, {short})[short]}",
                    where=_place(name, unit, number),
                    hint="ids must be unique; without an `id` column kdgen makes its own",
                )
            here = documents.place_of(record) or _place(Path(name).name, unit, number)
            twins[number] = (short, record.id if given else "", here)
        ids.add(short)
    if count == 0:
        raise UserError("there is no seed in it", where=name, hint='a line such as {"instruction": "…"} is a seed')
    if len(bad) == count:
        first = next(iter(bad.values()))[1]
        hint = (
            "--map says what a column is"
            if unit != "chunk"
            else f"documents end in {', '.join(sorted(documents.SUFFIXES))}"
        )
        raise UserError(f"no row of it is a seed; the first: {first}", where=name, hint=hint)
    firsts = _firsts(spec, path, {short for short, *_ in twins.values()}) if twins else {}
    for number, (short, given_id, here) in twins.items():
        first = firsts[short]
        bad[number] = ("duplicate_seed", f"the same row as {first}")
        if unit == "chunk":
            bad[number] = ("duplicate_seed", f"{here}: the same text as {first}")
        elif given_id:
            bad[number] = ("bad_seed", f"{here}: the id {given_id!r} is taken by {first}")
    coverage = None
    if spec.select is not None:
        try:
            left, coverage = spec.select.left_out(
                lambda: ((n, _record(spec, item)[0]) for n, item in _rows(spec, path) if n not in bad)
            )
        except (BadRow, KeyError):  # a row that was not one before, or was not there
            raise UserError("the file changed while it was read", where=name, hint="run it again") from None
        bad |= {n: ("not_selected", said) for n, said in left.items()}
    return Scan(count, documents.sha256(path, spec.files), bad, coverage)


def read(spec: Seeds, path: Path, found: Scan) -> Iterator[Row]:
    """Stream the records of a scanned file, its bad rows as rejects.

    Raises UserError where the file is no longer the one that was scanned.
    """
    count = 0
    for number, item in _rows(spec, path):
        count += 1
        reason, detail = found.bad.get(number, ("", ""))
        if reason and reason != "not_selected":
            yield Reject(id=digest(number, detail), stage="seeds", reason=reason, detail=detail)
            continue
        try:
            record = _record(spec, item)[0]
            yield record.rejected("seeds", reason, detail) if reason else record
        except BadRow as error:
            raise UserError(f"the file changed while it was read: {error.cause}", where=f"{path}:{number}") from None
    if count != found.rows:
        raise UserError(f"the file changed while it was read: {count} rows, not {found.rows}", where=str(path))


def _rows(spec: Seeds, path: Path) -> Iterator[tuple[int, Any]]:
    """What is to become a record, by number: rows, or records already where they are chunks."""
    rows: Iterator[tuple[int, Any]]
    if documents.is_document(path):
        if without := "map" if spec.map else "clean" if spec.clean else "":
            raise UserError(f"{without} has no effect: a document has no columns", where=str(path), hint="take it out")
        rows = documents.read(path, spec.files, spec.chunk or Chunk())
    else:
        unit, reader = _unit(path), READERS[suffix_of(path)]
        if spec.files:
            raise UserError("files has no effect: the path is one file", where=str(path), hint="take it out")
        rows = (
            reader(path)
            if spec.chunk is None
            else _cut(spec, reader(path), "stdin" if spec.path == "-" else path.name, unit)
        )
    for taken, (number, item) in enumerate(rows):
        if spec.limit is not None and taken >= spec.limit:
            return
        yield number, item


def _cut(spec: Seeds, rows: Iterator[tuple[int, Any]], name: str, unit: str) -> Iterator[tuple[int, Record | BadRow]]:
    """The chunks of rows that are a text each."""
    count = 0
    assert spec.chunk is not None
    for number, item in rows:
        try:
            record, given = _record(spec, item)
            if record.instruction:
                raise BadRow("the row is a task, and `chunk` cuts texts", hint="take chunk out, or --map text=COLUMN")
        except BadRow as error:
            count += 1
            where = _place(name, unit, number)
            yield count, BadRow(error.cause, hint=error.hint, where=where)
            continue
        for piece in documents.pieces(record, given, {"file": name, unit: number}, spec.chunk):
            count += 1
            yield count, piece


def _unit(path: Path) -> str:
    """What a file's seeds are counted in."""
    return "chunk" if documents.is_document(path) else "row" if suffix_of(path) in BY_ROW else "line"


def _whole(where: str, spec: Seeds, path: Path) -> str:
    """The path of a place in a file or folder."""
    return where if spec.path == "-" else str(path / where if path.is_dir() else path.parent / where)


def _place(name: str, unit: str, number: int) -> str:
    return f"{name}:{number}" if unit == "line" else f"{name}: {unit} {number}"


def _short(made: str) -> int:
    return int.from_bytes(hashlib.blake2b(made.encode(), digest_size=8).digest(), "big")


def _firsts(spec: Seeds, path: Path, wanted: set[int]) -> dict[int, str]:
    """Where each of the wanted ids stands first: one more pass, however many there are."""
    found: dict[int, str] = {}
    unit = _unit(path)
    for number, item in _rows(spec, path):
        try:
            record = _record(spec, item)[0]
        except BadRow:
            continue
        if (short := _short(record.id)) in wanted:
            found.setdefault(short, documents.place_of(record) or f"{unit} {number}")
    return found


def own_record(row: dict[str, Any]) -> Record:
    """A row of another dataset's records.jsonl as a seed: the task, its answers and who wrote them. How they came to be
    stands in that dataset; of `meta` stays what says how an answer is to be judged. Raises BadRow.
    """
    kept = {name: row[name] for name in (*FIELDS_OF_OWN, "id") if name in row}
    meta = row["meta"] if isinstance(row["meta"], dict) else {}
    kept |= {"seeds": (row["id"],), "meta": {name: meta[name] for name in ("gold", "verifier") if name in meta}}
    try:
        return Record.model_validate(kept)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRow(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _record(spec: Seeds, item: Any) -> tuple[Record, bool]:
    """The record of one raw row, and whether its id is the user's. Raises BadRow."""
    if isinstance(item, Record):
        return item, False
    row = parsed(item)
    if not spec.map and spec.clean is None and row.keys() >= OWN:
        return own_record(row), False
    chosen, used = mapped(spec.map, row) if spec.map else ({}, set[str]())
    fields: dict[str, Any] = {}
    if not MAIN & spec.map.keys():
        fields, more = recognised({name: value for name, value in row.items() if name not in used} if used else row)
        used |= more
    for part in (fields, chosen):
        if (messages := part.pop("messages", None)) is not None:
            fields |= conversation(spec.clean.turns(messages, row) if spec.clean else messages)
    if spec.clean and "history" not in fields:
        raise BadRow("the row is no conversation, and `clean` cleans conversations", hint="take clean out")
    fields |= chosen
    content = {name: text_of(name, value) for name, value in fields.items() if name not in ("id", "history")}
    if not content.get("instruction", "").strip() and not content.get("text", "").strip():
        raise BadRow("the row has no text", hint="an empty instruction asks nothing; remove the row")
    extra = {name: value for name, value in row.items() if name not in used}
    history = fields.get("history", ())
    given = fields.get("id")
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int) or given == ""):
        raise BadRow(f"the id is {kind_of(given)}, not a text or a whole number")
    made = str(given) if given is not None else digest(content, [dict(turn) for turn in history], extra)
    fields = {**BLANK, **content, "id": made, "seeds": (made,), "history": history, "extra": extra}
    return Record.trusted(fields), given is not None
