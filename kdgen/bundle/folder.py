"""Where an export goes: a folder that appears whole or not at all, one file, or stdout."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import orjson

from kdgen.bundle.sinks import BeirTables, Lines, Parquet, Sink, Written
from kdgen.errors import DatasetBusy, UserError, disk_error
from kdgen.export import Format
from kdgen.store import sync_folder, write_atomically

MANIFEST = "manifest.json"
MARK = '"kdgen_export"'
EXCHANGE = 2
ELSEWHERE = "-o names another place"
Container = Literal["jsonl", "parquet", "hf"]


class Folder:
    """An export that is being written: its sinks by name, and other files."""

    def __init__(self, path: Path, form: Format, container: Container) -> None:
        self.path, self.form, self.container = path, form, container
        self._sinks: dict[str, Sink] = {}
        self._tables = BeirTables(path) if form.format == "beir" else None
        if container == "hf":
            (path / "data").mkdir()

    def sink(self, name: str) -> Sink:
        """Open the file of a split."""
        made: Sink
        if self._tables is not None:
            made = self._tables.split(name)
        elif self.container == "jsonl":
            made = Lines(self.path / f"{name}.jsonl", f"{name}.jsonl")
        else:
            shards = self.container == "hf"
            made = Parquet(self.path / "data" if shards else self.path, name, self.form, shards=shards)
        self._sinks[name] = made
        return made

    def close(self) -> dict[str, list[Written]]:
        """Bring all to disk; the files of each split, and under `""` those that all share."""
        files = {name: sink.close() for name, sink in self._sinks.items()}
        return files | ({"": self._tables.close()} if self._tables is not None else {})

    def discard(self) -> None:
        """Let go of the files."""
        for sink in self._sinks.values():
            sink.discard()
        if self._tables is not None:
            self._tables.discard()

    def text(self, name: str, content: bytes) -> None:
        """Add a small file whole."""
        write_atomically(self.path / name, content)


def check_free(target: Path) -> None:
    """Raise UserError where the folder holds what no export wrote."""
    try:
        if not target.exists():
            return
        mine = target.is_dir() and (
            not any(target.iterdir()) or MARK in (target / MANIFEST).read_text(encoding="utf-8", errors="replace")[:200]
        )
    except OSError:
        mine = False
    if not mine:
        raise UserError(
            "the folder holds other files", where=str(target), hint="name an empty or a new one with -o DIR"
        )


@contextmanager
def writing(target: Path, form: Format, container: Container) -> Iterator[Folder]:
    """A folder beside the target, which takes its place in one step when all went well."""
    check_free(target)
    fresh = _parent(target) / f".{target.name}.next"
    held = _hold(fresh, target)
    try:
        fresh.chmod(0o755)
        folder = Folder(fresh, form, container)
        try:
            yield folder
        finally:
            folder.discard()
        for inner in (*(path for path in fresh.rglob("*") if path.is_dir()), fresh):
            sync_folder(inner)
        _swap(fresh, target)
        sync_folder(target.parent)
    except OSError as error:
        raise disk_error(error, target) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        os.close(held)


def _hold(fresh: Path, target: Path) -> int:
    """Make the folder beside, emptied of what a kill left in it, and hold it. Raises DatasetBusy where another export does."""
    try:
        fresh.mkdir(exist_ok=True)
        held = os.open(fresh, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write there: {error.strerror}", where=str(target), hint=ELSEWHERE) from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(held).st_ino != fresh.stat().st_ino:
            raise FileNotFoundError  # the other one has just put it in its place
    except OSError:
        os.close(held)
        raise DatasetBusy("another export writes there", where=str(target), hint=f"wait for it; {ELSEWHERE}") from None
    for left in fresh.iterdir():
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return held


def _swap(fresh: Path, target: Path) -> None:
    """Put the new folder in the old one's place; on Linux at once, elsewhere with a moment in which there is neither."""
    if not target.exists():
        fresh.rename(target)
        return
    with suppress(OSError, AttributeError):
        swap: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
        if swap(-100, os.fsencode(fresh), -100, os.fsencode(target), EXCHANGE) == 0:
            return
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def one_file(target: Path, form: Format) -> Iterator[Callable[[str], Sink]]:
    """One file in the place of a folder, by its suffix; `-` is stdout."""
    if str(target) == "-":
        sink: Sink = Lines(target, "-", sys.stdout.buffer)
        yield lambda name: sink
        sink.close()
        sys.stdout.buffer.flush()
        return
    if target.is_dir():
        raise UserError("it is a folder", where=str(target), hint="a name that ends in .jsonl or .parquet is one file")
    if target.exists() and _of_whole(target):
        cause = "the file is part of a dataset or of an export, which would not be whole without it"
        raise UserError(cause, where=str(target), hint=ELSEWHERE)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.next-", dir=_parent(target)) as beside:
        made: list[Sink] = []

        def opened(name: str) -> Sink:
            here = Path(beside)
            whole = target.suffix == ".parquet"
            made.append(Parquet(here, "rows", form, shards=False) if whole else Lines(here / "rows.jsonl", target.name))
            return made[-1]

        try:
            try:
                yield opened
                for each in made:
                    each.close()
            finally:
                for each in made:
                    each.discard()
            Path(beside, "rows" + target.suffix).replace(target)
            sync_folder(target.parent)
        except OSError as error:
            raise disk_error(error, target) from None


def _of_whole(target: Path) -> bool:
    """Whether the manifest beside a file, of a dataset or of an export, names it."""
    try:
        told = orjson.loads((target.parent / MANIFEST).read_bytes())
        return "kdgen" in told and target.name in (told["files"] if "files" in told else told["hashes"]["files"])
    except (OSError, orjson.JSONDecodeError, LookupError, TypeError):
        return False


def _parent(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write there: {error.strerror}", where=str(target), hint=ELSEWHERE) from None
    return target.parent
