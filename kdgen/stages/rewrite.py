"""Labeling by revision: what is there is criticised and written anew until the critic has nothing to object to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdgen.errors import Rejected
from kdgen.parse import alone, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.answer import TASK, asked_of, task_variables
from kdgen.stages.base import Ask, Stage
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
    """

    stage: Literal["label"] = "label"
    method: Literal["rewrite"] = "rewrite"
    critique: PromptFile
    revise: PromptFile
    field: Literal["instruction", "output"] = "output"
    rounds: int = Field(3, ge=1, le=20)
    chain: bool = False
    judge: str = "teacher"

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "critique": TASK | {"output"},
        "revise": TASK | {"output", "critique"},
    }

    @property
    def roles(self) -> set[str]:
        """The teacher and the critic."""
        return {self.to, self.judge}

    @property
    def validates(self) -> set[str]:
        """Both: a critique has a schema, a revision must say something."""
        return {self.to, self.judge}

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call where the text is good as it is; two a round."""
        now = job.model_copy(update=asked_of(job))
        if not terms(getattr(now, self.field)):
            raise Rejected("nothing_to_rewrite", f"the record has no {self.field}")
        told: list[JsonValue] = []
        last: Reply | None = None
        ended = "rounds"
        for number in range(self.rounds):
            try:
                fault, reply, text = await self._round(now, ask)
            except Rejected as fate:
                if not number:
                    raise
                ended = fate.reason
                break
            told.append({"critique": fault, self.field: getattr(now, self.field)})
            if reply is None:
                ended = "good"
                break
            if terms(text) == terms(getattr(now, self.field)):
                ended = "same"
                break
            now, last = now.model_copy(update={self.field: text}), reply
        meta: dict[str, JsonValue] = {"rounds": told, "changed": last is not None, "ended": ended}
        content: dict[str, Any] = {"instruction": now.instruction, self.field: getattr(now, self.field)}
        if last and self.field == "instruction" and job.output:
            meta["output"] = job.output
            content |= {"output": "", "reasoning": ""}
        if last and self.chain:
            drafts = (each for each in told if isinstance(each, dict) and each[self.field] != content[self.field])
            content["reasoning"] = "\n\n".join(
                f"Draft: {each[self.field]}\n\nFeedback: {each['critique']}" for each in drafts
            )
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

    async def _round(self, now: Record, ask: Ask) -> tuple[str, Reply | None, str]:
        """The critique of what is there, and the revision with its text, where one is asked for."""
        shown = {**task_variables(now), "output": now.output}
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
