"""Feedback: a judge says which of two answers is better, in both orders."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdgen.errors import Rejected
from kdgen.judging import Verdict, consistent
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Candidate, Record, Row
from kdgen.stages.answer import TASK
from kdgen.stages.base import Ask, bad_stage, gathered
from kdgen.stages.judged import UNREAD, Judged, mean, ranked, read, shown_of, unread, with_notes
from kdgen.stages.pair import text_of
from kdgen.teachers.base import Reply
from kdgen.teachers.logprobs import options

ONE, TWO = "1", "2"
LAST = re.compile(r"\b[12]\W*\Z")
NUMBERED = re.compile(r"\b[12]\b")
WORTH = {"first": 1.0, "tie": 0.5, "second": 0.0}


class Decision(BaseModel):
    """Which answer is better, the reason first."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    better: Literal["first", "second"]


class TieDecision(Decision):
    """Which answer is better, the reason first; tie only where neither is."""

    better: Literal["first", "second", "tie"]  # type: ignore[assignment]


@dataclass(frozen=True)
class Outcome:
    """What one judge says of a pair: the share of the left one, None where it cannot be told."""

    role: str
    left: float | None
    steady: bool | None = None
    soft: bool = False
    reason: str = ""
    teacher: str = ""
    wrong: tuple[JsonValue, ...] = ()


class Compare(Judged):
    """Compare answers two by two: the φ_fb(x, y; θ_T) of D = {(x, y, φ_fb(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu et al.,
    Eq. 7) as a preference between them.

    `over` says which: `all` pairs, `neighbours` (1 and 2, 2 and 3 …), or each with the `first` (a reference). Each pair is
    asked about in both orders unless `swap` is false. A pair is worth 1 to the answer that is preferred in both, and a half
    to each where the two orders disagree, or one of them is a tie: what depends on the order is a tie. With `soft` the
    judge's reply ends in 1 or 2, and the worth is the softmax of the logprobs of these two, averaged over both orders
    (RLAIF, arXiv 2309.00267); where a reply shows no logprobs it is a vote. An order that cannot be read leaves the pair
    without a verdict. Answers of the same text tie unasked.

    `scores[name_as]` and `score` are an answer's mean worth over its pairs (its share of wins) and over the judges;
    `meta.compared` has every pair.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["compare"] = "compare"
    prompt: PromptFile
    over: Literal["all", "neighbours", "first"] = "all"
    ties: bool = True
    soft: bool = False
    swap: bool = True
    name_as: str = Field("wins", pattern=r"^[a-z][a-z0-9_]*$")

    gives: ClassVar[dict[str, frozenset[str]]] = {"prompt": TASK | {"first", "second", "ties", "gold"}}

    @property
    def reads_logprobs(self) -> int | None:
        """Of both options, for soft labels."""
        return 2 if self.soft else None

    def check(self, where: str) -> None:
        """A soft label has no tie: it is between."""
        super().check(where)
        if self.soft and self.ties and "ties" in self.model_fields_set:
            raise bad_stage("ties have no effect on soft labels", f"{where}.ties", "take it out")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """Two calls a pair and judge, all at once."""
        answers = job.candidates
        if len(answers) < 2:
            raise Rejected("too_few_candidates", f"{len(answers)} came, a comparison takes 2")
        pairs = self._pairs(len(answers))
        jobs = [(left, right, role, ask.fork()) for left, right in pairs for role in self.jury]
        found = await gathered([self._compared(job, left, right, role, own) for left, right, role, own in jobs])
        ask.calls += [call for *_, own in jobs for call in own.calls]
        if fate := next((each for each in found if isinstance(each, Rejected)), None):
            raise fate
        outcomes = {
            (left, right, role): each
            for (left, right, role, _), each in zip(jobs, found, strict=True)
            if isinstance(each, Outcome)
        }
        worth: dict[int, list[float | None]] = {place: [] for place in range(len(answers))}
        calls: dict[int, list[str]] = {place: [] for place in range(len(answers))}
        told: list[JsonValue] = []
        for left, right in pairs:
            said = [outcomes[left, right, role] for role in self.jury]
            share = mean([each.left for each in said])
            worth[left].append(share)
            worth[right].append(None if share is None else round(1 - share, 4))
            told.append(self._told(left, right, share, said))
        for left, right, _, own in jobs:
            calls[left] += own.calls
            calls[right] += own.calls
        made = ranked([self._scored(each, worth[place], calls[place]) for place, each in enumerate(answers)])
        teachers = list(dict.fromkeys(each.teacher for each in outcomes.values() if each.teacher))
        meta: dict[str, JsonValue] = {"compared": told, "judge": ", ".join(teachers)}
        every = list(dict.fromkeys(ask.calls))
        return [job.child(stage=self.stage, method=self.method, calls=every, meta=meta, candidates=made)]

    def _pairs(self, count: int) -> list[tuple[int, int]]:
        if self.over == "all":
            return list(combinations(range(count), 2))
        return list(pairwise(range(count))) if self.over == "neighbours" else [(0, each) for each in range(1, count)]

    def _scored(self, answer: Candidate, worth: list[float | None], calls: list[str]) -> Candidate:
        share = mean(worth)
        scores = {**answer.scores, self.name_as: share}
        every = tuple(dict.fromkeys((*answer.calls, *calls)))
        return with_notes(answer, {}, scores=scores, score=share, calls=every)

    def _told(self, left: int, right: int, share: float | None, said: list[Outcome]) -> dict[str, JsonValue]:
        """One pair, as `meta.compared` has it: the places, the share of the left one, and how it came about."""
        steady: list[JsonValue] = [each.steady for each in said]
        made: dict[str, JsonValue] = {"pair": [left, right], "left": share, "consistent": steady}
        if self.soft:
            made["by"] = ["logprobs" if each.soft else "votes" for each in said]
        if len(said) > 1:
            made["judges"] = [each.left for each in said]
        if reasons := [each.reason for each in said if each.reason]:
            made["reason"] = reasons[0]
        if wrong := [each for one in said for each in one.wrong]:
            made["unread"] = wrong
        return made

    async def _compared(self, job: Record, left: int, right: int, role: str, ask: Ask) -> Outcome:
        one, other = job.candidates[left], job.candidates[right]
        if text_of(one) == text_of(other):
            return Outcome(role, 0.5)
        orders = [(one, other), *([(other, one)] if self.swap else [])]
        asks = [ask.fork() for _ in orders]
        shown = {**shown_of(job), "ties": self.ties and not self.soft}
        replies = await gathered(
            [self._asked(role, own, first, second, shown) for (first, second), own in zip(orders, asks, strict=True)]
        )
        ask.calls += [call for each in asks for call in each.calls]
        if fate := next((each for each in replies if isinstance(each, Rejected) and each.reason not in UNREAD), None):
            raise fate
        said = [None if isinstance(each, Rejected) else self._share(each) for each in replies]
        shares = [each[0] if each else None for each in said]
        teacher = next((each.teacher for each in replies if isinstance(each, Reply)), "")
        self._report(role, shares, teacher, one, other, ask)
        wrong = tuple(f"{role}: {each}" for each in unread(replies))
        known = [each for each in shares if each is not None]
        if len(known) < len(orders):
            return Outcome(role, None, teacher=teacher, wrong=wrong)
        soft = all(each is not None and each[1] for each in said)
        reason = next((each[2] for each in said if each and each[2]), "")
        if not self.swap:
            return Outcome(role, round(known[0], 4), None, soft, reason, teacher)
        steady = consistent(*known)
        left_share = (known[0] + 1 - known[1]) / 2
        if not soft:
            left_share = left_share if steady else 0.5
        return Outcome(role, round(left_share, 4), steady, soft, reason, teacher)

    async def _asked(
        self, role: str, ask: Ask, first: Candidate, second: Candidate, shown: Mapping[str, Any]
    ) -> Reply | Rejected:
        schema = None if self.soft else TieDecision if self.ties else Decision
        check = _chosen if self.soft else None
        variables = {**shown, "first": first.output, "second": second.output}
        return await read(ask, ask(self.prompt, to=role, schema=schema, check=check, **variables))

    def _share(self, reply: Reply) -> tuple[float, bool, str]:
        """(share of the answer shown first, whether by logprobs, the reason given)."""
        if not self.soft:
            decision = TieDecision.model_validate_json(reply.text)
            return WORTH[decision.better], False, decision.reason
        vote = 1.0 if _choice(reply.text) == ONE else 0.0
        logprobs = options(reply.body, (ONE, TWO))
        if not logprobs:
            return vote, False, ""
        return 1 / (1 + math.exp(logprobs[TWO] - logprobs[ONE])), True, ""

    def _report(
        self, role: str, shares: list[float | None], teacher: str, one: Candidate, other: Candidate, ask: Ask
    ) -> None:
        mine = [bool(teacher) and each.writer == teacher for each in (one, other)]
        own = {(True, False): 1, (False, True): 2}.get((mine[0], mine[1]), 0)
        backward = shares[1] if self.swap else None
        ask.judged([Verdict(role, shares[0], backward, self.swap, own)])

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The same answer in whichever order."""
        better = "first" if variables["first"] >= variables["second"] else "second"
        if self.soft:
            return ONE if better == "first" else TWO
        return TieDecision(reason=words(20), better=better).model_dump_json()


def _chosen(reply: Reply) -> str | None:
    return None if _choice(reply.text) else "it does not end with 1 or 2 alone"


def _choice(text: str) -> str:
    """The 1 or 2 at the end; none where its line names both, as "1 is better than 2" does."""
    said = NUMBERED.findall(text.strip().rpartition("\n")[2])
    return said[0] if len({*said}) == 1 and LAST.search(text) else ""
