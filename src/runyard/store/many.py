"""Many rows of one table at once, as quickly as the driver takes them.

Fifty thousand pictures are a hundred thousand rows. Everything that SQLAlchemy does for a single row, such as
converting each value, would double what they cost; values given here are what the drivers take as they are: text,
integers, floats, bytes, booleans and None.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, Table, insert


def insert_many(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, each of which names every column of the table."""
    if not rows:
        return
    statement, names = _statement(table, connection.dialect)
    if names is None:
        connection.exec_driver_sql(statement, [dict(row) for row in rows]).close()
    else:
        connection.exec_driver_sql(statement, [tuple(row[name] for name in names) for row in rows]).close()


@functools.lru_cache(maxsize=32)
def _statement(table: Table, dialect: Dialect) -> tuple[str, tuple[str, ...] | None]:
    """The statement, and the order of its values where the driver counts them."""
    compiled = insert(table).compile(dialect=dialect)
    names = getattr(compiled, "positiontup", None)
    return str(compiled), tuple(names) if names else None
