"""Sleeping, threads, callbacks, doing many things at once, and the end of connections for the asynchronous client."""

import asyncio
import inspect
import itertools
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ParamSpec, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

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


Place: TypeAlias = tuple[int, int]
_loops: "WeakKeyDictionary[asyncio.AbstractEventLoop, int]" = WeakKeyDictionary()
_numbers = itertools.count()


def current_place() -> Place:
    """Return what connections belong to: this process, and the event loop that runs. Numbers are not used twice."""
    loop = asyncio.get_running_loop()
    number = _loops.get(loop)
    if number is None:
        number = _loops.setdefault(loop, next(_numbers))
    return os.getpid(), number


def forget_gone(transports: dict[Place, Any]) -> None:
    """Drop connections of event loops that are closed: nobody can close them any more, and nobody uses them."""
    alive = {number for loop, number in list(_loops.items()) if not loop.is_closed()}
    for place in list(transports):
        if place[1] not in alive:
            transports.pop(place, None)


def close_with(owner: object, transports: object) -> None:
    """Nothing: closing asynchronously needs an event loop, which need not live as long as the owner."""
