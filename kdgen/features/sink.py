"""A file of a shard, and what a shard is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Protocol

from kdgen.features import Feature


class Sink:
    """A file that is only appended to, its SHA-256 taken on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sum = hashlib.sha256()
        self.size = 0
        self.closed = False
        self._file = path.open("wb", buffering=1 << 20)

    def write(self, data: Any) -> int:
        """Append."""
        count = self._file.write(data)
        self.sum.update(data)
        self.size += count
        return count

    def tell(self) -> int:
        """Bytes so far."""
        return self.size

    def flush(self) -> None:
        """Left to `close`."""

    def close(self) -> None:
        """Bring it to disk."""
        if not self.closed:
            self.closed = True
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def drop(self) -> None:
        """Let go of it, written out or not."""
        self.closed = True
        try:
            self._file.close()
        except OSError:  # what is not written out is not wanted
            return


class Shard(Protocol):
    """One shard that is being written."""

    sink: Sink

    def add(self, id: str, feature: Feature, by: int) -> None:
        """Add a row; `by` is the number of its facts."""

    def close(self) -> None:
        """Write what is left, and the shard's end."""
