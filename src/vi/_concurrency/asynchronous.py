"""Sleeping, threads, callbacks and the end of connections for the asynchronous client."""

import asyncio
import inspect
from collections.abc import Callable
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


def close_with(owner: object, transports: object) -> None:
    """Nothing: closing asynchronously needs an event loop, which need not live as long as the owner."""
