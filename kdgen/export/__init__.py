"""The list of what a recipe's `export:` can be. A format's one verb is `row`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdgen.export.chat import Alpaca, Messages, ShareGPT, Text
from kdgen.export.critiques import Critique
from kdgen.export.preference import Kto, Preference, Ranked, Reward
from kdgen.export.retrieval import Retrieval

AnyFormat = Annotated[
    Messages | Alpaca | ShareGPT | Text | Retrieval | Critique | Kto | Preference | Ranked | Reward,
    Field(discriminator="format"),
]
FORMATS = ("messages", "alpaca", "sharegpt", "text", "retrieval", "critique", "kto", "preference", "ranked", "reward")

__all__ = [
    "FORMATS",
    "Alpaca",
    "AnyFormat",
    "Critique",
    "Kto",
    "Messages",
    "Preference",
    "Ranked",
    "Retrieval",
    "Reward",
    "ShareGPT",
    "Text",
]
