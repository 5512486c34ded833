"""Bulk insert: many rows of one table, as fast as the driver accepts them.

Fifty thousand images are a hundred thousand rows. What SQLAlchemy does for each row, such as
converting each value, would double their cost. So values must be of types that the drivers accept
directly: text, integers, floats, bytes, booleans and None.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, Table, insert


def insert_many(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, each of which names every column of the table."""
    if not rows:
        return
    statement, names = _compile_insert(table, connection.dialect)
    if names is None:
        connection.exec_driver_sql(statement, [dict(row) for row in rows]).close()
    else:
        connection.exec_driver_sql(
            statement, [tuple(row[name] for name in names) for row in rows]
        ).close()


@functools.lru_cache(maxsize=32)
def _compile_insert(table: Table, dialect: Dialect) -> tuple[str, tuple[str, ...] | None]:
    """Return the statement, and the order of its values if they are positional."""
    compiled = insert(table).compile(dialect=dialect)
    names = getattr(compiled, "positiontup", None)
    return str(compiled), tuple(names) if names else None
