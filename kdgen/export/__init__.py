"""The list of what a recipe's `export:` can be. A format's one verb is `row`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdgen.export.chat import Alpaca, Messages, ShareGPT, Text
from kdgen.export.critiques import Critique
from kdgen.export.edits import Edits
from kdgen.export.retrieval import Retrieval
from kdgen.export.stepwise import Stepwise

AnyFormat = Annotated[
    Messages | Alpaca | ShareGPT | Text | Retrieval | Critique | Stepwise | Edits, Field(discriminator="format")
]
FORMATS = ("messages", "alpaca", "sharegpt", "text", "retrieval", "critique", "stepwise", "edits")

__all__ = [
    "FORMATS",
    "Alpaca",
    "AnyFormat",
    "Critique",
    "Edits",
    "Messages",
    "Retrieval",
    "ShareGPT",
    "Stepwise",
    "Text",
]
