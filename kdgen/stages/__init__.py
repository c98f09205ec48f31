"""The list of what a recipe's `stages:` can hold. A new method is one class and one name here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from kdgen.stages.answer import Answer, Rationale
from kdgen.stages.base import Ask, Draw, Pool, PoolStage, Stage
from kdgen.stages.cite import Cite, Grade
from kdgen.stages.dialogue import Dialogue
from kdgen.stages.evol import Evol
from kdgen.stages.hard_cases import HardCases
from kdgen.stages.magpie import Magpie
from kdgen.stages.paraphrase import Paraphrase
from kdgen.stages.sample import Sample
from kdgen.stages.self_instruct import SelfInstruct
from kdgen.stages.write import Branch, Write

FAMILIES = ("label", "expand", "curate", "feature", "feedback", "self")


def _which(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('stage')}/{value.get('method')}"
    return f"{getattr(value, 'stage', None)}/{getattr(value, 'method', None)}"


AnyStage = Annotated[
    Annotated[Answer, Tag("label/answer")]
    | Annotated[Rationale, Tag("label/rationale")]
    | Annotated[Sample, Tag("label/sample")]
    | Annotated[SelfInstruct, Tag("expand/self-instruct")]
    | Annotated[Evol, Tag("expand/evol")]
    | Annotated[Magpie, Tag("expand/magpie")]
    | Annotated[Paraphrase, Tag("expand/paraphrase")]
    | Annotated[HardCases, Tag("expand/hard-cases")]
    | Annotated[Write, Tag("curate/write")]
    | Annotated[Branch, Tag("curate/branch")]
    | Annotated[Cite, Tag("curate/cite")]
    | Annotated[Grade, Tag("curate/grade")]
    | Annotated[Dialogue, Tag("curate/dialogue")],
    Discriminator(_which),
]

METHODS = (
    "label/answer",
    "label/rationale",
    "label/sample",
    "expand/self-instruct",
    "expand/evol",
    "expand/magpie",
    "expand/paraphrase",
    "expand/hard-cases",
    "curate/write",
    "curate/branch",
    "curate/cite",
    "curate/grade",
    "curate/dialogue",
)

__all__ = ["FAMILIES", "METHODS", "AnyStage", "Ask", "Draw", "Pool", "PoolStage", "Stage"]
