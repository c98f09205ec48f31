"""What a stage draws, and draws from: stable under insertion, whatever the order or timing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

from kdgen.record import Record, score
from kdgen.stages.near import Near

T = TypeVar("T")


class Pool:
    """Records that can be drawn from, in the order they came."""

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self.records: list[Record] = []
        self.scores: list[int] = []
        self.extend(records)

    def __len__(self) -> int:
        return len(self.records)

    def extend(self, records: Sequence[Record]) -> None:
        """Add records."""
        self.records += records
        self.scores += [score(record.id) for record in records]


class Draw:
    """Draws that depend on (recipe seed, stage, key) and on what is drawn, never on order or timing.

    `seeds` are all seeds of the run where the stage `draws_seeds`, `earlier` the rows of a loop's last iteration where it
    `draws_earlier`.
    """

    def __init__(self, seed: int, stage: str) -> None:
        self.seed = seed
        self.stage = stage
        self.seeds = Pool()
        self.earlier = Pool()

    def choice(self, options: Sequence[T], *key: object) -> T:
        """One of `options`, evenly."""
        return options[score(self.seed, self.stage, *key) % len(options)]

    def happens(self, share: float, *key: object) -> bool:
        """Whether what happens to a `share` of all keys happens to this one."""
        return score(self.seed, self.stage, *key) < share * 2**64

    def top(self, pool: Pool, count: int, *key: object) -> list[Record]:
        """`count` records of `pool` in random order, by rendezvous hashing.

        Each record's rank depends on its id and `key` alone, so adding one record to N changes a draw of
        `count` with probability count / (N + 1). Vectorised: 50,000 records take about a millisecond.
        """
        import numpy as np

        if not len(pool) or count <= 0:
            return []
        mixed = np.array(pool.scores, dtype=np.uint64) ^ np.uint64(score(self.seed, self.stage, *key))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        count = min(count, len(pool))
        best = np.argpartition(mixed, len(pool) - count)[len(pool) - count :]
        return [pool.records[index] for index in best[np.argsort(mixed[best])][::-1]]

    @cached_property
    def near(self) -> Near:
        """The seeds by the words in their texts."""
        return Near(self.seeds.records)
