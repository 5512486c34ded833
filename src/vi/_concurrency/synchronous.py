"""Sleeping, threads, callbacks and the end of connections for the synchronous client: all happens here and now."""

import os
import time
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

sleep = time.sleep


def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run the function."""
    return function(*args, **kwargs)


def tell(listener: Callable[[T], Any], news: T) -> None:
    """Call a user's function."""
    listener(news)


class Closable(Protocol):
    """What holds connections."""

    def close(self) -> None: ...


def close_with(owner: object, transports: dict[int, Any]) -> None:
    """Close this process's connections when their owner is forgotten without having been closed."""
    weakref.finalize(owner, _close_own, transports)


def _close_own(transports: dict[int, Closable]) -> None:
    transport = transports.pop(os.getpid(), None)
    if transport is not None:
        transport.close()
