"""Curation: a subject is divided into what it consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from kdgen.parse import terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.base import Ask, Stage, bounded
from kdgen.stages.write import EMPTY, path_of

Item = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]


class Items(BaseModel):
    """The parts of a subject."""

    model_config = ConfigDict(extra="forbid")

    items: list[Item]


class Branch(Stage):
    """Divide a subject into its parts, each a record below it: GLAN's taxonomy of human knowledge (arXiv 2402.13064).

    The path from the field downwards is `meta.path`. Each subject has a quota of `ask_for` parts: what comes above it,
    or twice, is a reject, and so is what is missing, so that the shares of the branches are what they were set to.
    """

    stage: Literal["curate"] = "curate"
    method: Literal["branch"] = "branch"
    prompt: PromptFile
    ask_for: int = Field(5, ge=1, le=200)

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": frozenset({"path", "count", "extra"})}
    consumes: ClassVar[bool] = True

    @property
    def validates(self) -> set[str]:
        """The teacher, whose list has a schema."""
        return {self.to}

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call; a record for each part."""
        path = path_of(job)
        reply = await ask(
            self.prompt, schema=bounded(Items, self.ask_for), path=path, count=self.ask_for, extra=job.extra
        )
        rows: list[Row] = []
        seen: set[tuple[str, ...]] = set()
        for place, item in enumerate(Items.model_validate_json(reply.text).items):
            meta: dict[str, JsonValue] = {"path": [*path, item], "place": place}
            row = self.child(job, reply, writes=("text",), meta=meta, **{**EMPTY, "text": item})
            known = tuple(terms(item))
            if known in seen:
                rows.append(row.rejected(self.name, "duplicate", f"{item} stands twice below {path[-1]}"))
            elif len(seen) == self.ask_for:
                rows.append(row.rejected(self.name, "not_asked_for", f"item {place + 1} of {self.ask_for}"))
            else:
                seen.add(known)
                rows.append(row)
        for missing in range(len(seen), self.ask_for):
            lost = job.model_copy(update={"calls": (*job.calls, reply.key)})
            rows.append(lost.rejected(self.name, "missing_item", f"item {missing + 1} of {self.ask_for} did not come"))
        return rows

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The list that is asked for."""
        return Items(items=[f"{number} {words(4)}" for number in range(self.ask_for)]).model_dump_json()
