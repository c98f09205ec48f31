"""The one way in which a run is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from kdgen.errors import KdgenError

T = TypeVar("T")


class Halt:
    """Says that nothing more may be sent in this run, and why.

    What is in flight then has `grace` seconds left: a reply under way may have been paid for.
    """

    def __init__(self, grace: float = 5.0) -> None:
        self.reason: KdgenError | None = None
        self.grace = grace
        self._event = asyncio.Event()
        self._flights: set[asyncio.Timeout] = set()
        self._parked: set[asyncio.Future[None]] = set()

    def set(self, reason: KdgenError) -> None:
        """Stop sending; the first reason stands."""
        if self.reason is None:
            self.reason = reason
            self._event.set()
            end = asyncio.get_running_loop().time() + self.grace
            for flight in self._flights:
                if (when := flight.when()) is None or when > end:
                    flight.reschedule(end)
            for turn in self._parked:
                if not turn.done():
                    turn.set_result(None)

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

    async def until(self, turn: asyncio.Future[None]) -> None:
        """Wait for `turn`, or raise as soon as the run is halted."""
        self.check()
        self._parked.add(turn)
        try:
            await turn
        finally:
            self._parked.discard(turn)
        self.check()

    async def flight(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """The result of `work`, a request in flight for at most `seconds`. Raises TimeoutError, or the reason of a halt."""
        try:
            async with asyncio.timeout(seconds) as scope:
                self._flights.add(scope)
                try:
                    return await work
                finally:
                    self._flights.discard(scope)
        except TimeoutError:
            self.check()
            raise
