"""How many requests are in flight, and how fast they go out.

Concurrency adapts per teacher: it doubles each round until the first rate limit; from then on it grows by a twentieth
a round and shrinks by half the share of the round that was rate limited, so that a few refusals among many replies do
not wear it down. Nothing else shrinks it. Where an endpoint says its limits in headers (or the recipe does: `rpm`,
`tpm`), requests are also paced. The pace and what was told are kept in the ledger file, so that processes that share a
ledger share the limit, and the next one knows it from its first request.
"""

from __future__ import annotations

import time
from asyncio import CancelledError, Future, Semaphore, get_running_loop
from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from typing import NamedTuple

from kdgen.errors import EndpointError
from kdgen.teachers.base import Request, TeacherSpec, Usage
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.retries import Waiter

FIRST, START, GROWTH, COOLDOWN, ROUND = 4, 32, 0.05, 15.0, 10
MARGIN = 0.98
GUESS = 256
TOKENS_PER_BYTE = 0.25
REMEMBERED = 3600.0


class Gate:
    """A number of places; who waits for one is served in order."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy = 0
        self.peak = 0
        self._waiting: deque[Future[None]] = deque()

    async def enter(self, *, first: bool = False) -> None:
        """Take a place, once one is free; `first` goes before all that wait."""
        if self.busy < self.limit:
            self._take()
            return
        turn: Future[None] = get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(turn)
        try:
            await turn
        except CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """Give a place back."""
        self.busy -= 1
        self._wake()

    def resize(self, limit: int) -> None:
        """From now on there are so many places."""
        self.limit = limit
        self._wake()

    def _take(self) -> None:
        self.busy += 1
        self.peak = max(self.peak, self.busy)

    def _wake(self) -> None:
        # A place is handed over here, not when its new owner wakes: else each that leaves meanwhile would wake another.
        while self.busy < self.limit and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._take()
                turn.set_result(None)


class Concurrency(Gate):
    """A number of slots that grows while it helps and shrinks on rate limits.

    With `wary` it starts with very few, until the first reply has told whether there is a limit. `door` is for the few
    that get ready for the next free slots.
    """

    def __init__(self, most: int, *, wary: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(min(most, FIRST if wary else START))
        self.most = most
        self.door = Gate(_ahead(self.limit))
        self.trouble = 0.0
        self._outcomes = self._rated = 0
        self._doubling = True
        self._rest = self._calm_after = 0.0
        self._clock = clock

    def resize(self, limit: int) -> None:
        """See `Gate.resize`."""
        super().resize(limit)
        self.door.resize(_ahead(limit))

    def ready(self) -> None:
        """The first reply is in, and with it what limits there are."""
        self.resize(max(self.limit, min(self.most, START)))

    def answered(self) -> None:
        """A request was served, or failed by itself."""
        self._outcome(0.0)

    def stumbled(self) -> None:
        """A passing fault came; it says nothing about a limit."""
        self.trouble += (1.0 - self.trouble) / START

    def rated(self, retry_after: float) -> None:
        """A rate limit came."""
        self._doubling = False
        self._rated += 1
        self._rest = max(self._rest, retry_after)
        self._outcome(1.0)

    def _outcome(self, trouble: float) -> None:
        self.trouble += (trouble - self.trouble) / START
        self._outcomes += 1
        if self._outcomes >= max(ROUND, self.limit):
            self._end_round()

    def _end_round(self) -> None:
        share, peak, rest = self._rated / self._outcomes, self.peak, self._rest
        self._outcomes = self._rated = 0
        self._rest, self.peak = 0.0, self.busy
        now = self._clock()
        if now < self._calm_after:
            return
        step = 1.0 if self._doubling else GROWTH - share / 2
        if step > 0 and peak >= 0.8 * self.limit:
            self.resize(min(self.most, self.limit + max(1, round(self.limit * step))))
        elif step < 0:
            self.resize(max(1, round(min(self.limit, peak) * (1 + step))))
            self._calm_after = now + max(COOLDOWN, rest)


def _ahead(limit: int) -> int:
    return limit // 2 + 4


class Slot:
    """One request's place among those in flight; it may be given back and taken again."""

    __slots__ = ("_held", "_of")

    def __init__(self, of: Concurrency) -> None:
        self._of = of
        self._held = False

    async def take(self, *, first: bool = False) -> None:
        """Wait for a place, unless it is held."""
        if not self._held:
            await self._of.enter(first=first)
            self._held = True

    def give(self) -> None:
        """Give it back, if it is held."""
        if self._held:
            self._held = False
            self._of.leave()


class Pace(NamedTuple):
    """What an endpoint allows a minute; None where it does not say."""

    requests: float | None = None
    tokens: float | None = None


class Limits:
    """The limits of one teacher in one run."""

    def __init__(self, spec: TeacherSpec, ledger: Ledger) -> None:
        self.spec = spec
        self.ledger = ledger
        address, key = getattr(spec, "base_url", None) or "", getattr(spec, "api_key_env", "")
        self._names = [f"{spec.label} {address} {key} {unit}" for unit in ("requests", "tokens")]
        told = Pace(*(ledger.limit(name, REMEMBERED) for name in self._names)) if spec.metered else Pace()
        self.pace = self._with_own(told)
        self.concurrency = Concurrency(spec.concurrency, wary=spec.metered and self.pace == Pace())
        self._seen: Mapping[str, str] | None = None
        self._unpaced = (0, 0.0)
        self._output = 0.0
        self._per_byte = TOKENS_PER_BYTE

    def _with_own(self, told: Pace) -> Pace:
        pace = Pace(_least(self.spec.rpm, told.requests), _least(self.spec.tpm, told.tokens))
        # Turns are reserved a second ahead: one that died with its process should not keep the others waiting long.
        a_second = min((pace.requests or inf) / 60, (pace.tokens or inf) / 60 / GUESS)
        self._ahead = Semaphore(max(1, int(min(a_second, 4096))))
        return pace

    async def admit(self, request: Request, halt: Waiter) -> None:
        """Wait for this request's turn. Raises EndpointError where it can never fit the limit."""
        estimate = self._estimate(request)
        if self.pace == Pace():
            self._unpaced = (self._unpaced[0] + 1, self._unpaced[1] + estimate)
            return
        if self.pace.tokens is not None and estimate > self.pace.tokens:
            raise EndpointError(
                f"a request of about {estimate:,.0f} tokens can never fit a limit of {self.pace.tokens:,.0f} a minute",
                where=self.spec.label,
                hint="cut the seeds' texts, lower max_tokens, or raise the endpoint's limit",
            )
        async with self._ahead:
            await halt.sleep(await self.ledger.pace(self._gaps(1, estimate)))

    def _estimate(self, request: Request) -> float:
        return len(request.body) * self._per_byte + (self._output or min(request.room, GUESS))

    def _gaps(self, requests: float, tokens: float) -> dict[str, float]:
        """How long these keep the next turn away, by limit."""
        pairs = zip(self._names, self.pace, (requests, tokens), strict=True)
        return {name: 60.0 * amount / (rate * MARGIN) for name, rate, amount in pairs if rate is not None}

    async def learn(self, headers: Mapping[str, str]) -> None:
        """Take the limits that a reply's headers tell; a recipe's own stand where they are lower."""
        if headers == self._seen or (self._seen and not headers):
            return
        first, self._seen = self._seen is None, dict(headers)
        told = Pace(
            _number(headers, "x-ratelimit-limit-requests", "anthropic-ratelimit-requests-limit"),
            _number(headers, "x-ratelimit-limit-tokens", "anthropic-ratelimit-tokens-limit"),
        )
        for name, rate in zip(self._names, told, strict=True):
            if rate is not None:
                await self.ledger.told(name, rate)
        self.pace = self._with_own(told)
        if first:
            # What went out before the limit was known has used it all the same.
            if gaps := self._gaps(*self._unpaced):
                await self.ledger.pace(gaps)
            self.concurrency.ready()

    def used(self, request: Request, usage: Usage) -> None:
        """Reconcile the estimates with what a reply really used."""
        self._output = 0.9 * self._output + 0.1 * usage.output if self._output else float(usage.output)
        if usage.input:
            self._per_byte += 0.1 * (usage.input / len(request.body) - self._per_byte)


def _least(mine: float | None, told: float | None) -> float | None:
    return min(mine, told) if mine is not None and told is not None else (told if mine is None else mine)


def _number(headers: Mapping[str, str], *names: str) -> float | None:
    for name in names:
        try:
            return float(headers[name].replace(",", ""))
        except (KeyError, ValueError):
            continue
    return None
