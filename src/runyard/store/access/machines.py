"""Rows of machines, their failures and their invitations: never a token, only its keyed hash."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from runyard.store.lists import keyset
from runyard.store.tables import AnyRow, machine_failures, machine_invitations, machines


def list_all(connection: Connection) -> Sequence[AnyRow]:
    """Return every machine; the server keeps them in memory, since each claim needs them."""
    return connection.execute(select(machines)).all()


def get(connection: Connection, *, machine_id: str) -> AnyRow | None:
    return connection.execute(select(machines).where(machines.c.id == machine_id)).one_or_none()


def page(connection: Connection, *, after: tuple[int, str] | None, limit: int) -> Sequence[AnyRow]:
    """Return a page of the machines that were not removed, newest first."""
    query = select(machines).where(machines.c.state != "removed")
    return keyset.read_page(
        connection, query, (machines.c.time_created, machines.c.id), after=after, limit=limit
    )


def list_names(connection: Connection, *, but: str) -> set[str]:
    """Return the names of all machines that were not removed, except one machine's."""
    query = select(machines.c.name).where(machines.c.state != "removed", machines.c.id != but)
    return set(connection.execute(query).scalars())


def add(connection: Connection, values: Mapping[str, Any]) -> None:
    connection.execute(insert(machines).values(**values))


def change(connection: Connection, *, machine_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(update(machines).where(machines.c.id == machine_id).values(**values))


def add_failure(
    connection: Connection,
    *,
    org: str,
    run_id: str,
    attempt: int,
    machine_id: str,
    kind: str,
    time_ms: int,
) -> None:
    """Add a failure of an attempt, unless one is known."""
    of_attempt = (
        machine_failures.c.org == org,
        machine_failures.c.run_id == run_id,
        machine_failures.c.attempt == attempt,
    )
    if connection.execute(select(machine_failures.c.time).where(*of_attempt)).first() is None:
        connection.execute(
            insert(machine_failures).values(
                org=org,
                run_id=run_id,
                attempt=attempt,
                machine_id=machine_id,
                kind=kind,
                time=time_ms,
            )
        )


def list_failures(connection: Connection, *, machine_id: str, after_ms: int) -> Sequence[AnyRow]:
    """Return the failures of a machine after a time, oldest first."""
    query = select(machine_failures).where(
        machine_failures.c.machine_id == machine_id, machine_failures.c.time > after_ms
    )
    return connection.execute(query.order_by(machine_failures.c.time)).all()


def remove_old_failures(connection: Connection, *, before_ms: int) -> None:
    connection.execute(delete(machine_failures).where(machine_failures.c.time < before_ms))


def add_invitation(connection: Connection, values: Mapping[str, Any]) -> None:
    connection.execute(insert(machine_invitations).values(**values))


def get_invitation(connection: Connection, *, invitation_id: str) -> AnyRow | None:
    where = machine_invitations.c.id == invitation_id
    return connection.execute(select(machine_invitations).where(where)).one_or_none()


def use_invitation(connection: Connection, *, invitation_id: str) -> bool:
    """Count one use of an invitation; return whether it had one left."""
    changed = connection.execute(
        update(machine_invitations)
        .where(machine_invitations.c.id == invitation_id, machine_invitations.c.uses_left > 0)
        .values(uses_left=machine_invitations.c.uses_left - 1)
    )
    return changed.rowcount == 1


def remove_invitation(connection: Connection, *, org: str, invitation_id: str) -> bool:
    """Revoke an invitation; return whether it existed."""
    where = (machine_invitations.c.org == org, machine_invitations.c.id == invitation_id)
    return connection.execute(delete(machine_invitations).where(*where)).rowcount == 1


def remove_ended_invitations(connection: Connection, *, now_ms: int) -> None:
    connection.execute(delete(machine_invitations).where(machine_invitations.c.expires <= now_ms))
