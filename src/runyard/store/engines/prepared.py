"""Statements of the hot path: on SQLite compiled once and run by the driver.

What SQLAlchemy does for each execution takes twenty times as long as SQLite itself (24 us against
1.1 us for a look-up by primary key). Values must be of types that the driver accepts directly:
text, integers, floats, bytes, booleans and None; and rows are named tuples, in which SQLite has
integers for booleans. On PostgreSQL the statements are executed as any other.
"""

import functools
import sqlite3
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Executable, Select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

T = TypeVar("T")


class Prepared:
    """One statement; its parameters are named."""

    def __init__(self, statement: Executable, columns: Sequence[str] | None = None) -> None:
        """Prepare a statement; an insert or update takes values for these columns."""
        self._statement = statement
        self._columns = None if columns is None else list(columns)
        self._compiled: tuple[str, list[str], Mapping[str, Any]] | None = None
        self._make_row = _name_columns(statement) if isinstance(statement, Select) else tuple

    def run(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Run the statement; return the number of rows that it changed."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, dict(values)).rowcount
        return self._execute(connection, values, _count_changed)

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run the statement for each row."""
        if not rows:
            return
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, [dict(row) for row in rows])
            return
        for row in rows:
            self._execute(connection, row, _count_changed)

    def find(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """Return the first row, None if there is none."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, dict(values)).first()
        row = self._execute(connection, values, _fetch_first)
        return None if row is None else self._make_row(row)

    def list_rows(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Any]:
        """Return all rows."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, dict(values)).all()
        return list(map(self._make_row, self._execute(connection, values, _fetch_all)))

    def _execute(
        self, connection: Connection, values: Mapping[str, Any], use: Callable[[sqlite3.Cursor], T]
    ) -> T:
        text, names, defaults = self._compiled or self._compile()
        driver = cast(sqlite3.Connection, connection.connection.driver_connection)
        given = [values[name] if name in values else defaults[name] for name in names]
        try:
            return use(driver.execute(text, given))
        except sqlite3.Error as error:
            raise DBAPIError.instance(
                text, given, error, sqlite3.Error, dialect=connection.dialect
            ) from error

    def _compile(self) -> tuple[str, list[str], Mapping[str, Any]]:
        compiled: Any = cast(Any, self._statement).compile(
            dialect=sqlite.dialect(),
            column_keys=self._columns,
            compile_kwargs={"render_postcompile": True},
        )
        # Values that are part of the statement; any other must be given.
        plain = (str, int, float, bytes)
        defaults = {
            name: value for name, value in compiled.params.items() if isinstance(value, plain)
        }
        self._compiled = (str(compiled), list(compiled.positiontup or ()), defaults)
        return self._compiled


def _name_columns(statement: Select[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return the function that makes a named tuple of a row."""
    make_type: Any = namedtuple  # of names that no type checker can know
    row = make_type("Row", [column.key for column in statement.selected_columns], rename=True)
    return functools.partial(tuple.__new__, row)  # a third of the time of ``_make``


def _count_changed(cursor: sqlite3.Cursor) -> int:
    return cursor.rowcount


def _fetch_first(cursor: sqlite3.Cursor) -> Any:
    row = cursor.fetchone()
    cursor.close()  # an open cursor would keep a transaction of the reader
    return row


def _fetch_all(cursor: sqlite3.Cursor) -> list[Any]:
    return cursor.fetchall()
