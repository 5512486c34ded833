"""Sleeping, threads, callbacks and the end of connections for the synchronous client: all happens here and now.

Only ``for_each`` needs threads; there are none outside of it.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

sleep = time.sleep


def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run the function."""
    return function(*args, **kwargs)


def tell(listener: Callable[[T], Any], news: T) -> None:
    """Call a user's function."""
    listener(news)


def for_each(
    items: Iterable[T],
    do: Callable[[T], None],
    *,
    at_once: int,
    tick: Callable[[], None],
    every_s: float = 0.2,
) -> None:
    """Do something with every item, so many at once; ``tick`` is called meanwhile in this thread, and at the end.

    An item is taken only when somebody is free for it. The first failure ends the rest and is raised. An interrupt is
    raised at once: what the threads are at then comes to its end behind the caller's back.
    """
    waiting, taking = iter(items), threading.Lock()
    failures: list[BaseException] = []
    is_over = threading.Event()

    def work() -> None:
        try:
            while not is_over.is_set():
                with taking:
                    item = next(waiting, is_over)
                if item is is_over:
                    return
                do(item)  # type: ignore[arg-type]
        except BaseException as error:  # raised again below, in the thread of the caller
            failures.append(error)
            is_over.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(every_s)
                tick()
    finally:
        is_over.set()
    if failures:
        raise failures[0]


Place: TypeAlias = int


def current_place() -> Place:
    """Return what connections belong to: this process."""
    return os.getpid()


def forget_gone(transports: dict[Place, Any]) -> None:
    """Nothing: connections of a parent process stay open for it."""


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
