"""Exact duplicates, by default up to case, spacing and punctuation at the ends."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Literal, Protocol

from pydantic import Field

from kdgen.filters.text import TextField
from kdgen.record import Frozen, Record


class Index(Protocol):
    """What has been seen so far. First come, first kept."""

    def seen(self, record: Record) -> str | None:
        """Why the record is a duplicate, as `reason: detail`; else remember it and return None."""


class Exact(Frozen):
    """Two records are the same when `fields` are, normalised or byte for byte."""

    method: Literal["exact"] = "exact"
    fields: tuple[TextField, ...] = Field(("task",), min_length=1)
    normalise: bool = True
    against_seeds: bool = False

    def index(self) -> Index:
        """An empty index: 8 bytes a record, and a set's overhead."""
        return ExactIndex(self)


class ExactIndex:
    """64-bit digests of what was kept."""

    def __init__(self, spec: Exact) -> None:
        self.spec = spec
        self._kept: set[int] = set()

    def seen(self, record: Record) -> str | None:
        """duplicate, where the digest is known."""
        texts = [str(getattr(record, field)) for field in self.spec.fields]
        if self.spec.normalise:
            texts = [
                " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(".,;:!? ") for text in texts
            ]
        key = int.from_bytes(hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).digest(), "big")
        if key in self._kept:
            return f"duplicate: {', '.join(self.spec.fields)} as in an earlier row"
        self._kept.add(key)
        return None
