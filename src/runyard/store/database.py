"""The database: one writing connection of one thread, and read-only connections.

SQLite allows one writer at a time, so writers queue here instead of failing with ``database is
locked``. Transactions that queued up during an fsync are committed together (group commit): each in
its own savepoint, one fsync for all, and only then the callers get their results. PostgreSQL is
written to in the same way, since one commit for many is faster there as well.
``runyard.store.engines.sqlite`` and ``runyard.store.engines.postgresql`` hold all differences
between the two.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

from runyard.store import events
from runyard.store.engines.postgresql import PostgreSql, is_value_too_large
from runyard.store.engines.sqlite import Sqlite
from runyard.store.migrate import CannotUpgrade, migrate

log = logging.getLogger(__name__)

T = TypeVar("T")
TransactionFunction = Callable[[Connection], T]

MAX_GROUP_COMMIT = 64
READER_THREADS = 3


class StoreUnavailable(Exception):
    """The database cannot be read or written now (disk full, damaged, unreachable).

    Nothing was committed.

    ``may_pass`` is False where a retry cannot succeed without a change by the operator.
    """

    def __init__(self, message: str, *, may_pass: bool = True):
        super().__init__(message)
        self.may_pass = may_pass


class Store:
    """The open database. ``write`` and ``read`` call a function with a connection.

    ``close`` ends the writer.
    """

    def __init__(self, database: Path | str) -> None:
        """Open a SQLite file or a PostgreSQL URL, and upgrade it to the current schema.

        An older SQLite file is copied before its schema is upgraded.

        Raises:
            StoreUnavailable: it cannot be reached, is damaged, or there is no disk space for the
                copy.
            StoreTooNew: a newer Runyard wrote it.
        """
        self._kind = PostgreSql(database) if isinstance(database, str) else Sqlite(database)
        # Called on the writer's thread with the organizations that have new events, after a commit.
        self.announce_events: Callable[[Collection[str]], None] = lambda orgs: None
        self._queue: queue.SimpleQueue[_QueuedTransaction | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._writing_engine = self._kind.create_writing_engine()
        try:
            migrate(self._writing_engine, self._kind.lock_migrations, self._kind.prepare_upgrade)
            self._writing_connection = self._writing_engine.connect()
        except (DatabaseError, CannotUpgrade) as error:
            message, may_pass = self._kind.describe_open_error(error)
            raise StoreUnavailable(message, may_pass=may_pass) from error
        self._reading_engine = self._kind.create_reading_engine()
        self._reading_connections: list[Connection] = []
        self._pool = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="store-reader")
        # A daemon, so that a process that did not close the store can end: committed data is on
        # disk anyway.
        self._thread = threading.Thread(target=self._write_all, name="store-writer", daemon=True)
        self._thread.start()

    async def write(self, transaction: TransactionFunction[T]) -> T:
        """Run a function in a transaction on the writing connection; return once it is on disk.

        An error of the function rolls its changes back and is raised here. The function must be
        quick: all other writes wait for it.
        """
        return await self._enqueue(transaction, is_alone=False)

    async def _enqueue(self, function: TransactionFunction[T], *, is_alone: bool) -> T:
        if not self._thread.is_alive():
            raise StoreUnavailable("the writer has ended; try: look for its error in the log")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_QueuedTransaction(function, loop, future, is_alone=is_alone))
        # Shielded: a client that disconnects does not roll back what the writer is about to commit.
        return await asyncio.shield(future)

    def read(self, query: TransactionFunction[T]) -> T:
        """Run a quick read on the read-only connection of the calling thread."""
        try:
            return self._read(query)
        except OperationalError as error:
            if not error.connection_invalidated:
                raise StoreUnavailable(str(error.orig)) from error
        except DatabaseError as error:
            raise self._convert_damage(error) from error
        try:
            return self._read(query)  # the database may have been restarted: try a new connection
        except OperationalError as error:
            raise StoreUnavailable(str(error.orig)) from error

    def _convert_damage(self, error: DatabaseError) -> Exception:
        """Return the error to raise for a read: StoreUnavailable if the database is damaged."""
        if not self._kind.is_damage(error):
            return error
        return StoreUnavailable(f"the database is damaged ({error.orig})", may_pass=False)

    def _read(self, query: TransactionFunction[T]) -> T:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._reading_engine.connect()
            self._local.connection = connection
            self._reading_connections.append(connection)
        try:
            return query(connection)
        except DBAPIError:
            connection.rollback()  # without it SQLAlchemy does not reconnect a broken connection
            raise

    @property
    def is_local(self) -> bool:
        """Whether a read needs no network, so that a short one may block the event loop."""
        return isinstance(self._kind, Sqlite)

    async def read_in_thread(self, query: TransactionFunction[T]) -> T:
        """Run a slower read on a reader thread, so that it does not block the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read, query)

    async def read_snapshot_in_thread(self, query: TransactionFunction[T]) -> T:
        """Run reads on a reader thread that all see the database as of the first of them."""

        def read(connection: Connection) -> T:
            connection.exec_driver_sql(self._kind.BEGIN_SNAPSHOT)
            try:
                return query(connection)
            finally:
                connection.exec_driver_sql("ROLLBACK")

        return await self.read_in_thread(read)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Yield a separate connection that sees the database as of its first read.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        engine = self._kind.create_snapshot_engine()
        try:
            with engine.connect() as connection, connection.begin():
                yield connection
        except OperationalError as error:
            raise StoreUnavailable(str(error.orig)) from error
        finally:
            engine.dispose()

    async def reclaim(self) -> int:
        """Return free space of the database to the disk, step by step between writes.

        Return the bytes.
        """
        freed = 0
        while step_bytes := await self._run_alone(self._kind.reclaim):
            freed += step_bytes
        return freed

    async def compact(self) -> None:
        """Rebuild a database that cannot return space step by step; all writes wait for it.

        Raises:
            StoreUnavailable: there is not enough disk space.
        """
        await self._run_alone(self._kind.compact)

    def reclaimable_bytes(self) -> int | None:
        """Return how much ``reclaim`` or ``compact`` would free.

        None where the database frees its space itself.
        """
        return self.read(self._kind.reclaimable_bytes)

    async def _run_alone(self, function: TransactionFunction[T]) -> T:
        """Run a function on the writing connection outside of any transaction."""
        return await self._enqueue(function, is_alone=True)

    def reset_sequences(self, connection: Connection) -> None:
        """Let generated numbers continue after those of inserted rows.

        Part of the same transaction.
        """
        self._kind.reset_sequences(connection)

    def close(self) -> None:
        """Commit what is queued, and close every connection."""
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
            while queued := self._take_queued():
                if together := [each for each in queued if not each.is_alone]:
                    self.announce_events(_commit_together(connection, together, self._kind))
                for each in queued:
                    if each.is_alone:
                        _run_outside_transaction(connection, each)

    def _take_queued(self) -> list["_QueuedTransaction"]:
        """Wait for a queued transaction; return all that are queued, none when the store closes."""
        first = self._queue.get()
        if first is None:
            return []
        taken = [first]
        while len(taken) < MAX_GROUP_COMMIT:
            try:
                queued = self._queue.get_nowait()
            except queue.Empty:
                break
            if queued is None:
                self._queue.put(None)  # close after these
                break
            taken.append(queued)
        return taken


class _QueuedTransaction:
    """A function that waits for the writer, and the future of its caller."""

    __slots__ = ("error", "function", "future", "is_alone", "loop", "result")

    def __init__(
        self,
        function: TransactionFunction[Any],
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        *,
        is_alone: bool,
    ) -> None:
        self.function, self.loop, self.future, self.is_alone = function, loop, future, is_alone
        self.result: Any = None
        self.error: BaseException | None = None

    def set_future(self) -> None:
        if self.future.done():  # its caller was canceled
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _commit_together(
    connection: Connection, queued: list[_QueuedTransaction], kind: Sqlite | PostgreSql
) -> Collection[str]:
    """Commit all, and set their results; return the organizations that have new events."""
    try:
        return _commit_with_retries(connection, queued, kind)
    except DatabaseError as error:
        # The transaction as a whole did not reach the disk, so none of its parts did.
        _fail_all(queued, StoreUnavailable(str(error.orig)))
        return ()
    except BaseException as error:
        # A bug that ends the writer: without an error the callers would wait forever.
        _fail_all(queued, StoreUnavailable(f"the writer failed: {error!r}"))
        raise
    finally:
        for each in queued:
            _schedule_result(each)


def _run_outside_transaction(connection: Connection, queued: _QueuedTransaction) -> None:
    try:
        queued.result = queued.function(connection)
    except (sqlite3.Error, DBAPIError, OSError) as error:
        queued.error = StoreUnavailable(str(error))
    except Exception as error:
        queued.error = error
    finally:
        _schedule_result(queued)


def _commit_with_retries(
    connection: Connection, queued: list[_QueuedTransaction], kind: Sqlite | PostgreSql
) -> Collection[str]:
    """Run all in one transaction.

    Repeat it when the database aborted it in favor of another one, which usually has advanced the
    counter of the same events; then let that one's server wait.
    """
    for tries_left in reversed(range(kind.max_tries)):
        try:
            with connection.begin():
                if tries_left + 1 < kind.max_tries:
                    kind.lock_writers(connection)
                events.replace_recorded(connection, ())
                for each in queued:
                    _run_in_savepoint(connection, each, kind)
                orgs = events.write_recorded(connection)
            return orgs
        except DBAPIError as error:
            if tries_left == 0 or not kind.is_retryable(error):
                raise
    return ()


def _fail_all(queued: list[_QueuedTransaction], error: StoreUnavailable) -> None:
    for each in queued:
        each.error = each.error or error


def _schedule_result(queued: _QueuedTransaction) -> None:
    try:
        queued.loop.call_soon_threadsafe(queued.set_future)
    except RuntimeError:
        log.warning("a transaction was run for an event loop that has ended")


def _run_in_savepoint(
    connection: Connection, queued: _QueuedTransaction, kind: Sqlite | PostgreSql
) -> None:
    queued.result = queued.error = None
    recorded = events.list_recorded(connection)
    savepoint = kind.begin_savepoint(connection)
    try:
        queued.result = queued.function(connection)
    except Exception as error:
        # The disk failed, not the function: the transaction as a whole is in doubt.
        if isinstance(error, OperationalError) and not is_value_too_large(error):
            raise
        if isinstance(error, DatabaseError) and kind.is_damage(error):
            raise
        savepoint.rollback()
        events.replace_recorded(connection, recorded)
        queued.error = error
    else:
        savepoint.commit()
