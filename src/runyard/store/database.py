"""Opens the database: one writing connection that one thread owns, read-only connections for everybody else.

SQLite allows one writer at a time, so writers queue here instead of meeting ``database is locked``. What has queued up
while the last transaction was being fsynced is committed together: each piece of work in a savepoint of its own, one
fsync for all, and only then is anybody told. ``synchronous=FULL`` makes that answer survive loss of power. The writing
connection alone checkpoints the write-ahead log; the readers cannot write at all.

Everything that only SQLite knows stands in this module.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool

from runyard.store.migrate import migrate

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Connection], T]

MAX_TOGETHER = 64
READERS = 3


class StoreUnavailable(Exception):
    """The database cannot be read or written now (disk full, read-only, damaged); nothing was acknowledged."""


class Store:
    """The open database. ``write`` and ``read`` run a function of a connection; ``close`` ends the writer."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._writing_engine = _writing_engine(path)
        migrate(self._writing_engine)
        self._reading_engine = _reading_engine(path)
        self._reading_connections: list[Connection] = []
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        # A daemon, so that a process which forgot to close can end: what was acknowledged is on disk all the same.
        self._thread = threading.Thread(target=self._write_all, name="store-writer", daemon=True)
        self._thread.start()

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction on the writing connection; returns once it is on disk.

        What ``work`` raises undoes it and is raised here. It must be quick: everybody else's writes wait for it.
        """
        if not self._thread.is_alive():
            raise StoreUnavailable("the writer has ended; its last error is in the log")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Job(work, loop, future))
        # Shielded, since a client that goes away does not undo what the writer is about to commit.
        return await asyncio.shield(future)

    def read(self, work: Work[T]) -> T:
        """Run a quick read on the calling thread's own read-only connection."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._reading_engine.connect()
            self._local.connection = connection
            self._reading_connections.append(connection)
        try:
            return work(connection)
        except OperationalError as error:
            raise StoreUnavailable(str(error.orig)) from error

    async def read_aside(self, work: Work[T]) -> T:
        """Run a read that may take milliseconds on a thread of its own, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read, work)

    def close(self) -> None:
        """Commit what is queued and close every connection."""
        self._pool.shutdown()
        for connection in self._reading_connections:
            connection.close()
        self._reading_engine.dispose()
        # Last, since only the writing connection may fold the write-ahead log into the database.
        self._queue.put(None)
        self._thread.join()
        self._writing_engine.dispose()

    def _write_all(self) -> None:
        with self._writing_engine.connect() as connection:
            while jobs := self._next_jobs():
                _commit_together(connection, jobs)

    def _next_jobs(self) -> list["_Job"]:
        """What waits now, at least one; empty when the store closes."""
        first = self._queue.get()
        if first is None:
            return []
        jobs = [first]
        while len(jobs) < MAX_TOGETHER:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._queue.put(None)  # close after these
                break
            jobs.append(job)
        return jobs


class _Job:
    """A piece of work, and whom to tell how it went."""

    __slots__ = ("error", "future", "loop", "result", "work")

    def __init__(self, work: Work[Any], loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self.work, self.loop, self.future = work, loop, future
        self.result: Any = None
        self.error: BaseException | None = None

    def tell(self) -> None:
        if self.future.done():  # its waiter was cancelled
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _commit_together(connection: Connection, jobs: list[_Job]) -> None:
    try:
        with connection.begin():
            for job in jobs:
                _run(connection, job)
    except DatabaseError as error:
        # The transaction as a whole did not reach the disk, so nobody may believe that theirs did.
        _fail(jobs, StoreUnavailable(str(error.orig)))
    except BaseException as error:
        # A mistake of ours that ends the writer; those who wait must hear of it, or they would wait for ever.
        _fail(jobs, StoreUnavailable(f"the writer failed: {error!r}"))
        raise
    finally:
        for job in jobs:
            _tell(job)


def _fail(jobs: list[_Job], error: StoreUnavailable) -> None:
    for job in jobs:
        job.error = job.error or error


def _tell(job: _Job) -> None:
    try:
        job.loop.call_soon_threadsafe(job.tell)
    except RuntimeError:
        log.warning("work was done for an event loop that has ended")


def _run(connection: Connection, job: _Job) -> None:
    savepoint = connection.begin_nested()
    try:
        job.result = job.work(connection)
    except OperationalError:
        raise  # the disk, not the work: all of the transaction is in doubt
    except Exception as error:
        savepoint.rollback()
        job.error = error
    else:
        savepoint.commit()


def _writing_engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # sqlite3 shall not begin transactions on its own
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _reading_engine(path: Path) -> Engine:
    return create_engine(
        f"sqlite:///file:{path}?mode=ro&uri=true",
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"check_same_thread": False, "timeout": 5.0},
    )
