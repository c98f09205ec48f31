"""Which texts are about the same, by their words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from kdgen.parse import gist
from kdgen.record import Record, score


class Near:
    """Records found by the content words that their text shares with another.

    Closeness is the number of shared words over the square root of the record's own number. How rare a word is among
    all records does not count, as it would in BM25: so another record moves only the lists that it enters.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        import numpy as np

        self.records = records
        found: dict[str, list[int]] = defaultdict(list)
        sizes = np.ones(len(records))
        for place, record in enumerate(records):
            said = gist(record.text or record.task)
            sizes[place] = max(1, len(said)) ** 0.5
            for word in said:
                found[word].append(place)
        self.sizes = sizes
        self.places = {word: np.array(places, dtype=np.int32) for word, places in found.items()}

    def to(self, text: str, count: int) -> list[Record]:
        """Up to `count` records that share words with `text`, the closest first; of those as close, by their ids' hash."""
        import numpy as np

        held = [self.places[word] for word in sorted(gist(text)) if word in self.places]
        if not held or count <= 0:
            return []
        shared = np.bincount(np.concatenate(held), minlength=len(self.records)) / self.sizes
        count = min(count, int((shared > 0).sum()))
        least = np.partition(shared, len(shared) - count)[len(shared) - count]
        best = [int(place) for place in np.flatnonzero(shared >= least)]
        best.sort(key=lambda place: (-shared[place], score(self.records[place].id)))
        return [self.records[place] for place in best[:count]]
