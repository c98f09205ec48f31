"""Feedback on each step of a solution: judged by a teacher, or by where completions from it lead."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdgen.errors import Rejected
from kdgen.parse import bare, final_answer, same_answer, split_answer, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Reject, Row
from kdgen.solutions import solution
from kdgen.stages.answer import TASK, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, bounded, gathered
from kdgen.teachers.base import Reply
from kdgen.verifiers import AnyVerifier, missing_packages

ENDS = {
    "lines": re.compile(r"\s*\n\s*"),
    "paragraphs": re.compile(r"[ \t]*\n[ \t]*\n\s*"),
    "sentences": re.compile(r"(?<=[.!?])\s+(?=[^\W_a-z]|[(\\$])|\s*\n\s*"),
}


class Verdict(BaseModel):
    """What is to be said of a step, and then whether it is right."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    verdict: Literal["right", "wrong"]


class Verdicts(BaseModel):
    """One verdict for each step, in order."""

    model_config = ConfigDict(extra="forbid")

    steps: list[Verdict]


class Steps(Stage):
    """Label each step of a solution: D = {(x, y, φ(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu et al., Eq. 7), φ a label a step.

    `by: judge` has the teacher say of each step whether it is right, all in one call or, without `at_once`, each step in a
    call that shows those before it (PRM800K, arXiv 2305.20050; WizardMath, arXiv 2308.09583). `by: rollouts` has it finish
    the solution `n` times from each step (Math-Shepherd, arXiv 2312.08935): the share of those that reach the gold answer
    is the soft label, one that does is enough for the hard one; after the last step nothing is left to finish, and the
    solution's own answer counts. A rollout cut at max_tokens reached nothing; any other that is lost is a reject and not
    counted. `verifier` says whether an answer is the gold one, as in feedback/verify; without, short answers are
    compared as texts and numbers.

    The solution is `output`, after `reasoning` where there is one; the gold answer is `meta.gold`, or the seed's
    column `gold`. `after_wrong: stop` labels no step behind the first wrong one. `split` says where a step ends; what is
    in a code block or a displayed formula stays whole. `meta.steps` has text, label and reason or share of each.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["steps"] = "steps"
    prompt: PromptFile
    by: Literal["judge", "rollouts"] = "judge"
    split: Literal["lines", "paragraphs", "sentences"] = "lines"
    at_once: bool = True
    n: int = Field(8, ge=1, le=256)
    after_wrong: Literal["stop", "go_on"] = "stop"
    gold: str | None = None
    most: int = Field(32, ge=1)
    verifier: AnyVerifier | None = None

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"steps", "gold"}}

    @property
    def validates(self) -> set[str]:
        """A judge, whose verdicts have a schema."""
        return {self.to} if self.by == "judge" else set()

    @property
    def executes(self) -> bool:  # type: ignore[override]
        """Whether its verifier runs programs."""
        return self.verifier is not None and self.verifier.executes

    def check(self, where: str) -> None:
        """What belongs to one way has no effect on the other."""
        super().check(where)
        for alien in ("n", "verifier") if self.by == "judge" else ("at_once",):
            if alien in self.model_fields_set:
                raise bad_stage(f"{alien} has no effect on by: {self.by}", f"{where}.{alien}", "take it out")
        if self.verifier is not None:
            missing_packages((type(self.verifier),), f"{where}.verifier")
        if "steps" not in self.prompt.variables:
            raise bad_stage("the prompt does not show the steps", f"{where}.prompt", "prompt: feedback/steps/judge")
        if self.by == "rollouts" and "gold" in self.prompt.variables:
            hint = "a prompt without gold"
            raise bad_stage("who is shown the answer reaches it from any step", f"{where}.prompt", hint)

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call, or one a step; of rollouts `n` for each step but the last."""
        steps = split_steps(solution(job), self.split)
        if not steps:
            raise Rejected("nothing_to_split", "the record has no solution")
        if len(steps) > self.most:
            raise Rejected("too_many_steps", f"{len(steps)}, {self.most} are the most")
        gold = gold_of(job, self.gold)
        if self.by == "rollouts" and not gold:
            raise Rejected("no_gold", "the record has no answer that a rollout could reach")
        lost: list[Row] = []
        if self.by == "judge" and self.at_once:
            told = await self._all(job, steps, gold, ask)
        elif self.after_wrong == "stop":
            told = []
            for number in range(len(steps)):
                told.append(await self._step(job, steps, number, gold, ask, lost))
                if not told[-1]["label"]:
                    break
        else:
            asks = [ask.fork() for _ in steps]
            each = enumerate(asks)
            came = await gathered([self._step(job, steps, number, gold, own, lost) for number, own in each])
            ask.calls += [call for own in asks for call in own.calls]
            if fate := next((one for one in came if isinstance(one, Rejected)), None):
                raise fate
            told = [one for one in came if not isinstance(one, Rejected)]
        if self.after_wrong == "stop":
            right = next((place for place, one in enumerate(told) if not one["label"]), len(told))
            told = told[: right + 1]
        listed: list[JsonValue] = [{"text": text, **one} for text, one in zip(steps, told, strict=False)]
        meta: dict[str, JsonValue] = {"by": self.by, "of": len(steps), "labelled": listed}
        row = job.child(stage=self.stage, method=self.method, calls=dict.fromkeys(ask.calls), meta={"steps": meta})
        return [row, *sorted(lost, key=_place)]

    async def _all(self, job: Record, steps: list[str], gold: str, ask: Ask) -> list[dict[str, JsonValue]]:
        def counted(reply: Reply) -> str | None:
            many = len(Verdicts.model_validate_json(reply.text).steps)
            return None if many == len(steps) else f"it has {many} verdicts for {len(steps)} steps"

        schema = bounded(Verdicts, len(steps), len(steps))
        reply = await ask(self.prompt, schema=schema, check=counted, steps=steps, gold=gold, **task_variables(job))
        verdicts = Verdicts.model_validate_json(reply.text).steps
        return [{"label": each.verdict == "right", "reason": each.reason} for each in verdicts]

    async def _step(
        self, job: Record, steps: list[str], number: int, gold: str, ask: Ask, lost: list[Row]
    ) -> dict[str, JsonValue]:
        """The label of one step and what it rests on."""
        shown = steps[: number + 1]
        if self.by == "judge":
            reply = await ask(self.prompt, schema=Verdict, steps=shown, gold=gold, **task_variables(job))
            said = Verdict.model_validate_json(reply.text)
            return {"label": said.verdict == "right", "reason": said.reason}
        if number == len(steps) - 1:
            right = await agrees(self.verifier, solution(job), answer_of(job), gold, ask)
            return {"label": right, "share": float(right), "rollouts": 0}
        asks = [ask.fork() for _ in range(self.n)]
        came = await gathered([self._reaches(job, shown, gold, nth, own) for nth, own in enumerate(asks)])
        ask.calls += [call for own in asks for call in own.calls]
        reached = [each for each in came if not isinstance(each, Rejected)]
        for nth, fate in enumerate(came):
            if isinstance(fate, Rejected):
                each = job.model_copy(update={"calls": (*job.calls, *asks[nth].calls)})
                lost.append(
                    each.rejected(self.name, fate.reason, f"step {number + 1}, rollout {nth + 1}: {fate.detail}")
                )
        if not reached:
            raise Rejected("no_rollouts", f"step {number + 1}: all {self.n} were lost, the last: {came[-1]}")
        share = sum(reached) / len(reached)
        return {"label": share > 0, "share": round(share, 4), "rollouts": len(reached)}

    async def _reaches(self, job: Record, steps: list[str], gold: str, nth: int, ask: Ask) -> bool:
        try:
            reply = await ask(self.prompt, nth=nth, steps=steps, **task_variables(job))
        except Rejected as fate:
            if fate.reason != "cut":
                raise
            return False
        text = split_thinking(reply.text)[1]
        answer = bare(split_answer(text)[1] or final_answer(text))
        return await agrees(self.verifier, text, answer, gold, ask)

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """Every step right, or the rest of a solution."""
        if self.by == "rollouts":
            return f"{words(0)}\nAnswer: {words(2)}"
        one = Verdict(reason=words(15), verdict="right")
        return (Verdicts(steps=[one] * len(variables["steps"])) if self.at_once else one).model_dump_json()


async def agrees(verifier: AnyVerifier | None, text: str, answer: str, gold: str, ask: Ask) -> bool:
    """Whether a solution that ends with `answer` reaches the gold one. Raises Rejected where the verifier cannot say."""
    if verifier is None:
        return same_answer(answer, gold)
    verdict = await verifier.verdict(text, gold, ask.execute)
    if verdict.passed is None:
        raise Rejected("unverified", verdict.detail)
    return verdict.passed


def answer_of(record: Record) -> str:
    """The short answer that a record's solution ends with."""
    if record.reasoning:
        return bare(final_answer(record.output))
    return bare(split_answer(record.output)[1] or final_answer(record.output))


def gold_of(record: Record, column: str | None) -> str:
    """The answer that a record should have: `meta.gold`, or that in a seed's column; empty where neither says."""
    said = record.meta.get("gold") or (record.extra.get(column) if column else None)
    return final_answer(str(said)) if isinstance(said, str | int | float) and not isinstance(said, bool) else ""


def split_steps(text: str, by: str) -> list[str]:
    """The steps of a solution. A heading goes with what follows it, a line without words with what it follows."""
    text, start = text.strip(), 0
    spans: list[tuple[int, int]] = []
    cuts = [(mark.start(), mark.end()) for mark in ENDS[by].finditer(text)]
    for end, after in [*cuts, (len(text), len(text))]:
        piece = text[start:end]
        if after < len(text) and (_open(piece) or piece.endswith(":")):
            continue
        if terms(piece) or not spans:
            spans.append((start, end))
        else:
            spans[-1] = (spans[-1][0], end)
        start = after
    return [text[start:end] for start, end in spans if start < end]


def _open(text: str) -> bool:
    """Whether a code block or a displayed formula has begun in a text and not ended."""
    return bool(text.count("```") % 2 or text.count("$$") % 2 or text.count("\\[") > text.count("\\]"))


def _place(row: Row) -> list[int]:
    return (
        [int(number) for number in re.findall(r"\d+", row.detail.partition(":")[0])] if isinstance(row, Reject) else []
    )
