"""PostgreSQL: everything in which it differs from SQLite.

Other processes may write there as well, so the writing connection uses serializable transactions.
The database aborts a transaction whose result no serial order explains, and it is repeated here. A
transaction whose connection breaks is never repeated, since it may have been committed. The client
gets an error and repeats its request, which is safe for every request.
"""

import logging
from typing import Any

from sqlalchemy import Connection, Engine, NestedTransaction, create_engine, func, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from runyard.store.tables import metadata

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5
MIGRATION_LOCK = 0x52554E59  # "RUNY"; an arbitrary number, the same for every server
# Errors that only a change of the address, the password or the privileges can fix.
OPERATOR_ERRORS = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "denied",
)
# Serialization failure and deadlock: the manual says to repeat the transaction.
RETRYABLE = frozenset({"40001", "40P01"})
# "program limit exceeded", such as a value too long for an index: reported as an operational error
VALUE_TOO_LARGE = "54000"


def is_value_too_large(error: DBAPIError) -> bool:
    """Return whether an operational error means a too large value, not a failing database."""
    return getattr(error.orig, "sqlstate", None) == VALUE_TOO_LARGE


class PostgreSql:
    """A database behind ``postgresql+psycopg://…``."""

    BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    max_tries = 5

    def __init__(self, url: str) -> None:
        self._url = url

    def create_writing_engine(self) -> Engine:
        return self._create_engine("SERIALIZABLE", "-c synchronous_commit=on")

    def create_reading_engine(self) -> Engine:
        return self._create_engine("AUTOCOMMIT", "-c default_transaction_read_only=on")

    def create_snapshot_engine(self) -> Engine:
        """Return an engine for long reads: a transaction sees the database as of its first read."""
        return self._create_engine("REPEATABLE READ", "-c default_transaction_read_only=on")

    def reset_sequences(self, connection: Connection) -> None:
        """Set every sequence to continue after the highest number in its table."""
        for table in metadata.sorted_tables:
            column = table.autoincrement_column
            if column is not None and column.autoincrement is True:
                highest = select(func.coalesce(func.max(column), 0) + 1).scalar_subquery()
                sequence = func.pg_get_serial_sequence(table.name, column.name)
                connection.execute(select(func.setval(sequence, highest, False))).close()

    def begin_savepoint(self, connection: Connection) -> NestedTransaction:
        """Begin a part of a transaction that can be rolled back alone."""
        return connection.begin_nested()

    def lock_migrations(self, connection: Connection) -> None:
        """Wait for any other server that migrates; the lock ends with the transaction.

        Read committed, so that the following reads see what that server has committed.
        """
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED").close()
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})").close()

    def lock_writers(self, connection: Connection) -> None:
        """Let no other server commit events until the transaction ends.

        Must be its first statement: it takes no snapshot, so the transaction sees what the servers
        that it waited for have committed, and does not conflict with them again.
        """
        connection.exec_driver_sql("LOCK TABLE event_counters IN SHARE ROW EXCLUSIVE MODE").close()

    def prepare_upgrade(self, connection: Connection, version: str, head: str) -> None:
        """Log that no copy is made before the upgrade: only the operator can do that."""
        log.warning(
            "upgrading the schema of the PostgreSQL database %s from %s to %s; no copy is made; "
            "try: pg_dump before an upgrade",
            connection.engine.url.database,
            version,
            head,
        )

    def describe_open_error(self, error: Exception) -> tuple[str, bool]:
        """Return why the database cannot be opened, with the fix, and whether that may pass."""
        url = make_url(self._url)
        where = f"{url.host or url.query.get('host') or 'its socket'}:{url.port or 5432}"
        cause = " ".join(str(getattr(error, "orig", None) or error).split())
        is_final = any(sign in cause for sign in OPERATOR_ERRORS)
        fix = (
            "check user, passfile and database name in RUNYARD_DATABASE_URL"
            if is_final
            else "start PostgreSQL, or check host and port in RUNYARD_DATABASE_URL"
        )
        return (
            f"the PostgreSQL database {url.database!r} at {where} cannot be opened as "
            f"{url.username!r}: {cause}; try: {fix}",
            not is_final,
        )

    def reclaim(self, connection: Connection) -> int:
        """Return 0: autovacuum reuses free space, and ``VACUUM FULL`` is left to the operator."""
        return 0

    def compact(self, connection: Connection) -> None:
        """Do nothing, for the same reason."""

    def reclaimable_bytes(self, connection: Connection) -> int | None:
        return None

    def is_damage(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) == "XX001"  # data_corrupted

    def is_retryable(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) in RETRYABLE

    def _create_engine(self, isolation: Any, options: str) -> Engine:
        return create_engine(
            self._url,
            poolclass=NullPool,
            isolation_level=isolation,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "options": options},
        )
