"""The shapes of a row: which of its columns are the fields of a record."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationError

from kdgen.cleaning import ROLES
from kdgen.readers import BadRow
from kdgen.record import Message
from kdgen.resources import did_you_mean

FIELDS = ("id", "instruction", "input", "output", "reasoning", "system", "text", "messages")
MAIN = {"instruction", "text", "messages"}
Field = Literal["id", "instruction", "input", "output", "reasoning", "system", "text", "messages"]
ALIASES = {"question": "instruction", "prompt": "instruction", "answer": "output", "response": "output"}
SHAPES: dict[str, dict[str, str]] = {
    "instruction": {"input": "input", "output": "output", "response": "output"},
    "prompt": {"completion": "output", "response": "output", "output": "output"},
    "question": {"answer": "output", "context": "input"},
}


def recognised(row: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """A row's fields by its own shape, and the columns that they use. Raises BadRow where it has none."""
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
                raise BadRow(f"{wrong} is {kind_of(row[wrong])}, not {wanted}")
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


def mapped(columns: dict[Field, str], row: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The fields that a map names, and the columns that they use. Raises BadRow where one lacks."""
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


def conversation(turns: Any) -> dict[str, Any]:
    """The last user turn as instruction, an answer after it as output, what stands before as history."""
    if not isinstance(turns, list) or not turns:
        raise BadRow("messages is not a list of turns")
    said: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {number} is {kind_of(turn)}, not an object")
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


def text_of(name: str, value: Any) -> str:
    """A field as a text; numbers are written out. Raises BadRow for anything else."""
    if isinstance(value, str):
        return value
    if name in ("output", "input") and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRow(f"{name} is {kind_of(value)}, not a text")


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    kinds = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "empty" if value in (None, "") else kinds.get(type(value), "a text")
