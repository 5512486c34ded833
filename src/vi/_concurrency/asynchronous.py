"""Sleep, threads, callbacks and connection scopes of the asynchronous client."""

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


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function, such as file access, in a thread."""
    return await asyncio.to_thread(function, *args, **kwargs)


async def call_listener(listener: Callable[[T], Any], value: T) -> None:
    """Call a user's callback, which may be a coroutine function."""
    result = listener(value)
    if inspect.isawaitable(result):
        await result


async def for_each(
    items: Iterable[T],
    process: Callable[[T], Awaitable[None]],
    *,
    max_concurrency: int,
    on_tick: Callable[[], Awaitable[None]],
    tick_interval_s: float = 0.2,
) -> None:
    """Process every item, at most ``max_concurrency`` at a time.

    ``on_tick`` is called every ``tick_interval_s`` seconds and at the end. An item is fetched only
    when a task is free for it. The first exception cancels the remaining work and is raised.
    """
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await process(item)

    tasks = {asyncio.create_task(work()) for _ in range(max_concurrency)}
    pending = tasks
    try:
        while pending:
            done, pending = await asyncio.wait(
                pending, timeout=tick_interval_s, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()
            await on_tick()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


ConnectionScope: TypeAlias = tuple[int, int]
_loops: "WeakKeyDictionary[asyncio.AbstractEventLoop, int]" = WeakKeyDictionary()
_numbers = itertools.count()


def current_scope() -> ConnectionScope:
    """Return the owner of connections: this process and the running event loop.

    Loop numbers are never reused, unlike ``id(loop)``.
    """
    loop = asyncio.get_running_loop()
    number = _loops.get(loop)
    if number is None:
        number = _loops.setdefault(loop, next(_numbers))
    return os.getpid(), number


def drop_closed_scopes(transports: dict[ConnectionScope, Any]) -> None:
    """Drop connections of closed event loops, which can be neither used nor closed any more."""
    open_loops = {number for loop, number in list(_loops.items()) if not loop.is_closed()}
    for scope in list(transports):
        if scope[1] not in open_loops:
            transports.pop(scope, None)


def close_on_finalize(owner: object, transports: object) -> None:
    """Do nothing: an asynchronous close needs an event loop, which may be gone by then."""
