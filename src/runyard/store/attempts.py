"""Rows of attempts: who holds which run, until when, and whether it is proven closed."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from runyard.store.tables import AnyRow, attempts, runs


def add(connection: Connection, values: Mapping[str, Any]) -> None:
    connection.execute(
        insert(attempts).values(started=False, charged=False, closed=False, boot_id="", pid=0, start_ticks=0, **values)
    )


def by_claim(connection: Connection, *, claim_id: str) -> AnyRow | None:
    """The attempt a claim made, of whichever organisation: a claim is the controller's and has none."""
    return connection.execute(select(attempts).where(attempts.c.claim_id == claim_id)).one_or_none()


def by_token(connection: Connection, *, org: str, epoch: str, token_number: int) -> AnyRow | None:
    return connection.execute(
        select(attempts).where(
            attempts.c.org == org, attempts.c.epoch == epoch, attempts.c.token_number == token_number
        )
    ).one_or_none()


def of_run(connection: Connection, *, org: str, run_id: str) -> Sequence[AnyRow]:
    return connection.execute(
        select(attempts).where(attempts.c.org == org, attempts.c.run_id == run_id).order_by(attempts.c.number)
    ).all()


def change(connection: Connection, *, org: str, run_id: str, number: int, values: Mapping[str, Any]) -> None:
    connection.execute(
        update(attempts)
        .where(attempts.c.org == org, attempts.c.run_id == run_id, attempts.c.number == number)
        .values(**values)
    )


def has_open(connection: Connection, *, org: str, run_id: str) -> bool:
    query = select(attempts.c.number).where(
        attempts.c.org == org, attempts.c.run_id == run_id, attempts.c.closed.is_(False)
    )
    return connection.execute(query.limit(1)).first() is not None


def reopen_unproven(connection: Connection, *, org: str, run_id: str) -> None:
    """Open what was closed for its silence alone again: nobody knows yet that nothing of it lives."""
    connection.execute(
        update(attempts)
        .where(
            attempts.c.org == org,
            attempts.c.run_id == run_id,
            attempts.c.closed.is_(True),
            attempts.c.lost_pulse.is_not(None),
        )
        .values(closed=False)
    )


def open_on_machine(connection: Connection, *, machine_id: str) -> Sequence[AnyRow]:
    """Attempts of every organisation that one machine shall settle: open ones, and those closed for their silence
    alone whose run waits."""
    is_waited_for = select(runs.c.id).where(
        runs.c.org == attempts.c.org, runs.c.id == attempts.c.run_id, runs.c.condition == "Pending"
    )
    return connection.execute(
        select(attempts)
        .where(
            attempts.c.machine_id == machine_id,
            or_(attempts.c.closed.is_(False), and_(attempts.c.lost_pulse.is_not(None), is_waited_for.exists())),
        )
        .order_by(attempts.c.token_number)
    ).all()


def open_anywhere(connection: Connection) -> Sequence[AnyRow]:
    """Open attempts of every organisation, for the pulse."""
    return connection.execute(select(attempts).where(attempts.c.closed.is_(False))).all()


def count_open(connection: Connection) -> int:
    query = select(func.count()).select_from(attempts).where(attempts.c.closed.is_(False))
    return int(connection.execute(query).scalar_one())
