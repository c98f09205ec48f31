"""Filters that look at one record's text."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Literal

from pydantic import Field, field_validator

from kdgen.parse import TERM, terms
from kdgen.record import Frozen, Record

TextField = Literal["instruction", "input", "output", "reasoning", "text", "task"]
_regex = lru_cache(maxsize=256)(re.compile)


class Filter(Frozen):
    """Base of the filters."""

    filter: str

    def reject(self, record: Record) -> str | None:
        """Why the record ends here, as `reason` or `reason: detail`, or None to keep it."""
        raise NotImplementedError


class Length(Filter):
    """Words of a field, counted as runs between spaces."""

    filter: Literal["length"] = "length"
    field: TextField = "output"
    min_words: int = Field(1, ge=0)
    max_words: int | None = Field(None, ge=1)

    def reject(self, record: Record) -> str | None:
        """too_short or too_long."""
        count = len(str(getattr(record, self.field)).split())
        if count < self.min_words:
            return f"too_short: {self.field} has {count} words, {self.min_words} is the least"
        if self.max_words is not None and count > self.max_words:
            return f"too_long: {self.field} has {count} words, {self.max_words} is the most"
        return None


class Pattern(Filter):
    """A field that matches (or, with `keep`, does not match) any of some regular expressions."""

    filter: Literal["pattern"] = "pattern"
    field: TextField = "instruction"
    patterns: tuple[str, ...] = Field(min_length=1)
    keep: bool = False
    ignore_case: bool = True
    reason: str = Field("pattern", pattern=r"^[a-z0-9_]+$")

    @field_validator("patterns")
    @classmethod
    def _compiles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return value

    def reject(self, record: Record) -> str | None:
        """`reason`, with the text that matched."""
        text = str(getattr(record, self.field))
        flags = re.I if self.ignore_case else 0
        for pattern in self.patterns:
            if found := _regex(pattern, flags).search(text):
                return None if self.keep else f"{self.reason}: {self.field} has {found.group(0)[:80]!r}"
        return f"{self.reason}: {self.field} matches none of {len(self.patterns)} patterns" if self.keep else None


REFUSALS = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable|not able)|I (?:can(?:not|'t)|won't) (?:help|assist|fulfil|comply|provide|complete|do that)|"
    r"as an? (?:AI|artificial intelligence|(?:large )?language model)\b|I do(?:n't| not) have (?:access|the ability|personal))",
    re.I,
)


class Refusal(Filter):
    """An output that declines the task, or speaks of being an AI, within its first `within` characters."""

    filter: Literal["refusal"] = "refusal"
    within: int = Field(200, ge=1)

    def reject(self, record: Record) -> str | None:
        """refusal, with the words that gave it away."""
        found = REFUSALS.search(record.output[: self.within].replace("’", "'"))
        return f"refusal: {found.group(0)!r}" if found else None


class Echo(Filter):
    """An output that only says the task again."""

    filter: Literal["echo"] = "echo"

    def reject(self, record: Record) -> str | None:
        """echo."""
        # Few answers begin as the task does: the first word settles most rows.
        first = TERM.search(record.output.lower())
        texts = [text for text in (record.instruction, record.input, record.task) if text]
        starts = (TERM.search(text.lower()) for text in texts)
        if first is None or first.group() not in {start.group() for start in starts if start}:
            return None
        said = terms(record.output)
        return "echo: the output repeats the task" if any(said == terms(text) for text in texts) else None


MATERIAL = (
    r"(?:text|passage|paragraph|sentences?|article|story|poem|table|list|code|function|email|image|picture|data|"
    r"dataset|document|conversation|statement|numbers?|words?)"
)
# A bare "given" has many meanings ("given that", "at a given time", "given to him", "given the rise of prices"). It points
# where material follows that is not there at once ("given two numbers", not "given the numbers 3 and 5"), where material
# stands before it ("the numbers given."), and where it brings in a thing without particulars ("Given a country, name …").
THINGS = rf"(?:{MATERIAL}|(?:review|phrase|string|sequence|equation|scenario|information|input|item)s?)\b"
GIVEN = (
    rf"(?<!\ba )(?<!\bany )given (?!(?:that|to|at|in|by|for|as|on)\b)(?:[\w-]+ ){{0,3}}?{THINGS}(?!,? [\d\"“'`([{{])|"
    rf"{THINGS} given(?=\s*(?:[.,;?!]|$))|"
    r"(?<!\w )given (?:an?|one|two|three|some|several) (?:[^\W\d]+ ){0,3}[^\W\d]+(?=,)(?!, [\d\"“'`([{])"
)
POINTS = re.compile(
    rf"\b(?:(?:the |this |that )?(?:following|provided|attached|above|below)\b|(?:the|this|that) given\b|{GIVEN}|"
    rf"(?:this|these|those|that) (?:\w+ )?{MATERIAL}\b)",
    re.I,
)


class Repetition(Filter):
    """A text that says the same again and again: of its runs of `words` words, more than `most` have stood there before."""

    filter: Literal["repetition"] = "repetition"
    field: TextField = "output"
    words: int = Field(4, ge=1)
    most: float = Field(0.5, gt=0, lt=1)

    def reject(self, record: Record) -> str | None:
        """repetition, with the run that stands there most; texts of fewer than ten runs have no room for one."""
        said = terms(str(getattr(record, self.field)))
        runs = Counter(zip(*(said[place:] for place in range(self.words)), strict=False))
        total = runs.total()
        if total < 10 or total - len(runs) <= self.most * total:
            return None
        run, count = runs.most_common(1)[0]
        return f"repetition: {' '.join(run)[:80]!r} stands {count} times in {self.field}"


class Dangling(Filter):
    """A task that points to material ("the following text") that it does not bring along.

    Material counts as brought when the record has an input, or when the instruction goes on for
    `min_words` words after the pointer, past a colon, a line break or an opening quote.
    """

    filter: Literal["dangling"] = "dangling"
    min_words: int = Field(1, ge=1)

    def reject(self, record: Record) -> str | None:
        """dangling, with the pointer."""
        if record.input:
            return None
        found = POINTS.search(record.instruction)
        if not found:
            return None
        rest = record.instruction[found.end() :]
        brought = re.search(r"[:\n\"“'`(\[{]\s*(.+)", rest, re.S)
        if brought and len(brought.group(1).split()) >= self.min_words:
            return None
        return f"dangling: {found.group(0)!r} with nothing given"
