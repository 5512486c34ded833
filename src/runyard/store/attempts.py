"""Rows of attempts: which machine has which run, until when, and whether the attempt is closed.

The statements of the hot path are built once: building one costs more than running it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, or_, select, update

from runyard.store.tables import AnyRow, attempts, runs

_OF_RUN = (attempts.c.org == bindparam("of_org"), attempts.c.run_id == bindparam("of_run"))
_ADD = insert(attempts)
_BY_CLAIM = select(attempts).where(attempts.c.claim_id == bindparam("of_claim"))
_BY_TOKEN = select(attempts).where(
    attempts.c.org == bindparam("of_org"),
    attempts.c.epoch == bindparam("of_store"),
    attempts.c.token_number == bindparam("of_number"),
)
_ALL_OF_RUN = select(attempts).where(*_OF_RUN).order_by(attempts.c.number)
_CHANGE = update(attempts).where(*_OF_RUN, attempts.c.number == bindparam("of_number"))
_OPEN_OF_RUN = select(attempts.c.number).where(*_OF_RUN, attempts.c.closed.is_(False)).limit(1)
_UNPROVEN_OF_RUN = update(attempts).where(
    *_OF_RUN, attempts.c.closed.is_(True), attempts.c.lost_pulse.is_not(None)
)
_IS_WAITED_FOR = select(runs.c.id).where(
    runs.c.org == attempts.c.org, runs.c.id == attempts.c.run_id, runs.c.condition == "Pending"
)
_TO_SETTLE = (
    select(attempts)
    .where(
        attempts.c.machine_id == bindparam("of_machine"),
        or_(
            attempts.c.closed.is_(False),
            and_(attempts.c.lost_pulse.is_not(None), _IS_WAITED_FOR.exists()),
        ),
    )
    .order_by(attempts.c.token_number)
)
_OPEN = select(attempts).where(attempts.c.closed.is_(False))
_COUNT_OPEN = select(func.count()).select_from(attempts).where(attempts.c.closed.is_(False))
_NEW = {
    "started": False,
    "charged": False,
    "closed": False,
    "boot_id": "",
    "pid": 0,
    "start_ticks": 0,
}


def add(connection: Connection, values: Mapping[str, Any]) -> None:
    connection.execute(_ADD, {**_NEW, **values})


def find_by_claim(connection: Connection, *, claim_id: str) -> AnyRow | None:
    """Return the attempt that a claim created, of any organization: claims belong to none."""
    return connection.execute(_BY_CLAIM, {"of_claim": claim_id}).one_or_none()


def find_by_token(
    connection: Connection, *, org: str, store_id: str, token_number: int
) -> AnyRow | None:
    token = {"of_org": org, "of_store": store_id, "of_number": token_number}
    return connection.execute(_BY_TOKEN, token).one_or_none()


def list_by_run(connection: Connection, *, org: str, run_id: str) -> Sequence[AnyRow]:
    return connection.execute(_ALL_OF_RUN, {"of_org": org, "of_run": run_id}).all()


def change(
    connection: Connection, *, org: str, run_id: str, number: int, values: Mapping[str, Any]
) -> None:
    connection.execute(_CHANGE, {**values, "of_org": org, "of_run": run_id, "of_number": number})


def has_open(connection: Connection, *, org: str, run_id: str) -> bool:
    return connection.execute(_OPEN_OF_RUN, {"of_org": org, "of_run": run_id}).first() is not None


def reopen_unproven(connection: Connection, *, org: str, run_id: str) -> None:
    """Reopen attempts that were closed only as lost: their processes may still run."""
    connection.execute(_UNPROVEN_OF_RUN, {"closed": False, "of_org": org, "of_run": run_id})


def list_unsettled(connection: Connection, *, machine_id: str) -> Sequence[AnyRow]:
    """Return attempts whose outcome a machine must report, of every organization.

    These are the open ones, and those closed only because they were lost, whose run waits.
    """
    return connection.execute(_TO_SETTLE, {"of_machine": machine_id}).all()


def list_open(connection: Connection) -> Sequence[AnyRow]:
    """Return the open attempts of every organization."""
    return connection.execute(_OPEN).all()


def count_open(connection: Connection) -> int:
    return int(connection.execute(_COUNT_OPEN).scalar_one())
