"""The list of what a recipe's `export:` can be. A format's one verb is `row`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdgen.export.chat import Alpaca, Messages, ShareGPT, Text
from kdgen.export.critiques import Critique
from kdgen.export.edits import Edits
from kdgen.export.evaluator import Evaluator
from kdgen.export.preference import Kto, Preference, Ranked, Reward
from kdgen.export.prompt import PromptOnly
from kdgen.export.retrieval import Retrieval
from kdgen.export.stepwise import Stepwise

AnyFormat = Annotated[
    Messages
    | Alpaca
    | ShareGPT
    | Text
    | Retrieval
    | Critique
    | Edits
    | Evaluator
    | Kto
    | Preference
    | Ranked
    | Reward
    | PromptOnly
    | Stepwise,
    Field(discriminator="format"),
]
FORMATS = (
    "messages",
    "alpaca",
    "sharegpt",
    "text",
    "retrieval",
    "critique",
    "edits",
    "evaluator",
    "kto",
    "preference",
    "ranked",
    "reward",
    "prompt",
    "stepwise",
)

__all__ = [
    "FORMATS",
    "Alpaca",
    "AnyFormat",
    "Critique",
    "Edits",
    "Evaluator",
    "Kto",
    "Messages",
    "Preference",
    "PromptOnly",
    "Ranked",
    "Retrieval",
    "Reward",
    "ShareGPT",
    "Stepwise",
    "Text",
]
