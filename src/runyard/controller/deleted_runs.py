"""Removes what this machine holds of deleted runs: their folders, and weights that only they used.

The server names the runs, out of those that the machine has reported. A folder is kept as long as
an attempt in it is held or a process of it lives; the server names it again after the next report.

Weights fetched for a run are shared by the runs that start from the same bytes. They are removed
when no run folder names them any more and no supervisor holds them. Base models, datasets and
encoded samples stay: they do not belong to runs, and their size is limited.
"""

import fcntl
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from runyard import ids, removal, rundir
from runyard.controller.decide import AttemptKey
from runyard.ids import resolve_folder
from runyard.ports import Processes
from runyard.processes import ATTEMPT_MARK, SUPERVISOR_MARK
from runyard.protocol import RunRemoval
from runyard.rundir import AttemptDir
from runyard.settings import Settings
from runyard.supervisor.shared import remove_unused

log = logging.getLogger(__name__)


def detach_deleted_runs(
    settings: Settings,
    removals: Sequence[RunRemoval],
    *,
    held: Collection[AttemptKey],
    processes: Processes,
) -> bool:
    """Rename the folders of deleted runs that nothing uses; ``finish_removals`` removes them.

    Return whether one of them is gone now. Call where no attempt can be placed at the same time.
    """
    if not removals:
        return False
    in_use = {(key.organization_id, key.run_id) for key in held}
    for kind in (SUPERVISOR_MARK, ATTEMPT_MARK):
        marks = (mark for _, mark in processes.find_marked(kind, lambda _: True))
        in_use |= {(org, run_id) for org, run_id, _ in map(_split_mark, marks)}
    is_any_gone = False
    for named in removals:
        org, run_id = named.organization_id, named.run_id
        try:
            ids.check_id("organization", org)
            ids.check_id("run", run_id)
            folder = resolve_folder(settings.runs_dir, org, run_id)
            if (org, run_id) in in_use or _is_locked(folder):
                log.info("run %s is deleted; its folder is removed when its processes end", run_id)
            elif not named.store_id or _is_placed_in(folder, named.store_id):
                removal.detach_run(settings.runs_dir, org, run_id)
                is_any_gone = True
        except (ids.InvalidId, OSError) as error:
            log.warning("run %s is deleted, but its folder stays: %s", ids.shorten(run_id), error)
    return is_any_gone


def finish_removals(settings: Settings) -> None:
    """Remove renamed folders, and weights that no run on this machine uses any more.

    Raises:
        OSError: the disk is failing.
    """
    removal.remove_detached(settings.runs_dir)
    removal.remove_detached(settings.weights_dir)
    used = {
        Path(str(document.get("folder"))).parts[-2:]
        for path in settings.runs_dir.glob(f"*/*/attempts/*/{rundir.WEIGHTS}")
        if (document := rundir.read_json(path)) is not None
    }
    for home in removal.list_folders(settings.weights_dir):
        if home.parts[-2:] not in used and not home.name.startswith(rundir.BASE_MODEL_PREFIX):
            remove_unused(home)


def _split_mark(mark: str) -> tuple[str, str, str]:
    """Return organization, run and attempt; empty texts for a warm parent's placeholder."""
    org, _, rest = mark.partition("/")
    run_id, _, attempt = rest.partition("/")
    return org, run_id, attempt


def _is_locked(folder: Path) -> bool:
    """Return whether a trainer or a supervisor holds a lock in the folder of a run."""
    for path in (
        rundir.locate_run_lock(folder),
        *folder.glob(f"attempts/*/{rundir.SUPERVISOR_LOCK}"),
    ):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _is_placed_in(folder: Path, store_id: str) -> bool:
    """Return whether every attempt in a run's folder was placed in this store incarnation."""
    placed = [rundir.read_json(AttemptDir(attempt).placed) for attempt in folder.glob("attempts/*")]
    return bool(placed) and all(
        document is not None and document.get("epoch") == store_id for document in placed
    )
