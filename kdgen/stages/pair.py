"""Feedback: from candidates with scores to what a trainer takes, pairs or single answers. Nobody is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

from pydantic import Field, JsonValue

from kdgen.errors import Rejected
from kdgen.record import Candidate, Record, Row, score
from kdgen.stages.base import Ask, Stage, bad_stage
from kdgen.stages.candidates import SEED
from kdgen.stages.draw import Draw

UNASKED = ("to", "params", "banks", "lists")


class Unasked(Stage):
    """A stage that asks nobody."""

    @property
    def roles(self) -> set[str]:
        """None."""
        return set()

    def check(self, where: str) -> None:
        """What is said of a teacher has no effect."""
        super().check(where)
        for field in UNASKED:
            if field in self.model_fields_set:
                raise bad_stage(f"{field} has no effect: nobody is asked", f"{where}.{field}", "take it out")


def shuffled(record: Record, draw: Draw) -> Record:
    """The record with `meta.order`: the places of its candidates in an order drawn by their texts, stable under insertion."""
    key = (draw.seed, draw.stage, 0, *record.seeds, record.task or record.text)
    found = range(len(record.candidates))

    def drawn(place: int) -> tuple[int, int]:
        each = record.candidates[place]
        return score(*key, each.role, each.output), place

    order: list[JsonValue] = [*sorted(found, key=drawn)]
    return record.model_copy(update={"meta": {**record.meta, "order": order}})


def in_order(job: Record) -> tuple[Record, list[Candidate]]:
    """A shuffled record without the order, and its candidates in it."""
    order: Any = job.meta["order"]
    meta = {name: value for name, value in job.meta.items() if name != "order"}
    return job.model_copy(update={"meta": meta}), [job.candidates[place] for place in order]


def text_of(candidate: Candidate) -> str:
    """What a candidate says, spacing aside."""
    return " ".join(candidate.output.split())


class Pair(Unasked):
    """Make pairs of better and worse answers: the φ_fb of D = {(x, y, φ_fb(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu et al.,
    Eq. 7) as a preference y⁺ ≻ y⁻.

    `pick` says which. `best-worst`: the highest score and the lowest (Self-Rewarding, arXiv 2401.10020; Magpie, arXiv
    2406.08464). `best-random`: the highest, and one drawn of those below it (Zephyr, arXiv 2310.16944). `matched`: the
    highest with the lowest, the next with the next, as long as they differ, so that none is in two pairs and as many are
    chosen as rejected (V-STaR's right and wrong solutions, arXiv 2402.06457). `all`: every two. `own`: the record's own
    answer is better than each other, whatever its score (SPIN, arXiv 2401.01335). The score is
    the candidate's `score`, or the one named `by`. Two whose scores are equal, or less than `margin` apart, or whose
    texts are the same, are no pair; of equals at the top or the bottom one is drawn. A row's `candidates` are the chosen
    one and the rejected one, with all their scores; its output is the chosen one's.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["pair"] = "pair"
    pick: Literal["best-worst", "best-random", "matched", "all", "own"] = "best-worst"
    by: str | None = None
    margin: float = Field(0.0, ge=0)

    def check(self, where: str) -> None:
        """Where the own answer is the better one, scores say nothing."""
        super().check(where)
        for field in ("by", "margin"):
            if self.pick == "own" and field in self.model_fields_set:
                raise bad_stage(f"{field} has no effect on pick: own", f"{where}.{field}", "take it out")

    def plan(self, pool: Sequence[Record], round: int, draw: Draw) -> Iterator[Record]:
        """Each record with an order of its candidates, by which one of several equals is taken."""
        yield from (shuffled(record, draw) for record in pool)

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """No call. Raises Rejected where there is no pair."""
        job, found = in_order(job)
        if len(found) < 2:
            raise Rejected("too_few_candidates", f"{len(found)} came, a pair takes 2")
        if self.pick == "own":
            return self._own(job)
        ranked = sorted((each for each in found if self.value(each) is not None), key=self._value, reverse=True)
        if len(ranked) < 2:
            raise Rejected("unscored", f"{len(ranked)} of {len(found)} candidates have a score{_why(job)}")
        if self.pick == "all":
            # In the order in which the candidates came, whatever was drawn.
            scored = [each for each in job.candidates if self.value(each) is not None]
            return [self._row(job, *self._sorted(one, other)) for one, other in combinations(scored, 2)]
        best = ranked[0]
        if self.pick == "matched":
            ends = list(zip(ranked, reversed(ranked), strict=True))[: len(ranked) // 2]
            apart = [pair for pair in ends if self._value(pair[0]) > self._value(pair[1])]
            return [self._row(job, *pair) for pair in apart or ends[:1]]
        # An answer that says the same as the best one is no rival of it, whatever it was given.
        rivals = [each for each in ranked if text_of(each) != text_of(best)] or ranked[1:]
        if self.pick == "best-random":
            drawn = [each for each in found if each in rivals]
            return [self._row(job, best, next((each for each in drawn if not self._wrong(best, each)), drawn[0]))]
        low = self._value(rivals[-1])
        return [self._row(job, best, next(each for each in rivals if self._value(each) == low))]

    def value(self, candidate: Candidate) -> float | None:
        """The score that decides, None where it has none."""
        return candidate.scores.get(self.by) if self.by else candidate.score

    def _value(self, candidate: Candidate) -> float:
        value = self.value(candidate)
        assert value is not None
        return value

    def _sorted(self, one: Candidate, other: Candidate) -> tuple[Candidate, Candidate]:
        return (one, other) if self._value(one) >= self._value(other) else (other, one)

    def _own(self, job: Record) -> list[Row]:
        own = [each for each in job.candidates if each.role == SEED]
        if not own:
            raise Rejected("no_gold", "no candidate is the record's own answer")
        return [self._row(job, own[0], each) for each in job.candidates if each is not own[0]]

    def _wrong(self, chosen: Candidate, rejected: Candidate) -> tuple[str, str] | None:
        """Why two are no pair."""
        if text_of(chosen) == text_of(rejected):
            return "same_text", text_of(chosen)[:200]
        if self.pick == "own":
            return None
        high, low = self._value(chosen), self._value(rejected)
        if high == low:
            return "tie", f"both have {high:g}"
        if round(high - low, 6) < self.margin:
            return "small_margin", f"{high:g} and {low:g}, {self.margin:g} apart is the least"
        return None

    def _row(self, job: Record, chosen: Candidate, rejected: Candidate) -> Row:
        if wrong := self._wrong(chosen, rejected):
            return job.model_copy(update={"output": chosen.output}).rejected(self.name, *wrong)
        high, low = self.value(chosen), self.value(rejected)
        meta: dict[str, JsonValue] = {"pick": self.pick, "of": len(job.candidates)}
        if high is not None and low is not None:
            meta["margin"] = round(high - low, 6)
        if self.pick != "own" and (lost := sum(self.value(each) is None for each in job.candidates)):
            meta["unscored"] = lost
        return answered(self, job, chosen, {"pair": meta}, candidates=(chosen, rejected))


class Each(Unasked):
    """Make a row of each candidate: D = {(x, y, φ_fb(x, y; θ_T)) | x ~ X, y ~ p_S(y | x)} (Xu et al., Eq. 7) as it stands.

    `meta.score` and `meta.scores` are its scores. With `good_from`, `meta.label` says whether its score is at least that:
    desirable or not, as KTO (arXiv 2402.01306) takes it. Where `bad_to` is set too, a score between them is neither, and the
    candidate a reject; so is one without a score. The score is the candidate's `score`, or the one named `by`.
    """

    stage: Literal["feedback"] = "feedback"
    method: Literal["each"] = "each"
    by: str | None = None
    good_from: float | None = None
    bad_to: float | None = None

    def check(self, where: str) -> None:
        """What is bad is told from what is good."""
        super().check(where)
        if self.bad_to is not None and self.good_from is None:
            raise bad_stage("bad_to has no effect without good_from", f"{where}.bad_to", "set both")
        if self.bad_to is not None and self.good_from is not None and self.bad_to >= self.good_from:
            raise bad_stage("a score cannot be both good and bad", f"{where}.bad_to", f"under {self.good_from:g}")

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """No call, and as many rows and rejects as there are candidates."""
        if not job.candidates:
            raise Rejected("too_few_candidates", "the record has none")
        return [self._row(job, each, number) for number, each in enumerate(job.candidates)]

    def _row(self, job: Record, each: Candidate, number: int) -> Row:
        value = each.scores.get(self.by) if self.by else each.score
        meta: dict[str, JsonValue] = {"nth": number, "role": each.role, "score": value, "scores": dict(each.scores)}
        if self.good_from is not None:
            lost = job.model_copy(update={"output": each.output})
            if value is None:
                return lost.rejected(self.name, "unscored", f"{each.role} {each.writer}".strip())
            if self.bad_to is not None and self.bad_to < value < self.good_from:
                detail = f"{value:g} is over {self.bad_to:g} and under {self.good_from:g}"
                return lost.rejected(self.name, "neither_good_nor_bad", detail)
            meta["label"] = value >= self.good_from
        return answered(self, job, each, {**meta, "notes": each.notes} if each.notes else meta, candidates=())


def _why(job: Record) -> str:
    """What a judge's reply was, where none could be read: the first that a candidate or a comparison tells of."""
    compared: Any = job.meta.get("compared")
    told: list[Any] = [each.notes.get("unscored") for each in job.candidates]
    told += [job.meta.get("unread"), *(each.get("unread") for each in compared or ())]
    return next((f"; {each[0]}" for each in told if each), "")


def answered(stage: Stage, job: Record, candidate: Candidate, meta: dict[str, JsonValue], **content: Any) -> Record:
    """The record with a candidate's text as its output, and who wrote it."""
    gone = {"output", *(("candidates",) if not content.get("candidates") else ())}
    writers = {name: label for name, label in job.writers.items() if name not in gone}
    return job.model_copy(update={"writers": writers}).child(
        stage=stage.stage,
        method=stage.method,
        writers={"output": candidate.writer} if candidate.writer else {},
        meta=meta,
        output=candidate.output,
        reasoning=candidate.reasoning,
        **content,
    )
