"""Checkpoints that are written while training continues: the same bytes and guarantees."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import runyard.trainer.checkpoints.async_checkpoint as async_checkpoint_module
import runyard.trainer.checkpoints.checkpoint as checkpoint_module
import runyard.trainer.main as main_module
import runyard.trainer.train as train_module
from runyard import rundir
from runyard.rundir import EventWriter, read_json, write_json
from runyard.trainer.checkpoints.async_checkpoint import AsyncCheckpointer, HostBuffers
from runyard.trainer.checkpoints.checkpoint import (
    CheckpointContents,
    add_evaluation,
    save_checkpoint,
)
from runyard.trainer.main import train_attempt
from runyard.trainer.steps.memory import AvailableMemory

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
HELD_S = 30.0  # at most, if a test fails
CPU = torch.device("cpu")


def make_blocks(steps: int = 7, every: int = 4, **model: Any) -> dict[str, dict[str, Any]]:
    settings = {
        "hyperparameters": {"maxSteps": steps, "batchSize": 4},
        "checkpoint": {"every": {"steps": every}},
    }
    return {
        "vi-dataset": {"maxSamples": 32, "validationFraction": 0.25},
        "vi-model": {**settings, "validation": {"maxSamples": 4, "every": {"steps": 100}}, **model},
    }


class Held:
    """Blocks the first save at its start until ``release`` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self._released = 0, threading.Event()

        def held(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                assert self._released.wait(HELD_S)
            return save_checkpoint(*arguments, **named)

        monkeypatch.setattr(train_module, "save_checkpoint", held)

    def release(self) -> None:
        self._released.set()


def before(
    module: Any, name: str, call: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Do something at the start of the given call (from 1) of a function."""
    kept, calls = getattr(module, name), []

    def with_act(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            act()
        return kept(*arguments, **named)

    monkeypatch.setattr(module, name, with_act)


def content_of(checkpoint: Path) -> dict[str, Any]:
    """Return hashes of everything that does not depend on time or names, and the counters."""
    manifest = read_json(checkpoint / "manifest.json")
    assert manifest is not None
    assert rundir.is_proven(checkpoint, manifest)
    state = read_json(checkpoint / "training_state" / "state.json")
    assert state is not None
    state["progress"].pop("trainSeconds")
    hashes = {
        file["path"]: file["sha256"]
        for file in manifest["files"]
        if not file["path"].endswith("json")
    }
    return hashes | {"state": state, "step": manifest["step"]}


@pytest.mark.parametrize("mode", ["full", "frozen", "lora"])
def test_a_checkpoint_written_in_the_background_equals_a_synchronous_one_bit_for_bit(
    mode: str,
    make_attempt: Callable[..., Path],
    miniature: Any,
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copying takes longer than a step's gradients, and writing starts three steps later."""
    blocks = {
        "full": make_blocks(),
        "frozen": make_blocks(training={"freeze": ["vision"]}),
        "lora": make_blocks(
            training={"mode": "lora"},
            architecture={"weights": str(miniature("llava"))},
            compute={"precisionType": "float32"},
        ),
    }[mode]
    background, synchronous = (
        make_attempt(blocks, run="background"),
        make_attempt(blocks, run="synchronous"),
    )
    with monkeypatch.context() as patch:
        held, fill = Held(patch), async_checkpoint_module.StagedContents.fill

        def slowly(self: Any) -> None:
            time.sleep(0.3)
            fill(self)

        patch.setattr(async_checkpoint_module.StagedContents, "fill", slowly)
        before(train_module, "accumulate_gradients", 7, held.release, patch)
        assert train_attempt(background) == 0
    lines, _ = rundir.read_lines(background / "events.jsonl", 0)
    written = [line for line in lines if '"ev": "checkpoint"' in line or '"ev": "step"' in line]
    assert ['"ev": "checkpoint"' in line for line in written] == [False] * 7 + [True] * 2
    assert events_of(background, "warning") == []

    with monkeypatch.context() as patch:
        patch.setattr(async_checkpoint_module, "available_bytes", lambda _: 0)
        assert train_attempt(synchronous) == 0
    (warning,) = events_of(synchronous, "warning")
    assert "not enough host memory for asynchronous checkpointing" in warning["message"]
    for name in ("step-4", "step-7"):
        assert content_of(background / "checkpoints" / name) == content_of(
            synchronous / "checkpoints" / name
        )


def test_events_of_the_steps_are_durable_before_their_checkpoint_is_written(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sync = make_attempt(make_blocks()), EventWriter.sync
    durable, order = [0], []

    def synced(self: EventWriter) -> None:
        last = max(event["step"] for event in events_of(folder, "step"))
        sync(self)
        durable.append(last)

    def noted(
        attempt: Path, name: str, model: Any, contents: CheckpointContents, **named: Any
    ) -> Any:
        order.append((contents.step, durable[-1] >= contents.step))
        return save_checkpoint(attempt, name, model, contents, **named)

    monkeypatch.setattr(EventWriter, "sync", synced)
    monkeypatch.setattr(train_module, "save_checkpoint", noted)
    assert train_attempt(folder) == 0
    assert order == [(4, True), (7, True)]


def test_an_evaluation_and_the_end_are_durable_before_they_are_recorded(
    make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sync = make_attempt(make_blocks()), EventWriter.sync
    durable_bytes: list[int] = [0]
    order: list[tuple[str, bool]] = []

    def note(event: str) -> None:
        last = (folder / "events.jsonl").read_bytes().rindex(f'"ev": "{event}"'.encode())
        order.append((event, last < durable_bytes[-1]))

    def synced(self: EventWriter) -> None:
        sync(self)
        durable_bytes.append((folder / "events.jsonl").stat().st_size)

    def add(*arguments: Any, **named: Any) -> Any:
        note("evaluation")
        return add_evaluation(*arguments, **named)

    def write(path: Path, value: Any) -> None:
        if path.name == "result.json":
            note("checkpoint")
        write_json(path, value)

    monkeypatch.setattr(EventWriter, "sync", synced)
    monkeypatch.setattr(train_module, "add_evaluation", add)
    monkeypatch.setattr(main_module, "write_json", write)
    assert train_attempt(folder) == 0
    assert order == [("evaluation", True), ("checkpoint", True)]


def test_a_stop_during_a_write_waits_for_it_and_saves_the_newest_step(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, held = make_attempt(make_blocks()), Held(monkeypatch)
    before(
        train_module,
        "accumulate_gradients",
        6,
        lambda: os.kill(os.getpid(), signal.SIGTERM),
        monkeypatch,
    )
    # The first is that before the save of step 4.
    before(AsyncCheckpointer, "wait", 2, held.release, monkeypatch)
    kept = signal.getsignal(signal.SIGTERM)
    try:
        assert train_attempt(folder) == 75
    finally:
        signal.signal(signal.SIGTERM, kept)
    result = read_json(folder / "result.json")
    assert result is not None
    assert (result["outcome"], result["checkpoint"]) == ("Stopped", "step-6")
    assert [event["step"] for event in events_of(folder, "step")] == [1, 2, 3, 4, 5, 6]
    assert [event["checkpoint"] for event in events_of(folder, "checkpoint")] == [
        "step-4",
        "step-6",
    ]
    assert [content_of(path)["step"] for path, _ in rundir.list_checkpoints(folder)] == [4, 6]


def test_a_stop_at_the_step_that_is_being_written_saves_it_once(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, held = make_attempt(make_blocks()), Held(monkeypatch)
    before(
        AsyncCheckpointer,
        "submit",
        1,
        lambda: (folder / "stop.json").write_text("{}"),
        monkeypatch,
    )
    before(AsyncCheckpointer, "wait", 2, held.release, monkeypatch)
    assert train_attempt(folder) == 75
    assert held.calls == 1
    assert [event["checkpoint"] for event in events_of(folder, "checkpoint")] == ["step-4"]


def test_a_run_that_fails_during_a_write_completes_and_names_that_checkpoint(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge() -> None:
        held.release()
        raise train_module.NotFinite("the loss is nan")

    folder, held = make_attempt(make_blocks()), Held(monkeypatch)
    before(train_module, "optimizer_step", 6, diverge, monkeypatch)
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json")
    assert result is not None
    assert result["reason"] == "Diverged"
    assert "the last good checkpoint is step-4" in result["message"]
    assert [event["checkpoint"] for event in events_of(folder, "checkpoint")] == ["step-4"]


def test_repeated_disk_errors_end_the_attempt_and_leave_nothing_half_written(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Path) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(checkpoint_module, "_fsync_file", failing)
    folder = make_attempt(make_blocks(steps=40))
    assert train_attempt(folder) == 1
    assert not (folder / "result.json").exists()
    assert list((folder / "checkpoints").iterdir()) == []
    assert len(events_of(folder, "warning")) == async_checkpoint_module.MAX_SAVE_ATTEMPTS - 1


@pytest.mark.e2e
def test_a_kill_during_a_write_leaves_only_proven_checkpoints(
    make_attempt: Callable[..., Path], events_of: EventsOf, fork: Callable[..., Any]
) -> None:
    folder = make_attempt(make_blocks(steps=2000, every=4))

    def with_a_slow_disk() -> int:
        fsync, asked = checkpoint_module._fsync_file, []

        def slow(path: Path) -> None:
            if path.name == "state.safetensors":
                asked.append(path)
            if len(asked) == 2:
                time.sleep(HELD_S)
            fsync(path)

        checkpoint_module._fsync_file = slow
        return train_attempt(folder)

    trainer = fork(with_a_slow_disk)
    deadline_s = time.monotonic() + HELD_S
    while time.monotonic() < deadline_s and trainer.poll() is None:
        steps = (
            [event["step"] for event in events_of(folder, "step")]
            if (folder / "events.jsonl").exists()
            else []
        )
        if steps and steps[-1] >= 12:
            break
        time.sleep(0.02)
    time.sleep(0.1)
    trainer.end()
    assert [path.name for path in (folder / "checkpoints").glob(".*")] == [".staging-epoch-1"]
    assert [content_of(path)["step"] for path, _ in rundir.list_checkpoints(folder)] == [4]
    # The next save would wait.
    assert [event["step"] for event in events_of(folder, "step")] == list(range(1, 13))
    assert [event["checkpoint"] for event in events_of(folder, "checkpoint")] == ["step-4"]


def contents(**weights: torch.Tensor) -> CheckpointContents:
    return CheckpointContents(
        weights=weights,
        tensors={},
        state={},
        step=1,
        epoch=1.0,
        run_document={},
        processor={"of": "the model"},
    )


def test_copies_allocate_once_and_tied_weights_stay_tied() -> None:
    table, copies = torch.nn.Parameter(torch.arange(6.0).view(2, 3)), HostBuffers()
    first = copies.stage(contents(embed=table, head=table), CPU)
    first.fill()
    with torch.no_grad():
        table += 1
    assert first.contents.weights["embed"].tolist() == [[0, 1, 2], [3, 4, 5]]
    second = copies.stage(contents(embed=table, head=table), CPU)
    second.fill()
    places = {
        copied.contents.weights[name].data_ptr()
        for copied in (first, second)
        for name in ("embed", "head")
    }
    assert len(places) == 1
    assert second.contents.weights["head"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_pinned_copies_count_at_the_size_that_torch_allocates() -> None:
    count = async_checkpoint_module.count_host_bytes
    assert [count(size, is_pinned=True) for size in (0, 1, 4096, 4097, 5 << 30)] == [
        0,
        1,
        4096,
        8192,
        8 << 30,
    ]
    assert count(4097, is_pinned=False) == 4097


def test_buffers_are_copied_at_once_and_frozen_weights_are_not_copied() -> None:
    buffer, frozen = (
        torch.tensor([1.0]),
        torch.nn.Parameter(torch.tensor([2.0]), requires_grad=False),
    )
    held = HostBuffers().stage(contents(mean=buffer, frozen=frozen), CPU).contents
    buffer += 1
    assert held.weights["mean"].tolist() == [1.0]
    assert held.weights["frozen"] is frozen


def test_memory_that_a_step_will_need_again_is_not_free_for_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = 10**12
    monkeypatch.setattr(
        async_checkpoint_module,
        "read_host_memory",
        lambda _: AvailableMemory(used=10**9, free=free, total=2 * free),
    )
    assert async_checkpoint_module.available_bytes(free) == 10**9
    copies = HostBuffers()
    copies.peak_bytes = free + 10**9
    with pytest.raises(MemoryError, match="0 MiB are free"):
        copies.stage(contents(weight=torch.nn.Parameter(torch.ones(1))), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_a_copy_is_exact_for_every_kind_of_tensor(dtype: torch.dtype) -> None:
    whole = torch.arange(12).view(3, 4).to(dtype)
    given = {
        "whole": whole,
        "turned": whole.t(),
        "part": whole[:, 1],
        "one": whole[1, 1],
        "none": whole[:0],
    }
    parameters = {
        name: torch.nn.Parameter(value.clone(), requires_grad=dtype.is_floating_point)
        for name, value in given.items()
    }
    copied = HostBuffers().stage(
        contents(**(parameters if dtype.is_floating_point else given)), CPU
    )
    copied.fill()
    assert all(torch.equal(copied.contents.weights[name], value) for name, value in given.items())
