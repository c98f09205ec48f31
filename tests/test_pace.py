"""Pace, concurrency, retry budget and breaker, by clocks that the tests turn themselves."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from kdgen.errors import EndpointError, Interrupted
from kdgen.teachers.base import Call, Params, Request, Usage
from kdgen.teachers.halt import Halt
from kdgen.teachers.ledger import Ledger
from kdgen.teachers.limits import FIRST, START, Concurrency, Limits, Pace, Slot
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.retries import CAP, TRIP, Breaker, RetryBudget
from kdgen.teachers.vllm import Vllm

URL = "http://stub/v1"


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


class Clock:
    """A clock, and a sleeper that notes how long it was asked to sleep and does not."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def until(self, turn: asyncio.Future[None]) -> None:
        await turn


def request(number: int = 0, spec: OpenAI | None = None) -> Request:
    spec = spec or OpenAI(model="m", base_url=URL, max_tokens=100)
    return spec.request(Call([{"role": "user", "content": f"task {number}"}], Params(max_tokens=100)))


def worst_minute(times: list[float]) -> int:
    """The most that came in any minute."""
    times, most, start = sorted(times), 0, 0
    for end, when in enumerate(times):
        while times[start] <= when - 60:
            start += 1
        most = max(most, end - start + 1)
    return most


@pytest.mark.parametrize("latency", [0.05, 2.0, 20.0])
def test_two_processes_fill_a_limit_and_do_not_pass_it(tmp_path: Path, latency: float) -> None:
    """600 requests a minute, learned from the first reply of each process: what they send, by the minute."""
    clock, rpm, slots, end = Clock(), 600, 200, 1000.0 + 300
    headers = {"x-ratelimit-limit-requests": str(rpm)}

    async def go() -> list[float]:
        books = [Ledger(tmp_path / "ledger.db", clock) for _ in range(2)]
        spec = OpenAI(model="m", base_url=URL, concurrency=slots)
        both = [Limits(spec, book) for book in books]
        assert [limits.concurrency.limit for limits in both] == [FIRST, FIRST]
        sent: list[float] = []
        # Slots of either process by the time when they are free; at first there are few.
        free = [(clock.now, number % 2) for number in range(2 * FIRST)]
        known = [False, False]
        while free and free[0][0] < end:
            clock.now, who = heapq.heappop(free)
            if clock.now > 1000 and not known[who]:
                known[who] = True
                await both[who].learn(headers)
                for _ in range(slots - FIRST):
                    heapq.heappush(free, (clock.now, who))
            clock.slept.clear()
            await both[who].admit(request(), clock)
            sent.append(clock.now + sum(clock.slept))
            heapq.heappush(free, (sent[-1] + latency, who))
        for book in books:
            await book.close()
        return [when for when in sent if when < end]

    sent = run(go())
    steady = [when for when in sent if when >= 1060]
    assert len(steady) / 240 * 60 >= 0.9 * rpm
    assert worst_minute(sent) <= rpm, "more went out in a minute than the limit allows"


def test_the_next_process_knows_the_limit_from_its_first_request(tmp_path: Path) -> None:
    async def go() -> None:
        clock = Clock()
        book = Ledger(tmp_path / "ledger.db", clock)
        spec = OpenAI(model="m", base_url=URL, concurrency=50)
        await Limits(spec, book).learn({"x-ratelimit-limit-requests": "60", "x-ratelimit-limit-tokens": "9,000"})
        later = Limits(spec, book)
        assert later.pace == Pace(60, 9000)
        assert later.concurrency.limit == START, "what is paced need not start slowly"
        other = Limits(spec.model_copy(update={"base_url": "http://other/v1"}), book)
        assert other.pace == Pace()
        await later.learn({})
        assert later.pace == Pace(), "an endpoint that says no limit any more has none"
        await book.close()

    run(go())


def test_who_has_no_limits_does_not_wait_to_hear_of_them(tmp_path: Path) -> None:
    async def go() -> None:
        book = Ledger(tmp_path / "ledger.db")
        assert Limits(Vllm(model="m", base_url=URL), book).concurrency.limit == START
        limits = Limits(OpenAI(model="m", base_url=URL, concurrency=50), book)
        assert limits.concurrency.limit == FIRST
        await limits.learn({})
        assert limits.concurrency.limit == START
        await book.close()

    run(go())


def test_tokens_are_paced_by_what_replies_really_used(tmp_path: Path) -> None:
    async def go() -> None:
        clock = Clock()
        book = Ledger(tmp_path / "ledger.db", clock)
        limits = Limits(OpenAI(model="m", base_url=URL, tpm=60_000), book)
        asked = request()
        for _ in range(100):
            limits.used(asked, Usage(input=2 * len(asked.body), output=1000))
        expected = (2 * len(asked.body) + 1000) / (60_000 * 0.98) * 60
        for _ in range(3):
            await limits.admit(asked, clock)
        assert clock.slept == pytest.approx([0, expected, 2 * expected], rel=0.01)
        limits.used(asked, Usage(output=10**9))
        clock.slept.clear()
        with pytest.raises(EndpointError, match="can never fit"):
            await limits.admit(asked, clock)
        assert clock.slept == []
        await book.close()

    run(go())


def rounds(slots: Concurrency, share: float, count: int, clock: Clock, seconds: float = 1.0) -> None:
    """`count` rounds with all slots in use, of which a share is rate limited."""
    draw = random.Random(7)
    for _ in range(count):
        slots.busy = slots.peak = slots.limit
        for _ in range(max(10, slots.limit)):
            if draw.random() < share:
                slots.rated(0.0)
            else:
                slots.answered()
        clock.now += seconds
    slots.busy = 0


def test_concurrency_doubles_until_the_first_rate_limit_then_grows_slowly() -> None:
    clock = Clock()
    slots = Concurrency(1000, clock=clock)
    rounds(slots, 0, 2, clock)
    assert slots.limit == 4 * START
    slots.busy = slots.peak = slots.limit
    slots.rated(0.0)
    rounds(slots, 0, 1, clock)
    assert 4 * START < slots.limit < 5 * START
    rounds(slots, 0, 100, clock)
    assert slots.limit == 1000


def test_slots_that_nobody_uses_do_not_grow() -> None:
    slots = Concurrency(1000, clock=Clock())
    for _ in range(500):
        slots.answered()
    assert slots.limit == START


def test_a_few_refusals_among_many_replies_do_not_wear_concurrency_down() -> None:
    clock = Clock()
    slots = Concurrency(64, clock=clock)
    rounds(slots, 0.08, 2000, clock)
    assert slots.limit > 32


def test_a_wall_of_refusals_brings_concurrency_down_and_other_faults_do_not() -> None:
    clock = Clock()
    slots = Concurrency(1000, clock=clock)
    rounds(slots, 0, 5, clock)
    for _ in range(500):
        slots.stumbled()
    assert slots.limit == 1000
    rounds(slots, 0.9, 200, clock)
    assert slots.limit <= 2
    assert slots.trouble > 0.5


def test_a_cut_is_not_repeated_before_its_cool_down_and_the_retry_after_are_over() -> None:
    clock = Clock()
    slots = Concurrency(32, clock=clock)
    slots.busy = slots.peak = 32
    for _ in range(32):
        slots.rated(60.0)
    cut = slots.limit
    assert cut < 20
    rounds(slots, 1.0, 59, clock)
    assert slots.limit == cut
    rounds(slots, 1.0, 3, clock)
    assert slots.limit < cut


def test_a_slot_that_was_given_back_is_taken_before_all_that_wait() -> None:
    async def go() -> None:
        slots = Concurrency(1)
        mine, order = Slot(slots), []
        await mine.take()

        async def other(name: str) -> None:
            slot = Slot(slots)
            await slot.take()
            order.append(name)
            await asyncio.sleep(0)
            slot.give()

        waiting = [asyncio.create_task(other(name)) for name in "ab"]
        await asyncio.sleep(0)
        mine.give()
        mine.give()
        again = asyncio.create_task(mine.take(first=True))
        again.add_done_callback(lambda _: order.append("mine"))
        await again
        mine.give()
        await asyncio.gather(*waiting)
        assert order == ["a", "mine", "b"]
        assert slots.busy == 0

    run(go())


def test_retries_have_a_budget() -> None:
    clock = Clock()
    budget = RetryBudget(10, clock)
    assert [budget.take() for _ in range(120)] == [0.0] * 120
    put_off = [budget.take() for _ in range(100)]
    assert put_off[0] == 1 and sorted(put_off) == put_off and put_off[-1] == CAP, "never longer than a minute"
    for _ in range(2 * 220):
        budget.earn()
    assert budget.take() == 0.0, "every second success earns one"
    for _ in range(1000):
        budget.earn()
    assert [budget.take() for _ in range(121)][-1] > 0, "it holds no more than it began with"
    clock.now += 60
    assert budget.take() == 0.0, "every second earns one"


def opened(breaker: Breaker, times: int = TRIP) -> Breaker:
    for _ in range(times):
        breaker.failed(1, 0.0)
    return breaker


def test_a_breaker_opens_when_all_that_is_in_flight_has_failed() -> None:
    breaker = Breaker(Clock())
    for busy, faults in ((1, TRIP), (40, 40)):
        for _ in range(faults - 1):
            breaker.failed(busy, 0.0)
        assert not breaker.open
        breaker.failed(busy, 0.0)
        assert breaker.open
        breaker.served()
        assert not breaker.open and not breaker.faults


def test_an_open_breaker_lets_one_try_at_growing_distances_and_its_success_frees_all() -> None:
    async def go() -> None:
        clock = Clock()
        breaker = opened(Breaker(clock))
        tries, through = 0, []
        up = False

        async def asker(number: int) -> None:
            nonlocal tries
            while True:
                alone = breaker.open and await breaker.enter(clock)
                try:
                    tries += alone
                    await asyncio.sleep(0)
                    if up:
                        breaker.served()
                        through.append(number)
                        return
                    breaker.failed(50, 0.0)
                    clock.now = max(clock.now, breaker._next_at)
                    assert not through
                finally:
                    if alone:
                        breaker.leave()

        began = clock.now
        asking = [asyncio.create_task(asker(number)) for number in range(50)]
        while tries < 20:
            await asyncio.sleep(0)
        assert breaker.faults == TRIP + tries or breaker.faults == TRIP + tries - 1, "one at a time"
        assert clock.now - began > 60
        up = True
        await asyncio.gather(*asking)
        assert sorted(through) == list(range(50))

    run(go())


def test_a_breaker_waits_as_long_as_the_endpoint_asks() -> None:
    async def go() -> None:
        clock = Clock()
        breaker = opened(Breaker(clock))
        breaker.failed(1, 40.0)
        assert await breaker.enter(clock)
        assert clock.slept[0] >= 40

    run(go())


@pytest.mark.parametrize("end", ["halted", "cancelled"])
def test_who_waits_at_a_breaker_can_be_called_off(end: str) -> None:
    async def go() -> None:
        halt = Halt()
        breaker = opened(Breaker())
        breaker.failed(1, 1000.0)
        asking = [asyncio.create_task(breaker.enter(halt)) for _ in range(5)]
        await asyncio.sleep(0.01)
        if end == "halted":
            halt.set(Interrupted("stop"))
        else:
            for task in asking:
                task.cancel()
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(each) for each in ends} == {Interrupted if end == "halted" else asyncio.CancelledError}
        assert not breaker._trying and not halt._parked

    run(go())


def test_a_try_that_is_called_off_hands_over() -> None:
    async def go() -> None:
        halt, clock = Halt(), Clock()
        breaker = opened(Breaker(clock))
        breaker.failed(1, 1000.0)
        first = asyncio.create_task(breaker.enter(halt))
        await asyncio.sleep(0)
        second = asyncio.create_task(breaker.enter(clock))
        await asyncio.sleep(0)
        first.cancel()
        assert await second

    run(go())
