"""What the ledger knows of the batches of one teacher: a batch with its requests, from before it is submitted to its end.

A batch is prepared (written down, and submitted or not), submitted, cancelling, and then ended, failed, full (its
provider's empty queue had no room for it) or held (only the full one had none). A request in it is waiting, then stored
as a call and forgotten here, or again (it may be asked for again) or refused (it may not).
"""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
from collections.abc import Sequence
from typing import NamedTuple

from kdgen.teachers.base import Fault, Raw, Request
from kdgen.teachers.calls import BATCH
from kdgen.teachers.ledger import Ledger, store

DAY = 86400.0
KEY = re.compile(r"[0-9a-f]{64}")


class Batch(NamedTuple):
    """A batch that is not done with."""

    name: str
    owner: str
    remote: str
    state: str
    made_at: float
    size: int


class Item(NamedTuple):
    """A request that is or was in a batch."""

    state: str = ""
    tries: int = 0
    detail: str = ""
    made_at: float = 0.0


class Book:
    """The batches of one teacher at one address."""

    def __init__(self, ledger: Ledger, home: str) -> None:
        self.ledger = ledger
        self.home = home

    def item(self, key: str) -> Item:
        """What is known of a request."""
        sql = (
            "SELECT i.state, i.tries, i.detail, b.made_at FROM batch_items i JOIN batches b ON b.name=i.batch "
            "WHERE i.key=? AND b.teacher=?"
        )
        return Item(*(self.ledger.one(sql, bytes.fromhex(key), self.home) or ()))

    def has(self, name: str, key: str) -> bool:
        """Whether a request is in the batch of that name."""
        sql = "SELECT 1 FROM batch_items WHERE key=? AND batch=?"
        return bool(KEY.fullmatch(key)) and self.ledger.one(sql, bytes.fromhex(key), name) is not None

    def living(self) -> list[Batch]:
        """The batches that are not done with, whoever made them."""
        sql = (
            "SELECT name, owner, remote, state, made_at, size FROM batches WHERE teacher=? "
            "AND state IN ('prepared', 'submitted', 'cancelling') ORDER BY made_at"
        )
        return [Batch(*row) for row in self.ledger.all(sql, self.home)]

    def waiting(self) -> list[Request]:
        """The requests that are out."""
        sql = (
            "SELECT i.wire, i.request, i.nth, i.room FROM batch_items i JOIN batches b ON b.name=i.batch "
            "WHERE b.teacher=? AND i.state='waiting' AND i.key NOT IN (SELECT key FROM calls)"
        )
        return [Request(*row) for row in self.ledger.all(sql, self.home)]

    def remotes(self) -> frozenset[str]:
        """The providers' ids of all batches of the ledger."""
        return frozenset(row[0] for row in self.ledger.all("SELECT remote FROM batches WHERE remote IS NOT NULL"))

    def jams(self) -> list[tuple[str, int]]:
        """(full or held, size) of the batches of the last day that the provider's queue did not take."""
        sql = "SELECT state, size FROM batches WHERE teacher=? AND state IN ('full', 'held') AND made_at>?"
        return self.ledger.all(sql, self.home, time.time() - DAY)

    async def write_down(self, shard: Sequence[Request]) -> tuple[str, list[Request]]:
        """Prepare a batch of what nobody has asked for yet: its name and its requests."""
        name = f"kdgen-{secrets.token_hex(8)}"

        def run(db: sqlite3.Connection) -> list[Request]:
            mine = [item for item in shard if self._take(db, name, item)]
            if mine:
                db.execute(
                    "INSERT INTO batches (name, teacher, owner, state, made_at, size) VALUES (?,?,?,'prepared',?,?)",
                    (name, self.home, self.ledger.owner, time.time(), len(mine)),
                )
            return mine

        return name, await self.ledger.transact(run)

    def _take(self, db: sqlite3.Connection, name: str, item: Request) -> bool:
        key = bytes.fromhex(item.key)
        if db.execute("SELECT 1 FROM calls WHERE key=?", (key,)).fetchone():
            return False
        sql = "SELECT i.state, i.tries, b.teacher FROM batch_items i JOIN batches b ON b.name=i.batch WHERE i.key=?"
        state, tries, home = db.execute(sql, (key,)).fetchone() or ("", 0, self.home)
        claim = db.execute("SELECT owner FROM claims WHERE key=?", (key,)).fetchone()
        if (state == "waiting" and home == self.home) or (claim and self.ledger.alive(claim[0])):
            return False
        db.execute(
            "INSERT OR REPLACE INTO batch_items (key, batch, wire, nth, request, state, tries, room) "
            "VALUES (?,?,?,?,?,'waiting',?,?)",
            (key, name, item.wire, item.nth, item.body, tries if home == self.home else 0, item.room),
        )
        return True

    async def submitted(self, name: str, remote: str) -> None:
        """The provider has the batch."""
        await self._change(
            "UPDATE batches SET remote=?, state='submitted' WHERE name=? AND state='prepared'", remote, name
        )

    async def cancelling(self, name: str) -> None:
        """The provider was asked to end the batch early."""
        await self._change("UPDATE batches SET state='cancelling' WHERE name=? AND state='submitted'", name)

    async def mistaken(self, name: str) -> None:
        """What was taken for the batch is another's, so it is in doubt again."""
        sql = "UPDATE batches SET state='prepared', remote=NULL, owner=? WHERE name=? AND state IN ('submitted', 'cancelling')"
        await self._change(sql, self.ledger.owner, name)

    async def end(self, name: str, state: str, detail: str, tries: int = 0) -> None:
        """The batch is done with: what has its reply is forgotten, the rest may be asked for again."""

        def run(db: sqlite3.Connection) -> None:
            db.execute("UPDATE batches SET state=?, error=? WHERE name=?", (state, detail, name))
            db.execute("DELETE FROM batch_items WHERE batch=? AND key IN (SELECT key FROM calls)", (name,))
            db.execute(
                "UPDATE batch_items SET state='again', tries=tries+?, detail=? WHERE batch=? AND state='waiting'",
                (tries, detail, name),
            )

        await self.ledger.transact(run)

    async def take_in(
        self, batch: Batch, teacher: str, results: Sequence[tuple[str, Raw | Fault]]
    ) -> tuple[int, list[tuple[Request, Raw | Fault]]]:
        """Store results in one commit: how many are of this ledger, and those that are news."""

        def run(db: sqlite3.Connection) -> tuple[int, list[tuple[Request, Raw | Fault]]]:
            mine = 0
            news: list[tuple[Request, Raw | Fault]] = []
            kept: Raw | Fault
            for key, result in results:
                sql = "SELECT wire, request, nth, room FROM batch_items WHERE key=?"
                row = db.execute(sql, (bytes.fromhex(key),)).fetchone() if KEY.fullmatch(key) else None
                if row is None:
                    continue
                mine, request = mine + 1, Request(*row)
                if isinstance(result, Fault):
                    new, kept = _mark(db, batch.name, request, result), result
                else:
                    kept = result._replace(headers={**result.headers, BATCH: batch.remote})
                    new = store(db, request, teacher, batch.made_at, kept)
                if new:
                    news.append((request, kept))
            return mine, news

        made: tuple[int, list[tuple[Request, Raw | Fault]]] = await self.ledger.transact(run)
        return made

    async def _change(self, sql: str, *values: str) -> None:
        await self.ledger.transact(lambda db: db.execute(sql, values))


def _mark(db: sqlite3.Connection, name: str, request: Request, fault: Fault) -> bool:
    """Say that a request got no reply; whether this was news. What no request escapes is no try of this one."""
    state = "refused" if fault.kind == "never" else "again"
    marked = db.execute(
        "UPDATE batch_items SET state=?, tries=tries+?, detail=? WHERE key=? AND batch=? AND state='waiting'",
        (state, fault.kind in ("rate", "transient"), fault.message, bytes.fromhex(request.key), name),
    )
    return marked.rowcount > 0
