"""Work that goes on after its request was answered: imports, exports, deletions of many things.

A job is a row that says what is to be done, and a task that does it. The row is the truth: the sweep, at the start and
every minute, starts a task for every row that is not done and has none, so a job that failed, was cut off or died with
its server goes on where its row says. At most one task works at a row.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from runyard.blobs import BlobError
from runyard.server.services.errors import Refusal
from runyard.store import StoreUnavailable

log = logging.getLogger(__name__)

# Processes that look at files: those whose files are all here, and those that begin while files still come.
WORKERS, EARLY_WORKERS = 2, 2

Key = tuple[str, str, str]  # kind of job, organisation, id


T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what blocks on a thread. Whoever is cancelled meanwhile waits for its end.

    A thread cannot be broken off: it would still read the database while that is closed, or write into a folder that
    is being removed.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


class Jobs:
    """The tasks; belongs to the event loop's thread and ends with the application."""

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._is_closed = False
        self.workers = asyncio.Semaphore(WORKERS)
        self.early_workers = asyncio.Semaphore(EARLY_WORKERS)

    def lock(self, org: str, dataset_id: str) -> asyncio.Lock:
        """Held by whoever changes many rows of a dataset, or needs all of them as they are at one moment."""
        key = (org, dataset_id)
        found = self._locks.get(key)
        if found is None:
            found = self._locks[key] = asyncio.Lock()
        return found

    def start(self, key: Key, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Work at a row, unless a task does so already."""
        if key in self._tasks or self._is_closed:
            return
        task = asyncio.create_task(self._run(key, work), name="/".join(key))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def is_running(self, key: Key) -> bool:
        return key in self._tasks

    async def stop(self, key: Key) -> None:
        """Break a task off and wait until it has ended; the row stays."""
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def settled(self) -> None:
        """Wait until no task is left; for tests and for a restore."""
        while tasks := list(self._tasks.values()):
            await asyncio.wait(tasks)

    async def stop_all(self) -> None:
        """Break every task off and wait."""
        for key in list(self._tasks):
            await self.stop(key)

    async def close(self) -> None:
        self._is_closed = True
        await self.stop_all()

    async def _run(self, key: Key, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except (OSError, BlobError, StoreUnavailable, Refusal) as error:
            log.error("job %s is put off: %s", "/".join(key), error)  # the sweep comes back for it
        except Exception:
            log.exception("job %s failed; it is tried again", "/".join(key))
