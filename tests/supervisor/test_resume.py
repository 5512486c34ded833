"""Which checkpoint an attempt goes on from, where it comes from, and which are removed once there is a newer one."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard import rundir
from runyard.protocol import CheckpointFile, ResumeCheckpoint
from runyard.supervisor.resume import Gone, prepare, prune


class Shelf:
    """A server's checkpoints, each with one file of weights and one of state."""

    def __init__(self) -> None:
        self.told: list[ResumeCheckpoint] = []
        self.bytes: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def add(self, name: str, *, step: int, run_id: str = "run-1") -> None:
        files = []
        for path in ("model_full/model.safetensors", "training_state/state.json"):
            content = f"{run_id} {name} {path}".encode()
            digest = hashlib.sha256(content).hexdigest()
            self.bytes[digest] = content
            files.append(CheckpointFile(path=path, size_bytes=len(content), sha256=digest))
        self.told.append(
            ResumeCheckpoint(run_id=run_id, checkpoint_id=name, step=step, epoch=1, time=step, files=files)
        )

    def resumable(self) -> list[ResumeCheckpoint]:
        return self.told

    def fetch(self, sha256: str, target: Path) -> None:
        if sha256 not in self.bytes:
            raise Gone(sha256)
        self.fetched.append(sha256)
        target.write_bytes(self.bytes[sha256])


def save(attempt: Path, name: str, *, step: int) -> Path:
    checkpoint = attempt / rundir.CHECKPOINTS / name
    checkpoint.mkdir(parents=True)
    (checkpoint / "model").write_bytes(name.encode())
    files = [{"path": "model", "sizeBytes": len(name), "sha256": rundir.sha256_of(checkpoint / "model")}]
    rundir.write_json(
        checkpoint / rundir.MANIFEST, {"checkpoint": name, "step": step, "epoch": 1, "time": step, "files": files}
    )
    return checkpoint


def attempts(tmp_path: Path, count: int) -> list[Path]:
    folders = [tmp_path / "run-1" / "attempts" / str(number) for number in range(1, count + 1)]
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def chosen(attempt: Path) -> dict[str, Any] | None:
    return rundir.read_json(attempt / rundir.RESUME)


def left(*folders: Path) -> set[str]:
    return {f"{folder.name}/{path.name}" for folder in folders for path, _ in rundir.checkpoints(folder)}


def test_a_first_attempt_starts_fresh(tmp_path: Path) -> None:
    (first,) = attempts(tmp_path, 1)
    prepare(first, Shelf())
    assert chosen(first) is None


def test_the_newest_step_of_all_earlier_attempts_is_taken(tmp_path: Path) -> None:
    first, second, third = attempts(tmp_path, 3)
    save(first, "epoch-1", step=10)
    newest = save(first, "epoch-2", step=20)
    save(second, "step-15", step=15)
    save(third, "epoch-9", step=90)
    prepare(third, Shelf())
    assert chosen(third) == {"folder": str(newest)}


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    first, second = attempts(tmp_path, 2)
    good = save(first, "epoch-1", step=10)
    (save(first, "epoch-2", step=20) / "model").write_bytes(b"torn")
    prepare(second, Shelf())
    assert chosen(second) == {"folder": str(good)}


def test_what_the_server_has_is_fetched_only_when_it_is_newer_than_what_lies_here(tmp_path: Path) -> None:
    first, second, third = attempts(tmp_path, 3)
    shelf = Shelf()
    shelf.add("epoch-2", step=20)
    same = save(first, "epoch-2", step=20)
    prepare(second, shelf)
    assert (chosen(second), shelf.fetched) == ({"folder": str(same)}, [])
    shelf.add("epoch-3", step=30)
    prepare(third, shelf)
    folder = third / rundir.FETCHED / rundir.CHECKPOINTS / "epoch-3"
    assert chosen(third) == {"folder": str(folder)}
    manifest = rundir.read_json(folder / rundir.MANIFEST)
    assert manifest is not None and rundir.is_proven(folder, manifest)


def test_another_runs_checkpoint_is_named_as_such_and_gives_way_to_the_runs_own(tmp_path: Path) -> None:
    first, second, third = attempts(tmp_path, 3)
    shelf = Shelf()
    shelf.add("epoch-2", step=20, run_id="run-0")
    prepare(first, shelf)
    fetched = first / rundir.FETCHED / rundir.CHECKPOINTS / "epoch-2"
    assert chosen(first) == {"folder": str(fetched), "runId": "run-0"}
    prepare(second, shelf)  # the first attempt ended before it had saved: what it fetched serves again
    assert chosen(second) == {"folder": str(fetched), "runId": "run-0"}
    assert len(shelf.fetched) == 2
    own = save(second, "epoch-3", step=30)
    prepare(third, shelf)
    assert chosen(third) == {"folder": str(own)}


def test_bytes_the_server_has_lost_are_passed_over(tmp_path: Path) -> None:
    (first,) = attempts(tmp_path, 1)
    shelf = Shelf()
    shelf.add("epoch-1", step=10)
    shelf.add("epoch-2", step=20)
    del shelf.bytes[shelf.told[1].files[1].sha256]
    prepare(first, shelf)
    assert chosen(first) == {"folder": str(first / rundir.FETCHED / rundir.CHECKPOINTS / "epoch-1")}


@pytest.mark.parametrize("path", ["../../../outside", "/outside", "manifest.json", "model_full/../../x", ""])
def test_a_path_that_leaves_the_folder_is_not_followed(tmp_path: Path, path: str) -> None:
    (first,) = attempts(tmp_path, 1)
    shelf = Shelf()
    shelf.add("epoch-1", step=10)
    shelf.told[0].files[0].path = path
    prepare(first, shelf)
    assert (chosen(first), shelf.fetched) == (None, [])


class Killed(Exception):
    """Stands for SIGKILL: nothing after it happens."""


def die_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """Let the ``number``-th effect on the disk be the one before which the process dies; tells how many there were."""
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


def test_a_fetch_that_dies_at_any_step_leaves_nothing_half_and_is_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, died = 0, True
    while died:
        number += 1
        first, second = attempts(tmp_path / str(number), 2)
        shelf = Shelf()
        shelf.add("epoch-2", step=20)
        with monkeypatch.context() as patch:
            die_at(patch, number)
            try:
                prepare(first, shelf)
                died = False
            except Killed:
                pass
        for path, manifest in rundir.checkpoints(first / rundir.FETCHED):
            assert rundir.is_proven(path, manifest)
        prepare(second, shelf)
        resume = chosen(second)
        assert resume is not None
        manifest_there = rundir.read_json(Path(resume["folder"]) / rundir.MANIFEST)
        assert manifest_there is not None and rundir.is_proven(Path(resume["folder"]), manifest_there)
    assert number > 10


def test_checkpoints_of_earlier_attempts_go_once_a_newer_one_is_stored_unless_they_are_listed(tmp_path: Path) -> None:
    first, second = attempts(tmp_path, 2)
    save(first, "epoch-1", step=10)
    save(first, "epoch-2", step=20)
    begun_from = save(first, "epoch-3", step=30)
    prepare(second, Shelf())
    assert chosen(second) == {"folder": str(begun_from)}
    assert left(first) == {"1/epoch-1", "1/epoch-2", "1/epoch-3"}
    save(second, "epoch-4", step=40)
    prune(second, stored="epoch-4", kept=[(1, "epoch-2"), (2, "epoch-4")])
    assert left(first, second) == {"1/epoch-2", "2/epoch-4"}


def test_nothing_goes_that_is_newer_than_what_is_stored(tmp_path: Path) -> None:
    """A checkpoint that never reached the server, and the only proof there is."""
    first, second = attempts(tmp_path, 2)
    save(first, "epoch-3", step=30)
    save(second, "step-25", step=25)
    prune(second, stored="step-25", kept=[(2, "step-25")])
    assert left(first, second) == {"1/epoch-3", "2/step-25"}
    prune(second, stored="epoch-9", kept=[])  # what the trainer has removed meanwhile proves nothing
    assert left(first, second) == {"1/epoch-3", "2/step-25"}


def test_what_was_fetched_goes_once_a_newer_checkpoint_is_stored(tmp_path: Path) -> None:
    (first,) = attempts(tmp_path, 1)
    shelf = Shelf()
    shelf.add("epoch-2", step=20, run_id="run-0")
    prepare(first, shelf)
    torn = first / rundir.FETCHED / rundir.CHECKPOINTS / ".fetching-epoch-9"
    torn.mkdir()
    save(first, "epoch-3", step=30)
    prune(first, stored="epoch-3", kept=[(1, "epoch-3")])
    assert list((first / rundir.FETCHED / rundir.CHECKPOINTS).iterdir()) == []
    assert left(first) == {"1/epoch-3"}


def test_a_removal_that_dies_at_any_step_leaves_a_newest_proof_and_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, died = 0, True
    while died:
        number += 1
        first, second, third = attempts(tmp_path / str(number), 3)
        save(first, "epoch-1", step=10)
        save(first, "epoch-2", step=20)
        newest = save(second, "epoch-3", step=30)
        with monkeypatch.context() as patch:
            die_at(patch, number)
            try:
                prune(second, stored="epoch-3", kept=[(2, "epoch-3")])
                died = False
            except Killed:
                pass
        prepare(third, Shelf())
        assert chosen(third) == {"folder": str(newest)}
        prune(second, stored="epoch-3", kept=[(2, "epoch-3")])
        assert list((first / rundir.CHECKPOINTS).iterdir()) == []
    assert number > 3
