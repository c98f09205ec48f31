"""What a judge's verdicts say about the judge: position bias, saturation, self-preference, what it left unscored.

Only counts are added up, so that the order in which verdicts come changes no digit.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

GRADES, PAIRS = 20, 10  # fewer say nothing of a judge
SATURATED = 0.8
ALIKE = 0.9
BIASED = 0.75
STEADY = 0.6
UNREAD = 0.2
PROUD = 0.1
PARTS = 10**6  # what is between a win and a loss is counted in millionths


@dataclass(frozen=True, slots=True)
class Grade:
    """A judge's grade of one answer by one aspect, from `low` to `high`; None is unscored. `own`: the judge's model wrote it."""

    judge: str
    aspect: str
    score: float | None
    low: float
    high: float
    own: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of two answers: the share of the one shown first, from 0 to 1, None where it said nothing.

    `forward` is of one order, `backward` of the other, and None where that was not asked. `own` is 1 where the judge's
    model wrote the first of the forward order alone, 2 where it wrote the other alone.
    """

    judge: str
    forward: float | None
    backward: float | None = None
    swapped: bool = True
    own: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """Where the one stood that a judge found best of `of` answers; None where it said nothing."""

    judge: str
    place: int | None
    of: int


Seen = Grade | Verdict | Listing


def consistent(forward: float, backward: float) -> bool:
    """Whether two verdicts, each the share of the answer shown first, prefer the same answer, or neither."""
    return _sign(forward) == -_sign(backward)


def _sign(share: float) -> int:
    return (share > 0.5) - (share < 0.5)


@dataclass
class Judge:
    """The sums over what one judge said in one stage."""

    scores: dict[str, Counter[float]] = field(default_factory=dict)
    tops: dict[str, float] = field(default_factory=dict)
    levels: Counter[float] = field(default_factory=Counter)
    own: Counter[float] = field(default_factory=Counter)
    others: Counter[float] = field(default_factory=Counter)
    grades: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)

    def add(self, seen: Seen) -> None:
        """Count one verdict."""
        if isinstance(seen, Grade):
            self._grade(seen)
        elif isinstance(seen, Verdict):
            self._verdict(seen)
        else:
            self.places["lists" if seen.place is not None else "unread"] += 1
            if seen.place is not None:
                self.places["first"] += seen.place == 0
                self.places["last"] += seen.place == seen.of - 1
                self.sizes[seen.of] += 1

    def _grade(self, seen: Grade) -> None:
        self.grades["asked"] += 1
        if seen.score is None:
            self.grades["unscored"] += 1
            return
        level = round((seen.score - seen.low) / (seen.high - seen.low), 6)
        self.levels[level] += 1
        (self.own if seen.own else self.others)[level] += 1
        self.scores.setdefault(seen.aspect, Counter())[seen.score] += 1
        self.tops[seen.aspect] = seen.high

    def _verdict(self, seen: Verdict) -> None:
        said = [each for each in (seen.forward, seen.backward) if each is not None]
        self.pairs["asked"] += 1
        self.pairs["unread"] += len(said) < 1 + seen.swapped
        self.pairs["first"] += sum(each > 0.5 for each in said)
        self.pairs["second"] += sum(each < 0.5 for each in said)
        self.pairs["ties"] += sum(each == 0.5 for each in said)
        if seen.forward is not None and seen.backward is not None:
            self.pairs["both"] += 1
            self.pairs["consistent"] += consistent(seen.forward, seen.backward)
        if seen.own and seen.forward is not None:
            left = (seen.forward + 1 - seen.backward) / 2 if seen.backward is not None else seen.forward
            self.pairs["own"] += 1
            self.pairs["own_won"] += round(PARTS * (left if seen.own == 1 else 1 - left))

    def data(self) -> dict[str, Any]:
        """The report. Shares are of 1; `entropy` is 0 where all grades are the same and 1 where all levels are as frequent."""
        made: dict[str, Any] = {}
        if self.grades:
            graded = self.levels.total()
            own, others = _mean(self.own), _mean(self.others)
            made |= {
                "grades": self.grades["asked"],
                "unscored": _share(self.grades["unscored"], self.grades["asked"]),
                "distribution": {
                    aspect: {f"{score:g}": counts[score] for score in sorted(counts)}
                    for aspect, counts in sorted(self.scores.items())
                },
                "top_share": _share(self.levels[1.0], graded),
                "most_given": _share(max(self.levels.values(), default=0), graded),
                "entropy": _entropy(self.levels),
                "own": {"grades": self.own.total(), "mean": own},
                "others": {"grades": self.others.total(), "mean": others},
                "self_preference": None if own is None or others is None else round(own - others, 4),
            }
        if self.pairs:
            decided = self.pairs["first"] + self.pairs["second"]
            made |= {
                "pairs": self.pairs["asked"],
                "unread": _share(self.pairs["unread"], self.pairs["asked"]),
                "swap_consistency": _share(self.pairs["consistent"], self.pairs["both"]),
                "first_preferred": _share(self.pairs["first"], decided),
                "ties": _share(self.pairs["ties"], decided + self.pairs["ties"]),
                "own_pairs": self.pairs["own"],
                "own_wins": _share(self.pairs["own_won"], PARTS * self.pairs["own"]),
            }
        if self.places:
            lists = self.places["lists"]
            expected = sum(count / size for size, count in sorted(self.sizes.items()))
            made |= {
                "lists": lists + self.places["unread"],
                "unread": _share(self.places["unread"], lists + self.places["unread"]),
                "first_on_top": _share(self.places["first"], lists),
                "last_on_top": _share(self.places["last"], lists),
                "first_expected": round(expected / lists, 4) if lists else None,
            }
        return made

    def notices(self) -> list[str]:
        """What a person should know before the rows are used."""
        made, said = self.data(), []
        if self.grades["asked"] >= GRADES:
            said += self._saturated()
            if made["unscored"] >= UNREAD:
                said.append(f"{made['unscored']:.0%} of its grades could not be read")
            enough = min(self.own.total(), self.others.total()) >= GRADES
            if enough and made["self_preference"] >= PROUD:
                said.append(
                    f"it grades its own model's answers {made['self_preference']:.0%} of the scale over others'"
                )
        if self.pairs["asked"] >= PAIRS:
            first, steady = made["first_preferred"], made["swap_consistency"]
            if first is not None and not 1 - BIASED < first < BIASED:
                place = "first" if first >= BIASED else "second"
                said.append(f"it prefers the answer that stands {place} in {max(first, 1 - first):.0%} of its verdicts")
            if (made["ties"] or 0) >= ALIKE:
                said.append(f"{made['ties']:.0%} of its verdicts are ties: they hardly tell answers apart")
            if steady is not None and steady < STEADY:
                said.append(f"{steady:.0%} of its verdicts stay the same when the order is turned round")
            if made["unread"] >= UNREAD:
                said.append(f"{made['unread']:.0%} of its comparisons could not be read")
            if self.pairs["own"] >= PAIRS and made["own_wins"] >= BIASED:
                said.append(f"its own model's answers win {made['own_wins']:.0%} of their comparisons")
        if self.places["lists"] + self.places["unread"] >= PAIRS:
            for place in ("first", "last"):
                share, expected = made[f"{place}_on_top"], made["first_expected"]
                if share is not None and share >= (1 + expected) / 2:
                    said.append(f"it finds the answer that stands {place} best in {share:.0%} of its lists")
            if made["unread"] >= UNREAD:
                said.append(f"{made['unread']:.0%} of its lists could not be read")
        return said

    def _saturated(self) -> list[str]:
        """The aspects whose grades are nearly all the highest, or all alike."""
        said = []
        enough = [name for name, counts in sorted(self.scores.items()) if counts.total() >= GRADES]
        shares = {name: self.scores[name][self.tops[name]] / self.scores[name].total() for name in enough}
        full = [name for name in enough if shares[name] >= SATURATED]
        alike = {
            name: max(self.scores[name].values()) / self.scores[name].total() for name in enough if name not in full
        }
        same = [name for name in alike if alike[name] >= ALIKE]
        for names, found, what in ((full, shares, "the highest there is"), (same, alike, "the same")):
            if names:
                least = min(found[name] for name in names)
                said.append(
                    f"{least:.0%} of its grades for {', '.join(names)} are {what}: they hardly tell answers apart"
                )
        return said


@dataclass
class Judging:
    """The judges of one stage by role."""

    judges: dict[str, Judge] = field(default_factory=dict)

    def add(self, seen: Seen) -> None:
        """Count one verdict for its judge."""
        self.judges.setdefault(seen.judge, Judge()).add(seen)

    def data(self) -> dict[str, Any]:
        """The report of each judge."""
        return {role: judge.data() for role, judge in sorted(self.judges.items())}

    def notices(self, stage: str) -> list[str]:
        """What is wrong with any of them."""
        return [
            f"{stage}, judge {role}: {each}" for role, judge in sorted(self.judges.items()) for each in judge.notices()
        ]


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _mean(levels: Counter[float]) -> float | None:
    total = levels.total()
    return round(math.fsum(level * count for level, count in levels.items()) / total, 4) if total else None


def _entropy(levels: Counter[float]) -> float | None:
    """Of the levels that were given, as a share of what it would be if all of them were as frequent."""
    total = levels.total()
    if not total:
        return None
    bits = math.fsum(count / total * math.log2(total / count) for count in levels.values())
    return round(bits / math.log2(len(levels)), 4) if len(levels) > 1 else 0.0
