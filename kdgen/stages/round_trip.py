"""Curation: whether what was asked of a document leads back to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdgen.errors import Rejected
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.base import Ask, Stage
from kdgen.stages.draw import Draw, Pool


class Choice(BaseModel):
    """The document that serves a query best, 0 for none, its reason first."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    which: int = Field(ge=0)


class RoundTrip(Stage):
    """Keep a query that leads back to its document: the filter of Promptagator (arXiv 2209.11755).

    K = {(q, d) | d = argmax_T(d' | q, N(q) ∪ {d})}, over D of Eq. 5 (Xu et al.): the teacher, in the retriever's place,
    is shown the record's document among those of all seeds that share most words with the query (drawn ones where too few
    do), `among` in all, and says which serves it best. Where it names another, or none, the record is a reject. Another
    seed asks again only about the queries that it comes near to. The other documents' ids stay in `meta.near`, the nearest
    first.
    """

    stage: Literal["curate"] = "curate"
    method: Literal["round-trip"] = "round-trip"
    prompt: PromptFile
    among: int = Field(5, ge=2, le=100)

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": frozenset({"instruction", "documents"})}

    @property
    def validates(self) -> set[str]:
        """The teacher, whose choice has a schema."""
        return {self.to}

    @property
    def draws_seeds(self) -> bool:
        """The documents that a query could lead to are the seeds."""
        return True

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each query with the documents that it could lead to."""
        for record in pool:
            own, held = set(record.seeds), record.text
            most = self.among + len(own)
            found = [*draw.near.to(record.instruction, most), *draw.top(draw.seeds, most, record.id)]
            others = {each.id: each for each in found if each.id not in own and (each.text or each.task) != held}
            near = list(others.values())[: self.among - 1]
            shown = draw.top(Pool([record, *near]), 1 + len(near), "order", record.id)
            context = [[each.id, held if each is record else each.text or each.task] for each in shown]
            meta = {**record.meta, "near": [each.id for each in near], "context": context}
            yield record.model_copy(update={"meta": meta})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call."""
        meta = {name: value for name, value in job.meta.items() if name != "context"}
        context: Any = job.meta["context"]
        job = job.model_copy(update={"meta": meta})
        if not job.text.strip() or not job.instruction.strip():
            raise Rejected("no_document", "a query and the text that it is for are needed")
        own = next(number for number, (name, _) in enumerate(context, 1) if name == job.id)
        texts = [text for _, text in context]

        def unknown(reply: Any) -> str | None:
            which = Choice.model_validate_json(reply.text).which
            return f"there is no document {which}" if which > len(texts) else None

        asked: dict[str, Any] = {"instruction": job.instruction, "documents": texts, "own": own}
        reply = await ask(self.prompt, schema=Choice, check=unknown, **asked)
        said = Choice.model_validate_json(reply.text)
        if said.which == own:
            return [self.child(job, reply, writes=())]
        reason = "leads_elsewhere" if said.which else "leads_nowhere"
        to = f"to {context[said.which - 1][0]}: " if said.which else ""
        lost = job.model_copy(update={"calls": (*job.calls, reply.key)})
        return [lost.rejected(self.name, reason, f"{to}{said.reason[:200]}")]

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The record's own document."""
        return Choice(reason=words(15), which=variables["own"]).model_dump_json()
