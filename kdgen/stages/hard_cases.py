"""Expansion where a student is weak: the discriminator that finds the tasks it does badly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdgen.errors import Rejected
from kdgen.judging import Verdict
from kdgen.parse import split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage
from kdgen.teachers.base import Reply

MOST = 10


class Scores(BaseModel):
    """A referee's scores of two answers."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    first: int = Field(ge=1, le=MOST)
    second: int = Field(ge=1, le=MOST)


class HardCases(Stage):
    """Keep the tasks that a student does worse than the teacher: Lion's discriminator (arXiv 2305.12870).

    gap(x) = s(y_T | x) - s(y_S | x), where the referee scores both answers from 1 to 10 and, with `swap`, once more in
    the other order, of which the mean is taken; x is hard where the gap is at least `gap`. A hard task goes on with the
    teacher's answer and `meta.hard` (gap, scores, the student's answer); another is a reject. What a record had as output
    is the teacher's answer with `existing: keep`. Over the hard ones a generator makes D = {(x', y) | x' ~ p_T(x' | I ⊕
    c)} (Xu et al., Eq. 4): `expand/self-instruct`, by subgroup where it has a `group` (TDG, arXiv 2305.17926).
    """

    stage: Literal["expand"] = "expand"
    method: Literal["hard-cases"] = "hard-cases"
    answer: PromptFile
    score: PromptFile
    student: str = "student"
    judge: str = "teacher"
    gap: float = Field(1.0, ge=1 - MOST, le=MOST - 1)
    swap: bool = True
    existing: Literal["replace", "keep"] = "replace"

    gives: ClassVar[dict[str, frozenset[str]]] = {"answer": TASK, "score": TASK | {"first", "second"}}

    @property
    def roles(self) -> set[str]:
        """The teacher, the student and the referee."""
        return {self.to, self.student, self.judge}

    @property
    def validates(self) -> set[str]:
        """The referee, whose scores have a schema."""
        return {self.judge}

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """Two answers and one or two judgements."""
        asked = task_variables(job)
        replies: list[Reply] = []
        output, reasoning, finish = job.output, job.reasoning, job.finish
        if self.existing == "replace" or not output:
            reply = await ask(self.answer, history=job.history, **asked)
            thinking, output = split_thinking(reply.text)
            reasoning, finish = reply.reasoning or thinking, reply.finish
            replies.append(reply)
        if not terms(output):
            raise Rejected("empty_answer", f"finish: {finish}")
        said = await self._student(job, asked, ask)
        scores = [await self._scores(output, said, asked, ask, ahead="first")]
        if self.swap:
            scores.append((await self._scores(said, output, asked, ask, ahead="second"))[::-1])
        # The share of the answer shown first, which is the teacher's in one order and the student's in the other.
        shares = [0.5 + ((ahead > behind) - (ahead < behind)) / 2 for ahead, behind in scores]
        ask.judged([Verdict(self.judge, shares[0], 1 - shares[1] if self.swap else None, self.swap)])
        teacher, student = (sum(side) / len(scores) for side in zip(*scores, strict=True))
        if teacher - student < self.gap:
            lost = job.model_copy(update={"output": output, "calls": (*job.calls, *dict.fromkeys(ask.calls))})
            return [lost.rejected(self.name, "not_hard", f"teacher {teacher:g}, student {student:g}{_of(job)}")]
        hard: dict[str, JsonValue] = {"gap": teacher - student, "teacher": teacher, "student": student, "answer": said}
        row = job.child(
            stage=self.stage,
            method=self.method,
            calls=list(dict.fromkeys(ask.calls)),
            writers={"output": replies[0].teacher} if replies else {},
            meta={"hard": hard},
            output=output,
            reasoning=reasoning,
            finish=finish,
        )
        return [row]

    async def _student(self, job: Record, asked: dict[str, Any], ask: Ask) -> str:
        """What the student says; what it leaves unfinished or does not say is its worst answer, not a lost record."""
        try:
            reply = await ask(self.answer, to=self.student, history=job.history, partial=True, **asked)
        except Rejected as fate:
            if fate.reason not in ("refused", "filtered"):
                raise
            return "(no answer)"
        return split_thinking(reply.text)[1] or "(no answer)"

    async def _scores(self, first: str, second: str, asked: dict[str, Any], ask: Ask, *, ahead: str) -> tuple[int, int]:
        shown = {**asked, "first": first, "second": second, "ahead": ahead}
        reply = await ask(self.score, to=self.judge, schema=Scores, **shown)
        scores = Scores.model_validate_json(reply.text)
        return scores.first, scores.second

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """An answer, or scores by which the task is as hard as can be, wherever the teacher's answer stands."""
        if prompt != self.score:
            return words(0)
        other = "second" if variables["ahead"] == "first" else "first"
        return Scores.model_validate({"reason": words(20), variables["ahead"]: MOST, other: 1}).model_dump_json()


def _of(job: Record) -> str:
    return f", of {job.meta['group']}" if "group" in job.meta else ""
