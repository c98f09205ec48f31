"""Which of the processes on a ledger still live.

Each holds a file lock beside the ledger for as long as it lives. The kernel frees it at a kill -9, so that a dead one is
known at once, by no clock.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

from kdgen.errors import disk_error


class Owner:
    """This process, as the others on the ledger at `path` see it; `name` stands for it in the ledger."""

    def __init__(self, path: Path) -> None:
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._ledger = path
        self._file: int | None = None

    def begin(self) -> None:
        """Hold the lock from now on. Raises EndpointError where the disk refuses."""
        try:
            self._file = self._hold()
        except OSError as error:
            raise disk_error(error, self._path(self.name)) from None

    def end(self) -> None:
        """Let go of the lock, and tidy away what the dead left."""
        if self._file is None:
            return
        with suppress(OSError):  # a lock file that nobody holds says nothing
            self._path(self.name).unlink(missing_ok=True)
        os.close(self._file)
        self._file = None
        start = f"{self._ledger.name}-owner-"
        for path in self._ledger.parent.glob(f"{start}*"):
            self.alive(path.name.removeprefix(start))

    def alive(self, name: str) -> bool:
        """Whether the process that `name` stands for still runs."""
        if name == self.name:
            return True
        try:
            handle = os.open(self._path(name), os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            self._path(name).unlink(missing_ok=True)
            return False
        finally:
            os.close(handle)

    def _path(self, name: str) -> Path:
        return self._ledger.with_name(f"{self._ledger.name}-owner-{name}")

    def _hold(self) -> int:
        """The lock file, held. One that another process tidied away before it was held is made anew."""
        path = self._path(self.name)
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                if os.stat(path).st_ino == os.fstat(handle).st_ino:
                    return handle
            except FileNotFoundError:
                pass
            os.close(handle)
