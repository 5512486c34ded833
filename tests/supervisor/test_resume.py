"""Selecting, fetching, and pruning the checkpoints that an attempt resumes from."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard import rundir
from runyard.protocol import CheckpointFile, ResumeCheckpoint
from runyard.supervisor.resume import BlobGone, prepare_resume, prune_checkpoints


class CheckpointServer:
    """A fake server with checkpoints, each with one file of weights and one of state."""

    def __init__(self) -> None:
        self.checkpoints: list[ResumeCheckpoint] = []
        self.bytes: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def add(self, name: str, *, step: int, run_id: str = "run-1") -> None:
        files = []
        for path in ("model_full/model.safetensors", "training_state/state.json"):
            content = f"{run_id} {name} {path}".encode()
            digest = hashlib.sha256(content).hexdigest()
            self.bytes[digest] = content
            files.append(CheckpointFile(path=path, size_bytes=len(content), sha256=digest))
        self.checkpoints.append(
            ResumeCheckpoint(
                run_id=run_id, checkpoint_id=name, step=step, epoch=1, time=step, files=files
            )
        )

    def list_resume_candidates(self) -> list[ResumeCheckpoint]:
        return self.checkpoints

    def fetch_blob(self, sha256: str, target: Path) -> None:
        if sha256 not in self.bytes:
            raise BlobGone(sha256)
        self.fetched.append(sha256)
        target.write_bytes(self.bytes[sha256])


def save_checkpoint(attempt: Path, name: str, *, step: int) -> Path:
    checkpoint = rundir.AttemptDir(attempt).checkpoints / name
    checkpoint.mkdir(parents=True)
    (checkpoint / "model").write_bytes(name.encode())
    files = [
        {"path": "model", "sizeBytes": len(name), "sha256": rundir.sha256_of(checkpoint / "model")}
    ]
    rundir.write_json(
        checkpoint / rundir.MANIFEST,
        {"checkpoint": name, "step": step, "epoch": 1, "time": step, "files": files},
    )
    return checkpoint


def make_attempts(tmp_path: Path, count: int) -> list[Path]:
    folders = [tmp_path / "run-1" / "attempts" / str(number) for number in range(1, count + 1)]
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def read_resume(attempt: Path) -> dict[str, Any] | None:
    return rundir.read_json(rundir.AttemptDir(attempt).resume)


def list_remaining(*folders: Path) -> set[str]:
    return {
        f"{folder.name}/{path.name}"
        for folder in folders
        for path, _ in rundir.list_checkpoints(folder)
    }


def test_a_first_attempt_starts_fresh(tmp_path: Path) -> None:
    (first,) = make_attempts(tmp_path, 1)
    prepare_resume(first, CheckpointServer())
    assert read_resume(first) is None


def test_the_newest_step_of_all_earlier_attempts_is_taken(tmp_path: Path) -> None:
    first, second, third = make_attempts(tmp_path, 3)
    save_checkpoint(first, "epoch-1", step=10)
    newest = save_checkpoint(first, "epoch-2", step=20)
    save_checkpoint(second, "step-15", step=15)
    save_checkpoint(third, "epoch-9", step=90)
    prepare_resume(third, CheckpointServer())
    assert read_resume(third) == {"folder": str(newest)}


def test_a_torn_checkpoint_is_skipped(tmp_path: Path) -> None:
    first, second = make_attempts(tmp_path, 2)
    good = save_checkpoint(first, "epoch-1", step=10)
    (save_checkpoint(first, "epoch-2", step=20) / "model").write_bytes(b"torn")
    prepare_resume(second, CheckpointServer())
    assert read_resume(second) == {"folder": str(good)}


def test_a_checkpoint_is_fetched_only_when_it_is_newer_than_the_local_ones(tmp_path: Path) -> None:
    first, second, third = make_attempts(tmp_path, 3)
    checkpoint_server = CheckpointServer()
    checkpoint_server.add("epoch-2", step=20)
    same = save_checkpoint(first, "epoch-2", step=20)
    prepare_resume(second, checkpoint_server)
    assert (read_resume(second), checkpoint_server.fetched) == ({"folder": str(same)}, [])
    checkpoint_server.add("epoch-3", step=30)
    prepare_resume(third, checkpoint_server)
    folder = rundir.AttemptDir(third).fetched.checkpoints / "epoch-3"
    assert read_resume(third) == {"folder": str(folder)}
    manifest = rundir.read_json(folder / rundir.MANIFEST)
    assert manifest is not None and rundir.is_proven(folder, manifest)


def test_another_runs_checkpoint_names_its_run_and_the_runs_own_has_priority(
    tmp_path: Path,
) -> None:
    first, second, third = make_attempts(tmp_path, 3)
    checkpoint_server = CheckpointServer()
    checkpoint_server.add("epoch-2", step=20, run_id="run-0")
    prepare_resume(first, checkpoint_server)
    fetched = rundir.AttemptDir(first).fetched.checkpoints / "epoch-2"
    assert read_resume(first) == {"folder": str(fetched), "runId": "run-0"}
    # The first attempt ended before a save: its fetched checkpoint is used again.
    prepare_resume(second, checkpoint_server)
    assert read_resume(second) == {"folder": str(fetched), "runId": "run-0"}
    assert len(checkpoint_server.fetched) == 2
    own = save_checkpoint(second, "epoch-3", step=30)
    prepare_resume(third, checkpoint_server)
    assert read_resume(third) == {"folder": str(own)}


def test_a_checkpoint_the_server_has_lost_is_skipped(tmp_path: Path) -> None:
    (first,) = make_attempts(tmp_path, 1)
    checkpoint_server = CheckpointServer()
    checkpoint_server.add("epoch-1", step=10)
    checkpoint_server.add("epoch-2", step=20)
    del checkpoint_server.bytes[checkpoint_server.checkpoints[1].files[1].sha256]
    prepare_resume(first, checkpoint_server)
    assert read_resume(first) == {
        "folder": str(rundir.AttemptDir(first).fetched.checkpoints / "epoch-1")
    }


@pytest.mark.parametrize(
    "path", ["../../../outside", "/outside", "manifest.json", "model_full/../../x", ""]
)
def test_a_path_that_leaves_the_folder_is_not_followed(tmp_path: Path, path: str) -> None:
    (first,) = make_attempts(tmp_path, 1)
    checkpoint_server = CheckpointServer()
    checkpoint_server.add("epoch-1", step=10)
    checkpoint_server.checkpoints[0].files[0].path = path
    prepare_resume(first, checkpoint_server)
    assert (read_resume(first), checkpoint_server.fetched) == (None, [])


class Killed(Exception):
    """Simulates SIGKILL: nothing happens afterwards."""


def die_before_effect(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """Die before the ``number``-th effect on the disk.

    Return a function that counts the effects.
    """
    count = 0

    def before(call: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            return call(*arguments, **named)

        return counted

    for owner, name in (
        (os, "fsync"),
        (os, "replace"),
        (os, "unlink"),
        (os, "rmdir"),
        (Path, "mkdir"),
        (Path, "replace"),
        (Path, "unlink"),
        (Path, "write_bytes"),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(owner, name, before(getattr(owner, name)))
    return lambda: count


def test_a_fetch_that_dies_leaves_nothing_torn_and_the_next_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, died = 0, True
    while died:
        number += 1
        first, second = make_attempts(tmp_path / str(number), 2)
        checkpoint_server = CheckpointServer()
        checkpoint_server.add("epoch-2", step=20)
        with monkeypatch.context() as patch:
            die_before_effect(patch, number)
            try:
                prepare_resume(first, checkpoint_server)
                died = False
            except Killed:
                pass
        for path, manifest in rundir.list_checkpoints(rundir.AttemptDir(first).fetched.path):
            assert rundir.is_proven(path, manifest)
        prepare_resume(second, checkpoint_server)
        resume = read_resume(second)
        assert resume is not None
        manifest_there = rundir.read_json(Path(resume["folder"]) / rundir.MANIFEST)
        assert manifest_there is not None and rundir.is_proven(
            Path(resume["folder"]), manifest_there
        )
    assert number > 10


def test_unlisted_older_checkpoints_are_removed_once_a_newer_one_is_stored(
    tmp_path: Path,
) -> None:
    first, second = make_attempts(tmp_path, 2)
    save_checkpoint(first, "epoch-1", step=10)
    save_checkpoint(first, "epoch-2", step=20)
    begun_from = save_checkpoint(first, "epoch-3", step=30)
    prepare_resume(second, CheckpointServer())
    assert read_resume(second) == {"folder": str(begun_from)}
    assert list_remaining(first) == {"1/epoch-1", "1/epoch-2", "1/epoch-3"}
    save_checkpoint(second, "epoch-4", step=40)
    prune_checkpoints(second, stored="epoch-4", kept=[(1, "epoch-2"), (2, "epoch-4")])
    assert list_remaining(first, second) == {"1/epoch-2", "2/epoch-4"}


def test_checkpoints_newer_than_the_stored_one_are_kept(tmp_path: Path) -> None:
    """One that never reached the server may be the only intact checkpoint."""
    first, second = make_attempts(tmp_path, 2)
    save_checkpoint(first, "epoch-3", step=30)
    save_checkpoint(second, "step-25", step=25)
    prune_checkpoints(second, stored="step-25", kept=[(2, "step-25")])
    assert list_remaining(first, second) == {"1/epoch-3", "2/step-25"}
    # The trainer has removed it, so it proves nothing
    prune_checkpoints(second, stored="epoch-9", kept=[])
    assert list_remaining(first, second) == {"1/epoch-3", "2/step-25"}


def test_fetched_checkpoints_are_removed_once_a_newer_one_is_stored(tmp_path: Path) -> None:
    (first,) = make_attempts(tmp_path, 1)
    checkpoint_server = CheckpointServer()
    checkpoint_server.add("epoch-2", step=20, run_id="run-0")
    prepare_resume(first, checkpoint_server)
    torn = rundir.AttemptDir(first).fetched.checkpoints / ".fetching-epoch-9"
    torn.mkdir()
    save_checkpoint(first, "epoch-3", step=30)
    prune_checkpoints(first, stored="epoch-3", kept=[(1, "epoch-3")])
    assert list(rundir.AttemptDir(first).fetched.checkpoints.iterdir()) == []
    assert list_remaining(first) == {"1/epoch-3"}


def test_a_removal_that_dies_keeps_the_newest_checkpoint_and_the_next_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, died = 0, True
    while died:
        number += 1
        first, second, third = make_attempts(tmp_path / str(number), 3)
        save_checkpoint(first, "epoch-1", step=10)
        save_checkpoint(first, "epoch-2", step=20)
        newest = save_checkpoint(second, "epoch-3", step=30)
        with monkeypatch.context() as patch:
            die_before_effect(patch, number)
            try:
                prune_checkpoints(second, stored="epoch-3", kept=[(2, "epoch-3")])
                died = False
            except Killed:
                pass
        prepare_resume(third, CheckpointServer())
        assert read_resume(third) == {"folder": str(newest)}
        prune_checkpoints(second, stored="epoch-3", kept=[(2, "epoch-3")])
        assert list(rundir.AttemptDir(first).checkpoints.iterdir()) == []
    assert number > 3
