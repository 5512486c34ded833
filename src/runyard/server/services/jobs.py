"""Background work that continues after its request was answered: imports, exports, bulk deletions.

A job is a row that says what is to be done, and a task that does it. The row is authoritative. The
sweep, at the start and every minute, starts a task for every unfinished row that has none. So a job
that failed, was canceled or ended with its server resumes from its row. At most one task works on a
row.
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

# Worker processes: for imports whose files have all arrived, and for those that still receive some.
WORKERS, EARLY_WORKERS = 2, 2

Key = tuple[str, str, str]  # kind of job, organization, id


T = TypeVar("T")
P = ParamSpec("P")


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function on a thread. A caller that is canceled waits for its end.

    A thread cannot be interrupted: it would still read the database while that is closed, or write
    into a folder that is being removed.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


class Jobs:
    """The running tasks; belongs to the event loop's thread and ends with the application."""

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._is_closed = False
        self.workers = asyncio.Semaphore(WORKERS)
        self.early_workers = asyncio.Semaphore(EARLY_WORKERS)

    def lock(self, org: str, dataset_id: str) -> asyncio.Lock:
        """Return the lock for changing many rows of a dataset, or reading all of them at once."""
        key = (org, dataset_id)
        found = self._locks.get(key)
        if found is None:
            found = self._locks[key] = asyncio.Lock()
        return found

    def start(self, key: Key, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task for a row, unless one is running."""
        if key in self._tasks or self._is_closed:
            return
        task = asyncio.create_task(self._run(key, work), name="/".join(key))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def is_running(self, key: Key) -> bool:
        return key in self._tasks

    async def stop(self, key: Key) -> None:
        """Cancel a task and wait until it has ended; the row stays."""
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def wait_until_idle(self) -> None:
        """Wait until no task is left; for tests and for a restore."""
        while tasks := list(self._tasks.values()):
            await asyncio.wait(tasks)

    async def stop_all(self) -> None:
        """Cancel every task and wait."""
        for key in list(self._tasks):
            await self.stop(key)

    async def close(self) -> None:
        """Cancel every task, and accept no further ones."""
        self._is_closed = True
        await self.stop_all()

    async def _run(self, key: Key, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except (OSError, BlobError, StoreUnavailable, Refusal) as error:
            log.error("job %s is postponed: %s", "/".join(key), error)  # the sweep retries it
        except Exception:
            log.exception("job %s failed; it will be retried", "/".join(key))
