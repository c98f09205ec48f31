"""Where tokens spell a text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def place_of(pieces: Sequence[bytes], said: bytes) -> int:
    """The byte at which tokens spell what they say last, or -1.

    A thought before it may have the same words, and a mark behind it the same letters (`d` in `<|im_end|>`): it is the last
    place that ends where a token does, or the last of all where none does.
    """
    spelled = b"".join(pieces)
    ends, last = set(accumulate(map(len, pieces))), spelled.rfind(said)
    place = last
    while place >= 0 and place + len(said) not in ends:
        place = spelled.rfind(said, 0, place + len(said) - 1) if said else -1
    return last if place < 0 else place
