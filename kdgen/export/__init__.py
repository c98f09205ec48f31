"""The list of what a recipe's `export:` can be. A format's one verb is `row`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdgen.export.chat import Alpaca, Messages, ShareGPT, Text

AnyFormat = Annotated[Messages | Alpaca | ShareGPT | Text, Field(discriminator="format")]
FORMATS = ("messages", "alpaca", "sharegpt", "text")

__all__ = ["FORMATS", "Alpaca", "AnyFormat", "Messages", "ShareGPT", "Text"]
