"""The dataset folder: staged beside, published in one step, held by one run at a time.

    DIR/data.jsonl … README.md   links through .current, so that one rename moves all of them at once
    DIR/features/                likewise, where rows have features
    DIR/.current                 link to the version that readers see
    DIR/.versions/<digest>/      the files themselves, named by what is in them

A reader that resolves `.current` once sees one version whole; a kill at any moment leaves either the
old version or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from kdgen.errors import DatasetBusy, UserError, disk_error
from kdgen.features import FOLDER, summary
from kdgen.features.disk import guard
from kdgen.record import Record, Reject

if TYPE_CHECKING:
    from kdgen.features.shards import Writer

RECORDS = "records.jsonl"
FILES = ("data.jsonl", RECORDS, "rejects.jsonl", "manifest.json", "README.md")
KEEP = 2


def dumps(value: Any) -> bytes:
    """One JSON line."""
    return orjson.dumps(value, default=dict) + b"\n"


class Staging:
    """A version that is being written. Nothing of it can be seen until `publish`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._sums = {name: hashlib.sha256() for name in FILES[:3]}
        self._shards: Writer | None = None
        with writing(folder):
            for name in FILES[:3]:
                self._files[name] = (folder / name).open("wb", buffering=1 << 18)

    def row(self, record: Record, row: dict[str, Any]) -> None:
        """Add an accepted record and its exported row; its features go to their shards."""
        fields = record.__dict__
        if record.features:
            fields = {**fields, "meta": {**record.meta, FOLDER: summary(record.features)}}
            self._feature(record)
        self._write("records.jsonl", dumps(fields))
        self._write("data.jsonl", dumps(row))

    def reject(self, reject: Reject) -> None:
        """Add a rejected one."""
        self._write("rejects.jsonl", dumps(reject.__dict__))

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """What the shards hold: of each feature its kind, counts and facts; nothing where no row has any."""
        return self._shards.data() if self._shards else {}

    def room(self, need: int) -> None:
        """Raise EndpointError where there is no room for `need` bytes of features."""
        guard(self.folder, need)

    def _feature(self, record: Record) -> None:
        from kdgen.features.shards import Writer

        with writing(self.folder):
            if self._shards is None:
                self._shards = Writer(self.folder / FOLDER)
            for name, feature in record.features.items():
                self._shards.add(record.id, name, feature)

    def _write(self, name: str, line: bytes) -> None:
        try:
            self._files[name].write(line)
        except OSError as error:
            raise disk_error(error, self.folder) from None
        self._sums[name].update(line)

    def close(self) -> dict[str, str]:
        """Bring the rows to disk; the SHA-256 of each file."""
        with writing(self.folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            shards = self._shards.close() if self._shards else {}
        sums = {name: made.hexdigest() for name, made in self._sums.items()}
        return {**sums, **{f"{FOLDER}/{name}": sum_ for name, sum_ in shards.items()}}

    def discard(self) -> None:
        """Let go of the files, written out or not."""
        for file in self._files.values():
            with suppress(OSError):  # what is not written out is not wanted
                file.close()
        if self._shards:
            self._shards.discard()

    def text(self, name: str, content: str) -> None:
        """Add a small file whole."""
        write_atomically(self.folder / name, content.encode())


class Store:
    """One dataset folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = folder / ".versions"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the dataset. Raises DatasetBusy where another run does, UserError where the folder is not a dataset's."""
        try:
            if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / ".kdgen.lock").exists():
                raise UserError(
                    "the folder holds other files",
                    where=str(self.folder),
                    hint="name an empty or a new one with -o DIR",
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / ".kdgen.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._refused(error) from None
        try:
            self._hold(lock)
            yield
        finally:
            os.close(lock)

    def _hold(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            os.pwrite(lock, f"process {os.getpid()} (since {since})".encode(), 0)
        except BlockingIOError:
            holder = os.read(lock, 200).decode("utf-8", "replace").strip() or "another run"
            raise DatasetBusy(
                f"{holder} holds this dataset",
                where=str(self.folder),
                hint="wait for it, or write elsewhere: -o DIR",
            ) from None
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> UserError:
        hint = "name another folder with -o DIR"
        return UserError(f"cannot write there: {error.strerror}", where=str(self.folder), hint=hint)

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """A new version to write to; removed unless it was published."""
        with writing(self.folder):
            self.versions.mkdir(exist_ok=True)
            # What a kill left behind: nobody else can be writing here, the dataset is held.
            for leftover in self.versions.glob(".next-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            for leftover in (*self.folder.glob(".*.next"), *self.versions.glob("*/.*.next")):
                leftover.unlink(missing_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".next-", dir=self.versions))
        try:
            staging = Staging(folder)
            try:
                yield staging
            finally:
                staging.discard()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staging: Staging, sums: dict[str, str], manifest: str, card: str) -> None:
        """Make the staged version the one that readers see, in one rename."""
        with writing(self.folder):
            self._publish(staging, sums, manifest, card)

    def _publish(self, staging: Staging, sums: dict[str, str], manifest: str, card: str) -> None:
        name = hashlib.sha256(orjson.dumps([sorted(sums.items()), card])).hexdigest()[:16]
        target = self.versions / name
        staging.text("README.md", card)
        staging.text("manifest.json", manifest)
        if target.is_dir():
            # The same rows again: only the manifest, which counts this run's requests, is new, and what was damaged.
            for file, sum_ in {**sums, "README.md": hashlib.sha256(card.encode()).hexdigest()}.items():
                if sha256_of(target / file) != sum_:
                    (target / file).parent.mkdir(exist_ok=True)
                    (staging.folder / file).replace(target / file)
            sync_folder(target)
            write_atomically(target / "manifest.json", manifest.encode())
        else:
            staging.folder.chmod(0o755)
            if (staging.folder / FOLDER).is_dir():
                sync_folder(staging.folder / FOLDER)
            sync_folder(staging.folder)
            staging.folder.rename(target)
            sync_folder(self.versions)
        for file in FILES:
            link(self.folder / file, f".current/{file}")
        if (target / FOLDER).is_dir():
            link(self.folder / FOLDER, f".current/{FOLDER}")
        link(self.folder / ".current", f".versions/{name}")
        if not (target / FOLDER).is_dir():
            (self.folder / FOLDER).unlink(missing_ok=True)  # a link of the version before
        sync_folder(self.folder)
        os.utime(target)
        others = (path for path in self.versions.iterdir() if path not in (target, staging.folder))
        old = sorted(others, key=lambda path: path.stat().st_mtime)
        for path in old[: max(0, len(old) - KEEP + 1)]:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in which folder it was that the disk refused."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, folder) from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, or nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def link(path: Path, target: str) -> None:
    """Point a symbolic link at `target`, atomically."""
    if path.is_symlink() and os.readlink(path) == target:
        return
    fresh = path.with_name(f".{path.name}.next")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new."""
    fresh = path.with_name(f".{path.name}.next")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def sync_folder(path: Path) -> None:
    """Bring a folder's names to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
