"""The ledger: every request that was sent and every reply that was paid for, in one SQLite file.

A reply is committed raw, with `synchronous=FULL`, before anything parses it. A request is claimed
before it is sent, so that a second process on the same ledger waits for the answer instead of paying
for it again; a claim need not outlive the machine, so it waits for no disk. Claims that a dead owner left are
the requests that may have been billed without a reply; they are counted and asked again.
"""

from __future__ import annotations

import asyncio
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from kdgen.errors import EndpointError, UserError
from kdgen.teachers.base import Raw, Request
from kdgen.teachers.owner import Owner

VERSION = 1
MAGIC, APPLICATION = b"SQLite format 3\0", 0x6B646765
SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  key BLOB PRIMARY KEY, wire TEXT NOT NULL, nth INTEGER NOT NULL, request BLOB NOT NULL, reply BLOB NOT NULL,
  headers TEXT NOT NULL, teacher TEXT NOT NULL, sent_at REAL NOT NULL, came_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, owner TEXT NOT NULL, sent_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS paces (name TEXT PRIMARY KEY, next REAL NOT NULL);
CREATE TABLE IF NOT EXISTS limits (name TEXT PRIMARY KEY, rate REAL NOT NULL, told_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
  name TEXT PRIMARY KEY, teacher TEXT NOT NULL, owner TEXT NOT NULL, remote TEXT, state TEXT NOT NULL,
  made_at REAL NOT NULL, size INTEGER NOT NULL, error TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS batch_items (
  key BLOB PRIMARY KEY, batch TEXT NOT NULL, wire TEXT NOT NULL, nth INTEGER NOT NULL, request BLOB NOT NULL,
  state TEXT NOT NULL, tries INTEGER NOT NULL, detail TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS spend (month TEXT PRIMARY KEY, tokens INTEGER NOT NULL, usd REAL NOT NULL);
CREATE TABLE IF NOT EXISTS parts (id INTEGER PRIMARY KEY, run TEXT NOT NULL, key BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS parts_of_run ON parts (run);
CREATE TABLE IF NOT EXISTS lost (run TEXT PRIMARY KEY, tokens INTEGER NOT NULL, usd REAL NOT NULL);
CREATE TABLE IF NOT EXISTS outcomes (key BLOB PRIMARY KEY, outcome BLOB NOT NULL);
"""
CLAIM = "INSERT OR IGNORE INTO claims SELECT ?,?,? WHERE NOT EXISTS (SELECT 1 FROM calls WHERE key=?)"
# What a batch has besides: the run that made it; and its items: a reply's room, and what is reserved in which month.
ADDED = [
    f"batch_items ADD COLUMN {column} NOT NULL DEFAULT 0" for column in ("room INTEGER", "tokens INTEGER", "usd REAL")
]
ADDED += [f"{column} TEXT NOT NULL DEFAULT ''" for column in ("batch_items ADD COLUMN month", "batches ADD COLUMN run")]
POLL, PATIENCE = 0.05, 60.0
GATHER = 0.008  # a commit costs as much as twenty rows of it, so it waits for a few


class _Op(NamedTuple):
    run: Callable[[sqlite3.Connection], Any]
    done: asyncio.Future[Any]
    durable: bool


class Ledger:
    """One open ledger. Reads are synchronous (a few microseconds); writes are grouped into commits by a thread."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open or make the file. Raises UserError where that cannot be done."""
        self.path = path
        self.clock = clock
        self._lives = Owner(path)
        self.owner = self._lives.name
        self.orphans = 0
        self.run = ""  # the run that pays, where it may take several invocations (see `chain`)
        self._ops: queue.SimpleQueue[_Op | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._look()
            self._reader = self._open()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the ledger cannot be opened: {error}", where=str(path), hint="name another with --ledger PATH"
            ) from None

    def _look(self) -> None:
        """Raise UserError where the file is something else, before anything in it is changed."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        with self.path.open("rb") as file:
            head = file.read(100)
        version, application = (int.from_bytes(head[place : place + 4], "big") for place in (60, 68))
        tables: set[str] = set()
        if head.startswith(MAGIC) and application == 0:
            # It may be new, or of a kdgen that did not sign. Where there is no log beside it, none must be made.
            log = self.path.with_name(f"{self.path.name}-wal").exists()
            uri = f"{self.path.absolute().as_uri()}?mode=ro{'' if log else '&immutable=1'}"
            with closing(sqlite3.connect(uri, uri=True, timeout=60)) as db:
                tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        ours = application == APPLICATION or (application == 0 and (not tables or {"calls", "claims"} <= tables))
        if not head.startswith(MAGIC) or not ours:
            raise UserError("the file is no ledger", where=str(self.path), hint="name another with --ledger PATH")
        if version not in (0, VERSION):
            raise UserError(
                f"the ledger is of version {version}, this kdgen writes {VERSION}",
                where=str(self.path),
                hint="use the kdgen that made it, or another --ledger",
            )

    def _open(self) -> sqlite3.Connection:
        """A connection to a file that has its tables. SQLite's own patience does not hold while another process makes it."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self._made()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(POLL)

    def _made(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(
                f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={VERSION}; PRAGMA application_id={APPLICATION}; COMMIT"
            )
            for column in ADDED:
                with suppress(sqlite3.OperationalError):  # it is there
                    connection.execute(f"ALTER TABLE {column}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def get(self, key: str) -> Raw | None:
        """The stored reply of `key`."""
        row = self.one("SELECT reply, headers FROM calls WHERE key=?", bytes.fromhex(key))
        return Raw(row[0], orjson.loads(row[1]) if row[1] != "{}" else {}) if row else None

    def one(self, sql: str, *values: Any) -> Any:
        """The first row of a query, or None."""
        try:
            return self._reader.execute(sql, values).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from None

    def all(self, sql: str, *values: Any) -> list[Any]:
        """All rows of a query."""
        try:
            return self._reader.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: sqlite3.Error) -> UserError:
        hint = "move the file away and run again, or restore it from a copy"
        return UserError(f"the ledger cannot be read: {error}", where=str(self.path), hint=hint)

    async def claim(self, request: Request) -> bool:
        """Take the right to send `request`; False where a living process holds it or its reply is in."""
        key = bytes.fromhex(request.key)

        def run(db: sqlite3.Connection) -> bool:
            row = (key, self.owner, self.clock())
            if db.execute(CLAIM, (*row, key)).rowcount:
                return True
            found = db.execute("SELECT owner FROM claims WHERE key=?", (key,)).fetchone()
            if not found or self.alive(found[0]):
                return False
            self.orphans += 1
            db.execute("INSERT OR REPLACE INTO claims VALUES (?,?,?)", row)
            return True

        return bool(await self.transact(run, durable=False))

    def settle(self, request: Request, teacher: str, sent_at: float, raw: Raw) -> asyncio.Future[Any]:
        """Store the reply and free the claim, in one commit, which no cancellation stops. Await it: then it is on disk."""
        return self.transact(lambda db: store(db, request, teacher, sent_at, raw, self.run))

    def free(self, request: Request) -> asyncio.Future[Any]:
        """Give a claim back unanswered, which no cancellation stops."""
        values = (bytes.fromhex(request.key), self.owner)
        return self.transact(lambda db: db.execute("DELETE FROM claims WHERE key=? AND owner=?", values), durable=False)

    async def pace(self, gaps: Mapping[str, float]) -> float:
        """Reserve the next turn of limits that every process on this ledger shares; seconds until it comes in all of them.

        Each turn of a limit keeps the next away for its gap in seconds (the generic cell rate algorithm without a burst).
        """

        def run(db: sqlite3.Connection) -> float:
            now = self.clock()
            wait = 0.0
            for name, gap in gaps.items():
                found = db.execute("SELECT next FROM paces WHERE name=?", (name,)).fetchone()
                turn = max(now, found[0]) if found else now
                db.execute("INSERT OR REPLACE INTO paces VALUES (?,?)", (name, turn + gap))
                wait = max(wait, turn - now)
            return wait

        return float(await self.transact(run, durable=False))

    def limit(self, name: str, within: float) -> float | None:
        """The rate that an endpoint told a process on this ledger in the last `within` seconds."""
        row = self.one("SELECT rate FROM limits WHERE name=? AND told_at>=?", name, self.clock() - within)
        return float(row[0]) if row else None

    async def told(self, name: str, rate: float) -> None:
        """Keep a rate that an endpoint told."""
        row = (name, rate, self.clock())
        await self.transact(lambda db: db.execute("INSERT OR REPLACE INTO limits VALUES (?,?,?)", row), durable=False)

    def spent(self, month: str) -> tuple[int, float]:
        """(tokens, dollars) that a month cost, over all processes of this ledger; what is reserved counts."""
        return self.one("SELECT tokens, usd FROM spend WHERE month=?", month) or (0, 0.0)

    async def spend(
        self, month: str, tokens: int, usd: float, most_tokens: float = math.inf, most_usd: float = math.inf
    ) -> bool:
        """Add to what a month cost. False, with nothing added, where it would then be over a cap."""

        return bool(await self.transact(lambda db: add_spend(db, month, tokens, usd, (most_tokens, most_usd))))

    async def wait(self, request: Request) -> Raw | None:
        """Wait while another process asks `request`; its reply, or None where it gave up or died."""
        key = bytes.fromhex(request.key)
        pause = POLL
        while True:
            if found := self.get(request.key):
                return found
            claim = self.one("SELECT owner FROM claims WHERE key=?", key)
            if not claim or not self.alive(claim[0]):
                return self.get(request.key)
            await asyncio.sleep(pause)
            pause = min(1.0, 1.2 * pause)

    async def close(self) -> None:
        """Commit what is queued and let go of the file."""
        if self._writer:
            self._ops.put(None)
            await asyncio.to_thread(self._writer.join)
        self._reader.close()
        self._lives.end()

    def alive(self, owner: str) -> bool:
        """Whether the process that this owner stands for still runs."""
        return self._lives.alive(owner)

    def transact(self, run: Callable[[sqlite3.Connection], Any], *, durable: bool = True) -> asyncio.Future[Any]:
        """Run `run` inside the next commit; its result, once that is on disk (or where not `durable`, in the file)."""
        if self._writer is None:
            self._lives.begin()
            self._writer = threading.Thread(target=self._work, args=(asyncio.get_running_loop(),), daemon=True)
            self._writer.start()
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._ops.put(_Op(run, done, durable))
        return done

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Commit whatever has queued up while the last commit was on its way to disk."""
        db = self._connect()
        synced, closing, busy = True, False, False
        while not closing:
            batch = [self._ops.get()]
            if busy:
                time.sleep(GATHER)
            while not self._ops.empty():
                batch.append(self._ops.get())
            closing, busy = None in batch, len(batch) > 1
            ops = [op for op in batch if op is not None]
            if not ops:
                continue
            results: list[Any] = []
            error: Exception | None = None
            try:
                if synced != (synced := any(op.durable for op in ops)):
                    db.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
                db.execute("BEGIN IMMEDIATE")
                results = [op.run(db) for op in ops]
                db.execute("COMMIT")
            except Exception as wrong:  # whatever it is, those who wait must hear of it
                if db.in_transaction:
                    db.execute("ROLLBACK")
                error = wrong
                if isinstance(wrong, sqlite3.Error):
                    hint = "free some disk space, then run again"
                    error = EndpointError(f"the ledger cannot be written: {wrong}", where=str(self.path), hint=hint)
            loop.call_soon_threadsafe(_resolve, ops, results, error)
        db.close()


def add_spend(
    db: sqlite3.Connection, month: str, tokens: int, usd: float, caps: tuple[float, float] = (math.inf, math.inf)
) -> bool:
    """See `Ledger.spend`; inside a commit."""
    had = db.execute("SELECT tokens, usd FROM spend WHERE month=?", (month,)).fetchone() or (0, 0.0)
    now = (had[0] + tokens, had[1] + usd)
    if now[0] > caps[0] or now[1] > caps[1]:
        return False
    db.execute("INSERT OR REPLACE INTO spend VALUES (?,?,?)", (month, *now))
    return True


def store(db: sqlite3.Connection, request: Request, teacher: str, sent_at: float, raw: Raw, run: str) -> bool:
    """Store a reply, paid by `run` if that is told, and free its claim, inside a commit; whether the reply was new."""
    key, headers = bytes.fromhex(request.key), orjson.dumps(raw.headers).decode()
    row = (key, request.wire, request.nth, request.body, raw.body, headers, teacher, sent_at, time.time())
    stored = db.execute("INSERT OR IGNORE INTO calls VALUES (?,?,?,?,?,?,?,?,?)", row)
    db.execute("DELETE FROM claims WHERE key=?", (key,))
    if run and stored.rowcount > 0:
        db.execute("INSERT INTO parts (run, key) VALUES (?,?)", (run, key))
    return stored.rowcount > 0


def _resolve(ops: list[_Op], results: list[Any], error: Exception | None) -> None:
    for number, op in enumerate(ops):
        if op.done.cancelled():
            continue
        if error is not None:
            op.done.set_exception(error)
        else:
            op.done.set_result(results[number])
