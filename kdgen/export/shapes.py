"""What a row looks like, said once: rows are checked by it, Parquet files, cards and Croissant take their columns from it.

A shape is a name of a kind, a tuple of the texts that may stand there, a list of what its items are (`[X]`, one at least;
`[X, 0]`, or none) or a dict of columns. A column whose name ends in `?` may be absent; a kind that does may be null.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import CoreSchema, SchemaValidator, core_schema

Shape = str | tuple[str, ...] | list[Any] | dict[str, Any]

TEXT = "text"  # may be empty
WORDS = "words"  # may not
NUMBER = "number"
WHOLE = "whole"
FLAG = "flag"
BYTE = "byte"
JSON = "json"  # anything; Parquet holds it as a text
ROLES = ("system", "user", "assistant", "tool")
KINDS: dict[str, Callable[[], CoreSchema]] = {
    TEXT: lambda: core_schema.str_schema(strict=True),
    WORDS: lambda: core_schema.str_schema(strict=True, min_length=1),
    NUMBER: lambda: core_schema.float_schema(strict=True, allow_inf_nan=False),
    WHOLE: lambda: core_schema.int_schema(strict=True),
    BYTE: lambda: core_schema.int_schema(strict=True, ge=0, le=255),
    FLAG: lambda: core_schema.bool_schema(strict=True),
    JSON: core_schema.any_schema,
}


def checker(shape: Shape) -> Callable[[Any], Any]:
    """What raises pydantic's ValidationError for a row that is not of this shape."""
    return SchemaValidator(schema_of(shape)).validate_python


def schema_of(shape: Shape) -> CoreSchema:
    """The shape as pydantic checks it: strictly, and no column beside it."""
    if isinstance(shape, str):
        plain = KINDS[shape.removesuffix("?")]()
        return core_schema.nullable_schema(plain) if shape.endswith("?") else plain
    if isinstance(shape, tuple):
        return core_schema.literal_schema(list(shape))
    if isinstance(shape, list):
        return core_schema.list_schema(schema_of(shape[0]), strict=True, min_length=0 if len(shape) > 1 else 1)
    fields = {
        name.removesuffix("?"): core_schema.typed_dict_field(schema_of(inner), required=not name.endswith("?"))
        for name, inner in shape.items()
    }
    return core_schema.typed_dict_schema(fields, extra_behavior="forbid", strict=True)


def columns(shape: dict[str, Any]) -> dict[str, Shape]:
    """The columns by their plain names."""
    return {name.removesuffix("?"): inner for name, inner in shape.items()}
