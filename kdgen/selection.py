"""Choosing the seeds that stand for all of them, before anything is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pydantic

from kdgen.parse import units
from kdgen.record import Frozen, Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

SIZE = 256
TABLE = 1 << 18
ROUNDS = 25
TRIED = 8
BLOCK = 1 << 24


class Coverage(NamedTuple):
    """How well the chosen seeds stand for all: distances of unit vectors (0 to 2) from each seed to the nearest chosen one."""

    chosen: int
    of: int
    radius: float
    mean: float


class Select(Frozen):
    """`n` seeds that cover the set; those near them are left out.

    `k-center` (core-set, Sener & Savarese, arXiv 1708.00489) starts with the seed nearest to the mean and takes the one
    that is farthest from all taken, again and again: no seed stays far from a chosen one, and odd ones are chosen early.
    `k-means` takes the seed nearest to each of `n` centres: the common kinds are chosen, more of them where seeds are many.

    Closeness is lexical, of wording and not of meaning: `embedder` says whether shared words (and pairs of them) count
    or shared runs of 3 to 5 characters (which find inflected and misspelt words). Rare ones count more (TF-IDF), and
    all are hashed with random signs into vectors of 256 numbers (feature hashing, arXiv 0902.2206).

    The choice depends on the set alone, not on its order: ties are broken by id. Another seed may change it.
    """

    method: Literal["k-center", "k-means"] = "k-center"
    n: int = pydantic.Field(ge=1)
    embedder: Literal["words", "characters"] = "words"

    def left_out(self, seeds: Callable[[], Iterable[tuple[int, Record]]]) -> tuple[dict[int, str], Coverage]:
        """The numbers of the seeds that are not chosen, each with the one that stands for it and how far it is; the coverage.

        `seeds()` streams (number, record) and is called twice; ids are unique. A distance is that of unit vectors, 0 to 2.
        Memory: about 1.2 kB a seed, whatever its length.
        """
        import numpy as np

        spread = np.zeros(TABLE, dtype=np.int64)
        named: list[tuple[str, int]] = []
        for number, record in seeds():
            features, _ = self._features(record)
            spread[np.unique(features % TABLE)] += 1
            named.append((record.id, number))
        if len(named) <= self.n:
            return {}, Coverage(len(named), len(named), 0.0, 0.0)
        named.sort()
        places = {number: place for place, (_, number) in enumerate(named)}
        rare = np.log((1 + len(named)) / (1 + spread)) + 0.1
        vectors = np.zeros((len(named), SIZE), dtype=np.float32)
        for number, record in seeds():
            features, counts = self._features(record)
            weights = np.sqrt(counts) * rare[features % TABLE] * np.where(features >> 62 & 1, 1, -1)
            made = np.bincount((features >> 32) % SIZE, weights, SIZE)
            made[0] += not made.any()  # no word in it: all such are alike
            vectors[places[number]] = made / np.sqrt((made * made).sum())
        chosen = _farthest(vectors, self.n) if self.method == "k-center" else _middles(vectors, self.n)
        stands, far = _nearest(vectors, vectors[chosen])
        kept = set(chosen)
        left = {
            number: f"{named[chosen[stands[place]]][0]} stands for it (distance {far[place]:.2f})"
            for place, (_, number) in enumerate(named)
            if place not in kept
        }
        far[chosen] = 0
        return left, Coverage(len(kept), len(named), round(float(far.max()), 4), round(float(far.mean()), 4))

    def _features(self, record: Record) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Hashes of a seed's distinct features, 63 bits each, in order, and how often each stands in it."""
        import numpy as np

        text = (record.text or record.task).casefold()
        if self.embedder == "words":
            said = units(text)
            grams = [*said, *(f"{left} {right}" for left, right in pairwise(said))]
            raw = b"".join(blake2b(gram.encode("utf-8", "replace"), digest_size=8).digest() for gram in grams)
            hashed = np.frombuffer(raw, dtype="<u8")
        else:
            letters = " " + " ".join(text.split()) + " "
            codes = np.frombuffer(letters.encode("utf-32-le", "replace"), dtype="<u4").astype(np.uint64)
            hashed = np.concatenate([_runs(codes, length) for length in (3, 4, 5)])
        found: tuple[Any, Any] = np.unique((hashed >> np.uint64(1)).astype(np.int64), return_counts=True)
        return found


def _runs(codes: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """A hash of each run of `length` characters (multiply and shift, as splitmix64 ends)."""
    import numpy as np

    count = max(0, len(codes) - length + 1)
    mixed = np.full(count, length, dtype=np.uint64)
    for place in range(length):
        mixed = (mixed ^ codes[place : place + count]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return mixed * np.uint64(0x94D049BB133111EB)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of so many rows that a table of `width` columns stays within 64 MiB."""
    step = max(1, BLOCK // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def _apart(vectors: Matrix, others: Matrix) -> Matrix:
    """Squared distances of unit vectors, rows by others; rounded, so that the last bits of a sum decide nothing."""
    import numpy as np

    apart: Matrix = 1 + (others * others).sum(1)[None] - 2 * (vectors @ others.T)
    return np.maximum(np.round(apart, 5), 0)


def _nearest(vectors: Matrix, others: Matrix) -> tuple[NDArray[np.int64], Matrix]:
    """For each vector the place of the nearest of `others`, and its distance."""
    import numpy as np

    stands, far = np.zeros(len(vectors), dtype=np.int64), np.zeros(len(vectors), dtype=np.float32)
    for part in _blocks(len(vectors), len(others)):
        apart = _apart(vectors[part], others)
        stands[part] = apart.argmin(1)
        far[part] = np.sqrt(apart.min(1))
    return stands, far


def _farthest(vectors: Matrix, count: int) -> list[int]:
    """Greedy k-center; of those as far, the first."""
    import numpy as np

    chosen = [int(_apart(vectors, vectors.mean(0, keepdims=True)).argmin())]
    least = np.full(len(vectors), np.inf, dtype=np.float32)
    while len(chosen) < count:
        np.minimum(least, _apart(vectors, vectors[chosen[-1:]])[:, 0], out=least)
        least[chosen[-1]] = -1
        chosen.append(int(least.argmax()))
    return chosen


def _middles(vectors: Matrix, count: int) -> list[int]:
    """Lloyd's k-means from a greedy k-means++ start, then the nearest vector to each centre that none before it took."""
    import numpy as np

    draw = np.random.default_rng(0)
    started = [int(draw.integers(len(vectors)))]
    least = np.full(len(vectors), np.inf, dtype=np.float64)
    while len(started) < count:
        np.minimum(least, _apart(vectors, vectors[started[-1:]])[:, 0], out=least)
        least[started[-1]] = 0
        total = np.cumsum(least + 1e-9)
        drawn = np.searchsorted(total, draw.random(TRIED) * total[-1]).clip(max=len(vectors) - 1)
        left = np.minimum(_apart(vectors, vectors[drawn]), least[:, None]).sum(0)
        started.append(int(drawn[left.argmin()]))
    centres, before = vectors[started], None
    for _ in range(ROUNDS):
        own, _ = _nearest(vectors, centres)
        if before is not None and (own == before).all():
            break
        before = own
        sizes = np.bincount(own, minlength=count)
        sums = np.zeros((count, SIZE))
        ordered = np.argsort(own, kind="stable")
        for start in range(0, len(ordered), BLOCK // SIZE):
            part = ordered[start : start + BLOCK // SIZE]
            which, starts = np.unique(own[part], return_index=True)
            sums[which] += np.add.reduceat(vectors[part], starts, axis=0)
        filled = sizes > 0
        centres = centres.copy()
        centres[filled] = (sums[filled] / sizes[filled, None]).astype(np.float32)
    chosen, taken = [], np.zeros(len(vectors), dtype=bool)
    for centre in range(count):
        apart = _apart(vectors, centres[centre : centre + 1])[:, 0]
        apart[taken] = np.inf
        chosen.append(int(apart.argmin()))
        taken[chosen[-1]] = True
    return chosen
