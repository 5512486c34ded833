"""Removal of run folders, by the server and by the controller of each machine.

A folder is renamed first, so that it disappears in one step, and its content is removed afterwards.
An interrupted removal leaves the renamed folder, which the next removal finishes. Server and
controller may share a data folder and remove the same run at the same time. Standard library only.
"""

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from runyard.ids import is_id, resolve_folder

REMOVING = ".removing-"
MAX_TRIES = 1000


def list_run_folders(runs_dir: Path) -> list[tuple[str, str]]:
    """Return organization and run of every run folder, sorted.

    Links and names that are not valid ids are left out.
    """
    return sorted(
        (run.parent.name, run.name)
        for run in list_folders(runs_dir)
        if is_id("organization", run.parent.name) and is_id("run", run.name)
    )


def list_folders(root: Path) -> list[Path]:
    """Return the folders of all organizations below ``root``, without links."""
    return [folder for org in _list_folders(root) for folder in _list_folders(org)]


def detach_run(runs_dir: Path, org: str, run_id: str) -> None:
    """Rename the folder of a run for removal; do nothing if it does not exist.

    Raises:
        PathEscapes: it would be outside ``runs_dir``, or is a link.
        OSError: the disk is failing.
    """
    folder = resolve_folder(runs_dir, org, run_id)
    # A run id may be as long as a file name may be, so it is hashed.
    target = folder.with_name(f"{_format_prefix(run_id)}{uuid.uuid4().hex[:8]}")
    try:
        folder.rename(target)
    except FileNotFoundError:
        return


def remove_run(runs_dir: Path, org: str, run_id: str) -> None:
    """Remove the folder of a run, and what an interrupted removal of it has left.

    Raises:
        PathEscapes: it would be outside ``runs_dir``, or is a link.
        OSError: the disk is failing.
    """
    detach_run(runs_dir, org, run_id)
    for folder in _list_folders(resolve_folder(runs_dir, org)):
        if folder.name.startswith(_format_prefix(run_id)):
            remove_tree(folder)


def remove_detached(root: Path) -> None:
    """Finish the removal of every renamed folder of every organization below ``root``.

    Raises:
        OSError: the disk is failing.
    """
    for folder in list_folders(root):
        if folder.name.startswith(REMOVING):
            remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder that another process may remove at the same time.

    Raises:
        OSError: the disk is failing.
    """
    for tries_left in reversed(range(MAX_TRIES)):
        try:
            shutil.rmtree(folder)
            return
        except FileNotFoundError:  # the other process was faster with one of the files
            if not folder.exists():
                return
            if not tries_left:
                raise


def _format_prefix(run_id: str) -> str:
    return f"{REMOVING}{hashlib.sha256(run_id.encode()).hexdigest()[:32]}-"


def _list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, without links; none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
