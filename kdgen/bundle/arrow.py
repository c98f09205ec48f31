"""Shapes as Parquet and the Hugging Face hub have them. pyarrow loads when a file of it is written."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import orjson

from kdgen.errors import UserError
from kdgen.export.shapes import BYTE, FLAG, JSON, NUMBER, TEXT, WHOLE, WORDS, Shape, columns

DTYPES = {
    TEXT: "string",
    WORDS: "string",
    JSON: "string",
    NUMBER: "float64",
    WHOLE: "int64",
    FLAG: "bool",
    BYTE: "uint8",
}


def pyarrow(name: str = "pyarrow") -> Any:
    """The module. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        hint = "pip install 'kdgen[parquet]', or --as jsonl"
        raise UserError("writing Parquet needs pyarrow, which is not installed", where="--as", hint=hint) from None


def kind_of(shape: str) -> str:
    """The name that Arrow and the hub have for a plain kind."""
    return DTYPES[shape.removesuffix("?")]


def type_of(shape: Shape) -> Any:
    """The Arrow type of a shape."""
    arrow = pyarrow()
    if isinstance(shape, str):
        return arrow.type_for_alias(kind_of(shape))
    if isinstance(shape, tuple):
        return arrow.string()
    if isinstance(shape, list):
        return arrow.list_(type_of(shape[0]))
    return arrow.struct([arrow.field(name, type_of(inner)) for name, inner in columns(shape).items()])


def schema_of(shape: dict[str, Any]) -> Any:
    """The Arrow schema of a row."""
    return pyarrow().schema([(name, type_of(inner)) for name, inner in columns(shape).items()])


def packer(shape: Shape) -> Callable[[Any], Any] | None:
    """What writes the parts of a row that may be anything as JSON texts; None where there are none."""
    if isinstance(shape, str):
        return _text if shape.removesuffix("?") == JSON else None
    if isinstance(shape, list) and (each := packer(shape[0])):
        return lambda value: None if value is None else [each(item) for item in value]
    if isinstance(shape, dict):
        inner = {name: pack for name, part in columns(shape).items() if (pack := packer(part))}
        if inner:
            return lambda row: {name: inner[name](value) if name in inner else value for name, value in row.items()}
    return None


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()


def features(shape: dict[str, Any]) -> list[dict[str, Any]]:
    """The columns as `dataset_info.features` of a dataset card."""
    return [{"name": name, **_feature(inner)} for name, inner in columns(shape).items()]


def _feature(shape: Shape) -> dict[str, Any]:
    if isinstance(shape, str):
        return {"dtype": kind_of(shape)}
    if isinstance(shape, tuple):
        return {"dtype": "string"}
    if isinstance(shape, dict):
        return {"struct": features(shape)}
    inner = shape[0]
    if isinstance(inner, dict):
        return {"list": features(inner)}
    told = _feature(inner)
    return {"list": told["dtype"] if set(told) == {"dtype"} else told}
