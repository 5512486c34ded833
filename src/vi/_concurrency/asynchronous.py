"""Sleeping, threads, callbacks, doing many things at once, and the end of connections for the asynchronous client."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

sleep = asyncio.sleep


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what works on files for a while, without holding up the event loop."""
    return await asyncio.to_thread(function, *args, **kwargs)


async def tell(listener: Callable[[T], Any], news: T) -> None:
    """Call a user's function, which may be a coroutine function here."""
    answer = listener(news)
    if inspect.isawaitable(answer):
        await answer


async def for_each(
    items: Iterable[T],
    do: Callable[[T], Awaitable[None]],
    *,
    at_once: int,
    tick: Callable[[], Awaitable[None]],
    every_s: float = 0.2,
) -> None:
    """Do something with every item, so many at once; ``tick`` is called meanwhile, and at the end.

    An item is taken only when somebody is free for it. The first failure ends the rest and is raised.
    """
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await do(item)

    tasks = {asyncio.create_task(work()) for _ in range(at_once)}
    pending = tasks
    try:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=every_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            await tick()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def close_with(owner: object, transports: object) -> None:
    """Nothing: closing asynchronously needs an event loop, which need not live as long as the owner."""
