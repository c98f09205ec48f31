"""What keeps retries from making a bad day worse: a budget of them, and a breaker for an endpoint that serves nobody."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

BASE, CAP = 0.5, 60.0
STOCK, PER_SUCCESS, PER_SECOND = 100.0, 0.5, 1.0
TRIP = 5


class Waiter(Protocol):
    """Who waits, unless the run is halted."""

    async def sleep(self, seconds: float) -> None:
        """Sleep, or raise as soon as the run is halted."""

    async def until(self, turn: asyncio.Future[None]) -> None:
        """Wait for `turn`, or raise as soon as the run is halted."""


class RetryBudget:
    """A stock of retries that each success refills by half of one and each second by one.

    Where every second request fails, retries go on from what successes earn; beyond that they are put off, for a
    minute at most, so that a failing endpoint is not asked more than one that serves.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._full = self._left = STOCK + 2 * most
        self._clock = clock
        self._at = clock()

    def earn(self) -> None:
        """One request succeeded."""
        self._left = min(self._full, self._left + PER_SUCCESS)

    def take(self) -> float:
        """Take one retry; the seconds for which it is put off."""
        now = self._clock()
        self._left = min(self._full, self._left + (now - self._at) * PER_SECOND) - 1
        self._at = now
        return min(CAP, max(0.0, -self._left / PER_SECOND))


class Breaker:
    """Closed while an endpoint serves. A run of faults opens it: then one request at a time tries, and the others wait.

    The tries come at doubling distances with full jitter; the first that succeeds lets all go on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.open = False
        self.faults = 0
        self._tries = 0
        self._trying = False
        self._next_at = 0.0
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()

    def served(self) -> None:
        """The endpoint answered somebody."""
        self.faults = self._tries = 0
        self.open = False
        while self._waiting:
            _wake(self._waiting)

    def failed(self, busy: int, after: float) -> None:
        """A fault came while `busy` requests were out; the endpoint asks to wait for `after` seconds."""
        self.faults += 1
        self.open = self.open or self.faults >= max(TRIP, busy)
        ceiling = min(CAP, BASE * 2 ** min(self._tries, 10))
        self._next_at = max(self._next_at, self._clock() + after + random.uniform(0, ceiling))

    async def enter(self, halt: Waiter) -> bool:
        """Wait until a request may go out; True where it is the one that tries, which must `leave`."""
        while self.open:
            if not self._trying:
                self._trying = True
                self._tries += 1
                try:
                    await halt.sleep(self._next_at - self._clock())
                except BaseException:
                    self.leave()
                    raise
                return True
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await halt.until(turn)
            except BaseException:
                if turn.done() and not turn.cancelled():
                    _wake(self._waiting)
                raise
        return False

    def leave(self) -> None:
        """The try is over: another may be made, where it did not succeed."""
        self._trying = False
        _wake(self._waiting)


def _wake(waiting: deque[asyncio.Future[None]]) -> None:
    while waiting:
        turn = waiting.popleft()
        if not turn.done():
            turn.set_result(None)
            return
