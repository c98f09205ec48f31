"""Feedback by a reward model: a number for each answer, and no words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.errors import Rejected
from kdgen.parse import terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Candidate, Record, Row, score
from kdgen.solutions import solution
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, gathered


class RewardModel(Stage):
    """Score answers by a reward model: D = {(x, y, φ(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu et al., Eq. 7), φ a number.

    The prompt is the conversation as the model reads it, the answer its last turn. Each of the record's `candidates` gets
    `scores[NAME]` (`name_as`), the same as `score`, and its `rank` by it; one whose reply is lost is unscored and says why in
    its `notes`, and a record without any score is a reject. Where there are no candidates, the record's own output is
    scored (`meta.scores`), and below `at_least` a reject. A classifier of several classes has `place` say which one's
    number it is, from 0.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["reward"] = "reward"
    prompt: PromptFile
    name_as: str = Field("reward", min_length=1)
    place: int | None = Field(None, ge=0)
    at_least: float | None = Field(None, allow_inf_nan=False)

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"output"}}

    @property
    def scorers(self) -> set[str]:
        """The reward model."""
        return {self.to}

    def check(self, where: str) -> None:
        """A score without the answer is none of it."""
        super().check(where)
        if "output" not in self.prompt.variables:
            raise bad_stage("the prompt does not show the answer", f"{where}.prompt", "prompt: feedback/reward")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call for each candidate, all at once; one for a record without."""
        if not job.candidates:
            value = await self._score(job, solution(job), ask)
            if self.at_least is not None and value < self.at_least:
                lost = job.model_copy(update={"calls": (*job.calls, *ask.calls)})
                return [lost.rejected(self.name, "low_score", f"{value:g}, {self.at_least:g} is the least")]
            held = job.meta.get("scores")
            scores: JsonValue = {**(held if isinstance(held, dict) else {}), self.name_as: value}
            return [
                job.child(
                    stage=self.stage, method=self.method, calls=ask.calls, meta={"scores": scores, "score": value}
                )
            ]
        asks = [ask.fork() for _ in job.candidates]
        each = zip(job.candidates, asks, strict=True)
        came = await gathered([self._score(job, solution(one), own) for one, own in each])
        calls = list(dict.fromkeys(call for own in asks for call in own.calls))
        if all(isinstance(value, Rejected) for value in came):
            lost = job.model_copy(update={"calls": (*job.calls, *calls)})
            return [lost.rejected(self.name, "unscored", f"none of {len(came)} candidates, the last: {came[-1]}")]
        values = [value for value in came if not isinstance(value, Rejected)]
        if self.at_least is not None and max(values) < self.at_least:
            lost = job.model_copy(update={"calls": (*job.calls, *calls)})
            return [
                lost.rejected(self.name, "low_score", f"{max(values):g} is the best, {self.at_least:g} is the least")
            ]
        scored = [
            self._scored(one, value, values, tuple(own.calls))
            for one, value, own in zip(job.candidates, came, asks, strict=True)
        ]
        return [job.child(stage=self.stage, method=self.method, calls=calls, candidates=tuple(scored))]

    def _scored(
        self, one: Candidate, value: float | Rejected, values: list[float], calls: tuple[str, ...]
    ) -> Candidate:
        lost = isinstance(value, Rejected)
        number = None if isinstance(value, Rejected) else value
        return one.model_copy(
            update={
                "scores": {**one.scores, self.name_as: number},
                "score": number,
                "rank": None if number is None else 1 + sum(other > number for other in values),
                "calls": tuple(dict.fromkeys((*one.calls, *calls))),
                "notes": {**one.notes, **({f"{self.name_as}_unscored": str(value)} if lost else {})},
            }
        )

    async def _score(self, job: Record, output: str, ask: Ask) -> float:
        if not terms(output):
            raise Rejected("nothing_to_score", "there is no answer")
        reply = await ask(self.prompt, history=job.history, output=output, **task_variables(job))
        try:
            numbers = [float(number) for number in reply.text.split()]
        except ValueError:
            numbers = []
        if not numbers or not all(map(math.isfinite, numbers)):
            raise Rejected("unscored", f"{reply.text[:100]!r} is no number")
        if self.place is None and len(numbers) > 1:
            raise Rejected("unscored", f"{len(numbers)} numbers, and `place` does not say which")
        if (place := self.place or 0) >= len(numbers):
            raise Rejected("unscored", f"there is no place {place} among {len(numbers)} numbers")
        return numbers[place]

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A score that passes any bound, at every place, and another one for another answer."""
        value = max(0.5, self.at_least or 0.0) + score("example", variables["output"]) / 2**64
        return " ".join([repr(value)] * ((self.place or 0) + 1))
