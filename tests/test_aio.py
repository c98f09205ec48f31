"""Ordered, bounded concurrency."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from kdgen import aio
from kdgen.aio import ordered, stream


def test_results_come_in_order_and_no_more_than_the_window_is_at_work() -> None:
    busy = most = 0

    async def work(number: int) -> int:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        for _ in range(10 + number * 7 % 5):
            await asyncio.sleep(0)
        busy -= 1
        return number

    async def go() -> list[int]:
        return [each async for each in ordered(stream(range(200)), work, window=lambda: 9, grace=1)]

    assert asyncio.run(go()) == list(range(200))
    assert most == 9


def test_one_slow_piece_of_work_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "AHEAD", 50)
    done: list[int] = []

    async def go() -> None:
        gate = asyncio.Event()

        async def work(number: int) -> int:
            if number == 3:
                await gate.wait()
            done.append(number)
            return number

        async def collect() -> list[int]:
            return [each async for each in ordered(stream(range(1000)), work, window=lambda: 4, grace=1)]

        collecting = asyncio.create_task(collect())
        for _ in range(2000):
            await asyncio.sleep(0)
        assert len(done) == 3 + 50 + 4 - 1, "as many go ahead as memory is meant for, and no more"
        gate.set()
        assert await collecting == list(range(1000))

    asyncio.run(go())


def test_an_error_ends_it_and_nothing_new_starts() -> None:
    started: list[int] = []

    async def work(number: int) -> int:
        started.append(number)
        await asyncio.sleep(0)
        if number == 5:
            raise KeyError(number)
        return number

    async def go() -> list[int]:
        made = []
        async with aclosing(ordered(stream(range(1000)), work, window=lambda: 4, grace=1)) as results:
            with pytest.raises(KeyError):
                async for each in results:
                    made.append(each)
        return made

    assert asyncio.run(go()) == [0, 1, 2, 3, 4]
    assert len(started) < 20
