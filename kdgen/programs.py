"""The programs of one run: as many at once as there are CPUs, and none twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import orjson

from kdgen.errors import KdgenError
from kdgen.record import digest
from kdgen.sandbox.box import Outcome, Sandbox
from kdgen.teachers.halt import Halt
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.local import cpus


class Programs:
    """Runs programs in a sandbox. How one ended is kept in the ledger: a machine under load times out where another does
    not, and the files of a run that goes on must not depend on that.
    """

    def __init__(self, box: Sandbox, ledger: Ledger, halt: Halt) -> None:
        self.box = box
        self.ledger = ledger
        self.halt = halt
        self._slots = asyncio.Semaphore(cpus())

    def key(self, source: str, stdin: str, files: Mapping[str, str]) -> bytes:
        """Stands for a program, all that it is given and all that it may use."""
        return bytes.fromhex(digest(source, stdin, dict(files), self.box.model_dump()))

    def known(self, key: bytes) -> Outcome | None:
        """How a program ended that ran before."""
        row = self.ledger.one("SELECT outcome FROM outcomes WHERE key=?", key)
        return Outcome(*orjson.loads(row[0])) if row else None

    async def run(self, source: str, stdin: str, files: Mapping[str, str]) -> Outcome:
        """How the program ended, now or before.

        Raises UserError where programs cannot be isolated, EndpointError where the machine has no room for one.
        """
        key = self.key(source, stdin, files)
        if (made := self.known(key)) is not None:
            return made
        async with self._slots:
            self.halt.check()
            try:
                made = await self.box.run(source, stdin, files)
            except KdgenError as error:
                self.halt.set(error)
                raise
        row = (key, orjson.dumps(list(made)))
        await self.ledger.transact(lambda db: db.execute("INSERT OR IGNORE INTO outcomes VALUES (?,?)", row))
        return self.known(key) or made  # another process may have been first, and both must go on alike
