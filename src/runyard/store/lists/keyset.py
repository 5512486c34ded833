"""Pages by keyset: each begins after the position at which the one before it ended.

The position is compared as a row value, ``(time, id) < (?, ?)``, which a database finds in the
index of the order. The same condition written with "or" is evaluated for each row from the first.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, tuple_

from runyard.store.tables import AnyRow


def read_page(
    connection: Connection,
    query: Select[Any],
    order: Sequence[ColumnElement[Any]],
    *,
    after: Sequence[Any] | None,
    limit: int,
    is_descending: bool = True,
) -> Sequence[AnyRow]:
    """Return a page of a query in the order of columns, after the position of their values.

    The columns together must be unique.
    """
    if after is not None:
        query = query.where(compare(order, after, is_descending=is_descending))
    return connection.execute(sort(query, order, is_descending=is_descending).limit(limit)).all()


def compare(
    order: Sequence[ColumnElement[Any]], position: Sequence[Any], *, is_descending: bool = True
) -> ColumnElement[bool]:
    """Return the condition of rows after a position."""
    if len(order) == 1:
        column: Any = order[0]
        alone: ColumnElement[bool] = column < position[0] if is_descending else column > position[0]
        return alone
    row: Any = tuple_(*order)
    values = tuple_(*position)
    further: ColumnElement[bool] = row < values if is_descending else row > values
    return further


def sort(
    query: Select[Any], order: Sequence[ColumnElement[Any]], *, is_descending: bool = True
) -> Select[Any]:
    return query.order_by(*(column.desc() if is_descending else column for column in order))
