"""Documents that a query is not for: of each record the text of another one, drawn so that a new document moves few draws."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from kdgen.bundle.groups import short
from kdgen.record import Record, score
from kdgen.store import RECORDS

if TYPE_CHECKING:
    from kdgen.bundle.dataset import Dataset


class Rivals:
    """The documents of a dataset on a ring of hashes, each once; 24 bytes of each. A record's rival is the next on the ring."""

    def __init__(self, dataset: Dataset) -> None:
        self._path: Path = dataset.version / RECORDS
        import numpy as np

        texts, starts, ends, end = array("Q"), array("Q"), array("Q"), 0
        for line in dataset.lines():
            start, end = end, end + len(line)
            fields = orjson.loads(line)
            if isinstance(fields, dict) and fields.get("text"):
                texts.append(short(str(fields["text"])))
                starts.append(start)
                ends.append(end)
        ring, first = np.unique(np.frombuffer(texts, np.uint64), return_index=True)
        self._ring = array("Q", ring.tobytes())
        self._starts, self._ends = (
            array("Q", np.frombuffer(each, np.uint64)[first].tobytes()) for each in (starts, ends)
        )
        self._file = os.open(self._path, os.O_RDONLY)

    def of(self, record: Record) -> str:
        """The text of another document, or nothing where there is no other."""
        at = bisect_left(self._ring, score("rival", record.id))
        own = short(record.text)
        for step in range(2):
            place = (at + step) % len(self._ring) if self._ring else 0
            if self._ring and self._ring[place] != own:
                start, end = self._starts[place], self._ends[place]
                return str(orjson.loads(os.pread(self._file, end - start, start))["text"])
        return ""

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)
