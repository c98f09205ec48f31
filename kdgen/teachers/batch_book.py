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
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kdgen.teachers.base import Fault, Raw, Request, Usage
from kdgen.teachers.budget import Hold
from kdgen.teachers.calls import BATCH
from kdgen.teachers.ledger import Ledger, add_spend, store

DAY = 86400.0
KEY = re.compile(r"[0-9a-f]{64}")


class News(NamedTuple):
    """What a result of a batch was, where nobody knew it before, and its reservation; `usage` of a reply that says it."""

    request: Request
    result: Raw | Fault
    hold: Hold
    usage: Usage | None = None


Read = Callable[[Request, Raw, Hold], tuple[Usage | None, Hold]]


class Batch(NamedTuple):
    """A batch that is not done with."""

    name: str
    owner: str
    remote: str
    state: str
    made_at: float
    size: int
    run: str


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
            "SELECT name, owner, remote, state, made_at, size, run FROM batches WHERE teacher=? "
            "AND state IN ('prepared', 'submitted', 'cancelling') ORDER BY made_at"
        )
        return [Batch(*row) for row in self.ledger.all(sql, self.home)]

    def waiting(self) -> list[Request]:
        """The requests that this run has out; those of which it is not known whose they are count as its own."""
        sql = (
            "SELECT i.wire, i.request, i.nth, i.room FROM batch_items i JOIN batches b ON b.name=i.batch "
            "WHERE b.teacher=? AND b.run IN ('', ?) AND i.state='waiting' AND i.key NOT IN (SELECT key FROM calls)"
        )
        return [Request(*row) for row in self.ledger.all(sql, self.home, self.ledger.run)]

    def endless(self, *, everyone: bool) -> int:
        """How many requests are out without a bound on their replies: of this run, or of everyone."""
        sql = (
            "SELECT count(*) FROM batch_items i JOIN batches b ON b.name=i.batch "
            "WHERE b.teacher=? AND (? OR b.run IN ('', ?)) AND i.state='waiting' AND i.room=0"
        )
        return int(self.ledger.one(sql, self.home, everyone, self.ledger.run)[0])

    def remotes(self) -> frozenset[str]:
        """The providers' ids of all batches of the ledger."""
        return frozenset(row[0] for row in self.ledger.all("SELECT remote FROM batches WHERE remote IS NOT NULL"))

    def jams(self) -> list[tuple[str, int]]:
        """(full or held, size) of the batches of the last day that the provider's queue did not take."""
        sql = "SELECT state, size FROM batches WHERE teacher=? AND state IN ('full', 'held') AND made_at>?"
        return self.ledger.all(sql, self.home, time.time() - DAY)

    async def write_down(
        self, shard: Sequence[Request], holds: Mapping[str, Hold], caps: tuple[float, float]
    ) -> tuple[str, list[Request], bool]:
        """Prepare a batch of what nobody has asked for yet: its name, its requests, and whether the month was full before the last.

        The reservations of a month, which must stay under `caps`, are written down with it.
        """
        name = f"kdgen-{secrets.token_hex(8)}"

        def run(db: sqlite3.Connection) -> tuple[list[Request], bool]:
            mine: list[Request] = []
            full = False
            for item in shard:
                known = self._known(db, item)
                if known is None:
                    continue
                hold = holds[item.key]
                if hold.month and not add_spend(db, hold.month, hold.tokens, hold.usd, caps):
                    full = True
                    break
                mine.append(item)
                db.execute(
                    "INSERT OR REPLACE INTO batch_items (key, batch, wire, nth, request, state, tries, room, tokens, usd, month) "
                    "VALUES (?,?,?,?,?,'waiting',?,?,?,?,?)",
                    (bytes.fromhex(item.key), name, item.wire, item.nth, item.body, known, item.room, *hold),
                )
            if mine:
                db.execute(
                    "INSERT INTO batches (name, teacher, owner, state, made_at, size, run) VALUES (?,?,?,'prepared',?,?,?)",
                    (name, self.home, self.ledger.owner, time.time(), len(mine), self.ledger.run),
                )
            return mine, full

        return name, *await self.ledger.transact(run)

    def _known(self, db: sqlite3.Connection, item: Request) -> int | None:
        """How often a request was in a batch in vain; None where somebody has asked for it, or its reply is in."""
        key = bytes.fromhex(item.key)
        if db.execute("SELECT 1 FROM calls WHERE key=?", (key,)).fetchone():
            return None
        sql = "SELECT i.state, i.tries, b.teacher FROM batch_items i JOIN batches b ON b.name=i.batch WHERE i.key=?"
        state, tries, home = db.execute(sql, (key,)).fetchone() or ("", 0, self.home)
        claim = db.execute("SELECT owner FROM claims WHERE key=?", (key,)).fetchone()
        if (state == "waiting" and home == self.home) or (claim and self.ledger.alive(claim[0])):
            return None
        return tries if home == self.home else 0

    async def submitted(self, name: str, remote: str) -> None:
        """The provider has the batch."""
        await self._change(
            "UPDATE batches SET remote=?, state='submitted' WHERE name=? AND state='prepared'", remote, name
        )

    async def cancelling(self, name: str) -> None:
        """The provider was asked to end the batch early."""
        await self._change("UPDATE batches SET state='cancelling' WHERE name=? AND state='submitted'", name)

    async def mistaken(self, name: str) -> bool:
        """What was taken for the batch is another's, so it is in doubt again; False where nothing of it is missing."""
        sql = (
            "UPDATE batches SET state='prepared', remote=NULL, owner=? WHERE name=? AND state IN ('submitted', 'cancelling') "
            "AND EXISTS (SELECT 1 FROM batch_items WHERE batch=name AND batch_items.state='waiting')"
        )
        return await self._change(sql, self.ledger.owner, name) > 0

    async def end(self, name: str, state: str, detail: str, tries: int = 0) -> None:
        """The batch is done with: what has no reply may be asked for again."""

        def run(db: sqlite3.Connection) -> None:
            db.execute("UPDATE batches SET state=?, error=? WHERE name=?", (state, detail, name))
            left = db.execute("SELECT key FROM batch_items WHERE batch=? AND state='waiting'", (name,)).fetchall()
            for (key,) in left:
                _free(db, name, key, "again", tries, detail)
            # Another run may have got a reply online meanwhile.
            db.execute("DELETE FROM batch_items WHERE batch=? AND key IN (SELECT key FROM calls)", (name,))

        await self.ledger.transact(run)

    async def take_in(
        self, batch: Batch, teacher: str, results: Sequence[tuple[str, Raw | Fault]], read: Read
    ) -> tuple[int, list[News]]:
        """Store results and what they cost in one commit: how many are of this ledger, and those that are news.

        `read` says what a reply used and what is to be counted for it, in which month.
        """

        def run(db: sqlite3.Connection) -> tuple[int, list[News]]:
            mine = 0
            news: list[News] = []
            for key, result in results:
                sql = "SELECT wire, request, nth, room, tokens, usd, month FROM batch_items WHERE key=?"
                row = db.execute(sql, (bytes.fromhex(key),)).fetchone() if KEY.fullmatch(key) else None
                if row is None:
                    continue
                mine, request, hold = mine + 1, Request(*row[:4]), Hold(*row[4:])
                if isinstance(result, Fault):
                    state, tried = (
                        "refused" if result.kind == "never" else "again",
                        result.kind in ("rate", "transient"),
                    )
                    if _free(db, batch.name, bytes.fromhex(key), state, tried, result.message):
                        news.append(News(request, result, hold))
                    continue
                raw = result._replace(headers={**result.headers, BATCH: batch.remote})
                if store(db, request, teacher, batch.made_at, raw, batch.run or self.ledger.run):
                    db.execute("DELETE FROM batch_items WHERE key=?", (bytes.fromhex(key),))
                    usage, cost = read(request, raw, hold)
                    if hold.month:
                        add_spend(db, hold.month, -hold.tokens, -hold.usd)
                    add_spend(db, cost.month, cost.tokens, cost.usd)
                    news.append(News(request, raw, hold, usage))
            return mine, news

        made: tuple[int, list[News]] = await self.ledger.transact(run)
        return made

    async def _change(self, sql: str, *values: str) -> int:
        return int(await self.ledger.transact(lambda db: db.execute(sql, values).rowcount))


def _free(db: sqlite3.Connection, name: str, key: bytes, state: str, tries: int, detail: str) -> bool:
    """A request of a batch gets no reply from it: its reservation is given back. False where that is no news.

    What no request escapes is no try of this one.
    """
    sql = "SELECT month, tokens, usd FROM batch_items WHERE key=? AND batch=? AND state='waiting'"
    if (row := db.execute(sql, (key, name)).fetchone()) is None:
        return False
    if row[0]:
        add_spend(db, row[0], -row[1], -row[2])
    db.execute(
        "UPDATE batch_items SET state=?, tries=tries+?, detail=?, tokens=0, usd=0, month='' WHERE key=?",
        (state, tries, detail, key),
    )
    return True
