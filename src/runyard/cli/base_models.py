"""Model folders of this machine: adding, listing and removing what flows name ``base:NAME``.

No server is asked: the folders belong to the machine, and its operator writes into them. A folder is checked as a
trainer checks it, before and after it is copied, and gets its name last, so that no run ever sees half of it.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runyard.cli.failures import EXIT_NOT_FOUND, EXIT_USAGE, CommandFailed
from runyard.cli.output import size
from runyard.flows.weights import BASE_NAME
from runyard.model_folders import ModelFolders
from runyard.rundir import MODEL_ADAPTER, MODEL_FULL, free_bytes, fsync_dir, read_json

ADDING, REMOVING = ".adding-", ".removing-"
PIECE_BYTES = 8 << 20

OnProgress = Callable[[str, int, int], None]


def add(
    folders: ModelFolders, source: Path, name: str, *, link: bool, spare_bytes: int, on_progress: OnProgress
) -> Path:
    """Copy a model folder, or a checkpoint, to where ``base:NAME`` finds it; with ``link`` as hard links.

    Raises:
        CommandFailed: the name is taken or malformed, the folder does not exist, or there is no room.
        InvalidFlow: a trainer would not open the folder.
    """
    root = _checked_place(folders, name)
    if not source.is_dir():
        raise CommandFailed(f"there is no folder {source}; try: the folder with config.json", exit_code=EXIT_NOT_FOUND)
    _check(source)
    files = list(_files(source))
    total = sum(path.stat().st_size for _, path in files)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_left_over(root)
    free = free_bytes(root) - spare_bytes
    if not link and total > free:
        raise CommandFailed(
            f"{source} has {size(total)}, and {size(max(0, free))} may be filled on the disk of {root}; "
            "try: make room, --link, or another folder first in RUNYARD_MODEL_FOLDERS"
        )
    staged = root / f"{ADDING}{os.getpid()}"
    staged.mkdir(mode=0o700)
    try:
        done = 0
        for where, path in files:
            target = staged / where
            target.parent.mkdir(parents=True, exist_ok=True)
            for length in _linked(path, target) if link else _copied(path, target):
                done += length
                on_progress(f"{'Linking' if link else 'Copying'} {where}", done >> 20, total >> 20)
        for inner in (*(path for path in staged.rglob("*") if path.is_dir()), staged):
            fsync_dir(inner)
        _check(staged)  # what was read may have changed meanwhile
        target = root / name
        target.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            staged.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise _taken(name) from error
            raise
        fsync_dir(target.parent)
        fsync_dir(root)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def listed(folders: ModelFolders) -> list[dict[str, Any]]:
    """Return name, family's ``model_type``, size and folder of every model that flows may name."""
    found = []
    for name in folders.list_names():
        path = folders.find(name)
        if path is not None:
            full = path / MODEL_FULL if (path / MODEL_FULL).is_dir() else path
            total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            model_type = (read_json(full / "config.json") or {}).get("model_type")
            found.append({"name": name, "modelType": model_type, "sizeBytes": total, "folder": str(path)})
    return found


def remove(folders: ModelFolders, name: str) -> None:
    """Remove a model. Runs that have read it go on; runs that have not begun will not find it.

    Raises:
        CommandFailed: there is none of that name.
    """
    root = next((folder for folder in folders.folders if BASE_NAME.fullmatch(name) and (folder / name).is_dir()), None)
    if root is None or folders.resolve(root / name) is None:
        known = ", ".join(folders.list_names()) or "none"
        raise CommandFailed(
            f"there is no model {name!r} in the model folders; there are: {known}", exit_code=EXIT_NOT_FOUND
        )
    aside = root / f"{REMOVING}{os.getpid()}"
    (root / name).rename(aside)
    fsync_dir((root / name).parent)
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside)


def _checked_place(folders: ModelFolders, name: str) -> Path:
    """Return the folder that new models go to. Raises CommandFailed when the name cannot be had there."""
    root = folders.folders[0]
    if not BASE_NAME.fullmatch(name):
        raise CommandFailed(
            f"{name!r} is no name for a model; give letters, digits, dots, dashes and underscores, beginning with a "
            "letter or digit, such as qwen-2b, or OWNER/NAME as a hub id has it",
            exit_code=EXIT_USAGE,
        )
    if folders.resolve(root / name) is None:
        raise CommandFailed(f"{root / name} is not inside {root}: a symbolic link leads out of it; remove the link")
    if os.path.lexists(root / name):
        raise _taken(name)
    return root


def _taken(name: str) -> CommandFailed:
    return CommandFailed(f"a model {name!r} exists already; try: another --name, or runyard models remove {name}")


def _check(folder: Path) -> None:
    from runyard.trainer.models.model_folder import check_adapter_folder, check_model_folder

    full = folder / MODEL_FULL
    check_model_folder(full if full.is_dir() else folder)
    if full.is_dir() and (folder / MODEL_ADAPTER).is_dir():
        check_adapter_folder(folder / MODEL_ADAPTER)


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    """Paths inside the model folder, or inside both parts of a checkpoint, and the files that links end at."""
    is_checkpoint = (source / MODEL_FULL).is_dir()
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        is_wanted = not is_checkpoint or parts[0] in (MODEL_FULL, MODEL_ADAPTER)
        if is_wanted and path.is_file() and not any(part.startswith(".") for part in parts):
            yield "/".join(parts), path.resolve()


def _copied(path: Path, target: Path) -> Iterator[int]:
    """Copy a file, piece by piece; yields the length of each."""
    with open(path, "rb") as source, open(target, "xb") as file:
        while piece := source.read(PIECE_BYTES):
            file.write(piece)
            yield len(piece)
        file.flush()
        os.fsync(file.fileno())


def _linked(path: Path, target: Path) -> Iterator[int]:
    try:
        os.link(path, target)
    except OSError as error:
        raise CommandFailed(
            f"{path} cannot be linked ({error.strerror}); a hard link needs the same disk and a file that you own; "
            "try: without --link"
        ) from error
    yield path.stat().st_size


def _remove_left_over(root: Path) -> None:
    """Remove what commands that were killed have left."""
    for path in [*root.glob(f"{ADDING}*"), *root.glob(f"{REMOVING}*")]:
        number = path.name.rpartition("-")[2]
        try:
            os.kill(int(number), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass
