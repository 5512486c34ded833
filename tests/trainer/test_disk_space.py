"""A full disk: training waits with its state, loses nothing, and resumes when there is space."""

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import runyard.trainer.checkpoints.async_checkpoint as saving_module
import runyard.trainer.checkpoints.checkpoint as checkpoint_module
import runyard.trainer.disk_space as disk_space_module
import runyard.trainer.main as main_module
import runyard.trainer.train as train_module
from runyard import rundir
from runyard.rundir import read_json
from runyard.trainer.disk_space import (
    POLL_INTERVAL_S,
    RESERVE_BYTES,
    DiskSpaceGate,
    as_system_error,
)
from runyard.trainer.main import train_attempt

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
BLOCKS: dict[str, dict[str, Any]] = {
    "vi-dataset": {"maxSamples": 64},
    "vi-model": {"hyperparameters": {"maxSteps": 4}, "validation": {"maxSamples": 8}},
}


def make_gate(
    free: list[int], *, stops_after: int = 99
) -> tuple[DiskSpaceGate, list[str], list[float]]:
    """Return a gate with free space from a list, its last value repeated; stops after some pauses.

    Also returns the lists of its messages and pauses.
    """
    messages: list[str] = []
    slept: list[float] = []
    gate = DiskSpaceGate(
        folder=Path("/"),
        should_stop=lambda: len(slept) >= stops_after,
        on_wait=messages.append,
        free_bytes=lambda _: free.pop(0) if len(free) > 1 else free[0],
        sleep=slept.append,
    )
    return gate, messages, slept


def test_with_enough_space_nothing_waits() -> None:
    gate, messages, slept = make_gate([100 + RESERVE_BYTES])
    assert gate.wait_for_space(100, "epoch-1")
    assert (messages, slept, gate.waited_s) == ([], [], 0.0)


def test_short_of_space_it_reports_once_and_resumes_by_itself() -> None:
    gate, messages, slept = make_gate([7, 8, 9, 100 + RESERVE_BYTES])
    assert gate.wait_for_space(100, "epoch-1")
    assert len(slept) == 3
    assert gate.waited_s == 3 * POLL_INTERVAL_S
    assert messages == [
        f"epoch-1 needs 100 bytes plus {RESERVE_BYTES} in reserve, but only 7 are free; "
        "training resumes when there is space; try: free disk space"
    ]


def test_a_stop_may_use_the_reserve_and_never_waits() -> None:
    gate, _, slept = make_gate([100], stops_after=0)
    assert gate.wait_for_space(100, "epoch-1")
    assert not gate.wait_for_space(101, "epoch-1")
    assert slept == []
    gate, _, slept = make_gate([5], stops_after=2)
    assert not gate.wait_for_space(100, "epoch-1")
    assert len(slept) == 2


def test_a_disk_that_refuses_free_bytes_is_retried_with_backoff() -> None:
    gate, messages, slept = make_gate([10**12], stops_after=10**6)
    pauses = []
    for _ in range(9):
        before = len(slept)
        assert gate.wait_after_refusal(100, "epoch-1")
        pauses.append(len(slept) - before)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(messages) == 9
    gate, _, slept = make_gate([10**12], stops_after=0)
    assert not gate.wait_after_refusal(100, "epoch-1")
    assert slept == []


def test_the_system_error_is_found_in_a_native_librarys_message() -> None:
    refused = as_system_error(
        Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    )
    assert refused is not None
    assert refused.errno == errno.ENOSPC
    assert as_system_error(ValueError("28")) is None


def weights(folder: Path, name: str = "epoch-2") -> dict[str, torch.Tensor]:
    root = folder / "checkpoints" / name
    found: dict[str, torch.Tensor] = load_file(root / "model_full" / "model.safetensors")
    found |= load_file(root / "training_state" / "state.safetensors")
    return found


@pytest.fixture(scope="module")
def uninterrupted(
    write_attempt: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = write_attempt(tmp_path_factory.mktemp("uninterrupted"), BLOCKS)
    assert train_attempt(folder) == 0
    return folder


def is_equal(one: Path, two: Path) -> bool:
    return all(torch.equal(value, weights(two)[name]) for name, value in weights(one).items())


def short_of_space(
    monkeypatch: pytest.MonkeyPatch, free: list[int], on_sleep: Callable[[], object] = lambda: None
) -> None:
    """Let the loop see this free space, its last value repeated, without really sleeping."""
    train = train_module.train

    def trained(*arguments: Any, **named: Any) -> Any:
        def free_bytes(_: Path) -> int:
            return free.pop(0) if len(free) > 1 else free[0]

        def sleep(_: float) -> None:
            on_sleep()

        return train(*arguments, **named, free=free_bytes, sleep=sleep)

    monkeypatch.setattr(train_module, "train", trained)


def test_a_run_short_of_space_waits_and_ends_bit_for_bit_the_same(
    uninterrupted: Path,
    make_attempt: Callable[..., Path],
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Written synchronously, so that the order of events is fixed."""
    monkeypatch.setattr(saving_module, "available_bytes", lambda _: 0)
    short_of_space(monkeypatch, [10, 20, 10**9])
    folder = make_attempt(BLOCKS)
    assert train_attempt(folder) == 0
    phases = [event["phase"] for event in events_of(folder, "phase")]
    assert phases == [
        "Preparing",
        "Training",
        "WaitingForDisk",
        "Saving",
        "Evaluating",
        "Training",
        "Saving",
        "Evaluating",
    ]
    (waiting,) = [
        event["message"]
        for event in events_of(folder, "phase")
        if event["phase"] == "WaitingForDisk"
    ]
    assert "epoch-1 needs " in waiting
    assert "only 10 are free" in waiting
    assert [event["step"] for event in events_of(folder, "step")] == [1, 2, 3, 4]
    assert is_equal(uninterrupted, folder)


@pytest.mark.slow
def test_a_stop_ends_the_waiting_and_keeps_the_older_checkpoint(
    uninterrupted: Path, make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_attempt(BLOCKS)
    with monkeypatch.context() as patch:
        short_of_space(
            patch,
            [10**9, 10**9, 10],
            on_sleep=lambda: (folder / "stop.json").write_text("{}"),
        )
        assert train_attempt(folder) == 75
    result = read_json(folder / "result.json")
    assert result is not None
    assert (result["outcome"], result["checkpoint"]) == ("Stopped", "epoch-1")
    assert "no disk space" in result["message"]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["epoch-1"]
    again = make_attempt(BLOCKS, attempt=2, resume=folder / "checkpoints" / "epoch-1")
    assert train_attempt(again) == 0
    assert is_equal(uninterrupted, again)


@pytest.mark.parametrize("number", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)])
def test_a_refused_save_leaves_nothing_and_is_repeated_from_the_start(
    number: int,
    uninterrupted: Path,
    make_attempt: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short_of_space(monkeypatch, [10**9])
    fsync = checkpoint_module._fsync_file
    left: list[Path] = []
    folder = make_attempt(BLOCKS)

    def refused_once(path: Path) -> None:
        if not left and path.name == "tokenizer.json":
            left.append(path.parent.parent)
            raise OSError(number, os.strerror(number))
        fsync(path)

    remove, removed = checkpoint_module._remove, []

    def noted(path: Path) -> None:
        if path.exists():
            removed.append(path.name)
        remove(path)

    monkeypatch.setattr(checkpoint_module, "_fsync_file", refused_once)
    monkeypatch.setattr(checkpoint_module, "_remove", noted)
    assert train_attempt(folder) == 0
    assert removed == [".staging-epoch-1"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "epoch-1",
        "epoch-2",
    ]
    assert is_equal(uninterrupted, folder)


def test_the_estimate_before_the_first_save_is_an_upper_bound(
    uninterrupted: Path, make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = checkpoint_module.estimate_bytes
    asked: list[int] = []

    def noted(*arguments: Any) -> int:
        asked.append(needed(*arguments))
        return asked[-1]

    monkeypatch.setattr(train_module, "estimate_bytes", noted)
    folder = make_attempt(BLOCKS)
    assert train_attempt(folder) == 0
    sizes = []
    for name in ("epoch-1", "epoch-2"):
        manifest = read_json(folder / "checkpoints" / name / "manifest.json")
        assert manifest is not None
        sizes.append(sum(file["sizeBytes"] for file in manifest["files"]))
    assert sizes[0] <= asked[0] <= 2 * sizes[0]
    assert asked[1] == sizes[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, with little space for a reserve."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    done = subprocess.run(
        [mount or "false", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run([shutil.which("umount") or "umount", "-l", str(folder)], check=True)


def train_with(reserve: int, folder: Path) -> int:
    """Train with this reserve; called in a separate process."""
    say = main_module._say
    disk_space_module.RESERVE_BYTES = reserve
    main_module._say = lambda line: say(line + " " * 4096)  # so that the log does not fit either
    return train_attempt(folder)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "reserve",
    [
        pytest.param(1 << 20, id="checked", marks=pytest.mark.slow),
        pytest.param(-(1 << 40), id="hit while writing"),
    ],
)
def test_a_run_waits_for_a_full_disk_and_nothing_is_lost_or_truncated(
    reserve: int,
    small_disk: Path,
    write_attempt: Callable[..., Path],
    uninterrupted: Path,
    events_of: EventsOf,
    fork: Callable[..., Any],
) -> None:
    """In the second case space is not checked: weights, events and log hit the end of the disk."""
    folder = write_attempt(small_disk, BLOCKS)
    filler = small_disk / "filler"
    log = folder / "stdout.log"
    with open(filler, "wb") as file:
        file.write(b"x" * (rundir.free_bytes(small_disk) - (600 << 10)))
    trainer = fork(lambda: train_with(reserve, folder), output=log)
    deadline = time.monotonic() + 60
    while trainer.poll() is None and time.monotonic() < deadline:
        text = (folder / "events.jsonl").read_bytes() if (folder / "events.jsonl").exists() else b""
        if b"WaitingForDisk" in text:
            break
        time.sleep(0.05)
    assert trainer.poll() is None
    assert not list((folder / "checkpoints").glob("*/manifest.json"))
    with open(filler, "ab", buffering=0) as file:  # now not a byte is free
        while free := rundir.free_bytes(small_disk):
            try:
                file.write(b"x" * free)
            except OSError:
                break
    time.sleep(1)
    filler.unlink()
    assert trainer.wait(60) == 0
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["step"] for line in lines if line["ev"] == "step"] == [1, 2, 3, 4]
    lines_of_log = [line.rstrip() for line in log.read_text().splitlines()]
    assert [line for line in lines_of_log if "saved" in line] == [
        "saved epoch-1, the best so far",
        "saved epoch-2",
    ]
    assert is_equal(uninterrupted, folder)
    result = read_json(folder / "result.json")
    assert result is not None
    assert result["outcome"] == "Succeeded"
