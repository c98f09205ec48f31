"""Processes that an engine spawned must not outlive a kdgen that is killed."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Guard:
    """Sees to it that what the engine spawned does not outlive a kdgen that is killed: vLLM's processes would run on.

    A shell waits for a word from this process; where the pipe ends without one, it kills what carries the mark.
    """

    mark = "KDGEN_ENGINE"
    script = 'read -r _ || kill -KILL $(grep -lzx "$0" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3)'

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        command = ["/bin/sh", "-c", self.script, f"{self.mark}={self.token}"]
        self._shell = subprocess.Popen(command, stdin=pipe, stdout=null, stderr=null, start_new_session=True)  # noqa: S603

    @contextmanager
    def marking(self) -> Iterator[None]:
        """What is spawned meanwhile carries the mark, and what that spawns too."""
        os.environ[self.mark] = self.token
        try:
            yield
        finally:
            del os.environ[self.mark]

    def close(self) -> None:
        """All has ended well."""
        with suppress(BrokenPipeError):
            self._shell.communicate(b"well\n")
