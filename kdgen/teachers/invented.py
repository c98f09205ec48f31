"""Invented tokens, for plans and scripts: a token a word, its numbers by what stands before it alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kdgen.record import score
from kdgen.teachers.calls import Told

WORD = re.compile(r"\s*\S+|\s+")
VOCABULARY = 50_000
RANKS = 3


def pieces(text: str) -> list[str]:
    """The words of a text, each with the space before it."""
    return WORD.findall(text)


def ids(text: str) -> list[int]:
    """A token's id for each of its words."""
    return [_id(piece) for piece in pieces(text)]


def content(text: str, top: int) -> list[dict[str, Any]]:
    """What a chat completion that says `text` tells of its tokens."""
    told = _told((), text, top)
    return [
        {
            "id": told.ids[place], "token": piece, "bytes": list(piece.encode()), "logprob": told.logprobs[place],
            "top_logprobs": [{"id": id, "token": str(id), "logprob": value} for id, value in told.top[place]],
        }
        for place, piece in enumerate(pieces(text))
    ]  # fmt: skip


def scored(messages: Sequence[Mapping[str, str]], top: int) -> Told:
    """The tokens of the last message."""
    before = [id for message in messages[:-1] for id in ids(message["content"])]
    return _told(before, messages[-1]["content"], top)


def _told(before: Sequence[int], text: str, top: int) -> Told:
    words = pieces(text)
    rows = [_row(before, words[:place], piece, top) for place, piece in enumerate(words)]
    return Told(
        before, [_id(piece) for piece in words], [own for own, _ in rows], [row for _, row in rows],
        [piece.encode() for piece in words],
    )  # fmt: skip


def _row(before: Sequence[int], prefix: Sequence[str], piece: str, top: int) -> tuple[float, list[tuple[int, float]]]:
    """The given token stands at rank 0, 1 or 2, and each rank is half as likely as the one before."""
    key = (len(before), *prefix[-2:], piece)
    rank = score("rank", *key) % RANKS
    others = (score("other", number, *key) % VOCABULARY + VOCABULARY for number in range(top))
    row = [(_id(piece) if place == rank else next(others), -math.log(2) * (place + 1)) for place in range(top)]
    return -math.log(2) * (rank + 1), row


def _id(piece: str) -> int:
    return score("token", piece) % VOCABULARY
