"""Feedback without a judge: answers whose order is known from the way they were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdgen.errors import Rejected
from kdgen.parse import split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Candidate, Frozen, Record, Row
from kdgen.stages.answer import TASK, asked_of, task_variables
from kdgen.stages.base import Ask, Stage, bad_stage, gathered


class Relaxed(BaseModel):
    """The constraint that was taken out, and the request without it."""

    model_config = ConfigDict(extra="forbid")

    constraint: str
    request: str


class Side(Frozen):
    """One way to answer: under which prompt, by whom (the stage's own teacher where None), after how many demonstrations.

    `shots` is a variable of the prompt, as is `better`, the first side's answer. With `relax` that prompt has the stage's
    teacher take a constraint out of the task first, and what is left of it is answered.
    """

    prompt: PromptFile
    to: str | None = None
    shots: int = Field(0, ge=0, le=64)
    relax: PromptFile | None = None


class Contrast(Stage):
    """Preferences from the order of two or more `sides`, the better first; nothing is judged.

    D = {(x, y, φ(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu et al., Eq. 7): y are the answers of the sides, and φ says that
    each is better than those after it, because of how it was asked for. RLCD (arXiv 2307.12950) asks one model under a
    good and a bad affix, drawn from `banks`; ALMoST (arXiv 2305.13735) larger models with more demonstrations before smaller
    ones; Tülu 3 (arXiv 2411.15124) for what the task asks, and for the task with a constraint taken out. A row is a pair: two
    `candidates`, chosen first. `pairs` makes one of the first and the last side that came (`ends`), of each and the
    next (`next`), or of all. Two answers that say the same are a reject, as is each side that is lost. With `existing:
    keep` an output that the record has is the first side's; else it is kept as `meta.gold`.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["contrast"] = "contrast"
    sides: tuple[Side, ...] = Field(min_length=2)
    pairs: Literal["ends", "next", "all"] = "ends"
    existing: Literal["replace", "keep"] = "replace"

    gives: ClassVar[dict[str, frozenset[str]]] = {"sides": TASK | {"shots", "better"}, "relax": TASK}

    @property
    def roles(self) -> set[str]:
        """Who answers a side, and who relaxes."""
        relaxes = {self.to} if any(side.relax for side in self.sides) else set[str]()
        return relaxes | {side.to or self.to for side in self.sides}

    @property
    def validates(self) -> set[str]:
        """Who relaxes: what is left of a task has a schema."""
        return {self.to} if any(side.relax for side in self.sides) else set()

    def prompts(self) -> Iterator[tuple[str, Prompt]]:
        """Those of the sides."""
        for side in self.sides:
            yield "sides", side.prompt
            if side.relax:
                yield "relax", side.relax

    def check(self, where: str) -> None:
        """Two sides must differ in what can make one better, and what is set must have an effect."""
        super().check(where)
        if self.pairs != "ends" and len(self.sides) == 2:
            cause = f"pairs: {self.pairs} has no effect: two sides are one pair"
            raise bad_stage(cause, f"{where}.pairs", "take it out")
        for number, side in enumerate(self.sides):
            at = f"{where}.sides.{number}"
            if side.shots and "shots" not in side.prompt.variables:
                raise bad_stage(
                    "shots has no effect: the prompt does not show it", f"{at}.shots", "a prompt with shots"
                )
            if not number and "better" in side.prompt.variables:
                raise bad_stage("no side is better than the first", f"{at}.prompt", "a prompt without `better`")
            if side in self.sides[:number]:
                raise bad_stage(
                    "a side stands twice, and is no better than itself", at, "another prompt, model or shots"
                )
        if self.to not in self.roles and "to" in self.model_fields_set:
            raise bad_stage("to has no effect: each side names its own", f"{where}.to", "take it out")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call a side, two for one that relaxes. Sides that are shown the first one's answer wait for it."""
        kept = self.existing == "keep" and bool(terms(job.output))
        found: dict[int, Candidate | Rejected] = {}
        if kept:
            wrote = job.writers.get("output", "")
            role = "" if wrote else "seed"
            found[0] = Candidate(output=job.output, reasoning=job.reasoning, writer=wrote, role=role, notes={"side": 1})
        asks = {number: ask.fork() for number in range(len(self.sides)) if number not in found}
        for later in (False, True):
            now = [at for at in asks if ("better" in self.sides[at].prompt.variables) == later]
            better = first.output if isinstance(first := found.get(0), Candidate) else ""
            came = await gathered([self._side(job, number, better, asks[number]) for number in now])
            found |= zip(now, came, strict=True)
        ask.calls += [call for each in asks.values() for call in each.calls]
        rows: list[Row] = []
        for number, each in sorted(found.items()):
            if isinstance(each, Rejected):
                lost = job.model_copy(update={"calls": (*job.calls, *asks[number].calls)})
                rows.append(lost.rejected(self.name, each.reason, f"side {number + 1}: {each.detail}"))
        there = [(number, each) for number, each in sorted(found.items()) if isinstance(each, Candidate)]
        if len(there) == 1 and (alone := there[0][1]).calls:
            lost = job.model_copy(update={"calls": (*job.calls, *alone.calls), "output": alone.output})
            rows.append(lost.rejected(self.name, "no_pair", f"side {there[0][0] + 1} has none to stand beside"))
        rows += [self._pair(job, *pair, kept=kept) for pair in self._pairs(there)]
        return rows

    def _pairs(self, there: Sequence[tuple[int, Candidate]]) -> list[tuple[Candidate, Candidate]]:
        sides = [each for _, each in there]
        if len(sides) < 2:
            return []
        if self.pairs == "ends":
            return [(sides[0], sides[-1])]
        return list(pairwise(sides) if self.pairs == "next" else combinations(sides, 2))

    def _pair(self, job: Record, chosen: Candidate, rejected: Candidate, *, kept: bool) -> Row:
        calls = tuple(dict.fromkeys((*chosen.calls, *rejected.calls)))
        if terms(chosen.output) == terms(rejected.output):
            lost = job.model_copy(update={"calls": (*job.calls, *calls), "output": chosen.output})
            which = f"sides {chosen.notes['side']} and {rejected.notes['side']}"
            return lost.rejected(self.name, "same_answer", f"{which} say the same")
        sides: list[JsonValue] = [chosen.notes["side"], rejected.notes["side"]]
        gold: dict[str, JsonValue] = {"gold": job.output} if job.output and not kept else {}
        content: dict[str, Any] = {**asked_of(job), "output": chosen.output, "reasoning": chosen.reasoning}
        return job.child(
            stage=self.stage,
            method=self.method,
            calls=calls,
            writers={"output": chosen.writer} if chosen.writer else {},
            meta={"sides": sides, **gold},
            finish="stop",
            candidates=(chosen, rejected),
            **content,
        )

    async def _side(self, job: Record, number: int, better: str, ask: Ask) -> Candidate:
        side = self.sides[number]
        shown, notes = task_variables(job), dict[str, JsonValue](side=number + 1)
        if "better" in side.prompt.variables and not better:
            raise Rejected("no_better_answer", "the first side was lost")
        if side.relax:
            relaxed = await self._relaxed(job, side.relax, ask)
            shown |= {"instruction": relaxed.request, "input": "", "text": ""}
            notes["relaxed"] = relaxed.model_dump()
        if side.shots:
            notes["shots"] = side.shots
        reply = await ask(
            side.prompt,
            to=side.to,
            nth=self._nth(number),
            history=job.history,
            shots=side.shots,
            better=better,
            **shown,
        )
        thinking, text = split_thinking(reply.text)
        if not terms(text):
            raise Rejected("empty_answer", f"finish: {reply.finish}")
        return Candidate(
            output=text,
            reasoning=reply.reasoning or thinking,
            writer=reply.teacher,
            role=side.to or self.to,
            calls=tuple(ask.calls),
            notes=notes,
        )

    def _nth(self, number: int) -> int:
        """Tells sides apart that ask the same model by the same prompt, which may render alike for a record."""
        before = self.sides[:number]
        mine = self.sides[number]
        return sum((each.to, each.prompt.digest) == (mine.to, mine.prompt.digest) for each in before)

    async def _relaxed(self, job: Record, prompt: Prompt, ask: Ask) -> Relaxed:
        reply = await ask(prompt, schema=Relaxed, **task_variables(job))
        relaxed = Relaxed.model_validate_json(reply.text)
        if not terms(relaxed.constraint) or not terms(relaxed.request):
            raise Rejected("no_constraint", "the task has no constraint that could be taken out")
        if terms(relaxed.request) == terms(job.task or job.text):
            raise Rejected("not_relaxed", relaxed.request[:200])
        return relaxed

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """A task with something taken out of it, or an answer."""
        if any(prompt == side.relax for side in self.sides):
            return Relaxed(constraint=words(6), request=words(30)).model_dump_json()
        return words(0)
