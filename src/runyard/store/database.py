"""Opens the database: one writing connection that one thread owns, read-only connections for everybody else.

SQLite allows one writer at a time, so writers queue here instead of meeting ``database is locked``. What has queued up
while the last transaction was being fsynced is committed together: each piece of work in a savepoint of its own, one
fsync for all, and only then is anybody told. PostgreSQL is written to in the same way, since one commit for many is
quicker there as well; ``runyard.store.sqlite`` and ``runyard.store.postgresql`` hold all in which the two differ.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

from runyard.store.migrate import CannotUpgrade, migrate
from runyard.store.postgresql import PostgreSql, is_about_a_value
from runyard.store.sqlite import Sqlite

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Connection], T]

MAX_TOGETHER = 64
READERS = 3


class StoreUnavailable(Exception):
    """The database cannot be read or written now (disk full, damaged, away); nothing was acknowledged.

    ``may_pass`` is False where trying again cannot help before somebody has changed something.
    """

    def __init__(self, message: str, *, may_pass: bool = True):
        super().__init__(message)
        self.may_pass = may_pass


class Store:
    """The open database. ``write`` and ``read`` run a function of a connection; ``close`` ends the writer."""

    def __init__(self, database: Path | str) -> None:
        """Open a SQLite file, or the PostgreSQL database of a URL, and bring it to this code's schema.

        An older SQLite file is copied before its schema is upgraded.

        Raises:
            StoreUnavailable: it cannot be reached, it is damaged, or there is no room for the copy.
            StoreTooNew: a newer Runyard wrote it.
        """
        self._kind = PostgreSql(database) if isinstance(database, str) else Sqlite(database)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._writing_engine = self._kind.writing_engine()
        try:
            migrate(self._writing_engine, self._kind.lock_migrations, self._kind.prepare_upgrade)
            self._writing_connection = self._writing_engine.connect()
        except (DatabaseError, CannotUpgrade) as error:
            message, may_pass = self._kind.describe_open_error(error)
            raise StoreUnavailable(message, may_pass=may_pass) from error
        self._reading_engine = self._kind.reading_engine()
        self._reading_connections: list[Connection] = []
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        # A daemon, so that a process which forgot to close can end: what was acknowledged is on disk all the same.
        self._thread = threading.Thread(target=self._write_all, name="store-writer", daemon=True)
        self._thread.start()

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction on the writing connection; returns once it is on disk.

        What ``work`` raises undoes it and is raised here. It must be quick: everybody else's writes wait for it.
        """
        return await self._queued(work, is_alone=False)

    async def _queued(self, work: Work[T], *, is_alone: bool) -> T:
        if not self._thread.is_alive():
            raise StoreUnavailable("the writer has ended; its last error is in the log")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Job(work, loop, future, is_alone=is_alone))
        # Shielded, since a client that goes away does not undo what the writer is about to commit.
        return await asyncio.shield(future)

    def read(self, work: Work[T]) -> T:
        """Run a quick read on the calling thread's own read-only connection."""
        try:
            return self._read(work)
        except OperationalError as error:
            if not error.connection_invalidated:
                raise StoreUnavailable(str(error.orig)) from error
        except DatabaseError as error:
            raise self._as_damage(error) from error
        try:
            return self._read(work)  # the database has been restarted since: a new connection may find it
        except OperationalError as error:
            raise StoreUnavailable(str(error.orig)) from error

    def _as_damage(self, error: DatabaseError) -> Exception:
        """Return the error to raise to a reader: a damaged database is reported as such."""
        if not self._kind.is_damage(error):
            return error
        return StoreUnavailable(f"the database is damaged ({error.orig})", may_pass=False)

    def _read(self, work: Work[T]) -> T:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._reading_engine.connect()
            self._local.connection = connection
            self._reading_connections.append(connection)
        try:
            return work(connection)
        except DBAPIError:
            connection.rollback()  # without it a connection that broke could not be made anew
            raise

    async def read_aside(self, work: Work[T]) -> T:
        """Run a read that may take milliseconds on a thread of its own, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read, work)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection of its own on which everything is as it was at the first read, however long it takes.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        engine = self._kind.snapshot_engine()
        try:
            with engine.connect() as connection, connection.begin():
                yield connection
        except OperationalError as error:
            raise StoreUnavailable(str(error.orig)) from error
        finally:
            engine.dispose()

    async def reclaim(self) -> int:
        """Give free space of the database back to its disk, a piece at a time between writes; returns the bytes."""
        freed = 0
        while piece := await self._alone(self._kind.reclaim):
            freed += piece
        return freed

    async def compact(self) -> None:
        """Rebuild a database that cannot give space back piece by piece; all writes wait for it.

        Raises:
            StoreUnavailable: there is no room for it.
        """
        await self._alone(self._kind.compact)

    def reclaimable_bytes(self) -> int | None:
        """Return how much ``reclaim`` or ``compact`` would free; None where the database frees its space itself."""
        return self.read(self._kind.reclaimable_bytes)

    async def _alone(self, work: Work[T]) -> T:
        """Run ``work`` on the writing connection outside of any transaction."""
        return await self._queued(work, is_alone=True)

    def follow_numbers(self, connection: Connection) -> None:
        """After rows came with numbers of their own, in the same transaction: the next ones get numbers after them."""
        self._kind.follow_numbers(connection)

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
        with self._writing_connection as connection:
            while jobs := self._next_jobs():
                if together := [job for job in jobs if not job.is_alone]:
                    _commit_together(connection, together, self._kind)
                for job in jobs:
                    if job.is_alone:
                        _run_alone(connection, job)

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

    __slots__ = ("error", "future", "is_alone", "loop", "result", "work")

    def __init__(
        self, work: Work[Any], loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], *, is_alone: bool
    ) -> None:
        self.work, self.loop, self.future, self.is_alone = work, loop, future, is_alone
        self.result: Any = None
        self.error: BaseException | None = None

    def tell(self) -> None:
        if self.future.done():  # its waiter was cancelled
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _commit_together(connection: Connection, jobs: list[_Job], kind: Sqlite | PostgreSql) -> None:
    try:
        _commit(connection, jobs, kind)
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


def _run_alone(connection: Connection, job: _Job) -> None:
    try:
        job.result = job.work(connection)
    except (sqlite3.Error, DBAPIError, OSError) as error:
        job.error = StoreUnavailable(str(error))
    except Exception as error:
        job.error = error
    finally:
        _tell(job)


def _commit(connection: Connection, jobs: list[_Job], kind: Sqlite | PostgreSql) -> None:
    """Run everything in one transaction; again when the database undid it because of somebody else's."""
    for tries_left in reversed(range(kind.times_to_try)):
        try:
            with connection.begin():
                for job in jobs:
                    _run(connection, job, kind)
            return
        except DBAPIError as error:
            if tries_left == 0 or not kind.is_worth_repeating(error):
                raise


def _fail(jobs: list[_Job], error: StoreUnavailable) -> None:
    for job in jobs:
        job.error = job.error or error


def _tell(job: _Job) -> None:
    try:
        job.loop.call_soon_threadsafe(job.tell)
    except RuntimeError:
        log.warning("work was done for an event loop that has ended")


def _run(connection: Connection, job: _Job, kind: Sqlite | PostgreSql) -> None:
    job.result = job.error = None
    savepoint = connection.begin_nested()
    try:
        job.result = job.work(connection)
    except Exception as error:
        # The disk, not the work: all of the transaction is in doubt.
        if isinstance(error, OperationalError) and not is_about_a_value(error):
            raise
        if isinstance(error, DatabaseError) and kind.is_damage(error):
            raise
        savepoint.rollback()
        job.error = error
    else:
        savepoint.commit()
