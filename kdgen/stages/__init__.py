"""What a recipe's `stages:` can hold. A new method is one class and one row of METHODS."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator, SerializeAsAny, ValidationInfo
from pydantic_core import PydanticKnownError

from kdgen.stages.base import Ask, PoolStage, Stage
from kdgen.stages.draw import Draw, Pool
from kdgen.stages.methods import METHODS, named

FAMILIES = ("label", "expand", "curate", "feature", "feedback", "self")


def _read(value: Any, info: ValidationInfo) -> Stage:
    if isinstance(value, Stage):
        return value
    cls = Stage.kind_of(value)
    if cls is None:
        told = {"discriminator": "method", "tag": named(value), "expected_tags": ", ".join(map(repr, METHODS))}
        raise PydanticKnownError("union_tag_invalid", told)
    return cls.model_validate(value, context=info.context)


AnyStage = Annotated[SerializeAsAny[Stage], PlainValidator(_read)]

__all__ = ["FAMILIES", "METHODS", "AnyStage", "Ask", "Draw", "Pool", "PoolStage", "Stage"]
