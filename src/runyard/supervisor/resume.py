"""Selects the checkpoint that an attempt resumes from: the newest intact one, here or on the
server.

The selection runs while this supervisor holds the run's lock, so no process writes checkpoints.
This machine has the checkpoints of earlier attempts and those that they fetched. The server has
those of attempts on other machines, and the one of another run that this run resumes from. The
highest step wins, so every checkpoint of the run itself counts as newer than the one it started
from. Every file is compared with its manifest. A checkpoint that is torn, being removed, or lost on
the server is skipped in favor of the one before it.

A fetched checkpoint is staged in a sibling folder: files are fsynced, the manifest is written last,
then the folder is renamed. Files that arrived intact before an interruption are not fetched again.
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
from runyard.rundir import AttemptDir, CheckpointDir


class BlobGone(Exception):
    """The server has lost these bytes for good. ``reason`` is its message, if it has sent one."""

    def __init__(self, name: str, reason: str = ""):
        super().__init__(name)
        self.reason = reason


class CheckpointSource(Protocol):
    """The calls of the server that this module needs.

    Errors other than ``BlobGone`` may pass: retry later.
    """

    def list_resume_candidates(self) -> list[ResumeCheckpoint]: ...

    def fetch_blob(self, sha256: str, target: Path, /) -> None: ...


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A complete checkpoint on this machine, not verified yet."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def rank(self) -> tuple[int, bool, int]:
        return self.manifest["step"], True, self.manifest["time"]


@dataclass(frozen=True, slots=True)
class RemoteCheckpoint:
    """A checkpoint on the server. A copy on this machine is preferred."""

    remote: ResumeCheckpoint

    @property
    def rank(self) -> tuple[int, bool, int]:
        return self.remote.step, False, self.remote.time


def prepare_resume(folder: Path, source: CheckpointSource, *, files: Files = rundir) -> None:
    """Write ``resume.json`` if there is a checkpoint to resume from.

    Reads whole checkpoints, so it may take minutes.
    """
    candidates: list[LocalCheckpoint | RemoteCheckpoint] = [
        *list_local_checkpoints(folder, files=files),
        *map(RemoteCheckpoint, source.list_resume_candidates()),
    ]
    for candidate in sorted(candidates, key=lambda item: item.rank, reverse=True):
        if isinstance(candidate, LocalCheckpoint):
            found = candidate if files.is_proven(candidate.folder, candidate.manifest) else None
        else:
            found = fetch_checkpoint(folder, candidate.remote, source)
        if found is not None:
            origin = {name: found.manifest[name] for name in ("runId",) if name in found.manifest}
            files.write_json(AttemptDir(folder).resume, {"folder": str(found.folder), **origin})
            return


def list_local_checkpoints(folder: Path, *, files: Files = rundir) -> list[LocalCheckpoint]:
    """Return the complete checkpoints of earlier attempts, and those fetched for this one."""
    earlier = _list_attempts(folder, before=int(folder.name))
    places = [*earlier, *(AttemptDir(attempt).fetched.path for attempt in (*earlier, folder))]
    return [
        LocalCheckpoint(path, manifest)
        for place in places
        for path, manifest in files.list_checkpoints(place)
    ]


def fetch_checkpoint(
    folder: Path, remote: ResumeCheckpoint, source: CheckpointSource
) -> LocalCheckpoint | None:
    """Fetch a checkpoint into the attempt's folder; return None when the server has lost it.

    Its manifest names the run it belongs to, unless that is this attempt's own.
    """
    if not _is_valid(remote):
        return None
    final = resolve_folder(folder, rundir.FETCHED, rundir.CHECKPOINTS, remote.checkpoint_id)
    staged = final.with_name(f".fetching-{remote.checkpoint_id}")
    try:
        for file in remote.files:
            _fetch_file(staged / file.path, file, source)
    except BlobGone:
        return None
    for inner in sorted(path for path in staged.rglob("*") if path.is_dir()):
        rundir.fsync_dir(inner)
    manifest = _build_manifest(remote, own_run=folder.parent.parent.name)
    rundir.write_json(CheckpointDir(staged).manifest, manifest)
    if final.exists():  # a damaged one
        shutil.rmtree(final)
    staged.replace(final)
    for above in (final.parent, final.parent.parent, folder):
        rundir.fsync_dir(above)
    return LocalCheckpoint(final, manifest)


def prune_checkpoints(
    folder: Path, *, stored: str, kept: Iterable[tuple[int, str]], files: Files = rundir
) -> None:
    """Remove checkpoints of earlier attempts that the server no longer lists, once ``stored`` is
    there.

    Older fetched checkpoints are removed too. Checkpoints newer than ``stored`` stay, because they
    may not be on the server yet. The trainer manages the folder of its own attempt.
    """
    newest = next(
        (
            manifest["step"]
            for path, manifest in files.list_checkpoints(folder)
            if path.name == stored
        ),
        None,
    )
    if newest is None:
        return
    listed = set(kept)
    earlier = _list_attempts(folder, before=int(folder.name))
    for attempt in earlier:
        for path, manifest in files.list_checkpoints(attempt):
            if manifest["step"] < newest and (int(attempt.name), path.name) not in listed:
                _remove_checkpoint(path)
        _remove_torn(AttemptDir(attempt).checkpoints)
    for attempt in (*earlier, folder):
        for path, manifest in files.list_checkpoints(AttemptDir(attempt).fetched.path):
            if manifest["step"] < newest:
                _remove_checkpoint(path)
        _remove_torn(AttemptDir(attempt).fetched.checkpoints)


def _list_attempts(folder: Path, *, before: int) -> list[Path]:
    return [
        path for path in folder.parent.iterdir() if path.name.isdigit() and int(path.name) < before
    ]


def _fetch_file(target: Path, file: CheckpointFile, source: CheckpointSource) -> None:
    """Fetch one file, unless an intact copy has arrived before."""
    if _is_intact(target, file):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source.fetch_blob(file.sha256, target)
    if not _is_intact(target, file):
        raise ConnectionError(f"{file.path} arrived damaged")
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_intact(path: Path, file: CheckpointFile) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == file.size_bytes
        and rundir.sha256_of(path) == file.sha256
    )


def is_checkpoint_path(path: str) -> bool:
    """Return whether a path from the server is valid in a checkpoint, and not the manifest's."""
    return ids.is_path(path) and path != rundir.MANIFEST


def _is_valid(remote: ResumeCheckpoint) -> bool:
    """Return whether id and paths are valid, and no file would replace the manifest."""
    try:
        ids.check_id("checkpoint", remote.checkpoint_id)
        ids.check_paths(file.path for file in remote.files)
    except ids.InvalidId:
        return False
    return all(is_checkpoint_path(file.path) for file in remote.files)


def _build_manifest(remote: ResumeCheckpoint, *, own_run: str) -> dict[str, Any]:
    files = [
        {"path": file.path, "sizeBytes": file.size_bytes, "sha256": file.sha256}
        for file in remote.files
    ]
    manifest: dict[str, Any] = {
        "checkpoint": remote.checkpoint_id,
        "step": remote.step,
        "epoch": remote.epoch,
        "time": remote.time,
        "files": files,
    }
    return manifest if remote.run_id == own_run else {**manifest, "runId": remote.run_id}


def _remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, manifest first, so that a partly removed one never looks complete."""
    CheckpointDir(checkpoint).manifest.unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _remove_torn(checkpoints: Path) -> None:
    """Remove checkpoints that a crash left partly written or removed.

    No process writes there now.
    """
    with contextlib.suppress(FileNotFoundError):
        for path in checkpoints.iterdir():
            if path.is_dir() and not CheckpointDir(path).manifest.exists():
                shutil.rmtree(path)
