"""Summaries of blocks of log lines, by which a search skips what it need not read.

Block ``b`` is the lines ``b * LINES + 1`` to ``(b + 1) * LINES`` of a run. Its row is written in
the transaction of its last line, and describes a superset of its lines: some may be removed later.
A block without a row, such as the newest one or one from before there were blocks, is read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select

from runyard.store.tables import AnyRow, log_blocks

LINES = 1024

_ADD = insert(log_blocks)


def add_blocks(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(_ADD, [dict(row) for row in rows])


def list_blocks(
    connection: Connection,
    *,
    org: str,
    run_id: str,
    first: int,
    last: int,
    with_signatures: bool,
) -> Sequence[AnyRow]:
    """Return the summaries of the blocks ``first`` to ``last``, in order."""
    columns = [log_blocks.c.block, log_blocks.c.time_min, log_blocks.c.time_max]
    columns.append(log_blocks.c.levels)
    if with_signatures:
        columns.append(log_blocks.c.signature)
    query = select(*columns).where(
        log_blocks.c.org == org,
        log_blocks.c.run_id == run_id,
        log_blocks.c.block >= first,
        log_blocks.c.block <= last,
    )
    return connection.execute(query.order_by(log_blocks.c.block)).all()
