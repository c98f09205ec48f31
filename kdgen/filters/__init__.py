"""The list of what a recipe's `filters:` can hold. A filter's one verb is `reject`: the reason, or keep."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdgen.filters.text import Dangling, Echo, Length, Pattern, Refusal, Repetition

AnyFilter = Annotated[Length | Pattern | Refusal | Echo | Dangling | Repetition, Field(discriminator="filter")]

__all__ = ["AnyFilter", "Dangling", "Echo", "Length", "Pattern", "Refusal", "Repetition"]
