"""Expansion by paraphrase: the same task in other words, with the answer that it had."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from kdgen.errors import Rejected
from kdgen.parse import same_answer, same_label, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, bounded
from kdgen.stages.evol import Verdict
from kdgen.stages.write import MARK, Label


class Variants(BaseModel):
    """Ways to say a text."""

    model_config = ConfigDict(extra="forbid")

    variants: list[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]]


class Paraphrase(Stage):
    """`k` variants of a record's `field`, its answer kept: AugGPT (arXiv 2302.13007).

    D = {(x', y) | x' ~ p_T(x' | I ⊕ x)} (Xu et al., Eq. 4, with the y of the seed). That y is still the answer to each x'
    is checked by at least one of: `verify`, whose prompt is not told y and has its answer compared with y (labels and short
    answers); and `compare`, by which a judge says whether both texts have the same answer. A variant that says what
    another or the original says is a reject, and so is one that did not come.
    """

    stage: Literal["expand"] = "expand"
    method: Literal["paraphrase"] = "paraphrase"
    prompt: PromptFile
    field: Literal["instruction", "input"] = "instruction"
    k: int = Field(6, ge=1, le=100)
    verify: PromptFile | None = None
    compare: PromptFile | None = None
    judge: str = "teacher"

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": TASK | {"original", "output", "count"},
        "verify": frozenset({"instruction", "input"}),
        "compare": frozenset({"first", "second", "output"}),
    }
    consumes: ClassVar[bool] = True

    @property
    def roles(self) -> set[str]:
        """The teacher and the judge."""
        return {self.to, self.judge}

    @property
    def validates(self) -> set[str]:
        """Both: the list and the judgements have schemas."""
        return {self.to, self.judge}

    def check(self, where: str) -> None:
        """An answer that is kept must be checked."""
        super().check(where)
        if not (self.verify or self.compare):
            hint = "verify: curate/verify for labels, compare: expand/paraphrase/compare for open answers"
            raise bad_stage("nothing checks that the answer stays right", where, hint)

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call for the variants, and one or two for each of them."""
        original = getattr(job, self.field)
        if not original.strip():
            raise Rejected("no_text", f"the seed has no {self.field} to say in other words")
        if self.verify and not job.output:
            raise Rejected("no_label", "the seed has no output that could be kept")
        reply = await ask(
            self.prompt,
            history=job.history,
            schema=bounded(Variants, self.k),
            original=original,
            output=job.output,
            count=self.k,
            **task_variables(job),
        )
        texts = Variants.model_validate_json(reply.text).variants
        fates: list[tuple[str, str] | None] = []
        seen = {tuple(terms(original))}
        for place, text in enumerate(texts):
            said = tuple(terms(text))
            if place >= self.k:
                fates.append(("not_asked_for", f"variant {place + 1} of {self.k}"))
            else:
                fates.append(("duplicate", "another text says the same") if said in seen else None)
            seen.add(said)
        # All at once, so that a teacher in batches is asked about all of them in one pass.
        made = [job.model_copy(update={self.field: text}) for text in texts]
        pairs = zip(made, fates, strict=True)
        judged = await asyncio.gather(
            *(self._judged(job, each, ask, fate) for each, fate in pairs), return_exceptions=True
        )
        rows: list[Row] = []
        for place, (text, found) in enumerate(zip(texts, judged, strict=True)):
            if isinstance(found, BaseException):
                raise found
            fate, calls = found
            row = self.child(job, reply, writes=(self.field,), meta={"variant": place}, **{self.field: text})
            row = row.model_copy(update={"calls": (*row.calls, *calls)})
            rows.append(row.rejected(self.name, *fate) if fate else row)
        for missing in range(len(rows), self.k):
            lost = job.model_copy(update={"calls": (*job.calls, reply.key)})
            rows.append(lost.rejected(self.name, "missing_item", f"variant {missing + 1} of {self.k} did not come"))
        return rows

    async def _judged(
        self, job: Record, made: Record, ask: Ask, fate: tuple[str, str] | None
    ) -> tuple[tuple[str, str] | None, list[str]]:
        """Why the answer may no longer be right, and what was asked; without a judgement this variant alone is lost."""
        calls: list[str] = []
        if fate:
            return fate, calls
        try:
            if self.verify:
                asked: dict[str, Any] = {"instruction": made.instruction, "input": made.input}
                told = await ask(self.verify, to=self.judge, schema=Label, **asked)
                calls.append(told.key)
                taken = Label.model_validate_json(told.text).label
                if not same_label(taken, job.output) and not same_answer(taken, job.output):
                    return ("label_not_confirmed", f"{taken[:100]} is not {job.output[:100]}"), calls
            if self.compare:
                asked = {"first": job.task, "second": made.task, "output": job.output}
                told = await ask(self.compare, to=self.judge, schema=Verdict, **asked)
                calls.append(told.key)
                if Verdict.model_validate_json(told.text).verdict == "different":
                    return ("answer_changed", "the judge says that another answer is asked for"), calls
        except Rejected as lost:
            return (lost.reason, lost.detail), calls
        return None, calls

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The variants, each ending on a mark that carries the answer to the judge, who is not told it."""
        if prompt == self.compare:
            return Verdict(verdict="same").model_dump_json()
        if prompt == self.verify:
            return Label(label=str(variables[self.field]).rpartition(MARK)[2][::-1]).model_dump_json()
        return Variants(
            variants=[f"{words(20)}{MARK}{variables['output'][::-1]}" for _ in range(self.k)]
        ).model_dump_json()
