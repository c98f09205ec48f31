"""Labeling by revision: what is there is criticised and written anew until the critic has nothing to object to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdgen.banks import BankFile
from kdgen.errors import Rejected
from kdgen.parse import alone, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Candidate, Record, Row
from kdgen.stages.answer import TASK, asked_of, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage
from kdgen.stages.draw import Draw
from kdgen.teachers.base import Reply

ANNOUNCED = re.compile(r"\A[^\n.!?]{0,60}\b(?:revised|improved|corrected)\b[^\n.!?]{0,40}:[ \t*]*\n\s*", re.I)


class Critique(BaseModel):
    """What a critic says of a text, and then whether it can stay."""

    model_config = ConfigDict(extra="forbid")

    critique: str
    verdict: Literal["good", "revise"]


class Rewrite(Stage):
    """Criticise and revise a pair's `field`, at most `rounds` times: SelFee's chain and Reflection-Tuning (arXiv 2310.11716).

    D = {x, y' | y' ~ p_T(y' | I ⊕ x ⊕ y ⊕ critique)} (Xu et al., Eq. 3, with the y of the record in the context). A round is
    a critique by `judge` and, where it asks for one, a revision by the teacher. `meta.rewrite` holds, by field, each round's critique
    and what it was about, says whether anything was `changed` and why it `ended`: the critic found it good, the `rounds` were
    up, a revision was the `same`, or a later round was lost, with the reason; a record that loses its first round is a reject.
    `chain` puts the drafts and critiques into `reasoning`, so that a student learns to revise. A new instruction leaves the
    old answer in `meta.rewrite` alone: `label/answer` with `existing: keep` answers it.

    With a `constitution` each round is about one principle of that bank, another each round (Constitutional AI, arXiv
    2212.08073); one that the critic finds kept costs no revision, and the next is looked at all the same. What is told of
    an answer is D = {x, y, φ(x, y; θ_T) | x ~ X, y ~ p_S(y | x)} (Eq. 7): φ is the critiques and what came of them. `pair`
    gives it as a preference: two `candidates`, the last revision first, then what was there; without a change, a reject.
    """

    stage: Literal["label"] = "label"
    method: Literal["rewrite"] = "rewrite"
    critique: PromptFile
    revise: PromptFile
    field: Literal["instruction", "output"] = "output"
    rounds: int = Field(3, ge=1, le=20)
    chain: bool = False
    constitution: BankFile | None = None
    pair: bool = False
    judge: str = "teacher"

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "critique": TASK | {"output", "principle"},
        "revise": TASK | {"output", "principle", "critique"},
    }

    @property
    def roles(self) -> set[str]:
        """The teacher and the critic."""
        return {self.to, self.judge}

    @property
    def validates(self) -> set[str]:
        """Both: a critique has a schema, a revision must say something."""
        return {self.to, self.judge}

    def check(self, where: str) -> None:
        """A constitution and the prompts that show its principles go together, as a pair does with answers."""
        super().check(where)
        shows = "principle" in self.critique.variables
        if shows != (self.constitution is not None):
            hint = "constitution: constitution, critique: feedback/constitution/critique"
            raise bad_stage("a constitution and a critique that shows its `principle` go together", where, hint)
        if self.constitution and self.rounds > len(self.constitution.entries):
            many = len(self.constitution.entries)
            raise bad_stage(f"{many} principles do not last for {self.rounds} rounds", f"{where}.rounds", f"{many}")
        if self.pair and self.field != "output":
            raise bad_stage("a pair is two answers", f"{where}.pair", "field: output")

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each record, with the principle of each round."""
        for record in pool:
            if self.constitution is None:
                yield record
                continue
            drawn = self.constitution.several(self.rounds, draw.seed, draw.stage, record.id)
            ids: list[JsonValue] = [entry.id for entry in drawn]
            yield record.model_copy(update={"meta": {**record.meta, "principles": ids}})

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call where the text is good as it is; two a round, with a constitution one where a principle is kept."""
        drawn = job.meta.get("principles") if self.constitution else None
        principles = [str(each) for each in drawn] if isinstance(drawn, list) else []
        if self.constitution:
            plain = {name: value for name, value in job.meta.items() if name != "principles"}
            job = job.model_copy(update={"meta": plain})
        now = job.model_copy(update=asked_of(job))
        if not terms(getattr(now, self.field)):
            raise Rejected("nothing_to_rewrite", f"the record has no {self.field}")
        told: list[JsonValue] = []
        last: Reply | None = None
        ended = "rounds"
        for number in range(self.rounds):
            principle = principles[number] if principles else None
            try:
                fault, reply, text = await self._round(now, principle, ask)
            except Rejected as fate:
                if not number:
                    raise
                ended = fate.reason
                break
            about: dict[str, JsonValue] = {"principle": principle} if principle else {}
            told.append({**about, "critique": fault, self.field: getattr(now, self.field)})
            if reply is None or terms(text) == terms(getattr(now, self.field)):
                if principle:
                    continue
                ended = "good" if reply is None else "same"
                break
            now, last = now.model_copy(update={self.field: text}), reply
        meta: dict[str, JsonValue] = {"rounds": told, "changed": last is not None, "ended": ended}
        content: dict[str, Any] = {"instruction": now.instruction, self.field: getattr(now, self.field)}
        if last and self.field == "instruction" and job.output:
            meta["output"] = job.output
            content |= {"output": "", "reasoning": ""}
        if last and self.field == "output":
            content["reasoning"] = ""  # it led to what was there before
        if last and self.chain:
            drafts = (each for each in told if isinstance(each, dict) and each[self.field] != content[self.field])
            content["reasoning"] = "\n\n".join(
                f"Draft: {each[self.field]}\n\nFeedback: {each['critique']}" for each in drafts
            )
        if self.pair:
            if last is None or terms(content["output"]) == terms(job.output):
                lost = job.model_copy(update={"calls": (*job.calls, *dict.fromkeys(ask.calls))})
                return [lost.rejected(self.name, "unchanged", f"{len(told)} rounds left it as it was")]
            content["candidates"] = self._pair(job, last, content, ask)
        held = job.meta.get("rewrite")
        row = job.child(
            stage=self.stage,
            method=self.method,
            calls=list(dict.fromkeys(ask.calls)),
            writers={self.field: last.teacher} if last else {},
            meta={"rewrite": {**(held if isinstance(held, dict) else {}), self.field: meta}},
            finish=last.finish if last else job.finish,
            **content,
        )
        return [row]

    def _pair(self, job: Record, last: Reply, content: Mapping[str, Any], ask: Ask) -> tuple[Candidate, Candidate]:
        """The last revision, then what was there."""
        wrote = job.writers.get("output", "")
        return (
            Candidate(
                output=content["output"],
                reasoning=content["reasoning"],
                writer=last.teacher,
                role=self.to,
                calls=tuple(dict.fromkeys(ask.calls)),
            ),
            Candidate(
                output=job.output,
                reasoning=job.reasoning,
                writer=wrote,
                role="" if wrote else "seed",
                calls=job.calls,
            ),
        )

    async def _round(self, now: Record, principle: str | None, ask: Ask) -> tuple[str, Reply | None, str]:
        """The critique of what is there, and the revision with its text, where one is asked for."""
        shown = {**task_variables(now), "output": now.output}
        if self.constitution and principle:
            shown["principle"] = dict(self.constitution.entry(principle).texts)
        found = await ask(self.critique, to=self.judge, schema=Critique, history=now.history, **shown)
        said = Critique.model_validate_json(found.text)
        if said.verdict == "good":
            return said.critique, None, ""
        reply = await ask(self.revise, check=self._blank, history=now.history, critique=said.critique, **shown)
        return said.critique, reply, self._text(reply)

    def _text(self, reply: Reply) -> str:
        """What was written anew, without a line that says so. An answer keeps its own first line ("Here are three: …")."""
        text = split_thinking(reply.text)[1]
        return alone(text) if self.field == "instruction" else ANNOUNCED.sub("", text, count=1)

    def _blank(self, reply: Reply) -> str | None:
        return None if terms(self._text(reply)) else "it is empty"

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A critique that asks for a revision, so that all rounds are counted, or the revision."""
        if prompt == self.critique:
            return Critique(critique=words(40), verdict="revise").model_dump_json()
        return words(30 if self.field == "instruction" else 0)
