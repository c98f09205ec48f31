"""Judging in processes with limits: an answer may be a bomb (10^10^10, a pattern's worst case), and signals stop no C code.

A worker is a Python of its own that is told one question a line and says one verdict a line. Each question has so much time
of the CPU (so that a machine under load decides as another does) and the worker so much memory; one that passes a limit is
gone, the question is unjudged, and the next starts another. Safe in any thread and any event loop.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from kdgen.verifiers.base import Verdict, unjudged

CPU_SECONDS = 3
WALL_SECONDS = 120.0  # for a worker that waits for something; a machine under load is not to reach it
MEMORY = 2 << 30
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from kdgen.verifiers.bounded import serve; serve()"


class Worker:
    """A process that judges."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-c", BOOT, str(Path(__file__).parents[2])],
            env={"LANG": "C.UTF-8"},  # what reads hostile texts is told no key
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for kdgen
        )

    def ask(self, line: bytes) -> bytes | None:
        """What it says to a line, or None where it passed a limit."""
        pipes = self.process
        assert pipes.stdin is not None and pipes.stdout is not None
        try:
            pipes.stdin.write(line)
            pipes.stdin.flush()
        except OSError:
            return None
        said = b""
        while not said.endswith(b"\n"):
            if not select.select([pipes.stdout], [], [], WALL_SECONDS)[0]:
                return None
            if not (more := os.read(pipes.stdout.fileno(), 1 << 16)):
                return None
            said += more
        return said

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()


class Workers:
    """Workers that are idle."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

    def ask(self, line: bytes) -> bytes | None:
        """What one of them says to a line."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        worker = worker or Worker()
        said = None
        try:
            said = worker.ask(line)
        finally:
            if said is None:
                worker.close()
            else:
                with self._lock:
                    self._idle.append(worker)
        return said

    def close(self) -> None:
        """End those that are idle."""
        with self._lock:
            gone, self._idle = self._idle, []
        for worker in gone:
            worker.close()


# As many at once as there are CPUs, each with a thread that waits for it; the program's other threads are not held up.
THREADS = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "verify")
_workers = Workers()
atexit.register(_workers.close)


def judged(spec: str, answer: str, gold: str) -> Verdict:
    """The verdict of a verifier, as JSON, on an answer; unjudged where it takes too much time or memory."""
    # A lone surrogate can stand in an answer, and not in UTF-8.
    texts = [text.encode("utf-8", "replace").decode() for text in (answer, gold)]
    said = _workers.ask(orjson.dumps([spec, *texts]) + b"\n")
    if said is None:
        return unjudged(f"it takes more than {CPU_SECONDS} seconds or {MOST_MIB} MiB to judge")
    return Verdict(*orjson.loads(said))


MOST_MIB = MEMORY >> 20


def serve() -> None:
    """A worker's life: a verdict for each line, until there are no more."""
    import resource

    from kdgen.verifiers import read_verifier

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for none in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):  # it writes no file
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(none, (0, 0))
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no verdict
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    while line := stdin.readline():
        spec, answer, gold = orjson.loads(line)
        verifier = read_verifier(spec)
        verifier.prepare()
        spent = resource.getrusage(resource.RUSAGE_SELF)
        # Past it comes SIGXCPU, which ends the process whatever it is at.
        limit = int(spent.ru_utime + spent.ru_stime) + CPU_SECONDS + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
        try:
            made = verifier.judge(answer, gold)
        except MemoryError:
            made = unjudged(f"it takes more than {MOST_MIB} MiB to judge")
        except RecursionError:
            made = unjudged("it is nested too deeply to judge")
        except Exception as error:  # a library's bug with this answer is no verdict on it
            made = unjudged(f"it cannot be judged: {type(error).__name__}: {error}"[:300])
        stdout.write(orjson.dumps(list(made)) + b"\n")
        stdout.flush()
