"""How many requests are in flight, and how fast they go out.

Concurrency adapts per teacher: it doubles each clean round until the first rate limit, then grows by a
twentieth; only rate limits shrink it, once per cool-down. Where an endpoint says its limits in headers (or the
recipe does: `rpm`, `tpm`), requests are also paced. The pace is kept in the ledger file, so that processes
that share a ledger share the limit.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from kdgen.errors import EndpointError
from kdgen.teachers.base import Request, TeacherSpec, Usage
from kdgen.teachers.ledger import Ledger

START, CUT, GROWTH, COOLDOWN = 32, 0.8, 0.05, 15.0
MARGIN = 0.98
BYTES_PER_TOKEN = 4


class Concurrency:
    """A number of slots that grows while it helps and shrinks on rate limits; waiters are served in order."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.limit = min(most, START)
        self.busy = 0
        self.peak = 0
        self._clean = 0
        self._rated = False
        self._calm_after = 0.0
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one slot."""
        while self.busy >= self.limit:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()
                raise
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            yield
        finally:
            self.busy -= 1
            self._wake()

    def _wake(self) -> None:
        free = self.limit - self.busy
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    def succeeded(self) -> None:
        """One reply came on the first try. A round of `limit` of them, with the slots in use, lets it grow."""
        self._clean += 1
        if self._clean >= self.limit and self.limit < self.most:
            if self.peak >= 0.8 * self.limit and self._clock() >= self._calm_after:
                step = max(1, round(self.limit * GROWTH)) if self._rated else self.limit
                self.limit = min(self.most, self.limit + step)
                self._wake()
            self._clean = self.peak = 0

    def rated(self, retry_after: float) -> None:
        """One rate limit came. The first of a cool-down shrinks the limit; those in its wake do not."""
        self._rated = True
        self._clean = 0
        now = self._clock()
        if now >= self._calm_after:
            self.limit = max(1, int(min(self.limit, max(self.busy, 1)) * CUT))
            self._calm_after = now + max(COOLDOWN, retry_after)

    def stumbled(self) -> None:
        """Another fault came: growth pauses, nothing shrinks."""
        self._clean = 0


class Pace(NamedTuple):
    """What an endpoint allows a minute; None where it does not say."""

    requests: float | None = None
    tokens: float | None = None


class Sleeper(Protocol):
    """Who sleeps, unless the run is halted."""

    async def sleep(self, seconds: float) -> None:
        """Sleep, or raise as soon as the run is halted."""


class Limits:
    """The limits of one teacher in one run."""

    def __init__(self, spec: TeacherSpec, ledger: Ledger) -> None:
        self.spec = spec
        self.ledger = ledger
        self.concurrency = Concurrency(spec.concurrency)
        self.pace = Pace(spec.rpm, spec.tpm)
        self._output = 0.0

    async def admit(self, request: Request, halt: Sleeper) -> None:
        """Wait for this request's turn. Raises EndpointError where it can never fit the limit."""
        if self.pace.requests is not None:
            await halt.sleep(await self.ledger.pace(f"{self.spec.label}/requests", self._gap(self.pace.requests)))
        if self.pace.tokens is not None:
            estimate = len(request.body) // BYTES_PER_TOKEN + int(self._output or min(request.room, 256))
            if estimate > self.pace.tokens:
                raise EndpointError(
                    f"a request of about {estimate:,} tokens can never fit a limit of {self.pace.tokens:,.0f} a minute",
                    where=self.spec.label,
                    hint="cut the seeds' texts, lower max_tokens, or raise the endpoint's limit",
                )
            await halt.sleep(
                await self.ledger.pace(f"{self.spec.label}/tokens", self._gap(self.pace.tokens) * estimate)
            )

    @staticmethod
    def _gap(rate: float) -> float:
        return 60.0 / (rate * MARGIN)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take the limits that a reply's headers tell; a recipe's own stand where they are lower."""
        told = Pace(
            _number(headers, "x-ratelimit-limit-requests", "anthropic-ratelimit-requests-limit"),
            _number(headers, "x-ratelimit-limit-tokens", "anthropic-ratelimit-tokens-limit"),
        )
        self.pace = Pace(_least(self.spec.rpm, told.requests), _least(self.spec.tpm, told.tokens))

    def used(self, usage: Usage) -> None:
        """Reconcile the estimate with what a reply really used."""
        self._output = 0.9 * self._output + 0.1 * usage.output if self._output else float(usage.output)


def _least(mine: float | None, told: float | None) -> float | None:
    return min(mine, told) if mine is not None and told is not None else (told if mine is None else mine)


def _number(headers: Mapping[str, str], *names: str) -> float | None:
    for name in names:
        try:
            return float(headers[name].replace(",", ""))
        except (KeyError, ValueError):
            continue
    return None
