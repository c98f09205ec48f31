"""Ordered, bounded concurrency: the one place that starts tasks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

AHEAD, BREATH = 1024, 32
T = TypeVar("T")
R = TypeVar("R")


async def stream(items: Iterable[T]) -> AsyncIterator[T]:
    """An iterable as an async iterator."""
    for item in items:
        yield item


async def ordered(
    source: AsyncIterable[T], work: Callable[[T], Coroutine[Any, Any, R]], *, window: int, grace: float
) -> AsyncGenerator[R, None]:
    """`work` over `source`, at most `window` at once, results in the order of the source.

    Up to `AHEAD` results wait for an earlier one, so that one slow piece of work does not hold up all others; that and
    `window` bound the memory. When one piece of work raises, or the consumer goes away, nothing new starts; what is in
    flight may finish for `grace` seconds (a reply under way may have been paid for), then is cancelled, and the first
    error is raised.
    """
    running: deque[asyncio.Task[R]] = deque()
    busy = 0
    freed: asyncio.Future[None] | None = None

    def done(_: asyncio.Task[R]) -> None:
        nonlocal busy
        busy -= 1
        if freed is not None and not freed.done():
            freed.set_result(None)

    try:
        async for item in source:
            task = asyncio.create_task(work(item))
            task.add_done_callback(done)
            running.append(task)
            busy += 1
            if len(running) % BREATH == 0:
                await asyncio.sleep(0)  # a source that never waits would keep the first from starting
            while running and (running[0].done() or busy >= window or len(running) >= window + AHEAD):
                if running[0].done() or len(running) >= window + AHEAD:
                    yield await _result(running[0])
                    running.popleft()
                else:
                    freed = asyncio.get_running_loop().create_future()
                    await freed
        while running:
            yield await _result(running[0])
            running.popleft()
    finally:
        await settle(running, grace)


async def _result(task: asyncio.Task[R]) -> R:
    # Shielded, so that a cancelled consumer leaves the work to the grace period.
    return task.result() if task.done() else await asyncio.shield(task)


async def settle(tasks: Iterable[asyncio.Task[R]], grace: float) -> None:
    """Give `tasks` up to `grace` seconds to finish, then cancel what is left; errors are not raised."""
    left = [task for task in tasks if not task.done()]
    if left:
        _, late = await asyncio.wait(left, timeout=grace)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()
