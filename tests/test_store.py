"""The dataset folder and the disk below it: what is damaged is mended, what the disk refuses is said, nothing is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import command, environment, leftovers, published

from kdgen.cli import inputs
from kdgen.store import Staging
from kdgen.teachers.owner import Owner

SEEDS = '{"instruction": "Name a colour."}\n{"instruction": "Name a bird."}\n'


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
@pytest.mark.parametrize("name", ["data.jsonl", "records.jsonl", "rejects.jsonl", "README.md"])
def test_a_damaged_file_of_a_version_is_mended(
    label: Callable[..., Any], tmp_path: Path, name: str, damage: str
) -> None:
    seeds = SEEDS + "no seed\n"
    assert label("s.jsonl", seeds, "--on-bad-seed", "skip").code == 0
    good = published(tmp_path / "out", card=True)
    version = (tmp_path / "out" / ".current").resolve()
    kept = {file.name: file.stat().st_ino for file in version.iterdir() if file.name not in (name, "manifest.json")}
    path = version / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"x" if damage == "changed" else good[name][:-2])
    assert label("s.jsonl", None, "--on-bad-seed", "skip").code == 0
    assert published(tmp_path / "out", card=True) == good
    assert {file: (version / file).stat().st_ino for file in kept} == kept, "what was whole was left alone"
    assert leftovers(tmp_path / "out") == []


def gone_on(label: Callable[..., Any], tmp_path: Path) -> None:
    """The same command, on a disk that serves: nothing is asked again."""
    said = label("s.jsonl", SEEDS, "--json")
    assert said.code == 0 and '"sent": 0' in said.out
    assert leftovers(tmp_path / "out") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_at_the_end_is_said(
    label: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("kdgen.store.os.fsync", refuse)
        said = label("s.jsonl", SEEDS)
    assert (
        said.code == 3
        and os.strerror(number) in said.err
        and str(tmp_path / "out") in str(tmp_path / said.err.split()[1])
    )
    assert "hint: " in said.err and "in the ledger" in said.err
    assert not (tmp_path / "out/data.jsonl").exists() and leftovers(tmp_path / "out") == []
    gone_on(label, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_while_rows_are_written_is_said(
    label: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Staging.__init__

    def full(self: Staging, folder: Path) -> None:
        plain(self, folder)
        self._files["data.jsonl"].close()
        self._files["data.jsonl"] = open("/dev/full", "wb", buffering=0)  # type: ignore[assignment]  # noqa: SIM115

    with monkeypatch.context() as patched:
        patched.setattr(Staging, "__init__", full)
        said = label("s.jsonl", SEEDS)
    assert said.code == 3 and "No space left" in said.err and "free some space" in said.err
    gone_on(label, tmp_path)


def test_a_lock_file_that_cannot_be_made_is_said(
    label: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Owner) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(Owner, "_hold", refuse)
        said = label("s.jsonl", SEEDS)
    assert said.code == 3 and "ledger.db-owner-" in said.err and "Permission denied" in said.err
    assert label("s.jsonl", SEEDS).code == 0


def test_a_dataset_folder_whose_lock_cannot_be_written_is_said(
    label: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, data: bytes, place: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kdgen.store.os.pwrite", refuse)
    said = label("s.jsonl", SEEDS)
    assert said.code == 2 and "out: cannot write there: No space left" in said.err and "-o DIR" in said.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_said(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(SEEDS)
    (tmp_path / "t.jsonl").write_text('{"reply": "It is {digest}."}\n')
    asked = command("label", "s.jsonl", "-t", "scripted:t.jsonl", "-o", "-", "--ledger", "l.db")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            asked,
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 3 and "No space left" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stdins_copy_is_gone_after_a_signal_while_it_is_read(
    label: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    before = signal.getsignal(number)

    def scan(*_: object, **__: object) -> None:
        assert len(list((tmp_path / "t").iterdir())) == 1
        os.kill(os.getpid(), number)

    monkeypatch.setattr(inputs, "scan", scan)
    said = label("-", None, stdin=SEEDS.encode())
    assert said.code == 130 and f"error: interrupted by {number.name}" in said.err
    assert list((tmp_path / "t").iterdir()) == []
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stdins_copy_is_gone_after_a_signal_while_it_comes(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "r.jsonl").write_text('{"reply": "x"}\n')
    asked = command("label", "-", "-t", "scripted:r.jsonl", "-o", "out", "--ledger", "l.db")
    pipe = subprocess.PIPE
    with subprocess.Popen(
        asked, cwd=tmp_path, env=environment(TMPDIR=str(tmp_path / "t")), stdin=pipe, stderr=pipe, text=True
    ) as run:
        assert run.stdin is not None and run.stderr is not None
        run.stdin.write('{"instruction": "x"}\n' * 100_000)
        run.stdin.flush()
        while not any(file.stat().st_size for file in (tmp_path / "t").iterdir()):
            assert run.poll() is None
        run.send_signal(number)
        try:
            code = run.wait(20)
        except subprocess.TimeoutExpired:
            run.send_signal(number)  # a signal that comes just before a blocking read is noticed only after it
            code = run.wait(60)
        assert code == 130
        assert "Traceback" not in run.stderr.read()
    assert list((tmp_path / "t").iterdir()) == []


def test_a_disk_error_without_a_handler_of_its_own_is_no_traceback(
    label: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scan(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "s.jsonl")

    monkeypatch.setattr(inputs, "scan", scan)
    said = label("s.jsonl", SEEDS)
    assert said.code == 3 and "s.jsonl: " in said.err and "ulimit -n" in said.err
