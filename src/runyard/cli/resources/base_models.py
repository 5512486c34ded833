"""Adding, listing and removing base models of this machine, which flows name ``base:NAME``.

No server is involved: the folders belong to the machine, and its operator writes to them. A folder
is validated as by a trainer, before and after the copy, and renamed last, so that no run sees a
partial model.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runyard.cli.failures import EXIT_NOT_FOUND, EXIT_USAGE, CommandFailed
from runyard.cli.output import format_size
from runyard.flows.weights import BASE_NAME
from runyard.model_folders import ADAPTER_CONFIG, ModelFolders
from runyard.rundir import (
    MODEL_ADAPTER,
    MODEL_FULL,
    CheckpointDir,
    free_bytes,
    fsync_dir,
    read_json,
)

ADDING, REMOVING = ".adding-", ".removing-"
PIECE_BYTES = 8 << 20

OnProgress = Callable[[str, int, int], None]


def add(
    folders: ModelFolders,
    source: Path,
    name: str,
    *,
    link: bool,
    spare_bytes: int,
    on_progress: OnProgress,
) -> Path:
    """Copy a model folder, or a checkpoint, to where ``base:NAME`` finds it.

    With ``link`` as hard links.

    Raises:
        CommandFailed: The name is taken or malformed, the folder is missing, or disk space is too
            low.
        InvalidFlow: A trainer would reject the folder.
    """
    root = _choose_target(folders, name)
    if not source.is_dir():
        raise CommandFailed(
            f"folder {source} does not exist; try: the folder with config.json",
            exit_code=EXIT_NOT_FOUND,
        )
    _check(source)
    files = list(_files(source))
    total = sum(path.stat().st_size for _, path in files)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_leftovers(root)
    free = free_bytes(root) - spare_bytes
    if not link and total > free:
        raise CommandFailed(
            f"not enough disk space for {source} in {root}: {format_size(total)} needed, "
            f"{format_size(max(0, free))} available; "
            "try: free disk space, --link, or another folder first in RUNYARD_MODEL_FOLDERS"
        )
    staged = root / f"{ADDING}{os.getpid()}"
    staged.mkdir(mode=0o700)
    try:
        done = 0
        for where, path in files:
            target = staged / where
            target.parent.mkdir(parents=True, exist_ok=True)
            for length in _link_file(path, target) if link else _copy_file(path, target):
                done += length
                on_progress(f"{'Linking' if link else 'Copying'} {where}", done >> 20, total >> 20)
        for inner in (*(path for path in staged.rglob("*") if path.is_dir()), staged):
            fsync_dir(inner)
        _check(staged)  # the source may have changed during the copy
        target = root / name
        target.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            staged.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise _name_taken_error(name) from error
            raise
        fsync_dir(target.parent)
        fsync_dir(root)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def list_base_models(folders: ModelFolders) -> list[dict[str, Any]]:
    """Return name, ``model_type``, size and folder of every base model."""
    found = []
    for name in folders.list_names():
        path = folders.find(name)
        if path is not None:
            full = CheckpointDir(path).model
            total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            is_adapter = (path / ADAPTER_CONFIG).is_file()
            config = read_json(full / "config.json") or {}
            model_type = "adapter" if is_adapter else config.get("model_type")
            found.append(
                {"name": name, "modelType": model_type, "sizeBytes": total, "folder": str(path)}
            )
    return found


def remove(folders: ModelFolders, name: str) -> None:
    """Delete a base model. Runs that have loaded it continue; runs that start later fail.

    Raises:
        CommandFailed: No base model has this name.
    """
    root = next(
        (
            folder
            for folder in folders.folders
            if BASE_NAME.fullmatch(name) and (folder / name).is_dir()
        ),
        None,
    )
    if root is None or folders.resolve(root / name) is None:
        known = ", ".join(folders.list_names()) or "none"
        raise CommandFailed(
            f"the model folders have no model {name!r}; try: one of {known}",
            exit_code=EXIT_NOT_FOUND,
        )
    removed = root / f"{REMOVING}{os.getpid()}"
    (root / name).rename(removed)
    fsync_dir((root / name).parent)
    if removed.is_symlink():
        removed.unlink()
    else:
        shutil.rmtree(removed)


def _choose_target(folders: ModelFolders, name: str) -> Path:
    """Return the folder for new models.

    Raises:
        CommandFailed: The name is malformed or taken, or a link leads outside the folder.
    """
    root = folders.folders[0]
    if not BASE_NAME.fullmatch(name):
        raise CommandFailed(
            f"{name!r} is not a valid model name, expected: letters, digits, dots, dashes and "
            "underscores, starting with a letter or digit; try: qwen-2b, or OWNER/NAME as in a "
            "hub id",
            exit_code=EXIT_USAGE,
        )
    if folders.resolve(root / name) is None:
        raise CommandFailed(
            f"{root / name} is not inside {root}: a symbolic link leads outside; try: remove the "
            "link"
        )
    if os.path.lexists(root / name):
        raise _name_taken_error(name)
    return root


def _name_taken_error(name: str) -> CommandFailed:
    return CommandFailed(
        f"a model {name!r} already exists; try: another --name, or runyard models remove {name}"
    )


def _check(folder: Path) -> None:
    from runyard.trainer.models.model_folder import check_adapter_folder, check_model_folder

    if (folder / ADAPTER_CONFIG).is_file():
        check_adapter_folder(folder)
        return
    full = CheckpointDir(folder).model_full
    check_model_folder(full if full.is_dir() else folder)
    if full.is_dir() and CheckpointDir(folder).has_adapter:
        check_adapter_folder(CheckpointDir(folder).model_adapter)


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield relative path and resolved file of each file of a model folder or checkpoint."""
    is_checkpoint = CheckpointDir(source).model_full.is_dir()
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        is_wanted = not is_checkpoint or parts[0] in (MODEL_FULL, MODEL_ADAPTER)
        if is_wanted and path.is_file() and not any(part.startswith(".") for part in parts):
            yield "/".join(parts), path.resolve()


def _copy_file(path: Path, target: Path) -> Iterator[int]:
    """Copy a file in chunks and yield the length of each."""
    with open(path, "rb") as source, open(target, "xb") as file:
        while piece := source.read(PIECE_BYTES):
            file.write(piece)
            yield len(piece)
        file.flush()
        os.fsync(file.fileno())


def _link_file(path: Path, target: Path) -> Iterator[int]:
    try:
        os.link(path, target)
    except OSError as error:
        raise CommandFailed(
            f"{path} cannot be linked ({error.strerror}); a hard link needs the same disk and a "
            "file that you own; try: without --link"
        ) from error
    yield path.stat().st_size


def _remove_leftovers(root: Path) -> None:
    """Delete temporary folders of killed commands."""
    for path in [*root.glob(f"{ADDING}*"), *root.glob(f"{REMOVING}*")]:
        number = path.name.rpartition("-")[2]
        try:
            os.kill(int(number), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass
