"""SQLite: everything in which it differs from PostgreSQL.

``synchronous=FULL`` makes a committed write survive a loss of power. Only the writing connection
checkpoints the write-ahead log; readers cannot write. The file is created with mode 0600 before
SQLite opens it, and SQLite gives its companion files (``-wal``, ``-shm``) the same mode.
"""

import contextlib
import errno
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from runyard.rundir import free_bytes, fsync_dir
from runyard.store.migrate import CannotUpgrade

log = logging.getLogger(__name__)

_PRAGMAS = ("synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON")
AUTO_VACUUM_INCREMENTAL = 2  # the value of ``PRAGMA auto_vacuum``
RECLAIM_STEP_BYTES = 8 << 20  # writes wait for each step
MIN_FREE_BYTES = 1 << 20  # soon reused, so it is not returned
COPIES_DIR_NAME = "backups"  # the folder of copies, next to the database
MAX_COPIES = 3
PAGES_PER_STEP = 4096
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
NEEDS_ACCESS = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


class Sqlite:
    """A database in a file."""

    BEGIN_SNAPSHOT = "BEGIN"
    # One writer at a time: transactions cannot conflict, so none is repeated.
    max_tries = 1

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        self._path = path

    def create_writing_engine(self) -> Engine:
        engine = create_engine(
            f"sqlite:///{self._path}", poolclass=NullPool, connect_args={"check_same_thread": False}
        )

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # sqlite3 must not begin transactions itself
            # The first takes effect only in a new database; ``compact`` applies it to an older one.
            for pragma in ("auto_vacuum=INCREMENTAL", "journal_mode=WAL", *_PRAGMAS):
                connection.execute(f"PRAGMA {pragma}").close()

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    def create_reading_engine(self) -> Engine:
        return create_engine(
            f"sqlite:///file:{self._path}?mode=ro&uri=true",
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"check_same_thread": False, "timeout": 5.0},
        )

    def create_snapshot_engine(self) -> Engine:
        """Return an engine for long reads: a transaction sees the database as of its first read."""
        engine = create_engine(
            f"sqlite:///file:{self._path}?mode=ro&uri=true",
            poolclass=NullPool,
            connect_args={"check_same_thread": False, "timeout": 5.0},
        )

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # sqlite3 must not begin transactions itself

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return engine

    def reset_sequences(self, connection: Connection) -> None:
        """Do nothing: SQLite continues after the highest number by itself."""

    def begin_savepoint(self, connection: Connection) -> "Savepoint":
        """Begin a part of a transaction that can be rolled back alone."""
        return Savepoint(connection)

    def lock_migrations(self, connection: Connection) -> None:
        """Do nothing: ``BEGIN IMMEDIATE`` has locked the whole database already."""

    def lock_writers(self, connection: Connection) -> None:
        """Do nothing, for the same reason."""

    def prepare_upgrade(self, connection: Connection, version: str, head: str) -> None:
        """Check the database and copy it before its upgrade.

        Remove the oldest copies beyond ``MAX_COPIES``.

        Raises:
            CannotUpgrade: it is damaged, or there is no disk space for the copy.
        """
        result = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if result != "ok":
            raise CannotUpgrade(f"it is damaged ({result})")
        folder = self._path.parent / COPIES_DIR_NAME
        folder.mkdir(mode=0o700, exist_ok=True)
        needed, free = self._path.stat().st_size, free_bytes(folder)
        if needed > free:
            raise CannotUpgrade(
                f"a copy of it before the upgrade from schema {version} to {head} needs "
                f"{needed >> 20} MiB, and {free >> 20} MiB are free at {folder}"
            )
        copy = _choose_copy_path(folder, f"{self._path.stem}-schema-{version}")
        log.info(
            "copying the database before its upgrade from schema %s to %s: %s", version, head, copy
        )
        self._copy_to(copy)
        for old in sorted(folder.glob(f"{self._path.stem}-schema-*.db"), key=_mtime)[:-MAX_COPIES]:
            old.unlink(missing_ok=True)

    def _copy_to(self, copy: Path) -> None:
        """Copy the last committed state; the copy gets its final name once it is on disk."""
        unfinished = copy.with_name(f".{copy.name}.part")
        unfinished.unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with (
            contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(unfinished)) as target,
        ):
            source.backup(target, pages=PAGES_PER_STEP)
        descriptor = os.open(unfinished, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(unfinished, copy)
        fsync_dir(copy.parent)

    def describe_open_error(self, error: Exception) -> tuple[str, bool]:
        """Return why the database cannot be opened, with the fix, and whether that may pass."""
        cause = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        copies = self._path.parent / COPIES_DIR_NAME
        if isinstance(error, CannotUpgrade):
            return (
                f"the database {self._path} cannot be upgraded: {error}; try: free disk space, or "
                f"{_OTHER_FILE}",
                False,
            )
        if code in DAMAGED:
            return (
                f"the database {self._path} is damaged ({cause}); try: put back a copy of it "
                f"({copies} may hold one), or {_OTHER_FILE}",
                False,
            )
        if code in NEEDS_ACCESS:
            return (
                f"the database {self._path} cannot be opened ({cause}); try: let this user read "
                "and write it",
                False,
            )
        if code == sqlite3.SQLITE_FULL:
            return (
                f"the database {self._path} cannot be written ({cause}); try: free space on its "
                "disk",
                True,
            )
        return (
            f"the database {self._path} cannot be opened ({cause}); try: check its disk, and start "
            "again",
            True,
        )

    def reclaim(self, connection: Connection) -> int:
        """Return one step of free space to the disk; return its bytes, 0 when there is too little.

        The write-ahead log is truncated as well, unless a reader of an older state still needs it.
        """
        raw = _driver_connection(connection)
        page_bytes, free = _read_pragma(raw, "page_size"), _read_pragma(raw, "freelist_count")
        pages = min(free - MIN_FREE_BYTES // page_bytes, RECLAIM_STEP_BYTES // page_bytes)
        if _read_pragma(raw, "auto_vacuum") != AUTO_VACUUM_INCREMENTAL or pages <= 0:
            pages = 0
        else:
            raw.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
        if pages or self._wal_bytes() > MIN_FREE_BYTES:
            self._truncate_wal(raw)
        return pages * page_bytes

    def compact(self, connection: Connection) -> None:
        """Rebuild a database without incremental vacuum.

        Needs disk space for a copy of its content.

        Raises:
            OSError: there is not enough disk space.
        """
        raw = _driver_connection(connection)
        if _read_pragma(raw, "auto_vacuum") == AUTO_VACUUM_INCREMENTAL:
            return
        used = (
            _read_pragma(raw, "page_count") - _read_pragma(raw, "freelist_count")
        ) * _read_pragma(raw, "page_size")
        if 2 * used > (free := free_bytes(self._path.parent)):
            raise OSError(
                errno.ENOSPC,
                f"rebuilding the database needs {2 * used >> 20} MiB, {free >> 20} are free",
                self._path,
            )
        raw.execute("VACUUM").fetchall()
        self._truncate_wal(raw)

    def reclaimable_bytes(self, connection: Connection) -> int | None:
        pages = int(connection.exec_driver_sql("PRAGMA freelist_count").scalar_one())
        return max(
            0,
            pages * int(connection.exec_driver_sql("PRAGMA page_size").scalar_one())
            - MIN_FREE_BYTES,
        )

    def _truncate_wal(self, raw: sqlite3.Connection) -> None:
        raw.execute("PRAGMA busy_timeout=0").close()
        try:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            raw.execute("PRAGMA busy_timeout=5000").close()

    def _wal_bytes(self) -> int:
        try:
            return self._path.with_name(f"{self._path.name}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def is_damage(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in DAMAGED

    def is_retryable(self, error: DBAPIError) -> bool:
        return False


class Savepoint:
    """A savepoint, set by the driver: SQLAlchemy takes sixty times as long (71 us against 1.2)."""

    def __init__(self, connection: Connection) -> None:
        self._driver = _driver_connection(connection)
        self._connection = connection
        self._execute("SAVEPOINT transaction_part")

    def commit(self) -> None:
        self._execute("RELEASE transaction_part")

    def rollback(self) -> None:
        self._execute("ROLLBACK TO transaction_part")
        self._execute("RELEASE transaction_part")

    def _execute(self, statement: str) -> None:
        try:
            self._driver.execute(statement).close()
        except sqlite3.Error as error:
            raise DBAPIError.instance(
                statement, (), error, sqlite3.Error, dialect=self._connection.dialect
            ) from error


_OTHER_FILE = "restore a backup into a new --data-dir"


def _driver_connection(connection: Connection) -> sqlite3.Connection:
    """Return the driver's connection, outside of any transaction."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)  # noqa: S101 - the engine was made here
    return raw


def _read_pragma(raw: sqlite3.Connection, name: str) -> int:
    return int(raw.execute(f"PRAGMA {name}").fetchone()[0])


def _choose_copy_path(folder: Path, stem: str) -> Path:
    """Return an unused path for a copy."""
    numbered = (
        folder / (f"{stem}.db" if number == 1 else f"{stem}-{number}.db")
        for number in range(1, 10_000)
    )
    return next(path for path in numbered if not path.exists())


def _mtime(path: Path) -> int:
    return path.stat().st_mtime_ns
