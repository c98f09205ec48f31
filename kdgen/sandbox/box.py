"""The sandbox as a recipe has it: what a program may use, and one verb that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, Literal, NamedTuple

from pydantic import Field

from kdgen.errors import EndpointError, UserError
from kdgen.record import Frozen

Reason = Literal["ok", "failed", "timeout", "memory", "processes", "output", "killed", "blocked"]
Mode = Literal["own", "bwrap", "none"]
PROGRAM = "program.py"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/nix/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
LINKS = {"/dev/shm": "/tmp", "/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
         "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"}  # fmt: skip
# All that a program sees of an environment. A fixed hash seed: the same program says the same each time.
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC",
    "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "PYTHONIOENCODING": "utf-8:replace",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}  # fmt: skip
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from kdgen.sandbox.jail import main; main()"
PROBE_SECONDS = 60.0
# What Python says last when a limit or the walls stopped it.
SIGNS: tuple[tuple[str, Reason], ...] = (
    ("MemoryError", "memory"),
    ("OSError: [Errno 12]", "memory"),
    ("BlockingIOError: [Errno 11]", "processes"),
    ("RuntimeError: can't start new thread", "processes"),
    ("PermissionError: ", "blocked"),
    ("OSError: [Errno 30]", "blocked"),
    ("OSError: [Errno 97]", "blocked"),
    ("OSError: [Errno 101]", "blocked"),
    ("socket.gaierror: ", "blocked"),
    ("urllib.error.URLError: ", "blocked"),
)


class Outcome(NamedTuple):
    """How a program ended, and what it said. `status` is its exit code, or the signal that ended it as a negative."""

    reason: Reason
    status: int
    stdout: str
    stderr: str

    @property
    def why(self) -> str:
        """The reason with the last line of what it complained of."""
        said = self.stderr.strip().splitlines()
        return f"{self.reason}: {said[-1][:300]}" if said else f"{self.reason}: exit status {self.status}"


class Sandbox(Frozen):
    """Where a program runs that a teacher wrote: no network, no files but the interpreter's, a folder that vanishes.

    `isolation: auto` uses Linux namespaces, or bubblewrap where those cannot be had, and refuses to run where
    neither can; `none` runs with limits alone, on the user's word. `python` is an interpreter whose installed packages
    the programs may import; without it they have the standard library. `memory` and `disk` are MiB, `cpu` and `wall`
    seconds, `output` bytes of each of stdout and stderr.
    """

    isolation: Literal["auto", "none"] = "auto"
    python: str = ""
    cpu: int = Field(5, ge=1)
    wall: float = Field(30.0, gt=0)
    memory: int = Field(1024, ge=64)
    processes: int = Field(16, ge=1)
    disk: int = Field(64, ge=1)
    output: int = Field(65536, ge=1)

    def ready(self) -> Mode:
        """How programs will be run here. Raises UserError where they cannot be."""
        return _mode(self.isolation, self.python)

    async def run(self, source: str, stdin: str = "", files: Mapping[str, str] | None = None) -> Outcome:
        """Run Python source to its end, or to its limits; nothing of it is left running.

        `files` lie beside it by name. Raises UserError where it cannot be isolated, EndpointError where the machine
        has no room for it.
        """
        spec = _spec(self, await asyncio.to_thread(self.ready), source, stdin, files or {})
        jail = await asyncio.create_subprocess_exec(
            *_jail(), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}, cwd="/", start_new_session=True
        )
        assert jail.stdin is not None and jail.stdout is not None
        try:
            with contextlib.suppress(ConnectionError):
                jail.stdin.write(spec)
                await jail.stdin.drain()
            told = await jail.stdout.read()
        finally:
            jail.stdin.close()  # a program that still runs is killed for that
            await asyncio.shield(jail.wait())
        return _outcome(told)


def _spec(box: Sandbox, mode: Mode, source: str, stdin: str, files: Mapping[str, str]) -> bytes:
    executable, binds, flags = _python(box.python)
    spec = {
        "mode": mode,
        "bwrap": shutil.which("bwrap") or "",
        "argv": [executable, *flags, PROGRAM],
        "env": ENVIRONMENT,
        "binds": binds,
        "devices": [path for path in DEVICES if os.path.exists(path)],
        "links": {path: os.readlink(path) for path in SYSTEM if os.path.islink(path)} | LINKS,
        "files": {**files, PROGRAM: source},
        "stdin": stdin,
        "cpu": box.cpu,
        "wall": box.wall,
        "memory": box.memory << 20,
        "processes": box.processes,
        "disk": box.disk << 20,
        "output": box.output,
    }
    data = json.dumps(spec).encode()
    return b"%d\n" % len(data) + data


def _jail() -> list[str]:
    # In a session of its own: Ctrl-C is for kdgen, which ends it in order.
    return [sys.executable, "-I", "-S", "-c", BOOT, str(Path(__file__).parents[2])]


def _outcome(told: bytes) -> Outcome:
    made: dict[str, Any] = json.loads(told) if told else {"error": "it ended without a word"}
    if "error" in made:
        raise EndpointError(f"the sandbox could not run a program: {made['error']}", hint="free some memory, run again")
    stderr, status = made["stderr"], made["status"]
    reason: Reason = made["reason"] or ("ok" if status == 0 else "failed" if status > 0 else "killed")
    if reason == "failed":
        last = (stderr.strip().splitlines() or [""])[-1]
        reason = next((why for sign, why in SIGNS if last.startswith(sign)), reason)
    return Outcome(reason, status, made["stdout"], stderr)


@lru_cache(maxsize=8)
def _python(path: str) -> tuple[str, list[str], list[str]]:
    """The interpreter, the folders it needs, and its flags."""
    if not path:
        executable = str(getattr(sys, "_base_executable", sys.executable))
        folders, flags = [sys.base_prefix, sys.base_exec_prefix], ["-B", "-S"]
    else:
        executable, flags = os.path.abspath(os.path.expanduser(path)), ["-B"]
        ask = "import sys; print(sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, sep='\\n')"
        try:
            said = subprocess.run(
                [executable, "-c", ask], env={}, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            hint = "sandbox.python is the path of an interpreter, such as that of a virtual environment"
            raise UserError(f"no Python runs at {path}: {error}", hint=hint) from None
        folders = said.stdout.split("\n")[:4]
    folders += [os.path.dirname(os.path.realpath(executable)), *(path for path in SYSTEM if not os.path.islink(path))]
    real = sorted({os.path.abspath(path) for path in folders if path and os.path.exists(path)} - {"/"})
    binds = [path for path in real if not any(path.startswith(other + "/") for other in real)]
    return executable, binds, flags


@lru_cache(maxsize=8)
def _mode(isolation: str, python: str) -> Mode:
    if isolation == "none":
        return "none"
    said = {}
    # With root's rights namespaces can be had wherever bubblewrap gets them, and it would not give up those rights.
    modes: list[Mode] = ["own", "bwrap"] if shutil.which("bwrap") and os.geteuid() else ["own"]
    for mode in modes if sys.platform == "linux" else ():
        box = Sandbox(python=python, wall=PROBE_SECONDS)
        spec = _spec(box, mode, "print('in')", "", {})
        try:
            with subprocess.Popen(
                _jail(), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}, cwd="/", start_new_session=True
            ) as jail:
                assert jail.stdin is not None and jail.stdout is not None
                jail.stdin.write(spec)
                jail.stdin.flush()
                told = _outcome(jail.stdout.read())
            if told[:3] == ("ok", 0, "in\n"):
                return mode
            said[mode] = told.why
        except (EndpointError, OSError) as error:
            said[mode] = getattr(error, "cause", str(error))
    raise UserError(
        "programs cannot be isolated here" + "".join(f"; {mode}: {why}" for mode, why in said.items()),
        hint="run on Linux 5.12 or newer where user namespaces are allowed (in a container: --privileged, or a seccomp "
        "profile that allows unshare and mount), install bubblewrap, or, if every program may do all that you may, "
        "set sandbox.isolation to none",
    )
