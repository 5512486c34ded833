"""Sleep, callbacks, bounded concurrency and connection scopes of the synchronous client.

Only ``for_each`` starts threads; everything else runs in the caller's thread.
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


def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run the function in the caller's thread."""
    return function(*args, **kwargs)


def call_listener(listener: Callable[[T], Any], value: T) -> None:
    """Call a user's callback."""
    listener(value)


def for_each(
    items: Iterable[T],
    process: Callable[[T], None],
    *,
    max_concurrency: int,
    on_tick: Callable[[], None],
    tick_interval_s: float = 0.2,
) -> None:
    """Process every item, at most ``max_concurrency`` at a time.

    ``on_tick`` is called in the caller's thread every ``tick_interval_s`` seconds and at the end.
    An item is fetched only when a thread is free for it. The first exception stops the remaining
    work and is raised. KeyboardInterrupt is raised at once, while threads finish their current
    item.
    """
    waiting, lock = iter(items), threading.Lock()
    failures: list[BaseException] = []
    stopped = threading.Event()

    def work() -> None:
        try:
            while not stopped.is_set():
                with lock:  # an iterator must not be advanced by two threads at once
                    item = next(waiting, stopped)
                if item is stopped:
                    return
                process(item)  # type: ignore[arg-type]
        except BaseException as error:  # raised again below, in the caller's thread
            failures.append(error)
            stopped.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(max_concurrency)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(tick_interval_s)
                on_tick()
    finally:
        stopped.set()
    if failures:
        raise failures[0]


ConnectionScope: TypeAlias = int


def current_scope() -> ConnectionScope:
    """Return the owner of connections: this process."""
    return os.getpid()


def drop_closed_scopes(transports: dict[ConnectionScope, Any]) -> None:
    """Do nothing: connections of a parent process remain in use by it."""


class Closable(Protocol):
    """Object that holds connections."""

    def close(self) -> None: ...


def close_on_finalize(owner: object, transports: dict[int, Any]) -> None:
    """Close this process's connections when their owner is garbage-collected unclosed."""
    weakref.finalize(owner, _close_own, transports)


def _close_own(transports: dict[int, Closable]) -> None:
    transport = transports.pop(os.getpid(), None)
    if transport is not None:
        transport.close()
