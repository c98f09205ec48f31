"""What this run asked for, got and paid, and the budget that it may not pass."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kdgen.errors import BudgetReached, Pending, UserError
from kdgen.teachers.base import Fault, Reply, Request, TeacherSpec, Usage
from kdgen.teachers.budget import NOTHING, Budget, Hold, Out, this_month
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.prices import PLAIN, Mode, Price, Prices

__all__ = ["NOTHING", "Bill", "Budget", "Hold", "Sum", "cost", "this_month"]
EVERY = 1.0


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

    `paid` is what this run paid; `used` is every reply that this pass used, paid now or earlier, at what it cost;
    `lost_…` is what requests without a reply may have been billed at worst. `of_chain` tells what a run paid in all of
    its invocations, where it may take several.
    """

    budget: Budget = field(default_factory=Budget)
    prices: Prices = PLAIN
    ledger: Ledger | None = None
    of_chain: Callable[[], Hold] | None = None
    requests: int = 0
    failures: int = 0
    maybe_billed: int = 0
    hits: int = 0
    imports: int = 0
    out: Out = field(default_factory=Out)
    paid: dict[str, Sum] = field(default_factory=dict)
    used: dict[str, Sum] = field(default_factory=dict)
    lost_tokens: int = 0
    lost_usd: float = 0.0
    _held: int = 0
    _held_tokens: int = 0
    _held_usd: float = 0.0
    _turns: list[asyncio.Future[None]] = field(default_factory=list)
    _unwritten: dict[str, tuple[int, float]] = field(default_factory=dict)
    _written: float = 0.0
    _known: int = 0

    def check(self, spec: TeacherSpec, where: str) -> None:
        """Raise UserError where a cap cannot be kept for this teacher."""
        if self.budget.in_usd and self.prices.of(spec) is None:
            raise UserError(
                f"no price is known for {spec.label}, so a budget in USD cannot be kept",
                where=where,
                hint="give its prices with --prices FILE, or cap tokens",
            )

    async def reserve(self, spec: TeacherSpec, request: Request) -> Hold:
        """Set aside the most that `request` can cost, once that fits beside what is in flight.

        Raises BudgetReached where it could pass the cap however little the requests in flight and in batches cost,
        Pending where it depends on those in batches.
        """
        if not self.budget.capped:
            return NOTHING
        hold = self.worst(spec, request, "online")
        while True:
            # What is held may turn out cheaper: only what is used for certain can end the run.
            while not self._fits(hold, held=True):
                if not self._fits(hold, held=False):
                    raise self._reached(self._spent())
                if not self._held:
                    raise Pending(request.key)
                await self._turn()
            self._hold(hold, 1)
            if not hold.month or await self._month_takes(hold):
                return hold
            self._let_go(hold)
            if self._unwritten:
                await self.write(soon=False)
                continue
            if not self._held:
                raise Pending(request.key) if self.out.tokens else self.month_reached()
            await self._turn()

    def set_aside(self, home: str, spec: TeacherSpec, request: Request) -> Hold | None:
        """Set aside the most that `request` can cost in a batch; None where that depends on what batches cost that are out.

        Raises BudgetReached where it could pass the cap however little they cost. A month's cap is kept where the batch
        is written down; what is out counts there for every run, so it is told where this one has no budget, too.
        """
        if not self.budget.capped:
            return self.at_worst(spec, request, "batch")._replace(month=this_month())
        hold = self.worst(spec, request, "batch")
        if not self._fits(hold, held=True):
            if self._fits(hold, held=False):
                return None
            raise self._reached(self._spent())
        self.out.add(home, request.key, hold)
        return hold

    def worst(self, spec: TeacherSpec, request: Request, mode: Mode) -> Hold:
        """The most that `request` can cost. Raises UserError where that is not known.

        A token is at least one byte of the request, so the body's length bounds the input from above.
        """
        if not request.room:
            raise UserError(
                f"a budget needs a bound on each reply, and {spec.label} has none",
                hint="set max_tokens, in the teacher or in the stage's params",
            )
        price = self.prices.of(spec, mode)
        if price is None:
            self.check(spec, "")
        worst = price.worst(len(request.body), request.room) if price else 0.0
        month = this_month() if self.budget.monthly or mode == "batch" else ""
        return Hold(len(request.body) + request.room, worst, month)

    @property
    def month_caps(self) -> tuple[float, float]:
        """The most tokens and dollars of a month."""
        tokens, usd = self.budget.month_tokens, self.budget.month_usd
        return math.inf if tokens is None else tokens, math.inf if usd is None else usd

    async def _month_takes(self, hold: Hold) -> bool:
        assert self.ledger is not None
        return await self.ledger.spend(hold.month, hold.tokens, hold.usd, *self.month_caps)

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        await turn

    def _hold(self, hold: Hold, sign: int) -> None:
        self._held += sign
        self._held_tokens += sign * hold.tokens
        self._held_usd += sign * hold.usd

    @staticmethod
    def _reached(spent: str) -> BudgetReached:
        return BudgetReached(
            f"the budget is reached: {spent}, and the next request could pass it",
            hint="what was paid is kept; raise the budget and run the same command to go on",
        )

    def _fits(self, hold: Hold, *, held: bool) -> bool:
        tokens, usd = self._used
        tokens += hold.tokens + (self._held_tokens + self.out.tokens if held else 0)
        usd += hold.usd + (self._held_usd + self.out.usd if held else 0.0)
        limits = self.budget
        return (limits.tokens is None or tokens <= limits.tokens) and (limits.usd is None or usd <= limits.usd)

    @property
    def _used(self) -> tuple[int, float]:
        """What this run used for certain, or may have used."""
        tokens, usd, _ = self.of_chain() if self.of_chain else Hold(self.tokens, self.usd)
        return tokens + self.lost_tokens, usd + self.lost_usd

    def _spent(self) -> str:
        tokens, usd = self._used
        return _said(tokens, self.budget.tokens, usd, self.budget.usd)

    def month_reached(self) -> BudgetReached:
        """The month has no room for the next request."""
        return self._reached(self._spent_in(this_month()))

    def _spent_in(self, month: str) -> str:
        assert self.ledger is not None
        tokens, usd = self.ledger.spent(month)
        said = _said(tokens, self.budget.month_tokens, usd, self.budget.month_usd)
        return f"{said} of {month}, what is in flight counted"

    def release(self, hold: Hold) -> None:
        """Give a reservation back, once the real cost is counted or there is none."""
        if hold is NOTHING:
            return
        if hold.month:
            self._note(-hold.tokens, -hold.usd, hold.month)
        self._let_go(hold)

    def _let_go(self, hold: Hold) -> None:
        self._hold(hold, -1)
        turns, self._turns = self._turns, []
        for turn in turns:
            if not turn.done():
                turn.set_result(None)

    def _note(self, tokens: int, usd: float, month: str) -> None:
        had = self._unwritten.get(month, (0, 0.0))
        self._unwritten[month] = (had[0] + tokens, had[1] + usd)

    async def write(self, *, soon: bool = True) -> None:
        """Bring to the ledger what the month cost: at once where it has a cap, else (`soon`) once a second."""
        now = time.monotonic()
        if self.ledger is None or not self._unwritten:
            return
        if soon and not self.budget.monthly and now - self._written < EVERY:
            return
        unwritten, self._unwritten, self._written = self._unwritten, {}, now
        for month, (tokens, usd) in unwritten.items():
            await self.ledger.spend(month, tokens, usd)

    def sent(self, count: int = 1) -> None:
        """Requests go out."""
        self.requests += count

    def failed(self, fault: Fault, hold: Hold = NOTHING, worst: Hold = NOTHING) -> None:
        """One request got no reply. Where it may have been billed, its reservation (or `worst`) counts as spent."""
        self.failures += 1
        lost = worst if hold is NOTHING else hold
        self.release(hold)
        if fault.billed:
            self.maybe_billed += 1
            self.lost_tokens += lost.tokens
            self.lost_usd += lost.usd
            if lost is not NOTHING:
                self._note(lost.tokens, lost.usd, hold.month or this_month())

    def at_worst(self, spec: TeacherSpec, request: Request, mode: Mode | None = None) -> Hold:
        """The most that `request` can have cost, as far as its bounds and its price are known."""
        price = self.prices.of(spec, mode)
        usd = price.worst(len(request.body), request.room) if price else 0.0
        return Hold(len(request.body) + request.room, usd)

    def settled(self, spec: TeacherSpec, reply: Reply) -> None:
        """One reply was paid online, stored and used."""
        usd = self._paid(spec, reply.usage, "online")
        self.used.setdefault(spec.label, Sum()).add(reply.usage, usd)

    def cost_of(self, spec: TeacherSpec, usage: Usage | None, hold: Hold) -> Hold:
        """What a reply of a batch costs, in the month that had room for it. Without a usage, `hold` is its bill."""
        month = hold.month or this_month()
        if usage is None:
            return hold._replace(month=month)
        return Hold(usage.input + usage.output, cost(self.prices.of(spec, "batch"), usage), month)

    def imported(self, spec: TeacherSpec, usage: Usage | None, hold: Hold) -> None:
        """One reply of a batch was paid, stored and counted for its month; the next pass uses it."""
        self.imports += 1
        usd = self.cost_of(spec, usage, hold).usd
        self.paid.setdefault(spec.label, Sum()).add(usage or Usage(input=hold.tokens), usd)

    def _paid(self, spec: TeacherSpec, usage: Usage, mode: Mode) -> float:
        usd = cost(self.prices.of(spec, mode), usage)
        self.paid.setdefault(spec.label, Sum()).add(usage, usd)
        self._note(usage.input + usage.output, usd, this_month())
        return usd

    def next_pass(self) -> None:
        """The recipe is gone through again from its start."""
        self.used.clear()
        self.hits = 0
        self._known = self._replies - self.imports

    def unread(self, spec: TeacherSpec, hold: Hold) -> None:
        """One reply was paid and stored but does not say what it cost: the reservation is its bill."""
        self.paid.setdefault(spec.label, Sum()).add(Usage(input=hold.tokens), hold.usd)
        self._note(hold.tokens, hold.usd, hold.month or this_month())

    def replayed(self, spec: TeacherSpec, reply: Reply, mode: Mode) -> None:
        """One reply came from the ledger, where it is by way of `mode`."""
        self.hits += 1
        self.used.setdefault(spec.label, Sum()).add(reply.usage, cost(self.prices.of(spec, mode), reply.usage))

    @property
    def tokens(self) -> int:
        """Tokens paid by this run, input and output."""
        return sum(part.input + part.output for part in self.paid.values())

    @property
    def usd(self) -> float:
        """Dollars paid by this run."""
        return sum(part.usd for part in self.paid.values())

    @property
    def _replies(self) -> int:
        return sum(part.replies for part in self.paid.values())

    @property
    def from_ledger(self) -> int:
        """Requests that the ledger answered with what was paid before this run."""
        return max(0, self.hits - self.imports - self._known)


def cost(price: Price | None, usage: Usage) -> float:
    """Dollars of one reply; 0 where no price is known."""
    return price.of(usage) if price else 0.0


def _said(tokens: int, most: int | None, usd: float, most_usd: float | None) -> str:
    parts = [] if most is None else [f"{tokens:,} of {most:,} tokens are used"]
    parts += [] if most_usd is None else [f"${usd:.4f} of ${most_usd:.4f} is spent"]
    return ", ".join(parts)
