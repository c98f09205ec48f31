"""Novelty by ROUGE-L, as Self-Instruct measures it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from kdgen.dedupe.exact import Index
from kdgen.filters.text import TextField
from kdgen.parse import words
from kdgen.record import Frozen, Record

NEARLY = 1e-6


class Rouge(Frozen):
    """A record is a near-duplicate when its ROUGE-L F1 with any earlier one is over `threshold` (Self-Instruct: 0.7)."""

    method: Literal["rouge-l"] = "rouge-l"
    field: TextField = "instruction"
    threshold: float = Field(0.7, gt=0, le=1)
    against_seeds: bool = True

    def index(self) -> Index:
        """An empty index."""
        return RougeIndex(self.threshold, self.field)


class RougeIndex:
    """Every kept text as a string with one character a token, compared with bit-parallel LCS (rapidfuzz)."""

    def __init__(self, threshold: float, field: TextField = "instruction") -> None:
        self.threshold = threshold
        self.field = field
        self._ids: list[str] = []
        self._texts: list[str] = []
        self._alphabet: dict[str, str] = {}

    def seen(self, record: Record) -> str | None:
        """near_duplicate, with the nearest record and its score; else remember the record."""
        text = self._encode(str(getattr(record, self.field)))
        if found := self._nearest(text):
            value, twin = found
            return f"near_duplicate: ROUGE-L {value:.2f} with {twin}"
        self._ids.append(record.id)
        self._texts.append(text)
        return None

    def add(self, record: Record) -> None:
        """Remember a record without asking; a task with an input counts in both readings."""
        for reading in dict.fromkeys((str(getattr(record, self.field)), record.task)):
            if reading:
                self._ids.append(record.id)
                self._texts.append(self._encode(reading))

    def _nearest(self, text: str) -> tuple[float, str] | None:
        from rapidfuzz import process
        from rapidfuzz.distance import Indel

        scorer, least = Indel.normalized_similarity, self.threshold - NEARLY
        found: Any = process.extractOne(text, self._texts, scorer=scorer, score_cutoff=least)
        if found is None or not text:
            return None
        near: Any = [found]
        if found[1] <= self.threshold + NEARLY:
            # On the boundary rounding decides, and differently for texts of other lengths: look at each.
            near = process.extract_iter(text, self._texts, scorer=scorer, score_cutoff=least)
        values = ((f1(text, other), self._ids[place]) for other, _, place in near)
        return next((pair for pair in values if pair[0] > self.threshold), None)

    def _encode(self, text: str) -> str:
        return "".join(self._letter(token) for token in tokens(text))

    def _letter(self, token: str) -> str:
        known = self._alphabet.get(token)
        if known is None:
            number = len(self._alphabet) + 1
            known = self._alphabet[token] = chr(number if number < 0xD800 else number + 0x800)
        return known


def f1(left: str, right: str) -> float:
    """ROUGE-L F1 in doubles and in the rouge-score package's own order: the boundary must fall alike."""
    from rapidfuzz.distance import LCSseq

    common = LCSseq.similarity(left, right)
    precision, recall = common / len(left), common / len(right)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def tokens(text: str) -> list[str]:
    """rouge-score's tokens; text that is mostly not in ASCII letters counts character by character."""
    found = words(text)
    foreign = [char for char in text.lower() if char.isalnum() and not char.isascii()]
    return [char for char in text.lower() if char.isalnum()] if len(foreign) > sum(map(len, found)) else found
