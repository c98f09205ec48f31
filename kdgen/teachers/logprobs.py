"""What a reply's logprobs say: of its tokens, and of one part of its text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdgen.teachers.chat import MALFORMED


def scored(body: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The sampled tokens of a chat completion or a response with their logprobs; none where it holds none."""
    choices: Sequence[Mapping[str, Any]] = body.get("choices") or ()
    try:
        tokens = [token for choice in choices[:1] for token in (choice.get("logprobs") or {}).get("content") or ()]
        messages = [item for item in body.get("output") or () if item.get("type") == "message"]
        parts = [part for item in messages for part in item.get("content") or ()]
        tokens += [token for part in parts for token in part.get("logprobs") or ()]
        return [(str(token.get("token", "")), float(token["logprob"])) for token in tokens if "logprob" in token]
    except (*MALFORMED, ValueError):
        return []


def probability(body: Mapping[str, Any], part: str) -> float | None:
    """The probability, from 0 to 1, of the tokens that make up the last `part` of a reply; None where it is not known."""
    tokens = scored(body)
    place = "".join(token for token, _ in tokens).rfind(part) if part else -1
    if place < 0:
        return None
    total, start = 0.0, 0
    for token, logprob in tokens:
        end = start + len(token)
        if start < place + len(part) and end > place:
            total += logprob
        start = end
    return min(1.0, math.exp(total))
