"""Everything that only PostgreSQL knows.

Other processes may write as well there, so the writing connection works in serializable transactions: what would give
a result that no order of the transactions explains is undone by the database and repeated here. A transaction whose
connection breaks is never repeated, since nobody knows whether its commit arrived; whoever asked is told to ask again,
and every request is made so that this is safe.
"""

from typing import Any

from sqlalchemy import Connection, Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from runyard.store.tables import metadata

CONNECT_TIMEOUT_S = 5
MIGRATION_LOCK = 0x52554E59  # "RUNY"; the number is a name, it only has to be the same everywhere
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

    def is_worth_repeating(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) in REPEATABLE

    def _engine(self, isolation: Any, options: str) -> Engine:
        return create_engine(
            self._url,
            poolclass=NullPool,
            isolation_level=isolation,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "options": options},
        )
