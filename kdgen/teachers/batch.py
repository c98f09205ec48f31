"""Half-price batches: a pass over the recipe wants replies, a shard of them becomes a provider's batch, a later pass goes on.

A batch is written down with its requests before it is submitted, under a name that travels with it, so that a crash
between the two can be made good: the provider is asked whether it has a batch of that name. Only what no living batch
and no stored reply has is written down, so two processes on one ledger never submit the same request. Results are
imported into the ledger some at a time; importing twice changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import cached_property

from kdgen.errors import BudgetReached, EndpointError, Pending, Rejected, UserError
from kdgen.teachers.base import BatchApi, Fault, Full, Raw, Request, Sought, TeacherSpec, Usage
from kdgen.teachers.batch_book import DAY, Batch, Book
from kdgen.teachers.bill import Bill, Hold
from kdgen.teachers.ledger import Ledger

TRIES = 3  # batches that may end without a reply before its record is given up
CHUNK = 64  # results in one commit
STUMBLES = 30  # looks in a row that may fail before the endpoint is given up
KEPT = 29 * DAY  # for so long providers keep results


class Batches:
    """The batches of one teacher in one run."""

    def __init__(self, spec: TeacherSpec, ledger: Ledger, bill: Bill) -> None:
        url = getattr(spec, "base_url", None)
        self.spec = spec
        self.bill = bill
        self.book = Book(ledger, f"{spec.label}@{url}" if url else spec.label)
        self.wanted: dict[str, Request] = {}
        self.max_wait: float | None = None
        self._stumbles = 0

    @cached_property
    def api(self) -> BatchApi:
        """The provider's interface, opened when it is first needed."""
        return self.spec.batches()

    async def close(self) -> None:
        """Close the interface, if it was opened."""
        if "api" in self.__dict__:
            await self.__dict__.pop("api").close()

    def ask(self, request: Request) -> None:
        """Want a reply that the ledger lacks. Raises Pending, Rejected where the batch's answer is no; else it may go online."""
        item = self.book.item(request.key)
        if item.state == "refused":
            raise Rejected("endpoint_refused", item.detail)
        if item.state == "again" and self._late(item.made_at):
            return
        if item.state == "again" and item.tries >= TRIES:
            raise Rejected("batch_gave_up", f"{item.tries} batches ended without this reply: {item.detail}")
        if item.state != "waiting":
            self.wanted[request.key] = request
        raise Pending(request.key)

    def _late(self, made_at: float) -> bool:
        return self.max_wait is not None and time.time() - made_at > self.max_wait

    def out(self) -> list[str]:
        """The batches that are not done with."""
        return [batch.name for batch in self.book.living()]

    def todo(self) -> list[str]:
        """The commands that a person has to run for what is out."""
        return [told for batch in self.book.living() if batch.remote and (told := self.spec.todo(batch.remote))]

    async def submit(self, check: Callable[[], None]) -> int:
        """Hand in what this pass wants, in shards that the provider takes; the number of requests.

        What does not fit the budget or the provider's queue stays for a later pass. Raises the KdgenError for which a
        later pass would fare no better; `check` may raise between two shards.
        """
        left, holds, reached = self._affordable()
        handed = 0
        while left and (shard := self._shard(left)):
            check()
            name, requests, full = await self.book.write_down(shard, holds, self.bill.month_caps)
            if requests and not await self._handed_in(name, requests):
                if self.out():
                    break
                continue  # the queue was empty and this still too much for it: now half of it
            left, handed = left[len(shard) :], handed + len(requests)
            if full:
                reached = None if self.out() else self.bill.month_reached()
                break
        self.wanted.clear()
        self._count_out()
        if reached is not None:
            raise reached
        return handed

    def _affordable(self) -> tuple[list[Request], dict[str, Hold], BudgetReached | None]:
        """What is wanted, up to the first request that the run's budget has no room for, with the reservations."""
        self._count_out()
        found: list[Request] = []
        holds: dict[str, Hold] = {}
        try:
            for request in self.wanted.values():
                if (hold := self.bill.set_aside(self.book.home, self.spec, request)) is None:
                    break
                found.append(request)
                holds[request.key] = hold
        except BudgetReached as error:
            return found, holds, error
        return found, holds, None

    def _count_out(self) -> None:
        """Tell the bill what this run has out, of earlier invocations too. Raises UserError where that has no bound."""
        if not self.bill.budget.capped:
            return
        if endless := self.book.endless(everyone=self.bill.budget.monthly):
            cause = (
                f"{endless:,} requests are out in batches without a bound on their replies, so no budget can be kept"
            )
            raise UserError(cause, where=self.spec.label, hint="run without a budget until they are back")
        holds = {request.key: self.bill.worst(self.spec, request, "batch") for request in self.book.waiting()}
        self.bill.out.put(self.book.home, holds)

    def _shard(self, left: Sequence[Request]) -> list[Request]:
        """The next shard: as many as the provider takes in one, or none while its queue has to empty.

        A queue that was full is fed one shard at a time for a day, and less than was too much for it when it was empty.
        A teacher is one model, and so is a shard.
        """
        jams = self.book.jams()
        if jams and self.out():
            return []
        most = min([self.api.max_requests, *(max(1, size // 2) for state, size in jams if state == "full")])
        shard: list[Request] = []
        weight = 0
        for request in left[:most]:
            weight += len(request.body) + 300
            if shard and weight > self.api.max_bytes:
                break
            shard.append(request)
        return shard

    async def _handed_in(self, name: str, requests: Sequence[Request]) -> bool:
        """Submit a batch that is written down; False where it was not taken now. Raises EndpointError where it will not be."""
        try:
            remote = await self.api.submit(name, requests)
        except Fault as fault:
            if fault.billed:
                return False  # in doubt: the next look asks whether it arrived
            await self._refused(name, len(requests), fault)
            if fault.kind in ("never", "stop") or not (self.out() or isinstance(fault, Full)):
                raise self._error(f"the batch was not taken: {fault.message}", fault) from None
            return False
        await self.book.submitted(name, remote)
        self.bill.sent(len(requests))
        return True

    async def _refused(self, name: str, size: int, fault: Fault) -> None:
        """A batch did not come to run. Where the queue was full: of others, or is this batch alone too much for it?"""
        state = "failed"
        if isinstance(fault, Full):
            state = "held" if len(self.book.living()) > 1 else "full"
        await self.book.end(name, state, fault.message)
        if state == "full" and size == 1:
            raise self._error(f"the provider's queue has no room for one request: {fault.message}", fault)

    async def collect(self) -> None:
        """Import what has ended and make good what a crash left in doubt.

        A batch older than `max_wait` is cancelled; what is then without a reply goes online.
        """
        wrong = None
        living = self.book.living()
        if living:
            self._count_out()
        for batch in living:
            try:
                await self._look(batch)
                self._stumbles = 0
            except Fault as fault:
                self._stumbles += 1
                if fault.kind in ("never", "stop") or self._stumbles >= STUMBLES:
                    wrong = wrong or self._error(f"batch {batch.remote or batch.name}: {fault.message}", fault)
            except EndpointError as error:
                wrong = wrong or error
        if wrong is not None:
            raise wrong
        if living:
            self._count_out()

    async def _look(self, batch: Batch) -> None:
        """Look how a batch stands, and do what is to be done about it."""
        if batch.state == "prepared" and (batch := await self._recovered(batch)).state == "prepared":
            return
        try:
            state, detail = await self.api.status(batch.remote)
            if state == "ended":
                await self._import(batch, detail)
                return
        except Fault as fault:
            if fault.status != 404 or time.time() - batch.made_at < KEPT:
                raise
            await self.book.end(batch.name, "failed", "its results are no longer kept")
            return
        if state == "full":
            await self._refused(batch.name, batch.size, Full("stop", detail))
        elif state == "failed":
            failed = Fault("stop", detail)
            await self._refused(batch.name, batch.size, failed)
            raise self._error(f"batch {batch.remote} failed: {detail}", failed)
        elif self._late(batch.made_at) and batch.state != "cancelling":
            await self._cancel(batch)

    async def _recovered(self, batch: Batch) -> Batch:
        """A batch that a crash or a lost answer left in doubt, found again or ended.

        As it is while it may still be on its way, or where another process has it.
        """
        if batch.owner != self.book.ledger.owner and self.book.ledger.alive(batch.owner):
            return batch
        known = self.book.remotes()
        sought = Sought(batch.name, batch.made_at, batch.size, lambda key: self.book.has(batch.name, key), known)
        if (remote := await self.api.find(sought)) is None:
            if time.time() - batch.made_at < self.api.settles:
                return batch
            await self.book.end(batch.name, "failed", "it never arrived")
            return batch
        await self.book.submitted(batch.name, remote)
        return batch._replace(remote=remote, state="submitted")

    async def _cancel(self, batch: Batch) -> None:
        try:
            await self.api.cancel(batch.remote)
        except Fault as fault:
            if fault.kind != "never":  # else it has ended just now
                raise
        await self.book.cancelling(batch.name)

    async def _import(self, batch: Batch, detail: str) -> None:
        """Store the results of a batch that has ended. Raises EndpointError, all stored, where one says that no request can succeed."""
        lines = mine = 0
        stop: Fault | None = None
        chunk: list[tuple[str, Raw | Fault]] = []

        async def take_in() -> None:
            nonlocal mine, stop
            known, news = await self.book.take_in(batch, self.spec.label, chunk, self._read)
            chunk.clear()
            mine += known
            for request, result, hold, usage in news:
                self.bill.out.back(self.book.home, request.key)
                if isinstance(result, Fault):
                    stop = stop or (result if result.kind == "stop" else None)
                    self.bill.failed(result)
                else:
                    self.bill.imported(self.spec, usage, hold)

        async with aclosing(self.api.results(batch.remote)) as results:
            async for result in results:
                lines += 1
                chunk.append(result)
                if len(chunk) >= CHUNK:
                    await take_in()
        await take_in()
        if lines and not mine and self.api.nameless and await self.book.mistaken(batch.name):
            return
        await self.book.end(batch.name, "ended", detail or "the batch ended without it", tries=1)
        if stop is not None:
            raise self._error(stop.message, stop)

    def _read(self, request: Request, raw: Raw, hold: Hold) -> tuple[Usage | None, Hold]:
        try:
            usage = self.spec.read(request, raw).usage
        except Rejected:
            usage = None
        return usage, self.bill.cost_of(self.spec, usage, hold)

    def _error(self, cause: str, fault: Fault) -> EndpointError:
        return EndpointError(cause, where=self.spec.label, hint=fault.hint)
