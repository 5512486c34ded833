"""Writes the folder of an attempt: everything that supervisor and trainer need, and no secret.

``placed.json`` is written last, so a supervisor that finds it finds the rest.
"""

import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runyard import ids, processes, rundir
from runyard.controller.decide import AttemptKey
from runyard.controller.machine import count_threads_per_run
from runyard.flows.resources import count_accelerators, count_ranks
from runyard.ids import resolve_folder
from runyard.protocol import Assignment
from runyard.rundir import AttemptDir
from runyard.settings import Settings


def make_attempt_key(assignment: Assignment) -> AttemptKey:
    return AttemptKey(assignment.organization_id, assignment.run_id, assignment.attempt)


def locate_folder(settings: Settings, key: AttemptKey) -> Path:
    return AttemptDir.locate(settings.runs_dir, key.organization_id, key.run_id, key.attempt).path


def has_folder(settings: Settings, key: AttemptKey) -> bool:
    """Return whether an attempt was placed here.

    The key may come from any process of this machine.
    """
    try:
        return locate_folder(settings, key).is_dir()
    except ids.PathEscapes:
        return False


def place_attempt(
    assignment: Assignment, *, settings: Settings, machine_id: str, devices: Sequence[str] = ()
) -> Path:
    """Prepare the folder of an attempt for its supervisor; idempotent.

    ``devices`` are the accelerators reserved for the attempt.

    Raises:
        OSError: the disk is full or failing, or a supervisor still uses the folder for an attempt
            that a restore has undone.
        InvalidId: an id from the server is not valid in a path.
    """
    ids.check_id("organization", assignment.organization_id)
    ids.check_id("run", assignment.run_id)
    folder = locate_folder(settings, make_attempt_key(assignment))
    placed = rundir.read_json(AttemptDir(folder).placed)
    if placed is not None and is_other_store(placed.get("epoch"), assignment.store_id):
        _set_aside(folder, str(placed["epoch"]))
        placed = None
    if placed is None and _restore_set_aside(folder, assignment.store_id):
        placed = rundir.read_json(AttemptDir(folder).placed)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if placed is not None:
        _reopen_folder(folder, assignment)
        return folder
    rundir.write_json(AttemptDir(folder).run, build_run_document(assignment, settings))
    rundir.write_json(
        AttemptDir(folder).placed,
        {
            "organizationId": assignment.organization_id,
            "runId": assignment.run_id,
            "attempt": assignment.attempt,
            "epoch": assignment.store_id,
            "machineId": machine_id,
            "devices": list(devices),
            "leaseS": assignment.lease_s,
            "graceS": assignment.grace_s,
            "workers": count_ranks(assignment.run.spec.flow.settings),
            "serverFile": str(settings.server_file),
            "maxUnreachableS": None
            if is_this_machine(assignment.server_boot_id)
            else settings.max_unreachable_s,
            "hangS": settings.hang_minutes * 60 or None,
            "spoolBytes": settings.spool_mib << 20,
            "datasetsBytes": settings.datasets_max_gib << 30,
            "weightsBytes": settings.weights_max_gib << 30,
        },
    )
    return folder


def is_other_store(written: Any, store_id: str) -> bool:
    """Return whether a file was written for another store incarnation; one without an id counts as
    the same.
    """
    return bool(written and store_id and written != store_id)


def _set_aside(folder: Path, store_id: str) -> None:
    """Rename the folder of another attempt with the same number, which a restore has undone.

    Its supervisor loses the lease and ends. Until then this raises ``OSError``: the new attempt's
    lease expires uncharged, and it is offered again. The new name is not a number, so nothing
    resumes from it.
    """
    with open(AttemptDir(folder).supervisor_lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.replace(folder, _locate_set_aside(folder, store_id))
        rundir.fsync_dir(folder.parent)


def _restore_set_aside(folder: Path, store_id: str) -> bool:
    """Restore a folder set aside before; return whether there was one.

    That happens when a newer backup is restored after an older one.
    """
    aside = _locate_set_aside(folder, store_id)
    if folder.exists() or not aside.is_dir():
        return False
    os.replace(aside, folder)
    rundir.fsync_dir(folder.parent)
    return True


def _locate_set_aside(folder: Path, store_id: str) -> Path:
    return resolve_folder(folder.parent, f"{folder.name}-{store_id}")


def _reopen_folder(folder: Path, assignment: Assignment) -> None:
    """Reopen a closed folder if the server still waits for its report.

    A restore has undone the report; or it was refused while another attempt ran, and a kill or a
    deletion now waits for proof that nothing of this attempt is left. A ``closed.json`` without a
    store id may belong to any store; an extra report is harmless.
    """
    closed = rundir.read_json(AttemptDir(folder).closed)
    if closed is None:
        return
    is_undone = assignment.current_store_id not in ("", closed.get("epoch"))
    if is_undone or closed.get("how") == "refused":
        AttemptDir(folder).closed.unlink(missing_ok=True)
        rundir.fsync_dir(folder)


def is_this_machine(server_boot_id: str) -> bool:
    """Return whether the server runs on this machine, where the run's lock prevents a second
    trainer.

    An address does not show it: a loopback address may be the local end of a tunnel.
    """
    return (
        server_boot_id not in ("", processes.UNKNOWN_BOOT) and server_boot_id == processes.boot_id()
    )


def read_devices(placed: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the accelerators that ``placed.json`` reserves; earlier versions wrote one."""
    devices = placed.get("devices")
    if devices is None:
        devices = [placed["device"]] if placed.get("device") else []
    return tuple(str(device) for device in devices)


def build_run_document(assignment: Assignment, settings: Settings) -> dict[str, Any]:
    """Return the content of ``run.json``: the frozen run, and the settings of this machine."""
    run, cores = msgspec.to_builtins(assignment.run), os.cpu_count() or 1
    threads = count_threads_per_run(settings.threads, slots=settings.slots, cores=cores)
    # A run with several accelerators leaves as many slots unused.
    share = max(1, count_accelerators(assignment.run.spec.flow.settings))
    return {
        "run": run,
        "attempt": assignment.attempt,
        "threads": max(threads, min(threads * share, cores)),
        "dataDir": str(settings.data_dir),
        "cacheBytes": settings.cache_max_gib << 30,
        "freeDiskBytes": settings.free_disk_mib << 20,
        "modelFolders": [str(folder) for folder in settings.models.folders],
    }
