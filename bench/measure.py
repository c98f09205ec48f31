"""Running a command and saying what it took; the server as a context; tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
PYTHON = sys.executable
KDGEN = [PYTHON, "-m", "kdgen"]
CACHE = "PYTHONPYCACHEPREFIX"
UNLIKE_A_USER = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPROFILEIMPORTTIME")


@dataclass(frozen=True)
class Took:
    """What one process took, its start included. `rss` is its peak in MiB, `began` CLOCK_MONOTONIC."""

    wall: float
    cpu: float
    rss: float
    began: float


def took(command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Took:
    """Run a command to its end. Raises RuntimeError with its output where it fails."""
    return start(command, env=env, cwd=cwd)()


def start(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, name: str = ".bench.log"
) -> Callable[[], Took]:
    """Start a command; what is returned waits for its end.

    wait4 says what this one child used. A child's peak is never below its parent's at the fork, so this
    process imports nothing heavy. Modules are compiled once, as they are where kdgen is installed, into the
    folder that PYTHONPYCACHEPREFIX names, so that the tree stays as it is.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in UNLIKE_A_USER}
    log = cwd / name if cwd else None
    with open(log or os.devnull, "wb") as sink:
        began = time.monotonic()
        child = subprocess.Popen(
            command, env={**inherited, **(env or {})}, cwd=cwd, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )

    def wait() -> Took:
        try:
            _, status, used = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        wall = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said = log.read_text(errors="replace")[-2000:] if log else ""
            raise RuntimeError(f"exit {child.returncode}: {' '.join(command)}\n{said}")
        return Took(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, began)

    return wait


def middle(runs: Sequence[Took]) -> Took:
    """The median of each number."""
    return Took(*(median(getattr(run, name) for run in runs) for name in ("wall", "cpu", "rss", "began")))


class Server:
    """The server of this run."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}/v1"
        self._root = f"http://127.0.0.1:{port}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _get(self, path: str) -> dict[str, Any]:
        with self._opener.open(self._root + path, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def reset(self, latency: float, rpm: int = 0) -> None:
        """Forget the counts; from now on each reply takes `latency` ms, and a minute takes `rpm` requests."""
        self._get(f"/reset?latency={latency:g}&rpm={rpm}")

    def stats(self) -> dict[str, Any]:
        """What came since the last reset."""
        return self._get("/stats")


@contextmanager
def server() -> Iterator[Server]:
    """A server process, killed at the end."""
    process = subprocess.Popen([PYTHON, str(HERE / "server.py")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Server(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


def write_seeds(path: Path, count: int, first: int = 0) -> None:
    """`count` distinct seeds of about 400 bytes, from number `first` on."""
    words = "light river engine model answer number table field sound metal glass north winter garden letter".split()
    about = " ".join(words[step % len(words)] for step in range(50))
    with path.open("w", encoding="utf-8") as file:
        for number in range(first, first + count):
            text = f"Write a short answer to task {number}: explain how {about} relate to each other."
            file.write(json.dumps({"instruction": text}) + "\n")


def grown(dataset: Path, folder: Path, count: int) -> Path:
    """A dataset of `count` records, each like the first of another, with its own id, seed, task and answer."""
    folder.mkdir()
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["counts"]["rows"], manifest["hashes"]["files"] = count, {}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with (dataset / "records.jsonl").open() as lines:
        record = json.loads(lines.readline())
    task, answer = record["instruction"], record["output"]
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            name = f"{number:020x}"
            record |= {"id": name, "seeds": [name], "instruction": f"{number}: {task}", "output": f"{answer} {number}"}
            file.write(json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n")
    return folder


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|" + "|".join("---" for _ in head) + "|")
    for row in rows:
        print("| " + " | ".join(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    print(flush=True)


def note(text: str) -> None:
    """Say on stderr where the benchmark stands."""
    print(text, file=sys.stderr, flush=True)
