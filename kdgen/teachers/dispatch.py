"""From a request to a stored reply: ledger, budget, limits, retries, wire, in this order.

Retrying lives here and nowhere else. Faults are of four classes (see `Fault`); a record is given up
only when the endpoint serves others but not it, and the run ends when the endpoint serves nobody.
Every attempt takes its turn at the endpoint's pace, and none is asked to wait longer than a person would.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import NoReturn

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_base

from kdgen.errors import EndpointError, Interrupted, KdgenError, Rejected
from kdgen.teachers.base import Fault, Raw, Reply, Request, TeacherSpec, Wire
from kdgen.teachers.batch import Batches
from kdgen.teachers.bill import NOTHING, Bill, Hold
from kdgen.teachers.halt import Halt
from kdgen.teachers.heed import explain
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.limits import Limits, Slot
from kdgen.teachers.retries import BASE, CAP, Breaker, RetryBudget

QUICK = 5.0
LONGEST = 900.0
MOST = 0.5


class Backoff(wait_base):
    """Full jitter over a doubling ceiling, never earlier than the endpoint's Retry-After, put off where the budget is empty."""

    def __init__(self, budget: RetryBudget | None = None) -> None:
        self._budget = budget

    def __call__(self, retry_state: RetryCallState) -> float:
        """Seconds to wait before the next attempt."""
        fault = retry_state.outcome.exception() if retry_state.outcome else None
        after = fault.retry_after if isinstance(fault, Fault) and fault.retry_after else 0.0
        ceiling = min(CAP, BASE * 2 ** min(retry_state.attempt_number - 1, 10))
        return max(after + random.uniform(0, ceiling), self._budget.take() if self._budget else 0.0)


class Dispatch:
    """A teacher that is asked at most once for what the ledger holds. One per role and run.

    `ready` is called at each miss, before anything is claimed or sent.
    """

    def __init__(
        self, spec: TeacherSpec, ledger: Ledger, bill: Bill, halt: Halt, ready: Callable[[], None] = lambda: None
    ) -> None:
        self.spec = spec
        self.ready = ready
        self.ledger = ledger
        self.bill = bill
        self.halt = halt
        self._wire: Wire | None = None
        self.limits = Limits(spec, ledger)
        self.batches = Batches(spec, ledger, bill) if spec.mode == "batch" else None
        self._pending: dict[str, asyncio.Future[Raw]] = {}
        self.retries = RetryBudget(spec.concurrency)
        self.breaker = Breaker()
        self._successes = 0
        self._last_success = time.monotonic()

    async def complete(self, request: Request) -> Reply:
        """The reply to `request`, from the ledger or from the wire.

        Raises Pending where a batch will bring it, Rejected where only this record is at fault, else the KdgenError that ends the run.
        """
        raw = self.ledger.get(request.key)
        if raw is not None:
            reply = self.spec.read(request, raw)
            self.bill.replayed(self.spec, reply, raw.mode)
            return reply
        self.ready()
        if self.batches is not None:
            self.batches.ask(request)
        shared = self._pending.get(request.key)
        if shared is not None:
            raw = await asyncio.shield(shared)
            reply = self.spec.read(request, raw)
            self.bill.replayed(self.spec, reply, raw.mode)
            return reply
        future: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()
        self._pending[request.key] = future
        try:
            raw, own = await self._obtain(request)
        except BaseException as error:
            future.set_exception(Interrupted("cancelled") if isinstance(error, asyncio.CancelledError) else error)
            future.exception()
            raise
        finally:
            del self._pending[request.key]
        future.set_result(raw)
        if own is not None:
            return own
        reply = self.spec.read(request, raw)
        self.bill.replayed(self.spec, reply, raw.mode)
        return reply

    async def close(self) -> None:
        """Close the wire, if one was opened."""
        if self._wire is not None:
            await self._wire.close()
        if self.batches is not None:
            await self.batches.close()

    async def _obtain(self, request: Request) -> tuple[Raw, Reply | None]:
        """The raw reply, and the reply read from it where this run paid for it."""
        slot = Slot(self.limits.concurrency)
        try:
            while not await self._claimed(request, slot):
                raw = await self.ledger.wait(request)
                if raw is not None:
                    return raw, None
                self.halt.check()
            try:
                self.halt.check()
                sent_at = time.time()
                raw, hold = await self._send(request, slot)
                slot.give()  # the endpoint is done with it, whatever the disk takes
                try:
                    await self.ledger.settle(request, self.spec.label, sent_at, raw)
                    return raw, self._account(request, raw, hold)
                finally:
                    self.bill.release(hold)
                    await self.bill.write()
            except BaseException:
                await self.ledger.free(request)
                raise
        finally:
            slot.give()

    async def _claimed(self, request: Request, slot: Slot) -> bool:
        """Claim the request, then take a slot; False, and no slot, where another process has it.

        A few claim ahead of the next free slots, so that those do not wait for the ledger.
        """
        door = self.limits.concurrency.door
        await door.enter()
        try:
            self.halt.check()
            if not await self.ledger.claim(request):
                return False
            try:
                await slot.take()
            except BaseException:
                await self.ledger.free(request)
                raise
            return True
        finally:
            door.leave()

    def _account(self, request: Request, raw: Raw, hold: Hold) -> Reply:
        try:
            reply = self.spec.read(request, raw)
        except Rejected:
            self.bill.unread(self.spec, hold)
            raise
        self.bill.settled(self.spec, reply)
        self.limits.used(request, reply.usage)
        return reply

    async def _send(self, request: Request, slot: Slot) -> tuple[Raw, Hold]:
        try:
            return await self._attempt(request)
        except Fault as fault:
            first = fault
        try:
            return await self._again(request, first, slot)
        except Fault as fault:
            explain(self.spec.label, request, fault, served=self._successes > 0)
            if fault.kind == "stop":
                stop = EndpointError(fault.message, where=self.spec.label, hint=fault.hint)
                self.halt.set(stop)
                raise stop from None
            reason = "endpoint_refused" if fault.kind == "never" else "endpoint_failed"
            raise Rejected(reason, fault.message) from None

    async def _again(self, request: Request, first: Fault, slot: Slot) -> tuple[Raw, Hold]:
        """Retry after `first`. Attempts count only while the endpoint serves others, or fails on this request alone."""
        pending: Fault | None = first
        latest = first
        tries, served = 1, self._successes

        async def once() -> tuple[Raw, Hold]:
            nonlocal pending, latest, tries, served
            if pending is not None:
                fault, pending = pending, None
                raise fault
            self.halt.check()
            tries += self._successes > served or _own(latest)
            served = self._successes
            try:
                return await self._attempt(request)
            except Fault as fault:
                latest = fault
                raise

        def last(state: RetryCallState) -> bool:
            fault = state.outcome.exception() if state.outcome else None
            if isinstance(fault, Fault) and fault.kind in ("never", "stop"):
                return True
            return tries >= self.spec.attempts

        async def rest(seconds: float) -> None:
            # Where most are served, this fault is this request's own, and its slot serves another meanwhile.
            if self.limits.concurrency.trouble < MOST:
                slot.give()
            await self.halt.sleep(seconds)
            await slot.take(first=True)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Fault), wait=Backoff(self.retries), stop=last, sleep=rest, reraise=True
        )
        return await retrying(once)

    async def _attempt(self, request: Request) -> tuple[Raw, Hold]:
        """Send once, when it may go out: the reply, and the reservation that its cost replaces."""
        self.halt.check()
        if self._wire is None:
            self._wire = self.spec.connect()
            self._last_success = time.monotonic()
        alone = self.breaker.open and await self.breaker.enter(self.halt)
        try:
            await self.limits.admit(request, self.halt)
            hold = await self._reserve(request)
            return await self._fly(self._wire, request, hold), hold
        finally:
            if alone:
                self.breaker.leave()

    async def _reserve(self, request: Request) -> Hold:
        try:
            hold = await self.bill.reserve(self.spec, request)
        except KdgenError as error:
            self.halt.set(error)
            raise
        try:
            self.halt.check()  # the turn and the reservation may have been waited for
        except KdgenError:
            self.bill.release(hold)
            raise
        return hold

    async def _fly(self, wire: Wire, request: Request, hold: Hold) -> Raw:
        self.bill.sent()
        try:
            raw = await self.halt.flight(wire.send(request), self.spec.timeout)
        except KdgenError:
            self._lost(request, Fault("transient", "cut off", billed=True), hold)
            self.halt.check()
            raise
        except TimeoutError:
            fault = Fault("transient", f"no reply within {self.spec.timeout:g} s", billed=True)
            await self._failed(request, fault, hold)
            raise fault from None
        except Fault as fault:
            await self._failed(request, fault, hold)
            raise
        await self.limits.learn(raw.limits)
        self.limits.concurrency.answered()
        self._serves()
        self.retries.earn()
        self._successes += 1
        return raw

    def _serves(self) -> None:
        self.breaker.served()
        self._last_success = time.monotonic()

    def _lost(self, request: Request, fault: Fault, hold: Hold) -> None:
        self.bill.failed(fault, hold, self.bill.at_worst(self.spec, request) if fault.billed else NOTHING)

    async def _failed(self, request: Request, fault: Fault, hold: Hold) -> None:
        self._lost(request, fault, hold)
        concurrency = self.limits.concurrency
        if fault.kind in ("never", "stop"):
            concurrency.answered()
            self._serves()
            return
        after = fault.retry_after or 0.0
        if after > LONGEST:
            self._end(fault.message, f"the endpoint asks to come back at {_clock(after)}: run the same command then")
        if fault.kind == "rate":
            concurrency.rated(after)
            if fault.limits:
                await self.limits.learn(fault.limits)
        else:
            concurrency.stumbled()
        self.breaker.failed(concurrency.busy, after)
        silent = time.monotonic() - self._last_success
        patience = self.spec.patience * (10 if fault.kind == "rate" else 1)
        patience = patience if self._successes else min(patience, QUICK if fault.kind == "transient" else patience)
        if self.breaker.open and silent > patience:
            hint = "nothing that was paid is lost: run the same command again when the endpoint serves"
            self._end(f"{self.breaker.faults} requests in a row failed, the last: {fault.message}", hint)

    def _end(self, cause: str, hint: str) -> NoReturn:
        stop = EndpointError(cause, where=self.spec.label, hint=hint)
        self.halt.set(stop)
        raise stop from None


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))


def _own(fault: Fault) -> bool:
    """Whether the endpoint is up, by its answer, and it is this request that it fails on."""
    return fault.kind == "transient" and 0 < fault.status <= 500
