"""Features in one number: how likely a text is to a model, and how much the task helps it."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, JsonValue, model_validator

from kdgen.errors import Rejected
from kdgen.features.spelling import place_of
from kdgen.prompts import PromptFile
from kdgen.record import Frozen, Record, Row
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, gathered
from kdgen.stages.logprobs import shows_answer
from kdgen.teachers.base import Told

Measure = Literal["mean_logprob", "perplexity", "ifd"]


class Bound(Frozen):
    """What a measure must be at the least and at the most."""

    least: float | None = Field(None, allow_inf_nan=False)
    most: float | None = Field(None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _some(self) -> Bound:
        if self.least is None and self.most is None:
            raise ValueError("least or most, or both")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError("least is more than most")
        return self

    def broken(self, value: float) -> str:
        """`low` or `high` where it does not hold."""
        if self.least is not None and value < self.least:
            return "low"
        return "high" if self.most is not None and value > self.most else ""


class Perplexity(Stage):
    """How likely an answer is to a model: exp(-1/n Σ log p(y_j | x, y_<j)), over the tokens that spell it.

    `meta.scores` gets `mean_logprob` (nats a token) and `perplexity`. With a prompt `alone`, which shows the answer and nothing
    of the task, also `ifd` = ppl(y | x) / ppl(y), how little the task helps: above 1 it misleads, and the hardest below 1
    teach most (Cherry LLM, arXiv 2308.12032; by a small model, Superfiltering, arXiv 2402.00530). `bounds` reject.
    """

    stage: Literal["feature"] = "feature"
    method: Literal["perplexity"] = "perplexity"
    prompt: PromptFile
    alone: PromptFile | None = None
    bounds: dict[Measure, Bound] = {}

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": TASK | {"output", "reasoning"},
        "alone": frozenset({"output", "reasoning"}),
    }

    @property
    def forced(self) -> set[str]:
        """The teacher."""
        return {self.to}

    def check(self, where: str) -> None:
        """What is scored must be shown, last; a bound needs its measure."""
        super().check(where)
        shows_answer(self, where)
        if "ifd" in self.bounds and self.alone is None:
            raise bad_stage("ifd needs the answer alone", f"{where}.bounds.ifd", "alone: feature/alone")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One text to score, or two."""
        if not job.output.strip():
            return [job.rejected(self.name, "nothing_to_score", "there is no answer")]
        shown: dict[str, Any] = {"output": job.output, "reasoning": job.reasoning}
        asks = [ask, ask.fork()]
        asked = [asks[0](self.prompt, score=0, history=job.history, **shown, **task_variables(job))]
        if self.alone is not None:
            asked.append(asks[1](self.alone, score=0, **shown))
        came = await gathered(asked)
        calls = list(dict.fromkeys(call for own in asks for call in own.calls))
        lost = job.model_copy(update={"calls": (*job.calls, *calls)})
        means = []
        for found in came:
            if isinstance(found, Rejected):
                return [lost.rejected(self.name, found.reason, found.detail)]
            assert found.told is not None
            means.append(mean_logprob(found.told, job.output))
        if not all(math.isfinite(mean) for mean in means):
            return [lost.rejected(self.name, "bad_logprobs", "a logprob is no number")]
        measures: dict[Measure, float] = {"mean_logprob": means[0], "perplexity": math.exp(min(700.0, -means[0]))}
        if self.alone is not None:
            measures["ifd"] = math.exp(max(-700.0, min(700.0, means[1] - means[0])))
        for name, bound in self.bounds.items():
            if which := bound.broken(measures[name]):
                limit = bound.least if which == "low" else bound.most
                return [lost.rejected(self.name, f"{which}_{name}", f"{measures[name]:.4g}, the bound is {limit:g}")]
        held = job.meta.get("scores")
        scores = cast(JsonValue, {**(held if isinstance(held, dict) else {}), **measures})
        return [job.child(stage=self.stage, method=self.method, calls=calls, meta={"scores": scores})]


def mean_logprob(told: Told, text: str) -> float:
    """The mean logprob of the tokens that spell a text; of all, where it is not known which do."""
    start = place_of(told.pieces or (), text.strip().encode())
    end, place, own = start + len(text.strip().encode()), 0, []
    for piece, logprob in zip(told.pieces or [b""] * len(told.ids), told.logprobs, strict=True):
        if told.pieces is None or start < 0 or (place < end and place + len(piece) > start):
            own.append(logprob)
        place += len(piece)
    return math.fsum(own) / len(own) if own else math.nan
