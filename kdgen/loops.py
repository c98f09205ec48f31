"""A loop: datasets made one after the other, each by the student that the one before trained, and what ends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import Field, JsonValue

from kdgen.judging import GRADES
from kdgen.parse import terms
from kdgen.record import Frozen

WINDOW = 1000


class Bounds(Frozen):
    """How far an iteration's rows may drift before the loop stops. None looks away.

    `longer` and `shorter`: the mean words of an answer and its reasoning, as a multiple of the iteration's before.
    `distinct`: the share of different pairs of neighbouring words, likewise. `same_score`: the share of a judge's grades
    that are the one it gives most, where there are 20 at least: a judge that calls all equally good chooses nothing.
    `self_preference`: how much higher, in shares of its scale, a judge scores its own model's answers than the others'.
    """

    longer: float | None = Field(2.0, gt=1)
    shorter: float | None = Field(0.5, gt=0, lt=1)
    distinct: float | None = Field(0.5, gt=0, le=1)
    same_score: float | None = Field(0.95, gt=0, lt=1)
    self_preference: float | None = Field(0.3, gt=0, lt=1)


class Loop(Frozen):
    """The iterations of a dataset: M1 is made by the student as it is, M2 by the one trained on M1, and so on.

    Each of `iterations` holds what changes in it, by its place in the recipe (`teachers.student.model: mine-1`,
    `stages.1.at_least: 0.8`); what an iteration changes stays so for those after it. One more is made when one more is written
    down. `reads`: `seeds` starts each from the recipe's seeds, and a stage may draw demonstrations from the last rows;
    `rows` starts from the last rows; `pool` starts from the seeds, and the rows of all iterations before stand in
    the pool that a stage grows, and are known to dedupe.
    """

    iterations: tuple[dict[str, JsonValue], ...] = Field(min_length=1)
    reads: Literal["seeds", "rows", "pool"] = "seeds"
    bounds: Bounds = Bounds()

    def changes(self, number: int) -> Iterator[tuple[int, str, JsonValue]]:
        """What all iterations up to `number`, from 0, change: which says so, where, what."""
        for place, changed in enumerate(self.iterations[: number + 1]):
            yield from ((place, key, value) for key, value in changed.items())


class Measures(NamedTuple):
    """What drift is told by, of one dataset: see `Bounds`."""

    rows: int
    words: float
    distinct: float | None
    score: float | None
    same_score: float | None
    self_preference: float | None = None

    def data(self) -> dict[str, JsonValue]:
        """For the manifest."""
        return {name: round(value, 4) if value is not None else None for name, value in self._asdict().items()}


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a dataset's file, as objects."""
    with path.open("rb") as lines:
        yield from map(orjson.loads, lines)


def measured(rows: Iterable[dict[str, Any]], judges: Iterable[dict[str, Any]] = ()) -> Measures:
    """The measures of records, and what the reports of their `judges` say. Memory: the scores there are, a window of words."""
    reports = list(judges)
    count = words = 0
    scores: Counter[float] = Counter()
    shares: list[float] = []
    window: list[tuple[str, str]] = []
    for row in rows:
        count += 1
        said = terms(f"{row['reasoning']} {row['output']}")
        words += len(said)
        if (score := _score(row)) is not None:
            scores[score] += 1
        window += pairwise(said)
        while len(window) >= WINDOW:
            shares.append(len(set(window[:WINDOW])) / WINDOW)
            del window[:WINDOW]
    if window and not shares:
        shares.append(len(set(window)) / len(window))
    scored = scores.total()
    same = [report["most_given"] for report in reports if report.get("grades", 0) >= GRADES and report["most_given"]]
    proud = [
        report["self_preference"]
        for report in reports
        if "own" in report and min(report["own"]["grades"], report["others"]["grades"]) >= GRADES
    ]
    return Measures(
        rows=count,
        words=words / count if count else 0.0,
        distinct=sum(shares) / len(shares) if shares else None,
        score=sum(score * many for score, many in scores.items()) / scored if scored else None,
        same_score=max(same, default=None),
        self_preference=max(proud, default=None),
    )


def _score(row: dict[str, Any]) -> float | None:
    own = row["meta"].get("score")
    return float(own) if isinstance(own, int | float) and not isinstance(own, bool) else None


def drifted(bounds: Bounds, now: Measures, before: Measures | None) -> str:
    """What is past its bound, with the figures; empty where nothing is."""
    found: list[str] = []
    if before is not None and before.words:
        times = now.words / before.words
        if bounds.longer is not None and times > bounds.longer:
            found.append(
                _said("longer", f"an answer has {now.words:.0f} words, {times:.2f} times as many", bounds.longer)
            )
        if bounds.shorter is not None and times < bounds.shorter:
            found.append(
                _said("shorter", f"an answer has {now.words:.0f} words, {times:.2f} times as many", bounds.shorter)
            )
    if before is not None and before.distinct and now.distinct is not None and bounds.distinct is not None:
        times = now.distinct / before.distinct
        if times < bounds.distinct:
            found.append(
                _said("distinct", f"the share of different pairs of words fell to {times:.2f} of it", bounds.distinct)
            )
    for name in ("same_score", "self_preference"):
        share, most = getattr(now, name), getattr(bounds, name)
        if share is not None and most is not None and share > most:
            what = (
                "of a judge's grades are one and the same"
                if name == "same_score"
                else "is what a judge adds for its own model"
            )
            found.append(_said(name, f"{share:.2f} {what}", most))
    return "; ".join(found)


def _said(name: str, figures: str, bound: float) -> str:
    return f"{figures} (bounds.{name} is {bound:g})"
