"""The list of what a recipe's `export:` can be. A format's one verb is `row`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdgen.export.chat import Alpaca, Messages, ShareGPT, Text
from kdgen.export.evaluator import Evaluator
from kdgen.export.preference import Kto, Preference, Ranked, Reward
from kdgen.export.prompt import PromptOnly
from kdgen.export.retrieval import Retrieval

AnyFormat = Annotated[
    Messages | Alpaca | ShareGPT | Text | Retrieval | Preference | Kto | Ranked | Reward | Evaluator | PromptOnly,
    Field(discriminator="format"),
]
FORMATS = (
    "messages",
    "alpaca",
    "sharegpt",
    "text",
    "retrieval",
    "preference",
    "kto",
    "ranked",
    "reward",
    "evaluator",
    "prompt",
)

__all__ = [
    "FORMATS",
    "Alpaca",
    "AnyFormat",
    "Evaluator",
    "Kto",
    "Messages",
    "Preference",
    "PromptOnly",
    "Ranked",
    "Retrieval",
    "Reward",
    "ShareGPT",
    "Text",
]
