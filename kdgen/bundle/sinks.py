"""Where rows go: a JSONL file, Parquet files, the three files of BEIR. Each is written once, in order."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson
from pydantic import Field

from kdgen.bundle.arrow import packer, pyarrow, schema_of
from kdgen.export import Format
from kdgen.record import Frozen
from kdgen.store import sha256_of

BLOCK = 1 << 18
GROUP = 16 << 20  # of JSON, a row group
SHARD = 256 << 20


class Written(Frozen):
    """A file of an export, by its path in the folder."""

    file: str
    rows: int = Field(ge=0)
    bytes: int
    sha256: str


class Sink(Protocol):
    """One split's rows."""

    def write(self, row: dict[str, Any]) -> None:
        """Add a row."""

    def close(self) -> list[Written]:
        """Bring it to disk; the files that were made."""

    def discard(self) -> None:
        """Let go of it, written out or not."""


class Lines:
    """JSONL, to a file of the folder or to an open stream."""

    def __init__(self, path: Path, name: str, stream: BinaryIO | None = None) -> None:
        self.path, self.name, self.rows, self.bytes = path, name, 0, 0
        self._file = stream or path.open("wb", buffering=0)
        self._sums = hashlib.sha256()
        self._block: list[bytes] = []
        self._held = 0

    def write(self, row: dict[str, Any]) -> None:
        """Add a row as a line."""
        self.line(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def line(self, line: bytes) -> None:
        """Add a line as it stands."""
        self._block.append(line)
        self._held += len(line)
        self.rows += 1
        if self._held >= BLOCK:
            self._flush()

    def _flush(self) -> None:
        block = b"".join(self._block)
        self._sums.update(block)
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self.bytes += len(block)
        self._block, self._held = [], 0

    def close(self) -> list[Written]:
        """Bring it to disk."""
        self._flush()
        if self.name != "-":
            os.fsync(self._file.fileno())
        self.discard()
        return [Written(file=self.name, rows=self.rows, bytes=self.bytes, sha256=self._sums.hexdigest())]

    def discard(self) -> None:
        """Let go of it; what was given open stays so."""
        if self.name != "-":
            self._file.close()


class Parquet:
    """Parquet with zstd, a row group for about 16 MiB of JSON; with `shards`, a file for about 256 MiB, named as the hub does."""

    def __init__(self, folder: Path, split: str, form: Format, *, shards: bool) -> None:
        shape = form.shape()
        self.folder, self.split, self.shards = folder, split, shards
        self._arrow, self._parquet = pyarrow(), pyarrow("pyarrow.parquet")
        self._schema, self._pack = schema_of(shape), packer(shape)
        self._done: list[tuple[Path, int]] = []
        self._held: list[dict[str, Any]] = []
        self._bytes = self._shard = self._rows = 0
        self._open()

    def _open(self) -> None:
        path = self.folder / f"{self.split}-{len(self._done):05}.part"
        self._writer = self._parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._path, self._rows, self._shard = path, 0, 0

    def write(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._bytes += len(orjson.dumps(row))
        self._held.append(self._pack(row) if self._pack else row)
        self._rows += 1
        if self._bytes >= GROUP:
            self._flush()
            if self.shards and self._shard >= SHARD:
                self._next()
                self._open()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(self._arrow.Table.from_pylist(self._held, schema=self._schema))
        self._shard += self._bytes
        self._held, self._bytes = [], 0

    def _next(self) -> None:
        self._writer.close()
        self._done.append((self._path, self._rows))

    def close(self) -> list[Written]:
        """Bring it to disk, and name the files now that their number is known."""
        self._flush()
        if self._rows or not self._done:
            self._next()
        else:
            self._writer.close()
            self._path.unlink()
        made = []
        for place, (path, rows) in enumerate(self._done):
            name = (
                f"{self.split}-{place:05}-of-{len(self._done):05}.parquet" if self.shards else f"{self.split}.parquet"
            )
            target = path.rename(self.folder / name)
            with target.open("rb") as file:
                os.fsync(file.fileno())
            file_name = f"{self.folder.name}/{name}" if self.shards else name
            made.append(Written(file=file_name, rows=rows, bytes=target.stat().st_size, sha256=sha256_of(target)))
        return made

    def discard(self) -> None:
        """Let go of the file that is open."""
        self._writer.close()


class BeirTables:
    """The tables that BEIR's splits share: each document and each query stands there once. Memory: 8 bytes and a set's room of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "qrels").mkdir()
        self.tables = {name: Lines(folder / f"{name}.jsonl", f"{name}.jsonl") for name in ("corpus", "queries")}
        self._seen: set[bytes] = set()

    def add(self, table: str, key: str, **columns: str) -> None:
        """A document or a query, unless it stands there."""
        short = hashlib.blake2b(f"{table}\x1f{key}".encode(), digest_size=8).digest()
        if short not in self._seen:
            self._seen.add(short)
            self.tables[table].write({"_id": key, **columns})

    def split(self, name: str) -> BeirSplit:
        """The judgements of a split."""
        return BeirSplit(self, name)

    def close(self) -> list[Written]:
        """Bring them to disk."""
        return [made for table in self.tables.values() for made in table.close()]

    def discard(self) -> None:
        """Let go of them."""
        for table in self.tables.values():
            table.discard()


class BeirSplit:
    """A split's judgements, as tab-separated values."""

    def __init__(self, tables: BeirTables, name: str) -> None:
        self._tables = tables
        self._qrels = Lines(tables.folder / "qrels" / f"{name}.tsv", f"qrels/{name}.tsv")
        self._qrels.line(b"query-id\tcorpus-id\tscore\n")
        self._qrels.rows = 0

    def write(self, row: dict[str, Any]) -> None:
        """Add a query with its document."""
        self._tables.add("corpus", row["corpus-id"], title=row["title"], text=row["text"])
        self._tables.add("queries", row["query-id"], text=row["query"])
        self._qrels.line(f"{row['query-id']}\t{row['corpus-id']}\t{row['score']}\n".encode())

    def close(self) -> list[Written]:
        """Bring it to disk."""
        return self._qrels.close()

    def discard(self) -> None:
        """Let go of it."""
        self._qrels.discard()
