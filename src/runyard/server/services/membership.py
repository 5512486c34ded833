"""The machines of the instance: which have joined, in which state, and their removal.

    joined    takes runs
    draining  takes no new run; at ``drain_by`` its runs save and stop, and resume elsewhere
    suspect   takes no new run until its self-test has passed (see ``machine_failures``)
    excluded  takes no new run; those that it has end by themselves
    removed   its key is revoked and its attempts are closed

``Memberships`` keeps the rows in memory, because every claim and every report of a supervisor needs
them. What another process changes in the store is found by ``refresh``, as with keys. What machines
report about themselves is in ``machines``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.rundir import read_json
from runyard.server.services import notifications, paging
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.machines import DRAINING, JOINED, REMOVED
from runyard.server.services.paging import PageRequest
from runyard.settings import Settings
from runyard.store import attempts, lease_clock, organizations
from runyard.store.access import keys as key_rows
from runyard.store.access import machines as rows
from runyard.store.requirements import Labels
from runyard.store.tables import AnyRow
from vi.api.resources.machines.responses import (
    Machine,
    MachineAccelerator,
    MachineSpec,
    MachineStatus,
)
from vi.api.responses import ResourceMetadata

OWN_INVITATION = "runyard up"  # what invited the machine that the instance began with


async def page(services: Services, *, org: str, page_request: PageRequest) -> bytes:
    """Return a page of machines as JSON, newest first."""
    runs = await services.store.read_in_thread(_list_runs_by_machine)

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(tx, after=after, limit=limit)

    def encode(row: AnyRow) -> bytes:
        return msgspec.json.encode(_to_document(services, org, row, runs))

    return await paging.read(services, page_request, org=org, fetch=fetch, encode=encode)


async def get(services: Services, *, org: str, machine_id: str) -> Machine:
    """Return a machine.

    Raises:
        Refusal: NotFound.
    """

    def read(tx: Connection) -> Machine:
        row = _get_row(tx, machine_id)
        return _to_document(services, org, row, _list_runs_by_machine(tx))

    return await services.store.read_in_thread(read)


async def change(
    services: Services,
    actor: Actor,
    machine_id: str,
    *,
    state: str,
    within_ms: int | None,
    note: str,
) -> Machine:
    """Let a machine take runs, drain it, or exclude it.

    With ``within_ms`` a draining machine's runs are stopped after that time.

    Raises:
        Refusal: NotFound, RoleForbidden.
    """
    check_operator(services, actor)
    now_ms = services.clock.now_ms()
    drain_by = now_ms + within_ms if state == DRAINING and within_ms is not None else None

    def write(tx: Connection) -> AnyRow:
        _get_row(tx, machine_id)
        values = {"state": state, "drain_by": drain_by, "note": note, "last_updated": now_ms}
        values |= {"suspected": None, "failed_tests": 0}
        rows.change(tx, machine_id=machine_id, values=values)
        services.audit(actor, f"set machine {state}", machine_id)(tx)
        return _get_row(tx, machine_id)

    row = await services.store.write(write)
    services.memberships.put([row])
    services.notifier.notify(notifications.QUEUE)
    return await get(services, org=actor.org, machine_id=machine_id)


async def remove(services: Services, actor: Actor, machine_id: str, *, force: bool) -> None:
    """Remove a machine: revoke its key and close its attempts, whose runs resume elsewhere.

    Its supervisors are refused from then on, and end their trainers without saving.

    Raises:
        Refusal: NotFound, RoleForbidden, MachineInUse (it has runs, and ``force`` is not given),
            InvalidBody (it is the machine of the instance itself).
    """
    check_operator(services, actor)
    now_ms = services.clock.now_ms()

    def write(tx: Connection) -> tuple[AnyRow, AnyRow | None]:
        row = _get_row(tx, machine_id)
        if row.invited_by == OWN_INVITATION and machine_id == read_own_id(services.settings):
            raise Refusal(
                "InvalidBody",
                f"{row.name} is the machine of the server itself, whose key cannot be revoked; "
                f"try: runyard machines exclude {row.name}",
            )
        running = attempts.list_unsettled(tx, machine_id=machine_id)
        if running and not force:
            names = ", ".join(sorted({attempt.run_id for attempt in running})[:5])
            raise Refusal(
                "MachineInUse",
                f"{row.name} has runs ({names}); try: runyard machines drain {row.name} --within "
                "10m, or remove it with --force, which loses what they have not saved",
            )
        changed = {"state": REMOVED, "drain_by": None, "last_updated": now_ms}
        rows.change(tx, machine_id=machine_id, values=changed)
        key = revoke_key(tx, row.key_id, now_ms=now_ms)
        # Their leases run out now: another machine may take the runs a second later.
        for attempt in running:
            attempts.change(
                tx,
                org=attempt.org,
                run_id=attempt.run_id,
                number=attempt.number,
                values={"expires_pulse": lease_clock.read_uptime_ms(tx)},
            )
        services.audit(actor, "remove machine", machine_id)(tx)
        return _get_row(tx, machine_id, with_removed=True), key

    row, key = await services.store.write(write)
    services.memberships.put([row])
    if key is not None:
        services.keyring.put([key])
    services.machines.forget(machine_id)
    services.notifier.notify(notifications.QUEUE)


def revoke_key(tx: Connection, key_id: str, *, now_ms: int) -> AnyRow | None:
    """Revoke the key of a machine that has joined; return its row."""
    key_rows.revoke_machine_key(tx, key_id=key_id, time_ms=now_ms)
    return get_key(tx, key_id)


def get_key(tx: Connection, key_id: str) -> AnyRow | None:
    """Return the row of a machine's key; None for the instance's own controller key."""
    return key_rows.get_machine_key(tx, key_id=key_id)


async def record_own(services: Services, machine_id: str, *, host: str, key_id: str) -> None:
    """Add the machine that reports with the instance's own controller key, at its first report."""
    if services.memberships.get(machine_id) is not None:
        return
    now_ms = services.clock.now_ms()

    def write(tx: Connection) -> AnyRow:
        row = rows.get(tx, machine_id=machine_id)
        if row is None:
            add_machine(
                tx,
                machine_id=machine_id,
                org=organizations.list_ids(tx)[0],
                name=choose_name(tx, host, machine_id=machine_id),
                key_id=key_id,
                host=host,
                invited_by=OWN_INVITATION,
                now_ms=now_ms,
            )
            row = rows.get(tx, machine_id=machine_id)
        assert row is not None  # noqa: S101 - it was just added
        return row

    services.memberships.put([await services.store.write(write)])


def add_machine(
    tx: Connection,
    *,
    machine_id: str,
    org: str,
    name: str,
    key_id: str,
    host: str,
    invited_by: str,
    now_ms: int,
    labels: Labels | None = None,
    version: str = "",
    boot_id: str = "",
) -> None:
    """Insert a machine, or replace one that is joining again."""
    values = {
        "org": org,
        "name": name,
        "key_id": key_id,
        "state": JOINED,
        "labels": msgspec.json.encode(labels or {}),
        "host": host,
        "version": version,
        "boot_id": boot_id,
        "note": "",
        "drain_by": None,
        "suspected": None,
        "failed_tests": 0,
        "invited_by": invited_by,
        "time_created": now_ms,
        "last_updated": now_ms,
    }
    if rows.get(tx, machine_id=machine_id) is None:
        rows.add(tx, {"id": machine_id, **values})
    else:
        rows.change(tx, machine_id=machine_id, values=values)


def choose_name(tx: Connection, wanted: str, *, machine_id: str) -> str:
    """Return a name that no other machine has: the wanted one, or with a number."""
    taken = rows.list_names(tx, but=machine_id)
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def check_caller(services: Services, actor: Actor, machine_id: str) -> None:
    """Check that a controller speaks for its own machine.

    The key of a machine that has joined is bound to it. The instance's own controller key is for
    the machine of the server's data folder, where that has one.

    Raises:
        Refusal: MachineMismatch.
    """
    own = actor.machine_id if actor.role == "machine" else read_own_id(services.settings)
    if actor.role == "machine" and own is None:
        raise _mismatch(machine_id)
    if own is not None and own != machine_id:
        raise _mismatch(machine_id)


def _mismatch(machine_id: str) -> Refusal:
    return Refusal(
        "MachineMismatch",
        f"this key belongs to another machine than {machine_id!r}; try: runyard machines invite on "
        "the server, and the command that it prints on this machine",
    )


def read_own_id(settings: Settings) -> str | None:
    """Return the id of the machine whose controller shares the server's data folder."""
    known = (read_json(settings.machine_dir / "machine.json") or {}).get("id")
    return known if isinstance(known, str) and known else None


def read_state(tx: Connection, machine_id: str) -> str:
    """Return the state of a machine as stored; one without a row counts as joined."""
    row = rows.get(tx, machine_id=machine_id)
    return JOINED if row is None else str(row.state)


async def refresh(services: Services) -> None:
    """Read the machines again, as another process may have changed them."""
    version = services.memberships.version
    found = await services.store.read_in_thread(rows.list_all)
    if services.memberships.version == version:
        services.memberships.replace_all(found)


def check_operator(services: Services, actor: Actor) -> None:
    """Check that the caller is an admin of the organization that the instance began with.

    Raises:
        Refusal: RoleForbidden.
    """
    if actor.org != services.store.read(organizations.list_ids)[0]:
        raise Refusal(
            "RoleForbidden",
            "machines train the runs of every organization; try: an admin key of the first "
            "organization, which is in credentials.json of the data folder",
        )


def _get_row(tx: Connection, machine_id: str, *, with_removed: bool = False) -> AnyRow:
    row = rows.get(tx, machine_id=machine_id)
    if row is None or (row.state == REMOVED and not with_removed):
        raise not_found("machine", machine_id)
    return row


def _list_runs_by_machine(tx: Connection) -> Mapping[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for attempt in attempts.list_open(tx):
        found.setdefault(attempt.machine_id, []).append((attempt.org, attempt.run_id))
    return found


def _to_document(
    services: Services, org: str, row: AnyRow, runs: Mapping[str, Sequence[tuple[str, str]]]
) -> Machine:
    now_s = services.clock.monotonic_s()
    connected = dict(services.machines.list_connected_by_id(uptime_s=now_s)).get(row.id)
    own_runs = runs.get(row.id, ())
    status = MachineStatus(
        state=row.state,
        is_connected=connected is not None,
        host=row.host,
        version=row.version,
        drain_by=row.drain_by,
        running=len(own_runs),
        # Ids of other organizations' runs are theirs.
        runs=sorted(run_id for run_org, run_id in own_runs if run_org == org),
        invited_by=row.invited_by,
    )
    if connected is not None:
        status = msgspec.structs.replace(
            status,
            last_heard=connected.last_ms,
            slots=connected.report.slots,
            lacks_disk=connected.lacks_disk,
            accelerators=[
                MachineAccelerator(name=kind.name, count=kind.count, memory_gib=kind.memory_gib)
                for kind in connected.report.accelerators
            ],
        )
    return Machine(
        machine_id=row.id,
        organization_id=org,
        spec=MachineSpec(
            name=row.name, labels=msgspec.json.decode(row.labels), note=row.note or None
        ),
        status=status,
        metadata=ResourceMetadata(time_created=row.time_created, last_updated=row.last_updated),
        self_link=f"/workspaces/{org}/machines/{row.id}",
    )
