"""Labeling by several draws: rejection sampling, self-consistency, best-of-n, traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdgen import judging
from kdgen.errors import Rejected
from kdgen.parse import bare, calculations, final_answer, same_answer, split_answer, split_thinking
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row
from kdgen.stages.answer import TASK, asked_of, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, gathered
from kdgen.stages.judged import read
from kdgen.stages.verify import check_source, runs_programs, shortfall, spec_of
from kdgen.teachers.base import Reply
from kdgen.verifiers import AnyVerifier, Verdict
from kdgen.verifiers.base import Verifier


class Grade(BaseModel):
    """A judge's grade of one answer, its reason first."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    score: int = Field(ge=1, le=10)


@dataclass(frozen=True)
class Drawn:
    """One draw: its replies, and what was read from them."""

    number: int
    reply: Reply
    reasoning: str
    output: str
    answer: str
    grade: Reply | None = None
    score: int = 0
    verdict: Verdict | None = None


class Sample(Stage):
    """Label a task `n` times and keep the `keep` best: D = {x, y | x ~ X, y ~ p_T(y | I ⊕ c ⊕ x)} (Xu et al., Eq. 3), filtered.

    `pick` says which are good. `gold`: those whose final answer is the record's (rejection sampling; Fine-tune-CoT, arXiv
    2212.10071; RFT, arXiv 2308.01825). `vote`: those of the answer that most draws give, at least `least_share` of
    them (self-consistency, arXiv 2203.11171). `judge`: those that a judge grades highest, at least `least_score`
    (best-of-n). `verify`: those that pass a verifier (ReST-EM, arXiv 2312.06585), from `verifier` or the seed's column
    `spec_from`, as in feedback/verify. `all`: every draw (traces; OpenThoughts, arXiv 2506.04178, takes 16 a question). Of
    what is as good, the earlier draw is kept; each draw that is not is a reject with its reason. `reasons` keeps none without
    reasoning, `distinct` none that calculates what an earlier good one does, in its order (RFT's distinct paths);
    `plain` adds a row with the answer of the best draw alone, so that a student learns both forms (LMSI, arXiv 2210.11610).
    `merge`: the judge makes one answer of all draws, by the prompt `merge`. The teachers of `among` take the draws in turn
    (several teachers a task: TinyLLM, arXiv 2402.04616; a pool has each task answered by one of them).
    """

    stage: Literal["label"] = "label"
    method: Literal["sample"] = "sample"
    prompt: PromptFile
    n: int = Field(4, ge=1, le=1024)
    among: tuple[str, ...] = ()
    pick: Literal["all", "gold", "vote", "judge", "merge", "verify"] = "vote"
    keep: int | None = Field(None, ge=1)
    reasons: bool = False
    plain: bool = False
    distinct: bool = False
    verifier: AnyVerifier | None = None
    spec_from: str | None = None
    least_share: float = Field(0.5, ge=0, le=1)
    least_score: int = Field(1, ge=1, le=10)
    grade: PromptFile | None = None
    merge: PromptFile | None = None
    judge: str = "teacher"

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": TASK,
        "grade": frozenset({"instruction", "input", "system", "output", "gold"}),
        "merge": TASK | {"answers"},
    }

    @property
    def roles(self) -> set[str]:
        """The teacher or teachers, and the judge where there is one."""
        return {*(self.among or (self.to,)), *((self.judge,) if self.pick in ("judge", "merge") else ())}

    @property
    def validates(self) -> set[str]:
        """The judge, whose grade has a schema."""
        return {self.judge} if self.pick == "judge" else set()

    @property
    def executes(self) -> bool:  # type: ignore[override]
        """Whether a verifier runs the programs that are drawn."""
        return self.pick == "verify" and runs_programs(self.verifier, self.spec_from)

    def check(self, where: str) -> None:
        """A judge needs its prompt, and what belongs to one way to pick has no effect on another."""
        super().check(where)
        if (self.pick == "judge") != (self.grade is not None):
            raise bad_stage("a judge and its prompt go together", f"{where}.grade", "pick: judge, grade: label/grade")
        if (self.pick == "merge") != (self.merge is not None):
            raise bad_stage("a merge and its prompt go together", f"{where}.merge", "pick: merge, merge: label/merge")
        if self.pick == "verify":
            check_source(self.verifier, self.spec_from, where)
        owners = {"least_share": ("vote",), "least_score": ("judge",), "judge": ("judge", "merge")}
        owners |= {"verifier": ("verify",), "spec_from": ("verify",)}
        for field, owned in owners.items():
            if field in self.model_fields_set and self.pick not in owned:
                raise bad_stage(f"{field} has no effect on pick: {self.pick}", f"{where}.{field}", f"pick: {owned[0]}")
        idle = next(
            (name for name in ("keep", "distinct", "plain") if self.pick == "merge" and getattr(self, name)), ""
        )
        if idle:
            raise bad_stage("a merge makes one row", f"{where}.{idle}", "take it out")
        if self.among and "to" in self.model_fields_set:
            raise bad_stage("to has no effect where among says who is asked", f"{where}.to", "take it out")
        if len(set(self.among)) < len(self.among) or len(self.among) > self.n:
            many = f"{self.n} draws do not reach {len(self.among)} different teachers"
            raise bad_stage(many, f"{where}.among", f"n: {len(set(self.among))}")
        if self.keep is not None and self.keep > self.n:
            raise bad_stage(f"{self.keep} of {self.n} draws cannot be kept", f"{where}.keep", f"n: {self.keep}")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """`n` calls at once, with a judge one more for each."""
        gold = final_answer(job.output) if job.output else ""
        if self.pick == "gold" and not gold:
            raise Rejected("no_gold", "the record has no answer to compare with")
        spec = spec_of(job, self.verifier, self.spec_from) if self.pick == "verify" else None
        if spec is not None and spec.needs_gold and not gold:
            raise Rejected("no_gold", "the record has no answer to compare with")
        asks = [ask.fork() for _ in range(self.n)]
        found = await gathered([self._draw(job, each, number, spec, gold) for number, each in enumerate(asks)])
        ask.calls += [call for each in asks for call in each.calls]
        drawn = [each for each in found if isinstance(each, Drawn)]
        if self.pick == "merge":
            lost = [(fate, own) for fate, own in zip(found, asks, strict=True) if isinstance(fate, Rejected)]
            return [await self._merged(job, drawn, ask), *(self._lost(job, fate, own) for fate, own in lost)]
        meta, fates = self._judged(drawn, gold)
        good = sorted((each for each in drawn if each.number not in fates), key=lambda each: -each.score)
        if self.distinct:
            good = _distinct(good, fates)
        for each in good[self.keep or self.n :]:
            fates[each.number] = ("over_keep", f"{self.keep} draws were as good or better")
        rows: list[Row] = []
        for came, own in zip(found, asks, strict=True):
            if isinstance(came, Rejected):
                rows.append(self._lost(job, came, own))
                continue
            row = self._row(job, came, gold, {**meta, "nth": came.number}, spec)
            rows.append(row.rejected(self.name, *fates[came.number]) if came.number in fates else row)
        if self.plain and good and good[0].reasoning:
            bare_one = replace(good[0], reasoning="", output=good[0].answer)
            rows.append(self._row(job, bare_one, gold, {**meta, "nth": good[0].number, "plain": True}, spec))
        return rows

    def _lost(self, job: Record, fate: Rejected, ask: Ask) -> Row:
        lost = job.model_copy(update={"calls": (*job.calls, *ask.calls)})
        return lost.rejected(self.name, fate.reason, fate.detail)

    async def _merged(self, job: Record, drawn: Sequence[Drawn], ask: Ask) -> Row:
        """One answer of all draws. What cannot be merged is a reject, beside the draws that were lost."""
        calls = [each.reply.key for each in drawn]
        lost = job.model_copy(update={"calls": (*job.calls, *calls)})
        if self.merge is None or len(drawn) < 2:
            return lost.rejected(self.name, "nothing_to_merge", f"{len(drawn)} of {self.n} draws came")
        answers, before = [f"{each.reasoning}\n\n{each.output}".strip() for each in drawn], len(ask.calls)
        try:
            reply = await ask(self.merge, to=self.judge, history=job.history, answers=answers, **task_variables(job))
            thinking, text = split_thinking(reply.text)
            if not text:
                raise Rejected("empty_answer", f"finish: {reply.finish}")
        except Rejected as fate:
            lost = lost.model_copy(update={"calls": (*lost.calls, *ask.calls[before:])})
            return lost.rejected(self.name, fate.reason, fate.detail)
        content = {"output": text, "reasoning": reply.reasoning or thinking, "finish": reply.finish, **asked_of(job)}
        merged: list[JsonValue] = [each.reply.teacher for each in drawn]
        meta: dict[str, JsonValue] = {"merged": merged, **({"gold": job.output} if job.output else {})}
        return self.child(job, *(each.reply for each in drawn), reply, writes=("output",), meta=meta, **content)

    def _row(self, job: Record, drawn: Drawn, gold: str, meta: dict[str, JsonValue], spec: Verifier | None) -> Record:
        if spec is not None and drawn.verdict is not None:
            meta = {**meta, "verifier": spec.model_dump(mode="json"), "scores": {"verified": drawn.verdict.score}}
        if gold:
            meta = {**meta, "gold": gold}
        if gold and spec is None:
            meta = {**meta, "agrees": same_answer(drawn.answer, gold)}
        if drawn.grade:
            meta = {**meta, "score": drawn.score, "judge": drawn.grade.teacher}
        content = {"output": drawn.output, "reasoning": drawn.reasoning, "finish": drawn.reply.finish}
        replies = [drawn.grade, drawn.reply] if drawn.grade else [drawn.reply]
        return self.child(job, *replies, writes=("output",), meta=meta, **asked_of(job), **content)

    async def _draw(self, job: Record, ask: Ask, number: int, spec: Verifier | None, gold: str) -> Drawn:
        to = self.among[number % len(self.among)] if self.among else None
        reply = await ask(self.prompt, to=to, nth=number, history=job.history, gold=gold, **task_variables(job))
        thinking, text = split_thinking(reply.text)
        if not text:
            raise Rejected("empty_answer", f"finish: {reply.finish}")
        rationale, answer = split_answer(text)
        thought, reasoned = reply.reasoning or thinking, bool(answer and rationale)
        drawn = Drawn(
            number=number,
            reply=reply,
            reasoning=thought or (rationale if reasoned else ""),
            output=text if thought or not reasoned else answer,
            answer=bare(answer or final_answer(text)),
        )
        if self.reasons and not drawn.reasoning:
            raise Rejected("no_reasoning", text[:200])
        if spec is not None:
            return replace(drawn, verdict=await spec.verdict(drawn.output, gold, ask.execute))
        if not self.grade:
            return drawn
        shown: dict[str, Any] = {"instruction": job.task or job.text, "input": "", "system": job.system}
        said = f"{drawn.reasoning}\n\n{drawn.output}" if reasoned and not thought else drawn.output
        asked = ask(self.grade, to=self.judge, nth=number, schema=Grade, output=said, gold=job.output, **shown)
        grade = await read(ask, asked)
        if isinstance(grade, Rejected):
            ask.judged([judging.Grade(self.judge, "score", None, 1, 10)])
            raise grade
        score = Grade.model_validate_json(grade.text).score
        ask.judged([judging.Grade(self.judge, "score", score, 1, 10, grade.teacher == reply.teacher)])
        return Drawn(number, reply, drawn.reasoning, drawn.output, drawn.answer, grade, score)

    def _judged(self, drawn: Sequence[Drawn], gold: str) -> tuple[dict[str, JsonValue], dict[int, tuple[str, str]]]:
        """What all rows are told, and why some draws are not good, by number."""
        if self.pick == "gold":
            wrong = (each for each in drawn if not same_answer(each.answer, gold))
            return {}, {
                each.number: ("disagrees_with_gold", f"{each.answer[:100]} is not {gold[:100]}") for each in wrong
            }
        if self.pick == "verify":
            wrong = (each for each in drawn if each.verdict is None or not each.verdict.passed)
            return {}, {each.number: shortfall(each.verdict) for each in wrong if each.verdict is not None}
        if self.pick == "judge":
            low = (each for each in drawn if each.score < self.least_score)
            return {}, {each.number: ("low_score", f"{each.score}, {self.least_score} is the least") for each in low}
        if self.pick == "all" or not drawn:
            return {}, {}
        camps: list[list[Drawn]] = []
        for each in drawn:
            camp = next((camp for camp in camps if same_answer(camp[0].answer, each.answer)), None)
            if camp is None:
                camps.append([each])
            else:
                camp.append(each)
        most = max(camps, key=len)
        votes, share = len(most), len(most) / self.n
        if share < self.least_share:
            detail = f"{votes} of {self.n} draws agree, a share of {self.least_share:g} is the least"
            return {}, {each.number: ("no_majority", detail) for each in drawn}
        kept = {each.number for each in most}
        lost = {each.number: ("outvoted", f"{each.answer[:100]} by {votes} of {self.n}") for each in drawn}
        return {"votes": votes, "share": round(share, 4)}, {n: fate for n, fate in lost.items() if n not in kept}

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A grade, or an answer with its reasons; of a vote, the same answer each time."""
        if prompt == self.grade:
            return Grade(reason=words(15), score=8).model_dump_json()
        if prompt == self.merge:
            return words(0)
        right = variables.get("gold") if self.pick in ("gold", "verify") else ""
        if self.pick == "verify" and self.executes and not right:
            return f"```python\n# {words(0)}\nprint(1)\n```"
        return f"{words(0)}\nAnswer: {right or ('it is so' if self.pick == 'vote' else words(2))}"


def _distinct(good: Sequence[Drawn], fates: dict[int, tuple[str, str]]) -> list[Drawn]:
    """The draws whose path no earlier one took; `fates` is told of the others."""
    seen: dict[tuple[str, ...], int] = {}
    for each in good:
        first = seen.setdefault(calculations(f"{each.reasoning}\n{each.output}"), each.number)
        if first != each.number:
            fates[each.number] = ("same_path", f"it calculates what draw {first} does")
    return [each for each in good if each.number not in fates]
