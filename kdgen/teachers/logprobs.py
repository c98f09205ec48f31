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


def options(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The logprob of each of `names` at the last token of a reply that is one of them, as far as the reply tells.

    A token counts by its letters and digits; tokens that are the same name (` 1`, `1`) are added up. Of a name that is not
    among the likeliest ones listed there, the least likely one listed is an upper bound, and taken. Empty where no token
    is one of the names, or no other is listed beside it.
    """
    choices: Sequence[Mapping[str, Any]] = body.get("choices") or ()
    try:
        tokens = [token for choice in choices[:1] for token in (choice.get("logprobs") or {}).get("content") or ()]
        messages = [item for item in body.get("output") or () if item.get("type") == "message"]
        tokens += [
            token for item in messages for part in item.get("content") or () for token in part.get("logprobs") or ()
        ]
        place = next((token for token in reversed(tokens) if _bare(token.get("token")) in names), None)
        if place is None:
            return {}
        listed = [(_bare(each["token"]), float(each["logprob"])) for each in place.get("top_logprobs") or ()]
    except (*MALFORMED, ValueError):
        return {}
    if len(listed) < 2:
        return {}
    least = min(logprob for _, logprob in listed)
    found = {name: [logprob for token, logprob in listed if token == name] for name in names}
    return {name: _joined(all_) if all_ else least for name, all_ in found.items()}


def _joined(logprobs: Sequence[float]) -> float:
    most = max(logprobs)
    return most + math.log(math.fsum(math.exp(each - most) for each in logprobs))


def _bare(token: object) -> str:
    return "".join(letter for letter in str(token) if letter.isalnum())
