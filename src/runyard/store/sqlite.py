"""Everything that only SQLite knows.

``synchronous=FULL`` makes an acknowledged write survive loss of power. The writing connection alone checkpoints the
write-ahead log; readers cannot write at all. The file is made with mode 0600 before SQLite opens it, and SQLite gives
the files beside it (``-wal``, ``-shm``) the same mode.
"""

import os
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool


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
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON"):
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

    def is_worth_repeating(self, error: DBAPIError) -> bool:
        return False
