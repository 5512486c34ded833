"""The lease clock, which counts the server's uptime, and the counter of fencing numbers.

Leases expire by a counter of milliseconds during which a server was running and awake. Downtime, a
suspended machine and a stepped clock add nothing to it. So no lease expires because the server was
away, and no clocks are compared. The table is named ``pulse`` and the counter ``lived_ms``: names
of the schema stay as they are.
"""

from sqlalchemy import Connection, bindparam, insert, select, update

from runyard.store.tables import lease_clock

_UPTIME = select(lease_clock.c.lived_ms)
_ADVANCE = update(lease_clock).values(lived_ms=lease_clock.c.lived_ms + bindparam("elapsed_ms"))
_COUNT = update(lease_clock).values(token_number=lease_clock.c.token_number + 1)
_TOKEN_NUMBER = select(lease_clock.c.token_number)


def insert_clock(connection: Connection) -> None:
    connection.execute(insert(lease_clock).values(id=1, lived_ms=0, token_number=0))


def read_uptime_ms(connection: Connection) -> int:
    return int(connection.execute(_UPTIME).scalar_one())


def advance(connection: Connection, elapsed_ms: int) -> int:
    """Add ``elapsed_ms``; return the new uptime."""
    connection.execute(_ADVANCE, {"elapsed_ms": elapsed_ms})
    return read_uptime_ms(connection)


def next_token_number(connection: Connection) -> int:
    """Return a fencing number that was never returned before."""
    connection.execute(_COUNT)
    return int(connection.execute(_TOKEN_NUMBER).scalar_one())
