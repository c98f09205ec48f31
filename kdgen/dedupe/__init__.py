"""The list of what a recipe's `dedupe:` can hold. A method's one verb is `index`: what has been seen so far."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdgen.dedupe.exact import Exact
from kdgen.dedupe.rouge import Rouge, RougeIndex

AnyDedupe = Annotated[Exact | Rouge, Field(discriminator="method")]

__all__ = ["AnyDedupe", "Exact", "Rouge", "RougeIndex"]
