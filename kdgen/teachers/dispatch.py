"""From a request to a stored reply: ledger, budget, limits, retries, wire, in this order.

Retrying lives here and nowhere else. Faults are of four classes (see `Fault`); a record is given up
only when the endpoint serves others but not it, and the run ends when the endpoint serves nobody.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_base

from kdgen.errors import EndpointError, Interrupted, KdgenError, Rejected
from kdgen.teachers.base import Fault, Raw, Reply, Request, TeacherSpec, Wire
from kdgen.teachers.batch import Batches
from kdgen.teachers.bill import Bill, Hold
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.limits import Limits

BASE, CAP, QUICK = 0.5, 60.0, 5.0


class Halt:
    """Says that nothing more may be sent in this run, and why.

    What is in flight then has `grace` seconds left: a reply under way may have been paid for.
    """

    def __init__(self, grace: float = 5.0) -> None:
        self.reason: KdgenError | None = None
        self.grace = grace
        self._event = asyncio.Event()
        self._flights: set[asyncio.Timeout] = set()

    def set(self, reason: KdgenError) -> None:
        """Stop sending; the first reason stands."""
        if self.reason is None:
            self.reason = reason
            self._event.set()
            end = asyncio.get_running_loop().time() + self.grace
            for flight in self._flights:
                if (when := flight.when()) is None or when > end:
                    flight.reschedule(end)

    def check(self) -> None:
        """Raise the reason where there is one."""
        if self.reason is not None:
            raise self.reason

    async def sleep(self, seconds: float) -> None:
        """Sleep, or raise as soon as the run is halted."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return
        self.check()

    @asynccontextmanager
    async def flight(self, seconds: float) -> AsyncIterator[None]:
        """A request in flight for at most `seconds`. Raises TimeoutError, or the reason of a halt."""
        try:
            async with asyncio.timeout(seconds) as scope:
                self._flights.add(scope)
                try:
                    yield
                finally:
                    self._flights.discard(scope)
        except TimeoutError:
            self.check()
            raise


class Backoff(wait_base):
    """Full jitter over a doubling ceiling, and never earlier than the endpoint's Retry-After."""

    def __call__(self, retry_state: RetryCallState) -> float:
        """Seconds to wait before the next attempt."""
        fault = retry_state.outcome.exception() if retry_state.outcome else None
        after = fault.retry_after if isinstance(fault, Fault) and fault.retry_after else 0.0
        ceiling = min(CAP, BASE * 2 ** min(retry_state.attempt_number - 1, 10))
        return after + random.uniform(0, ceiling)


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
        self._successes = 0
        self._faults = 0
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
        async with self.limits.concurrency.slot():
            self.halt.check()
            while not await self.ledger.claim(request):
                raw = await self.ledger.wait(request)
                if raw is not None:
                    return raw, None
                self.halt.check()
            try:
                await self.limits.admit(request, self.halt)
                sent_at = time.time()
                raw, hold = await self._send(request)
                try:
                    await asyncio.shield(self.ledger.settle(request, self.spec.label, sent_at, raw))
                    return raw, self._account(request, raw, hold)
                finally:
                    self.bill.release(hold)
                    await self.bill.write()
            except BaseException:
                await asyncio.shield(self.ledger.free(request))
                raise

    def _account(self, request: Request, raw: Raw, hold: Hold) -> Reply:
        try:
            reply = self.spec.read(request, raw)
        except Rejected:
            self.bill.unread(self.spec, hold)
            raise
        self.bill.settled(self.spec, reply)
        self.limits.used(reply.usage)
        return reply

    async def _send(self, request: Request) -> tuple[Raw, Hold]:
        try:
            came = await self._attempt(request)
        except Fault as fault:
            first = fault
        else:
            self.limits.concurrency.succeeded()
            return came
        try:
            return await self._again(request, first)
        except Fault as fault:
            if fault.kind == "stop":
                stop = EndpointError(fault.message, where=self.spec.label, hint=fault.hint)
                self.halt.set(stop)
                raise stop from None
            reason = "endpoint_refused" if fault.kind == "never" else "endpoint_failed"
            raise Rejected(reason, fault.message) from None

    async def _again(self, request: Request, first: Fault) -> tuple[Raw, Hold]:
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

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Fault), wait=Backoff(), stop=last, sleep=self.halt.sleep, reraise=True
        )
        return await retrying(once)

    async def _attempt(self, request: Request) -> tuple[Raw, Hold]:
        """Send once: the reply, and the reservation that its cost replaces."""
        self.halt.check()
        if self._wire is None:
            self._wire = self.spec.connect()
            self._last_success = time.monotonic()
        try:
            hold = await self.bill.reserve(self.spec, request)
        except KdgenError as error:
            self.halt.set(error)
            raise
        try:
            self.halt.check()  # the reservation may have been waited for
        except KdgenError:
            self.bill.release(hold)
            raise
        self.bill.sent()
        try:
            async with self.halt.flight(self.spec.timeout):
                raw = await self._wire.send(request)
        except KdgenError:
            self.bill.failed(Fault("transient", "cut off", billed=True), hold)
            self.halt.check()
            raise
        except TimeoutError:
            fault = Fault("transient", f"no reply within {self.spec.timeout:g} s", billed=True)
            self._failed(fault, hold)
            raise fault from None
        except Fault as fault:
            self._failed(fault, hold)
            raise
        if raw.limits:
            self.limits.learn(raw.limits)
        self._successes += 1
        self._faults = 0
        self._last_success = time.monotonic()
        return raw, hold

    def _failed(self, fault: Fault, hold: Hold) -> None:
        self.bill.failed(fault, hold)
        if fault.kind == "rate":
            self.limits.concurrency.rated(fault.retry_after or 0.0)
        else:
            self.limits.concurrency.stumbled()
        if fault.kind in ("never", "stop"):
            return
        self._faults += 1
        silent = time.monotonic() - self._last_success
        patience = self.spec.patience * (10 if fault.kind == "rate" else 1)
        patience = patience if self._successes else min(patience, QUICK if fault.kind == "transient" else patience)
        if self._faults > 2 * self.limits.concurrency.busy + 1 and silent > patience:
            stop = EndpointError(
                f"{self._faults} requests in a row failed, the last: {fault.message}",
                where=self.spec.label,
                hint="nothing that was paid is lost: run the same command again when the endpoint serves",
            )
            self.halt.set(stop)
            raise stop from None


def _own(fault: Fault) -> bool:
    """Whether the endpoint is up, by its answer, and it is this request that it fails on."""
    return fault.kind == "transient" and 0 < fault.status <= 500
