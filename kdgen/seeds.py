"""Reading seeds: one pass that checks every row and sends nothing, then a second that streams records.

Row shapes recognised, in this order: a `map` of the user's that says where the task is, `instruction[/input/output]`,
`prompt`, `question/answer`, `messages`, `conversations`, `text`. What else a map names comes over the shape's own;
columns that nothing uses are carried along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic
from pydantic import ValidationError

from kdgen.errors import UserError
from kdgen.readers import BY_ROW, READERS, BadRow, parsed, suffix_of
from kdgen.record import BLANK, Frozen, Message, Record, Reject, Row, digest
from kdgen.resources import did_you_mean

FIELDS = ("id", "instruction", "input", "output", "reasoning", "system", "text", "messages")
MAIN = {"instruction", "text", "messages"}
Field = Literal["id", "instruction", "input", "output", "reasoning", "system", "text", "messages"]
ALIASES = {"question": "instruction", "prompt": "instruction", "answer": "output", "response": "output"}
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SHAPES: dict[str, dict[str, str]] = {
    "instruction": {"input": "input", "output": "output", "response": "output"},
    "prompt": {"completion": "output", "response": "output", "output": "output"},
    "question": {"answer": "output", "context": "input"},
}


class Seeds(Frozen):
    """Where seeds come from and how their columns are read.

    `path` is a file (.jsonl, .json, .csv, .parquet, each also .gz where it is text), `-` for standard
    input, a built-in's bare name, or `package:NAME/path` for a file that an installed package carries.
    """

    path: str
    map: dict[Field, str] = {}
    on_bad: Literal["fail", "skip"] = "fail"
    limit: int | None = pydantic.Field(None, ge=1)


class Scan(NamedTuple):
    """What the first pass found: rows, the file's SHA-256, and the rows that do not become records."""

    rows: int
    sha256: str
    bad: dict[int, tuple[str, str]]


def scan(spec: Seeds, path: Path, *, name: str = "") -> Scan:
    """Check every row of `path`.

    Raises UserError with file and line at the first row that is no seed, unless `on_bad` is "skip": then
    such rows are listed with their reason and become rejects. Memory: 8 bytes a row and its id's hash.
    """
    name = name or str(path)
    unit = "row" if suffix_of(path) in BY_ROW else "line"
    ids: set[int] = set()
    bad: dict[int, tuple[str, str]] = {}
    twins: dict[int, tuple[int, str]] = {}
    count = 0
    for number, item in _rows(spec, path):
        count += 1
        try:
            record, given = _record(spec, item)
        except BadRow as error:
            if spec.on_bad == "fail":
                hint = error.hint or "fix the row, or go on without it: --on-bad-seed skip"
                raise UserError(error.cause, where=_place(name, unit, number), hint=hint) from None
            bad[number] = ("bad_seed", f"{_place(Path(name).name, unit, number)}: {error.cause}")
            continue
        short = _short(record.id)
        if short in ids:
            if given and spec.on_bad == "fail":
                raise UserError(
                    f"the id {record.id!r} is taken by {unit} {_firsts(spec, path, {short})[short]}",
                    where=_place(name, unit, number),
                    hint="ids must be unique; without an `id` column kdgen makes its own",
                )
            twins[number] = (short, record.id if given else "")
        ids.add(short)
    if count == 0:
        raise UserError("there is no seed in it", where=name, hint='a line such as {"instruction": "…"} is a seed')
    if len(bad) == count:
        first = next(iter(bad.values()))[1]
        raise UserError(f"no row of it is a seed; the first: {first}", where=name, hint="--map says what a column is")
    firsts = _firsts(spec, path, {short for short, _ in twins.values()}) if twins else {}
    for number, (short, given_id) in twins.items():
        first = f"{unit} {firsts[short]}"
        here = f"{_place(Path(name).name, unit, number)}: the id {given_id!r} is taken by {first}"
        bad[number] = ("bad_seed", here) if given_id else ("duplicate_seed", f"the same row as {first}")
    return Scan(count, file_sha256(path), bad)


def read(spec: Seeds, path: Path, found: Scan) -> Iterator[Row]:
    """Stream the records of a scanned file, its bad rows as rejects.

    Raises UserError where the file is no longer the one that was scanned.
    """
    count = 0
    for number, item in _rows(spec, path):
        count += 1
        if number in found.bad:
            reason, detail = found.bad[number]
            yield Reject(id=digest(number, detail), stage="seeds", reason=reason, detail=detail)
            continue
        try:
            yield _record(spec, item)[0]
        except BadRow as error:
            raise UserError(f"the file changed while it was read: {error.cause}", where=f"{path}:{number}") from None
    if count != found.rows:
        raise UserError(f"the file changed while it was read: {count} rows, not {found.rows}", where=str(path))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows(spec: Seeds, path: Path) -> Iterator[tuple[int, Any]]:
    reader: Callable[[Path], Iterator[tuple[int, Any]]] = READERS[suffix_of(path)]
    for taken, (number, item) in enumerate(reader(path)):
        if spec.limit is not None and taken >= spec.limit:
            return
        yield number, item


def _place(name: str, unit: str, number: int) -> str:
    return f"{name}:{number}" if unit == "line" else f"{name}: row {number}"


def _short(made: str) -> int:
    return int.from_bytes(hashlib.blake2b(made.encode(), digest_size=8).digest(), "big")


def _firsts(spec: Seeds, path: Path, wanted: set[int]) -> dict[int, int]:
    """Where each of the wanted ids stands first: one more pass, however many there are."""
    found: dict[int, int] = {}
    for number, item in _rows(spec, path):
        try:
            short = _short(_record(spec, item)[0].id)
        except BadRow:
            continue
        if short in wanted:
            found.setdefault(short, number)
    return found


def _record(spec: Seeds, item: Any) -> tuple[Record, bool]:
    """The record of one raw row, and whether its id is the user's. Raises BadRow."""
    row = parsed(item)
    mapped, used = _mapped(spec.map, row) if spec.map else ({}, set[str]())
    fields: dict[str, Any] = {}
    if not MAIN & spec.map.keys():
        fields, more = _recognised({name: value for name, value in row.items() if name not in used} if used else row)
        used |= more
    for part in (fields, mapped):
        if (messages := part.pop("messages", None)) is not None:
            fields |= _conversation(messages)
    fields |= mapped
    content = {name: _text(name, value) for name, value in fields.items() if name not in ("id", "history")}
    if not content.get("instruction", "").strip() and not content.get("text", "").strip():
        raise BadRow("the row has no text", hint="an empty instruction asks nothing; remove the row")
    extra = {name: value for name, value in row.items() if name not in used}
    history = fields.get("history", ())
    given = fields.get("id")
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int) or given == ""):
        raise BadRow(f"the id is {_kind(given)}, not a text or a whole number")
    made = str(given) if given is not None else digest(content, [dict(turn) for turn in history], extra)
    fields = {**BLANK, **content, "id": made, "seeds": (made,), "history": history, "extra": extra}
    return Record.trusted(fields), given is not None


def _recognised(row: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    fields: dict[str, Any] = {"id": row["id"]} if row.get("id") is not None else {}
    used = {"id"}
    for main, others in SHAPES.items():
        if row.get(main) is not None and not isinstance(row[main], list):
            fields["instruction"] = row[main]
            used.add(main)
            for column, field in others.items():
                if row.get(column) is not None and field not in fields:
                    fields[field] = row[column]
                    used.add(column)
            break
    else:
        turns = next((name for name in ("messages", "conversations", "prompt") if isinstance(row.get(name), list)), "")
        main = turns or ("text" if row.get("text") is not None else "")
        if not main:
            if wrong := next(
                (name for name in (*SHAPES, "messages", "conversations") if row.get(name) is not None), ""
            ):
                wanted = "a text" if wrong in SHAPES else "a list of turns"
                raise BadRow(f"{wrong} is {_kind(row[wrong])}, not {wanted}")
            columns = ", ".join(list(row)[:8]) or "none"
            known = ("instruction", "prompt", "question", "messages", "conversations", "text")
            near = next((hint for column in row if (hint := did_you_mean(column, known))), "")
            raise BadRow(
                f"no column holds a task (columns: {columns})",
                hint=near or "say which one does: --map instruction=COLUMN (the first line of a CSV names its columns)",
            )
        fields["messages" if turns else "text"] = row[main]
        used.add(main)
    for name in ("system", "reasoning"):
        if row.get(name) is not None and isinstance(row[name], str):
            fields[name] = row[name]
            used.add(name)
    return fields, used


def _mapped(columns: dict[Field, str], row: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    fields: dict[str, Any] = {}
    for field, column in columns.items():
        if column not in row:
            hint = did_you_mean(column, row) or f"it has: {', '.join(list(row)[:8])}"
            raise BadRow(f"the row has no column {column!r}", hint=hint)
        if row[column] is not None:
            fields[field] = row[column]
    if "id" not in columns and row.get("id") is not None:
        fields["id"] = row["id"]
    return fields, {*columns.values(), "id"}


def _conversation(turns: Any) -> dict[str, Any]:
    """The last user turn as instruction, an answer after it as output, what stands before as history."""
    if not isinstance(turns, list) or not turns:
        raise BadRow("messages is not a list of turns")
    said: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {number} is {_kind(turn)}, not an object")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            raise BadRow(f"turn {number} needs a role (system, user, assistant) and a text content")
        try:
            said.append(Message.model_validate({"role": ROLES[role], "content": content}))
        except ValidationError as error:
            raise BadRow(f"turn {number}: {error.errors()[0]['msg']}") from None
    system = said.pop(0).content if said[0].role == "system" else ""
    output = said.pop().content if said and said[-1].role == "assistant" else ""
    if not said or said[-1].role != "user":
        raise BadRow("the conversation has no user turn to answer")
    instruction = said.pop().content
    fields: dict[str, Any] = {"instruction": instruction, "history": tuple(said)}
    return fields | {name: value for name, value in (("system", system), ("output", output)) if value}


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name in ("output", "input") and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRow(f"{name} is {_kind(value)}, not a text")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "empty" if value in (None, "") else kinds.get(type(value), "a text")
