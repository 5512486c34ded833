"""Where an attempt goes on from: the newest checkpoint that proves itself, of this machine or of the server.

It is looked for after the run's lock is ours, so nobody writes checkpoints any more. On this machine lie those of
earlier attempts, and what they fetched; the server has those of attempts that ran elsewhere, and the one of another run
that this run was made to continue. The highest step is taken, which makes every checkpoint of the run's own newer than
the one it began from. Every file is read and compared with its manifest: a checkpoint that a power cut tore, or that
is being removed, is passed over for the one before it, and so is one whose bytes the server has lost.

What is fetched is staged beside its place, every file fsynced, the manifest written last, the folder renamed. Files
that arrived whole before the line was cut are not fetched again.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runyard import ids, rundir
from runyard.ids import resolve_folder
from runyard.ports import Files
from runyard.protocol import CheckpointFile, ResumeCheckpoint


class Gone(Exception):
    """The server has these bytes no more, and will not have them later."""


class Source(Protocol):
    """The server, as far as this module needs it. What is raised other than ``Gone`` passes: try again later."""

    def resumable(self) -> list[ResumeCheckpoint]: ...

    def fetch(self, sha256: str, target: Path, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Here:
    """A complete checkpoint on this machine, not proven yet."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def rank(self) -> tuple[int, bool, int]:
        return self.manifest["step"], True, self.manifest["time"]


@dataclass(frozen=True, slots=True)
class There:
    """A checkpoint on the server. One that lies here as well is rather taken from here."""

    told: ResumeCheckpoint

    @property
    def rank(self) -> tuple[int, bool, int]:
        return self.told.step, False, self.told.time


def prepare(folder: Path, source: Source, *, files: Files = rundir) -> None:
    """Write ``resume.json`` if there is something to resume from. Reads whole checkpoints, so it takes its time."""
    candidates: list[Here | There] = [*here(folder, files=files), *map(There, source.resumable())]
    for candidate in sorted(candidates, key=lambda item: item.rank, reverse=True):
        if isinstance(candidate, Here):
            found = candidate if files.is_proven(candidate.folder, candidate.manifest) else None
        else:
            found = fetched(folder, candidate.told, source)
        if found is not None:
            origin = {name: found.manifest[name] for name in ("runId",) if name in found.manifest}
            files.write_json(folder / rundir.RESUME, {"folder": str(found.folder), **origin})
            return


def here(folder: Path, *, files: Files = rundir) -> list[Here]:
    """Complete checkpoints of earlier attempts, and those that were fetched for them or for this one."""
    earlier = _attempts(folder, before=int(folder.name))
    places = [*earlier, *(attempt / rundir.FETCHED for attempt in (*earlier, folder))]
    return [Here(path, manifest) for place in places for path, manifest in files.checkpoints(place)]


def fetched(folder: Path, told: ResumeCheckpoint, source: Source) -> Here | None:
    """Fetch a checkpoint into the attempt's folder; None when it cannot be had any more.

    Its manifest names the run it is of, unless that is this attempt's own.
    """
    if not _is_valid(told):
        return None
    final = resolve_folder(folder, rundir.FETCHED, rundir.CHECKPOINTS, told.checkpoint_id)
    staged = final.with_name(f".fetching-{told.checkpoint_id}")
    try:
        for file in told.files:
            _fetch(staged / file.path, file, source)
    except Gone:
        return None
    for inner in sorted(path for path in staged.rglob("*") if path.is_dir()):
        rundir.fsync_dir(inner)
    manifest = _manifest(told, own_run=folder.parent.parent.name)
    rundir.write_json(staged / rundir.MANIFEST, manifest)
    if final.exists():  # one that did not prove itself
        shutil.rmtree(final)
    staged.replace(final)
    for above in (final.parent, final.parent.parent, folder):
        rundir.fsync_dir(above)
    return Here(final, manifest)


def prune(folder: Path, *, stored: str, kept: Iterable[tuple[int, str]], files: Files = rundir) -> None:
    """Remove checkpoints of earlier attempts that the server lists no more, now that ``stored`` is proven there.

    Also what was fetched to begin from. Nothing goes that is newer than ``stored``, so that whatever is not on the
    server yet stays, and so does the newest. The trainer looks after the folder of its own attempt.
    """
    newest = next((manifest["step"] for path, manifest in files.checkpoints(folder) if path.name == stored), None)
    if newest is None:
        return
    listed = set(kept)
    earlier = _attempts(folder, before=int(folder.name))
    for attempt in earlier:
        for path, manifest in files.checkpoints(attempt):
            if manifest["step"] < newest and (int(attempt.name), path.name) not in listed:
                _remove(path)
        _remove_torn(attempt / rundir.CHECKPOINTS)
    for attempt in (*earlier, folder):
        for path, manifest in files.checkpoints(attempt / rundir.FETCHED):
            if manifest["step"] < newest:
                _remove(path)
        _remove_torn(attempt / rundir.FETCHED / rundir.CHECKPOINTS)


def _attempts(folder: Path, *, before: int) -> list[Path]:
    return [path for path in folder.parent.iterdir() if path.name.isdigit() and int(path.name) < before]


def _fetch(target: Path, file: CheckpointFile, source: Source) -> None:
    """Fetch one file, unless it has arrived whole before."""
    if _is_whole(target, file):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source.fetch(file.sha256, target)
    if not _is_whole(target, file):
        raise ConnectionError(f"{file.path} arrived damaged")
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_whole(path: Path, file: CheckpointFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes and rundir.sha256_of(path) == file.sha256


def is_inside(path: str) -> bool:
    """Whether a path from the server is that of a file of a checkpoint, and not of its manifest."""
    return ids.is_path(path) and path != rundir.MANIFEST


def _is_valid(told: ResumeCheckpoint) -> bool:
    """Return whether id and paths are those of a checkpoint, and no file takes the manifest's place."""
    try:
        ids.check_id("checkpoint", told.checkpoint_id)
        ids.check_paths(file.path for file in told.files)
    except ids.InvalidId:
        return False
    return all(is_inside(file.path) for file in told.files)


def _manifest(told: ResumeCheckpoint, *, own_run: str) -> dict[str, Any]:
    files = [{"path": file.path, "sizeBytes": file.size_bytes, "sha256": file.sha256} for file in told.files]
    manifest: dict[str, Any] = {
        "checkpoint": told.checkpoint_id,
        "step": told.step,
        "epoch": told.epoch,
        "time": told.time,
        "files": files,
    }
    return manifest if told.run_id == own_run else {**manifest, "runId": told.run_id}


def _remove(checkpoint: Path) -> None:
    """The manifest goes first, so that a half-removed checkpoint is never taken for a whole one."""
    (checkpoint / rundir.MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _remove_torn(checkpoints: Path) -> None:
    """Remove what a crash left half written or half removed; nobody writes in there any more."""
    with contextlib.suppress(FileNotFoundError):
        for path in checkpoints.iterdir():
            if path.is_dir() and not (path / rundir.MANIFEST).exists():
                shutil.rmtree(path)
