"""What this run asked for, got and paid, and the budget that it may not pass."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from kdgen.errors import BudgetReached, UserError
from kdgen.record import Frozen
from kdgen.teachers.base import Fault, Reply, Request, TeacherSpec, Usage
from kdgen.teachers.prices import PLAIN, Price, Prices


class Budget(Frozen):
    """Hard caps of one run: what the next request could cost at worst is reserved before it is sent."""

    usd: float | None = None
    tokens: int | None = None


class Hold(NamedTuple):
    """A reservation."""

    tokens: int
    usd: float


NOTHING = Hold(0, 0.0)


@dataclass
class Sum:
    """Tokens and dollars of some replies."""

    replies: int = 0
    input: int = 0
    cached_input: int = 0
    output: int = 0
    usd: float = 0.0

    def add(self, usage: Usage, usd: float) -> None:
        """Count one reply."""
        self.replies += 1
        self.input += usage.input
        self.cached_input += usage.cached_input
        self.output += usage.output
        self.usd += usd


@dataclass
class Bill:
    """Counts of one run, over all its passes.

    `paid` is what this run paid; `used` is every reply that this pass used, paid now or earlier, at what it cost.
    """

    budget: Budget = field(default_factory=Budget)
    prices: Prices = PLAIN
    requests: int = 0
    failures: int = 0
    maybe_billed: int = 0
    hits: int = 0
    imports: int = 0
    paid: dict[str, Sum] = field(default_factory=dict)
    used: dict[str, Sum] = field(default_factory=dict)
    _held: int = 0
    _held_tokens: int = 0
    _held_usd: float = 0.0
    _lost_tokens: int = 0
    _lost_usd: float = 0.0
    _turns: list[asyncio.Future[None]] = field(default_factory=list)

    async def reserve(self, spec: TeacherSpec, request: Request) -> Hold:
        """Set aside the most that `request` can cost, once that fits beside what is in flight.

        Raises BudgetReached where it could pass the cap however little the requests in flight cost.

        A token is at least one byte of the request, so the body's length bounds the input from above.
        """
        if self.budget == Budget():
            return NOTHING
        if not request.room:
            raise UserError(
                f"a budget needs a bound on each reply, and {spec.label} has none",
                hint="set max_tokens, in the teacher or in the stage's params",
            )
        tokens = len(request.body) + request.room
        price = self.prices.of(spec)
        if self.budget.usd is not None and price is None:
            raise UserError(
                f"no price is known for {spec.label}, so a budget in USD cannot be kept",
                hint="name its prices in a file (--prices FILE), or cap tokens: budget.tokens",
            )
        hold = Hold(tokens, price.worst(len(request.body), request.room) if price else 0.0)
        # What is held may turn out cheaper: only what is used for certain can end the run.
        while not self._fits(hold, held=True):
            if not self._fits(hold, held=False) or not self._held:
                raise BudgetReached(
                    f"the budget is reached: {self._spent()}, and the next request could pass it",
                    hint="what was paid is kept; raise the budget and run the same command to go on",
                )
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._turns.append(turn)
            await turn
        self._held += 1
        self._held_tokens += hold.tokens
        self._held_usd += hold.usd
        return hold

    def _fits(self, hold: Hold, *, held: bool) -> bool:
        tokens = self.tokens + self._lost_tokens + hold.tokens + (self._held_tokens if held else 0)
        usd = self.usd + self._lost_usd + hold.usd + (self._held_usd if held else 0.0)
        limits = self.budget
        return (limits.tokens is None or tokens <= limits.tokens) and (limits.usd is None or usd <= limits.usd)

    def _spent(self) -> str:
        parts = []
        if self.budget.tokens is not None:
            parts.append(f"{self.tokens + self._lost_tokens:,} of {self.budget.tokens:,} tokens are used")
        if self.budget.usd is not None:
            parts.append(f"${self.usd + self._lost_usd:.4f} of ${self.budget.usd:.4f} is spent")
        return ", ".join(parts)

    def release(self, hold: Hold) -> None:
        """Give a reservation back, once the real cost is counted or there is none."""
        if hold is NOTHING:
            return
        self._held -= 1
        self._held_tokens -= hold.tokens
        self._held_usd -= hold.usd
        turns, self._turns = self._turns, []
        for turn in turns:
            if not turn.done():
                turn.set_result(None)

    def sent(self) -> None:
        """One request goes out."""
        self.requests += 1

    def failed(self, fault: Fault, hold: Hold = NOTHING) -> None:
        """One request got no reply. Where it may have been billed, its reservation counts against the budget."""
        self.failures += 1
        self.maybe_billed += fault.billed
        self.release(hold)
        if fault.billed:
            self._lost_tokens += hold.tokens
            self._lost_usd += hold.usd

    def settled(self, spec: TeacherSpec, reply: Reply) -> None:
        """One reply was paid, stored and used."""
        usd = cost(self.prices.of(spec), reply.usage)
        self.paid.setdefault(spec.label, Sum()).add(reply.usage, usd)
        self.used.setdefault(spec.label, Sum()).add(reply.usage, usd)

    def imported(self, spec: TeacherSpec, usage: Usage) -> None:
        """One reply of a batch was paid and stored; the next pass uses it."""
        self.imports += 1
        self.paid.setdefault(spec.label, Sum()).add(usage, cost(self.prices.of(spec), usage))

    def next_pass(self) -> None:
        """The recipe is gone through again from its start."""
        self.used.clear()
        self.hits = 0

    def unread(self, spec: TeacherSpec, hold: Hold) -> None:
        """One reply was paid and stored but does not say what it cost: the reservation is its bill."""
        self.paid.setdefault(spec.label, Sum()).add(Usage(input=hold.tokens), hold.usd)

    def replayed(self, spec: TeacherSpec, reply: Reply) -> None:
        """One reply came from the ledger."""
        self.hits += 1
        self.used.setdefault(spec.label, Sum()).add(reply.usage, cost(self.prices.of(spec), reply.usage))

    @property
    def tokens(self) -> int:
        """Tokens paid by this run, input and output."""
        return sum(part.input + part.output for part in self.paid.values())

    @property
    def usd(self) -> float:
        """Dollars paid by this run."""
        return sum(part.usd for part in self.paid.values())

    @property
    def from_ledger(self) -> int:
        """Requests that the ledger answered with what was paid before this run."""
        return max(0, self.hits - self.imports)


def cost(price: Price | None, usage: Usage) -> float:
    """Dollars of one reply; 0 where no price is known."""
    return price.of(usage) if price else 0.0
