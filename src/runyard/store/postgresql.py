"""Everything that only PostgreSQL knows.

Other processes may write as well there, so the writing connection works in serializable transactions: what would give
a result that no order of the transactions explains is undone by the database and repeated here. A transaction whose
connection breaks is never repeated, since nobody knows whether its commit arrived; whoever asked is told to ask again,
and every request is made so that this is safe.
"""

import logging
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, func, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from runyard.store.tables import metadata

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5
MIGRATION_LOCK = 0x52554E59  # "RUNY"; the number is a name, it only has to be the same everywhere
# What PostgreSQL says when only a change of the address, the password or its own rights can help.
NEEDS_THE_OPERATOR = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "denied",
)
# serialization failure, deadlock: by its manual both mean "undone, try again"
REPEATABLE = frozenset({"40001", "40P01"})
# "program limit exceeded", such as a value too long for an index: it calls that an operational error
VALUE_TOO_LARGE = "54000"


def is_about_a_value(error: DBAPIError) -> bool:
    """Whether a value is too large for the database, rather than the database in trouble."""
    return getattr(error.orig, "sqlstate", None) == VALUE_TOO_LARGE


class PostgreSql:
    """A database behind ``postgresql+psycopg://…``."""

    times_to_try = 5

    def __init__(self, url: str) -> None:
        self._url = url

    def writing_engine(self) -> Engine:
        return self._engine("SERIALIZABLE", "-c synchronous_commit=on")

    def reading_engine(self) -> Engine:
        return self._engine("AUTOCOMMIT", "-c default_transaction_read_only=on")

    def snapshot_engine(self) -> Engine:
        """For long reads: everything read in one transaction is as it was at its first read."""
        return self._engine("REPEATABLE READ", "-c default_transaction_read_only=on")

    def follow_numbers(self, connection: Connection) -> None:
        """After rows came with numbers of their own, let the database number the next ones after them."""
        for table in metadata.sorted_tables:
            column = table.autoincrement_column
            if column is not None and column.autoincrement is True:
                highest = select(func.coalesce(func.max(column), 0) + 1).scalar_subquery()
                sequence = func.pg_get_serial_sequence(table.name, column.name)
                connection.execute(select(func.setval(sequence, highest, False))).close()

    def lock_migrations(self, connection: Connection) -> None:
        """Wait for any other server that migrates; released with the transaction.

        Read committed, so that what we look at afterwards is what that server left and not what was there before.
        """
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED").close()
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})").close()

    def prepare_upgrade(self, connection: Connection, version: str, head: str) -> None:
        """Log that nobody but the operator can copy the database before its upgrade."""
        log.warning(
            "upgrading the schema of the PostgreSQL database %s from %s to %s; no copy is made of it: the operator's "
            "pg_dump is the way back",
            connection.engine.url.database,
            version,
            head,
        )

    def describe_open_error(self, error: Exception) -> tuple[str, bool]:
        """Return why the database cannot be opened, with the fix, and whether that may pass by itself."""
        url = make_url(self._url)
        where = f"{url.host or url.query.get('host') or 'its socket'}:{url.port or 5432}"
        words = " ".join(str(getattr(error, "orig", None) or error).split())
        is_final = any(sign in words for sign in NEEDS_THE_OPERATOR)
        fix = (
            "check user, passfile and database name in RUNYARD_DATABASE_URL"
            if is_final
            else "start PostgreSQL, or check host and port in RUNYARD_DATABASE_URL"
        )
        return (
            f"the PostgreSQL database {url.database!r} at {where} cannot be opened as {url.username!r}: {words}; "
            f"try: {fix}",
            not is_final,
        )

    def reclaim(self, connection: Connection) -> int:
        """Free nothing: PostgreSQL's autovacuum uses free space again, and ``VACUUM FULL`` is the operator's."""
        return 0

    def compact(self, connection: Connection) -> None:
        """Do nothing, for the same reason."""

    def reclaimable_bytes(self, connection: Connection) -> int | None:
        return None

    def is_damage(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) == "XX001"  # data_corrupted

    def is_worth_repeating(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) in REPEATABLE

    def _engine(self, isolation: Any, options: str) -> Engine:
        return create_engine(
            self._url,
            poolclass=NullPool,
            isolation_level=isolation,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "options": options},
        )
