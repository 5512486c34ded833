"""Write the folder of an attempt: everything its supervisor and trainer need to know, and no secret.

``placed.json`` is written last: a supervisor that finds it finds the rest.
"""

import fcntl
import os
from pathlib import Path
from typing import Any

import msgspec

from runyard import ids, processes, rundir
from runyard.controller.decide import Key
from runyard.controller.machine import threads_per_run
from runyard.ids import resolve_folder
from runyard.protocol import Assignment
from runyard.settings import Settings


def key_of(assignment: Assignment) -> Key:
    return Key(assignment.organization_id, assignment.run_id, assignment.attempt)


def folder_of(settings: Settings, key: Key) -> Path:
    return rundir.attempt_dir(settings.runs_dir, key.organization_id, key.run_id, key.attempt)


def has_folder(settings: Settings, key: Key) -> bool:
    """Return whether an attempt was placed here. A key may come from any process of this machine."""
    try:
        return folder_of(settings, key).is_dir()
    except ids.PathEscapes:
        return False


def place(assignment: Assignment, *, settings: Settings, machine_id: str, device: str = "") -> Path:
    """Make the folder of an attempt ready for its supervisor; harmless to repeat.

    ``device`` is the accelerator that the attempt has to itself; empty without one.

    Raises:
        OSError: the disk does not take it, or somebody still works there for an attempt that a restore has undone.
        InvalidId: the server names something that cannot be the folder of an attempt.
    """
    ids.check_id("organization", assignment.organization_id)
    ids.check_id("run", assignment.run_id)
    folder = folder_of(settings, key_of(assignment))
    placed = rundir.read_json(folder / rundir.PLACED)
    if placed is not None and is_another(placed.get("epoch"), assignment.epoch):
        _put_aside(folder, str(placed["epoch"]))
        placed = None
    if placed is None and _bring_back(folder, assignment.epoch):
        placed = rundir.read_json(folder / rundir.PLACED)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if placed is not None:
        _open_again(folder, assignment)
        return folder
    rundir.write_json(folder / rundir.RUN, run_document(assignment, settings))
    rundir.write_json(
        folder / rundir.PLACED,
        {
            "organizationId": assignment.organization_id,
            "runId": assignment.run_id,
            "attempt": assignment.attempt,
            "epoch": assignment.epoch,
            "machineId": machine_id,
            "device": device,
            "leaseS": assignment.lease_s,
            "graceS": assignment.grace_s,
            "serverFile": str(settings.server_file),
            "maxUnreachableS": None if is_here(assignment.server_boot_id) else settings.max_unreachable_s,
            "hangS": settings.hang_minutes * 60 or None,
            "spoolBytes": settings.spool_mib << 20,
            "datasetsBytes": settings.datasets_max_gib << 30,
            "weightsBytes": settings.weights_max_gib << 30,
        },
    )
    return folder


def is_another(told: Any, epoch: str) -> bool:
    """Whether a file was written under another epoch of the store; one that does not say counts as the same."""
    return bool(told and epoch and told != epoch)


def _put_aside(folder: Path, epoch: str) -> None:
    """Make room where an attempt of the same number was, which a restore has undone: it was another one.

    Its supervisor is refused by the server and ends; until then the folder is not touched, and the new attempt, whose
    lease runs out uncharged, is offered again. What is put aside has no number for a name, so nothing resumes from it.
    """
    with open(folder / rundir.SUPERVISOR_LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.replace(folder, _aside(folder, epoch))
        rundir.fsync_dir(folder.parent)


def _bring_back(folder: Path, epoch: str) -> bool:
    """Whether what was put aside is wanted again: a newer backup was restored after an older one."""
    aside = _aside(folder, epoch)
    if folder.exists() or not aside.is_dir():
        return False
    os.replace(aside, folder)
    rundir.fsync_dir(folder.parent)
    return True


def _aside(folder: Path, epoch: str) -> Path:
    return resolve_folder(folder.parent, f"{folder.name}-{epoch}")


def _open_again(folder: Path, assignment: Assignment) -> None:
    """The server asks about an attempt whose last word it had before a restore: let a supervisor say it again.

    A supervisor that never heard the epoch may have said it to any world, and once too often does no harm.
    """
    closed = rundir.read_json(folder / rundir.CLOSED)
    if closed is not None and assignment.store_epoch not in ("", closed.get("epoch")):
        (folder / rundir.CLOSED).unlink(missing_ok=True)
        rundir.fsync_dir(folder)


def is_here(server_boot_id: str) -> bool:
    """Whether the server runs on this machine, where the run's lock keeps two trainers apart for as long as it takes.

    An address says nothing about that: one of loopback may be the near end of a tunnel.
    """
    return server_boot_id not in ("", processes.UNKNOWN_BOOT) and server_boot_id == processes.boot_id()


def run_document(assignment: Assignment, settings: Settings) -> dict[str, Any]:
    """``run.json``: the run as it was frozen, and what this machine adds."""
    run = msgspec.to_builtins(assignment.run)
    return {
        "run": run,
        "attempt": assignment.attempt,
        "threads": threads_per_run(settings.threads, slots=settings.slots, cores=os.cpu_count() or 1),
        "dataDir": str(settings.data_dir),
        "cacheBytes": settings.cache_max_gib << 30,
        "freeDiskBytes": settings.free_disk_mib << 20,
        "modelFolders": [str(folder) for folder in settings.models.folders],
    }
