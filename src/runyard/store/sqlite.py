"""Everything that only SQLite knows.

``synchronous=FULL`` makes an acknowledged write survive loss of power. The writing connection alone checkpoints the
write-ahead log; readers cannot write at all. The file is made with mode 0600 before SQLite opens it, and SQLite gives
the files beside it (``-wal``, ``-shm``) the same mode.
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
INCREMENTAL = 2  # as ``PRAGMA auto_vacuum`` says it
RECLAIMED_AT_ONCE_BYTES = 8 << 20  # a piece, for which writes wait
FREE_KEPT_BYTES = 1 << 20  # is soon used again, so giving it back would only be work
COPIES = "backups"  # the folder of copies, next to the database
COPIES_KEPT = 3
PAGES_AT_ONCE = 4096
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
NEEDS_ACCESS = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


class Sqlite:
    """A database file."""

    # One writer at a time: a transaction cannot collide with another, so none is worth repeating.
    times_to_try = 1

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        self._path = path

    def writing_engine(self) -> Engine:
        engine = create_engine(f"sqlite:///{self._path}", poolclass=NullPool, connect_args={"check_same_thread": False})

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # sqlite3 shall not begin transactions on its own
            # The first counts only before a database has its first page; an older one takes it over in ``compact``.
            for pragma in ("auto_vacuum=INCREMENTAL", "journal_mode=WAL", *_PRAGMAS):
                connection.execute(f"PRAGMA {pragma}").close()

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    def reading_engine(self) -> Engine:
        return create_engine(
            f"sqlite:///file:{self._path}?mode=ro&uri=true",
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"check_same_thread": False, "timeout": 5.0},
        )

    def snapshot_engine(self) -> Engine:
        """For long reads: everything read in one transaction is as it was at its first read."""
        engine = create_engine(
            f"sqlite:///file:{self._path}?mode=ro&uri=true",
            poolclass=NullPool,
            connect_args={"check_same_thread": False, "timeout": 5.0},
        )

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # sqlite3 shall not begin transactions on its own

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return engine

    def follow_numbers(self, connection: Connection) -> None:
        """SQLite goes on after the highest number there is by itself."""

    def lock_migrations(self, connection: Connection) -> None:
        """``BEGIN IMMEDIATE`` has locked the whole database already."""

    def prepare_upgrade(self, connection: Connection, version: str, head: str) -> None:
        """Check the database and copy it, before anything of it is changed; older copies beyond a few are removed.

        Raises:
            CannotUpgrade: it is damaged, or there is no room for the copy.
        """
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if verdict != "ok":
            raise CannotUpgrade(f"it is damaged ({verdict})")
        folder = self._path.parent / COPIES
        folder.mkdir(mode=0o700, exist_ok=True)
        needed, free = self._path.stat().st_size, free_bytes(folder)
        if needed > free:
            raise CannotUpgrade(
                f"a copy of it before the upgrade from schema {version} to {head} needs {needed >> 20} MiB, and "
                f"{free >> 20} MiB are free at {folder}"
            )
        copy = _unused(folder, f"{self._path.stem}-schema-{version}")
        log.info("copying the database before its upgrade from schema %s to %s: %s", version, head, copy)
        self._copy_to(copy)
        for old in sorted(folder.glob(f"{self._path.stem}-schema-*.db"), key=_mtime)[:-COPIES_KEPT]:
            old.unlink(missing_ok=True)

    def _copy_to(self, copy: Path) -> None:
        """Copy the database as it was last committed; the copy has its name only once it is on disk."""
        unfinished = copy.with_name(f".{copy.name}.part")
        unfinished.unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with (
            contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(unfinished)) as target,
        ):
            source.backup(target, pages=PAGES_AT_ONCE)
        descriptor = os.open(unfinished, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(unfinished, copy)
        fsync_dir(copy.parent)

    def describe_open_error(self, error: Exception) -> tuple[str, bool]:
        """Return why the database cannot be opened, with the fix, and whether that may pass by itself."""
        cause = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        copies = self._path.parent / COPIES
        if isinstance(error, CannotUpgrade):
            return f"the database {self._path} cannot be upgraded: {error}; try: make room, or {_OTHER_FILE}", False
        if code in DAMAGED:
            return (
                f"the database {self._path} is damaged ({cause}); try: put back a copy of it ({copies} may hold one), "
                f"or {_OTHER_FILE}",
                False,
            )
        if code in NEEDS_ACCESS:
            return f"the database {self._path} cannot be opened ({cause}); try: let this user read and write it", False
        if code == sqlite3.SQLITE_FULL:
            return f"the database {self._path} cannot be written ({cause}); try: make room on its disk", True
        return f"the database {self._path} cannot be opened ({cause}); try: check its disk, and start again", True

    def reclaim(self, connection: Connection) -> int:
        """Give a piece of free space back to the disk; returns its bytes, 0 when nothing is worth it.

        The write-ahead log goes with it. A reader that looks at an older state keeps it a while; nobody waits for one.
        """
        raw = _raw(connection)
        page_bytes, free = _pragma(raw, "page_size"), _pragma(raw, "freelist_count")
        pages = min(free - FREE_KEPT_BYTES // page_bytes, RECLAIMED_AT_ONCE_BYTES // page_bytes)
        if _pragma(raw, "auto_vacuum") != INCREMENTAL or pages <= 0:
            pages = 0
        else:
            raw.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
        if pages or self._log_bytes() > FREE_KEPT_BYTES:
            self._fold_log(raw)
        return pages * page_bytes

    def compact(self, connection: Connection) -> None:
        """Rebuild a database of before it could give space back piece by piece; needs room for a copy of what it holds.

        Raises:
            OSError: there is no such room.
        """
        raw = _raw(connection)
        if _pragma(raw, "auto_vacuum") == INCREMENTAL:
            return
        held = (_pragma(raw, "page_count") - _pragma(raw, "freelist_count")) * _pragma(raw, "page_size")
        if 2 * held > (free := free_bytes(self._path.parent)):
            raise OSError(
                errno.ENOSPC, f"rebuilding the database needs {2 * held >> 20} MiB, {free >> 20} are free", self._path
            )
        raw.execute("VACUUM").fetchall()
        self._fold_log(raw)

    def reclaimable_bytes(self, connection: Connection) -> int | None:
        pages = int(connection.exec_driver_sql("PRAGMA freelist_count").scalar_one())
        return max(0, pages * int(connection.exec_driver_sql("PRAGMA page_size").scalar_one()) - FREE_KEPT_BYTES)

    def _fold_log(self, raw: sqlite3.Connection) -> None:
        raw.execute("PRAGMA busy_timeout=0").close()
        try:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            raw.execute("PRAGMA busy_timeout=5000").close()

    def _log_bytes(self) -> int:
        try:
            return self._path.with_name(f"{self._path.name}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def is_damage(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in DAMAGED

    def is_worth_repeating(self, error: DBAPIError) -> bool:
        return False


_OTHER_FILE = "restore a backup into a new --data-dir"


def _raw(connection: Connection) -> sqlite3.Connection:
    """The connection under SQLAlchemy's, outside of any transaction."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)  # noqa: S101 - the engine was made here
    return raw


def _pragma(raw: sqlite3.Connection, name: str) -> int:
    return int(raw.execute(f"PRAGMA {name}").fetchone()[0])


def _unused(folder: Path, stem: str) -> Path:
    """Return a path for a copy that replaces no other."""
    numbered = (folder / (f"{stem}.db" if number == 1 else f"{stem}-{number}.db") for number in range(1, 10_000))
    return next(path for path in numbered if not path.exists())


def _mtime(path: Path) -> int:
    return path.stat().st_mtime_ns
