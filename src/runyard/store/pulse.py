"""Server-lived time and fencing numbers.

Leases expire by a counter of milliseconds during which a server was alive and awake. Downtime, suspended machines and
stepped clocks add nothing to it, so no lease runs out because of the server's own absence, and nobody compares clocks.
"""

from sqlalchemy import Connection, bindparam, insert, select, update

from runyard.store.tables import pulse

_LIVED = select(pulse.c.lived_ms)
_ADD = update(pulse).values(lived_ms=pulse.c.lived_ms + bindparam("elapsed_ms"))
_COUNT = update(pulse).values(token_number=pulse.c.token_number + 1)
_TOKEN_NUMBER = select(pulse.c.token_number)


def begin(connection: Connection) -> None:
    connection.execute(insert(pulse).values(id=1, lived_ms=0, token_number=0))


def lived_ms(connection: Connection) -> int:
    return int(connection.execute(_LIVED).scalar_one())


def add(connection: Connection, elapsed_ms: int) -> int:
    """Count ``elapsed_ms`` more; returns the new total."""
    connection.execute(_ADD, {"elapsed_ms": elapsed_ms})
    return lived_ms(connection)


def next_token_number(connection: Connection) -> int:
    """A fencing number never given out before."""
    connection.execute(_COUNT)
    return int(connection.execute(_TOKEN_NUMBER).scalar_one())
