"""Which run folders of a machine must be removed because their runs are deleted.

Each machine reports the runs whose folders it holds. A folder is removed only if the store proves
that its run was deleted: the row is marked, or there is a tombstone. Tombstones expire after thirty
days. After that, a run without a row was deleted if it was placed in the present store incarnation,
since only a deletion removes rows from that one; the machine compares. Everything else is kept: a
restore may have undone the run, and another restore may bring it back, or the folder may be another
server's. Such folders appear in the storage report, and a collection approves their removal.
"""

from collections import defaultdict
from functools import partial

from sqlalchemy import Connection

from runyard.protocol import MachineInstructions, MachineReport, RunName, RunRemoval
from runyard.server.services.context import Services
from runyard.store import organizations
from runyard.store import storage as rows
from runyard.store.storage import RunRecords


async def choose_removals(
    services: Services, *, machine_id: str, report: MachineReport
) -> MachineInstructions:
    """Return the run folders that a machine must remove, out of those that it reports."""
    unlisted, removals = list[RunName](), list[RunRemoval]()
    if report.run_folders and not services.restore_lock.locked():
        # One snapshot: a restore between two reads would combine its rows with the old store's id.
        unlisted, removals = await services.store.read_snapshot_in_thread(
            partial(_compare_with_store, services, machine_id, report.run_folders)
        )
    services.machines.record_leftover_runs(
        machine_id, unlisted, are_further=report.continues_folders
    )
    return MachineInstructions(remove=removals)


def _compare_with_store(
    services: Services, machine_id: str, folders: list[RunName], tx: Connection
) -> tuple[list[RunName], list[RunRemoval]]:
    """Return the runs that are not listed, and those of them whose folders must be removed."""
    run_ids = defaultdict[str, list[str]](list)
    for folder in folders:
        run_ids[folder.organization_id].append(folder.run_id)
    known = organizations.list_ids(tx)
    store_id = organizations.get_meta(tx, organizations.STORE_ID) or ""
    unlisted, removals = list[RunName](), list[RunRemoval]()
    for org, ids in run_ids.items():
        records = rows.read_run_records(
            tx, org=org, run_ids=ids, machine_id=machine_id, now_ms=services.clock.now_ms()
        )
        for run_id in ids:
            if records.rows.get(run_id) is False:
                continue
            unlisted.append(RunName(organization_id=org, run_id=run_id))
            placed_in = decide_removal(
                run_id,
                records,
                store_id=store_id if org in known else "",
                is_approved=services.machines.is_removal_approved(org, run_id),
            )
            if placed_in is not None:
                removals.append(RunRemoval(organization_id=org, run_id=run_id, store_id=placed_in))
    return unlisted, removals


def decide_removal(
    run_id: str, records: RunRecords, *, store_id: str, is_approved: bool = False
) -> str | None:
    """Return the store incarnation in which a run must have been placed to be removed.

    An empty text stands for any. None: the folder must be kept, because the run is listed, its
    attempt on the machine is still to be settled, or it may exist in another store. ``store_id`` is
    the present incarnation, empty for an organization that it does not have.
    """
    if run_id in records.rows:
        is_due = records.rows[run_id] and run_id not in records.open_attempts
        return "" if is_due else None
    if is_approved or (store_id and run_id in records.tombstones):
        return ""
    return store_id or None
