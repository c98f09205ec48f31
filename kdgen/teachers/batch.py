"""Half-price batches: a pass over the recipe wants replies, a shard of them becomes a provider's batch, a later pass goes on.

A batch is written down with its requests before it is submitted, under a name that travels with it, so that a crash
between the two can be made good: the provider is asked whether it has a batch of that name. Results are imported into
the ledger one by one; importing twice changes nothing.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from kdgen.errors import EndpointError, Pending, Rejected
from kdgen.teachers.base import BatchApi, Fault, Raw, Request, TeacherSpec, Usage
from kdgen.teachers.bill import Bill
from kdgen.teachers.ledger import Ledger

TRIES = 3


class Batches:
    """The batches of one teacher in one run."""

    def __init__(self, spec: TeacherSpec, ledger: Ledger, bill: Bill) -> None:
        self.spec = spec
        self.ledger = ledger
        self.bill = bill
        self.wanted: dict[str, Request] = {}
        self.online = False

    def ask(self, request: Request) -> None:
        """Want a reply that the ledger lacks. Raises Pending, Rejected where the batch's answer is no; else it may go online."""
        row = self.ledger.one("SELECT state, tries, detail FROM batch_items WHERE key=?", bytes.fromhex(request.key))
        state, tries, detail = row or ("", 0, "")
        if state == "refused":
            raise Rejected("endpoint_refused", detail)
        if state == "again" and tries >= TRIES and not self.online:
            raise Rejected("batch_gave_up", f"{tries} batches ended without this reply: {detail}")
        if state != "waiting":
            if self.online:
                return
            self.wanted[request.key] = request
        raise Pending(request.key)

    @cached_property
    def api(self) -> BatchApi:
        """The provider's interface, opened when it is first needed."""
        return self.spec.batches()

    async def close(self) -> None:
        """Close the interface, if it was opened."""
        if "api" in self.__dict__:
            await self.__dict__.pop("api").close()

    def open(self) -> bool:
        """Whether the ledger has batches of this teacher that are not done with."""
        sql = "SELECT 1 FROM batches WHERE teacher=? AND state IN ('prepared', 'submitted', 'cancelling')"
        return self.ledger.one(sql, self.spec.label) is not None

    async def recover(self) -> None:
        """Make good what a crash between writing down and submitting left in doubt."""
        known = {row[0] for row in self.ledger.all("SELECT remote FROM batches WHERE remote IS NOT NULL")}
        for name, owner, made_at, size in self.ledger.all(
            "SELECT name, owner, made_at, size FROM batches WHERE teacher=? AND state='prepared'", self.spec.label
        ):
            if owner != self.ledger.owner and self.ledger.alive(owner):
                continue
            remote = await self.api.find(name, made_at, size, known)
            if remote is None:
                await self._end(name, "failed", "it never arrived")
            else:
                await self._submitted(name, remote)

    async def submit(self) -> int:
        """Hand in everything wanted, in shards that the provider takes; the number of requests."""
        count = len(self.wanted)
        for shard in self._shards():
            name = f"kdgen-{secrets.token_hex(8)}"

            def prepare(db: sqlite3.Connection, name: str = name, shard: Sequence[Request] = tuple(shard)) -> None:
                db.execute(
                    "INSERT INTO batches (name, teacher, owner, state, made_at, size) VALUES (?,?,?,'prepared',?,?)",
                    (name, self.spec.label, self.ledger.owner, time.time(), len(shard)),
                )
                db.executemany(
                    "INSERT INTO batch_items (key, batch, wire, nth, request, state, tries) VALUES (?,?,?,?,?,'waiting',1) "
                    "ON CONFLICT (key) DO UPDATE SET batch=excluded.batch, state='waiting', tries=tries+1",
                    [(bytes.fromhex(item.key), name, item.wire, item.nth, item.body) for item in shard],
                )

            await self.ledger.transact(prepare)
            try:
                remote = await self.api.submit(name, shard)
            except Fault as fault:
                if not fault.billed:
                    await self._end(name, "failed", fault.message)
                raise EndpointError(f"the batch was not taken: {fault.message}", where=self.spec.label) from None
            self.bill.sent()
            await self._submitted(name, remote)
        self.wanted.clear()
        return count

    async def collect(self, max_wait: float | None = None) -> tuple[int, int]:
        """Import what has ended. Returns (replies imported, batches still running).

        A batch older than `max_wait` seconds is cancelled, and once all have ended its stragglers may go online.
        """
        imported = running = 0
        for name, remote, made_at, state in self.ledger.all(
            "SELECT name, remote, made_at, state FROM batches WHERE teacher=? AND state IN ('submitted', 'cancelling')",
            self.spec.label,
        ):
            try:
                status = await self.api.status(remote)
                if status.state == "running":
                    running += 1
                    if max_wait is not None and time.time() - made_at > max_wait and state != "cancelling":
                        await self.api.cancel(remote)
                        await self.ledger.transact(_set_state(name, "cancelling"))
                    continue
                imported += await self._import(remote)
                await self._end(name, "ended" if status.state == "ended" else "failed", status.detail)
            except Fault as fault:
                if fault.kind in ("rate", "transient"):
                    running += 1
                    continue
                raise EndpointError(fault.message, where=f"{self.spec.label}, batch {remote}") from None
            if status.state == "failed" and not imported:
                raise EndpointError(f"the batch failed: {status.detail}", where=f"{self.spec.label}, batch {remote}")
        if max_wait is not None and not running:
            oldest = self.ledger.one(
                "SELECT min(made_at) FROM batches b JOIN batch_items i ON i.batch=b.name WHERE i.state='again'"
            )
            self.online = bool(oldest and oldest[0] and time.time() - oldest[0] > max_wait)
        return imported, running

    async def _import(self, remote: str) -> int:
        count = 0
        async for key, result in self.api.results(remote):
            if isinstance(result, Raw):
                count += await self._store(key, result)
                continue
            state = "again" if result.kind in ("rate", "transient") else "refused"

            def mark(db: sqlite3.Connection, key: str = key, state: str = state, detail: str = result.message) -> None:
                db.execute("UPDATE batch_items SET state=?, detail=? WHERE key=?", (state, detail, bytes.fromhex(key)))

            await self.ledger.transact(mark)
            self.bill.failed(result)
        return count

    async def _store(self, key: str, raw: Raw) -> bool:
        """Commit one reply; whether it was new."""
        row = self.ledger.one("SELECT wire, request, nth FROM batch_items WHERE key=?", bytes.fromhex(key))
        if row is None or self.ledger.get(key) is not None:
            return False
        request = Request(*row)
        await self.ledger.settle(request, self.spec.label, time.time(), raw)
        try:
            self.bill.imported(self.spec, self.spec.read(request, raw).usage)
        except Rejected:
            self.bill.imported(self.spec, Usage())
        return True

    def _shards(self) -> Iterator[list[Request]]:
        shard: list[Request] = []
        size = 0
        for request in self.wanted.values():
            weight = len(request.body) + 300
            if shard and (len(shard) >= self.api.max_requests or size + weight > self.api.max_bytes):
                yield shard
                shard, size = [], 0
            shard.append(request)
            size += weight
        if shard:
            yield shard

    async def _submitted(self, name: str, remote: str) -> None:
        await self.ledger.transact(
            lambda db: db.execute("UPDATE batches SET remote=?, state='submitted' WHERE name=?", (remote, name))
        )

    async def _end(self, name: str, state: str, detail: str) -> None:
        def run(db: sqlite3.Connection) -> None:
            db.execute("UPDATE batches SET state=?, error=? WHERE name=?", (state, detail, name))
            db.execute(
                "UPDATE batch_items SET state='again', detail=? WHERE batch=? AND state='waiting' "
                "AND key NOT IN (SELECT key FROM calls)",
                (detail or "the batch ended without it", name),
            )

        await self.ledger.transact(run)


def _set_state(name: str, state: str) -> Callable[[sqlite3.Connection], object]:
    return lambda db: db.execute("UPDATE batches SET state=? WHERE name=?", (state, name))
