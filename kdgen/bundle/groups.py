"""Which rows hang together by their seeds: what one split has of a seed, no other may see."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def short(name: str) -> int:
    """64 bits that stand for an id."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class Groups:
    """Seeds that rows tie to each other. Only a row of several seeds takes memory; a seed by itself is its own group."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def tie(self, seeds: Sequence[int]) -> None:
        """These belong together."""
        roots = {self.root(seed) for seed in seeds}
        least = min(roots)
        for root in (*roots, *seeds):
            self._above[root] = least

    def root(self, seed: int) -> int:
        """The least seed of its group, which stands for it."""
        above = self._above
        while (up := above.get(seed, seed)) != seed:
            above[seed] = above.get(up, up)
            seed = above[seed]
        return seed

    def tied(self) -> set[int]:
        """The seeds that rows of several have."""
        return set(self._above)
