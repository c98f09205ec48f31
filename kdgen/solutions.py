"""Solutions as texts, and how one is edited into another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple, cast

from kdgen.record import Candidate, Record

Op = Literal["keep", "replace", "insert", "delete"]
# Words, marks and space, none left out; of a script that sets no spaces each character.
TOKEN = re.compile(
    r"\s+|[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]"
)


class Change(NamedTuple):
    """What became of a span of the old text (characters, end excluded): the span of the new one that stands for it."""

    op: Op
    old: tuple[int, int]
    new: tuple[int, int]


def solution(said: Record | Candidate) -> str:
    """An answer as one text: its reasoning, then the answer."""
    return f"{said.reasoning}\n\nAnswer: {said.output}" if said.reasoning else said.output


def edits(old: str, new: str) -> list[Change]:
    """The fewest token edits that make `new` of `old`; their spans cover both texts, in order."""
    from rapidfuzz.distance import Levenshtein

    before, after = (list(TOKEN.finditer(text)) for text in (old, new))
    starts = [[*(mark.start() for mark in marks), len(text)] for marks, text in ((before, old), (after, new))]
    codes = Levenshtein.opcodes([mark[0] for mark in before], [mark[0] for mark in after])
    return [
        Change(
            cast(Op, "keep" if code.tag == "equal" else code.tag),
            (starts[0][code.src_start], starts[0][code.src_end]),
            (starts[1][code.dest_start], starts[1][code.dest_end]),
        )
        for code in codes
    ]


def changed(old: str, new: str, made: list[Change]) -> float:
    """The share of both texts' tokens, space aside, that are not kept: 0 is the same text, 1 has nothing in common."""
    total = sum(1 for text in (old, new) for _ in _said(text))
    kept = sum(1 for edit in made if edit.op == "keep" for _ in _said(old[slice(*edit.old)]))
    return 1 - 2 * kept / total if total else 0.0


def _said(text: str) -> Iterator[str]:
    return (mark[0] for mark in TOKEN.finditer(text) if not mark[0].isspace())
