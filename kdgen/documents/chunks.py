"""Where a document is cut: at its sections, then where it breaks best, so that no chunk is over the size."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from kdgen.documents.files import Doc
from kdgen.parse import LONG_WORD, PIECE, tokens_of
from kdgen.record import Frozen

# Where a text breaks, the best first: paragraphs, lines, sentences, words, pieces of words.
MARKS = (r"\n[ \t]*\n\s*", r"\n", r"(?<=[.!?…])\s+|(?<=[。！？])", r"\s+")
BREAKS = [*map(re.compile, MARKS), PIECE]
WIDEST = 16  # characters that a token has at most, about
BLANK_LINES = re.compile(r"(?:[ \t]*\n)*")


class Chunk(Frozen):
    """How documents are cut.

    `sections` keeps to headings (in PDF to pages, in source code to what begins at the margin after a blank line) and
    cuts what is longer than `size` tokens (about; 4 characters of English each) between paragraphs, else lines,
    sentences, words; `tokens` does so without regard to sections; `lines` takes `size` lines. A chunk begins with up
    to `overlap` tokens or lines of the one before, in the same section. What has fewer than `least` goes along with
    the chunk after it, and the last with the one before.
    """

    by: Literal["sections", "tokens", "lines"] = "sections"
    size: int = Field(512, ge=1)
    overlap: int = Field(0, ge=0)
    least: int = Field(32, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _small(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(size := value.get("size"), int) and "least" not in value:
            return {**value, "least": min(cls.model_fields["least"].default, size // 2)}
        return value

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for name in ("overlap", "least"):
            if getattr(self, name) >= self.size:
                context = {"name": name, "hint": "both are counted in the same unit"}
                raise PydanticCustomError("too_large", "{name} is not below size", context)
        return self

    def cut(self, doc: Doc) -> list[tuple[int, int, str]]:
        """(start, end, section) of each chunk of the document."""
        text = doc.text
        starts = [start for start, _ in doc.sections]
        inner = [start for start in starts if start > doc.begin] if self.by == "sections" else []
        parts = [part for a, b in pairwise([doc.begin, *inner, len(text)]) for part in self._split(text, a, b)]
        found = []
        for start, end in self._joined(text, parts):
            # A heading may have gone along with another section: a chunk belongs to the one that its middle is in.
            place = bisect_right(starts, (start + end) // 2) - 1
            found.append((start, end, doc.sections[place][1] if place >= 0 else ""))
        return found

    def _weight(self, text: str) -> int:
        return text.rstrip("\n").count("\n") + 1 if self.by == "lines" else tokens_of(text)

    def _split(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of one section, without blank edges."""
        room, begun, total = self.size - self.overlap, start, 0
        cuts = [start]
        for a, b in self._units(text, start, end, room):
            weight = self._weight(text[a:b])
            if total and total + weight > room:
                cuts.append(a)
                total = 0
            total += weight
        for a, b in pairwise([*cuts, end]):
            begun = self._back(text, start, a) if self.overlap and a > start else a
            blank, length = BLANK_LINES.match(text, begun, b), len(text[begun:b].rstrip())
            if length:
                yield blank.end() if blank else begun, begun + length

    def _units(self, text: str, start: int, end: int, room: int) -> Iterator[tuple[int, int]]:
        """What is never cut: lines, or the largest of paragraphs, lines, sentences and words that have room."""
        if self.by == "lines":
            ends = [found.end() for found in re.finditer("\n", text[start:end])]
            yield from pairwise([start, *(start + each for each in ends if start + each < end), end])
            return
        stack = [(start, end, 0)]
        while stack:
            a, b, level = stack.pop()
            weight = tokens_of(text[a:b])
            if weight <= room:
                yield a, b
            elif level < len(BREAKS):
                inner = [a + found.end() for found in BREAKS[level].finditer(text[a:b])]
                within = [each for each in dict.fromkeys(inner) if a < each < b]
                stack += [(*pair, level + 1) for pair in pairwise([a, *within, b])][::-1]
            else:  # a word without end
                yield from pairwise([*range(a, b, LONG_WORD * room - 1), b])

    def _back(self, text: str, start: int, at: int) -> int:
        """Where the chunk that is cut at `at` begins, with its overlap: a sentence's or line's beginning if there is one."""
        if self.by == "lines":
            ends = [start, *(start + found.end() for found in re.finditer("\n", text[start:at]))]
            return ends[max(0, len(ends) - 1 - self.overlap)]
        low, total, place = max(start, at - WIDEST * self.overlap), 0, at
        for found in reversed(list(PIECE.finditer(text, low, at))):
            total += tokens_of(found[0])
            if total > self.overlap:
                break
            place = found.start()
        for breaks in BREAKS[1:4]:
            if better := [found.end() for found in breaks.finditer(text, place, at) if found.end() < at]:
                return better[0]
        return at

    def _joined(self, text: str, parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
        joined: list[tuple[int, int]] = []
        held: int | None = None
        for start, end in parts:
            begun, held = start if held is None else held, None
            if self._weight(text[begun:end]) < self.least:
                held = begun
            else:
                joined.append((begun, end))
        if held is not None:
            joined[-1:] = [(joined[-1][0] if joined else held, parts[-1][1])]
        return joined
