"""Ordered, bounded concurrency: the one place that starts tasks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def stream(items: Iterable[T]) -> AsyncIterator[T]:
    """An iterable as an async iterator."""
    for item in items:
        yield item


async def ordered(
    source: AsyncIterable[T], work: Callable[[T], Awaitable[R]], *, window: int, grace: float
) -> AsyncGenerator[R, None]:
    """`work` over `source`, at most `window` at once, results in the order of the source.

    Memory is bounded by `window`. When one piece of work raises, or the consumer goes away, nothing
    new starts; what is in flight may finish for `grace` seconds (a reply under way may have been paid
    for), then is cancelled, and the first error is raised.
    """
    running: deque[asyncio.Task[R]] = deque()

    async def one(item: T) -> R:
        return await work(item)

    try:
        async for item in source:
            running.append(asyncio.create_task(one(item)))
            while running and (len(running) >= window or running[0].done()):
                yield await _result(running[0])
                running.popleft()
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
