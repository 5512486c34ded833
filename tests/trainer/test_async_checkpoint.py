"""Checkpoints that are written while training goes on: the same bytes, the same promises."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import runyard.trainer.checkpoints.async_checkpoint as saving_module
import runyard.trainer.checkpoints.checkpoint as checkpoint_module
import runyard.trainer.train as train_module
from runyard import rundir
from runyard.rundir import EventWriter, read_json
from runyard.trainer.checkpoints.async_checkpoint import Copies, Saver
from runyard.trainer.checkpoints.checkpoint import Contents
from runyard.trainer.main import train_attempt
from runyard.trainer.steps.memory import AvailableMemory

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
HELD_S = 30.0  # at most, should a test go wrong
CPU = torch.device("cpu")


def recipe(steps: int = 7, every: int = 4, **model: Any) -> dict[str, dict[str, Any]]:
    settings = {"hyperparameters": {"maxSteps": steps, "batchSize": 4}, "checkpoint": {"every": {"steps": every}}}
    return {
        "vi-dataset": {"maxSamples": 32, "validationFraction": 0.25},
        "vi-model": {**settings, "validation": {"maxSamples": 4, "every": {"steps": 100}}, **model},
    }


class Held:
    """Holds the first save at its beginning, once the loop has gone on, until ``release`` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        save, self.calls, self._released = train_module.save_checkpoint, 0, threading.Event()

        def held(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                assert self._released.wait(HELD_S)
            return save(*arguments, **named)

        monkeypatch.setattr(train_module, "save_checkpoint", held)

    def release(self) -> None:
        self._released.set()


def before(module: Any, name: str, call: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something at the beginning of the given call (from 1) of a function."""
    kept, calls = getattr(module, name), []

    def with_act(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            act()
        return kept(*arguments, **named)

    monkeypatch.setattr(module, name, with_act)


def content_of(checkpoint: Path) -> dict[str, Any]:
    """Hashes of all that is not told by clocks or names, and the counters."""
    manifest = read_json(checkpoint / "manifest.json")
    assert manifest is not None
    assert rundir.is_proven(checkpoint, manifest)
    state = read_json(checkpoint / "training_state" / "state.json")
    assert state is not None
    state["progress"].pop("trainSeconds")
    told = {file["path"]: file["sha256"] for file in manifest["files"] if not file["path"].endswith("json")}
    return told | {"state": state, "step": manifest["step"]}


@pytest.mark.parametrize("mode", ["full", "frozen", "lora"])
def test_what_is_written_while_training_goes_on_is_bit_for_bit_what_stood_at_its_step(
    mode: str,
    make_attempt: Callable[..., Path],
    miniature: Any,
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The copies take longer than a step's gradients, and the writer begins when three steps more are done."""
    wanted = {
        "full": recipe(),
        "frozen": recipe(training={"freeze": ["vision"]}),
        "lora": recipe(
            training={"mode": "lora"},
            architecture={"weights": str(miniature("llava"))},
            compute={"precisionType": "float32"},
        ),
    }[mode]
    beside, at_once = make_attempt(wanted, run="beside"), make_attempt(wanted, run="at-once")
    with monkeypatch.context() as patch:
        held, fill = Held(patch), saving_module.Copied.fill

        def slowly(self: Any) -> None:
            time.sleep(0.3)
            fill(self)

        patch.setattr(saving_module.Copied, "fill", slowly)
        before(train_module, "_accumulate", 7, held.release, patch)
        assert train_attempt(beside) == 0
    lines, _ = rundir.read_lines(beside / "events.jsonl", 0)
    told = [line for line in lines if '"ev": "checkpoint"' in line or '"ev": "step"' in line]
    assert ['"ev": "checkpoint"' in line for line in told] == [False] * 7 + [True] * 2
    assert events_of(beside, "warning") == []

    with monkeypatch.context() as patch:
        patch.setattr(saving_module, "available_bytes", lambda _: 0)
        assert train_attempt(at_once) == 0
    (warning,) = events_of(at_once, "warning")
    assert "training waits while checkpoints are written" in warning["message"]
    for name in ("step-4", "step-7"):
        assert content_of(beside / "checkpoints" / name) == content_of(at_once / "checkpoints" / name)


def test_what_is_told_of_the_steps_is_durable_before_their_checkpoint_is_written(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sync, save = make_attempt(recipe()), EventWriter.sync, train_module.save_checkpoint
    durable, order = [0], []

    def synced(self: EventWriter) -> None:
        last = max(event["step"] for event in events_of(folder, "step"))
        sync(self)
        durable.append(last)

    def noted(attempt: Path, name: str, model: Any, contents: Contents, **named: Any) -> Any:
        order.append((contents.step, durable[-1] >= contents.step))
        return save(attempt, name, model, contents, **named)

    monkeypatch.setattr(EventWriter, "sync", synced)
    monkeypatch.setattr(train_module, "save_checkpoint", noted)
    assert train_attempt(folder) == 0
    assert order == [(4, True), (7, True)]


def test_a_stop_during_a_write_waits_for_it_and_saves_the_newest_step(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, held = make_attempt(recipe()), Held(monkeypatch)
    before(train_module, "_accumulate", 6, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    before(Saver, "finish", 2, held.release, monkeypatch)  # the first is that before the save of step 4
    kept = signal.getsignal(signal.SIGTERM)
    try:
        assert train_attempt(folder) == 75
    finally:
        signal.signal(signal.SIGTERM, kept)
    result = read_json(folder / "result.json")
    assert result is not None
    assert (result["outcome"], result["checkpoint"]) == ("Stopped", "step-6")
    assert [event["step"] for event in events_of(folder, "step")] == [1, 2, 3, 4, 5, 6]
    assert [event["checkpoint"] for event in events_of(folder, "checkpoint")] == ["step-4", "step-6"]
    assert [content_of(path)["step"] for path, _ in rundir.list_checkpoints(folder)] == [4, 6]


def test_a_stop_at_the_step_that_is_being_written_saves_it_once(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, held = make_attempt(recipe()), Held(monkeypatch)
    before(Saver, "begin", 1, lambda: (folder / "stop.json").write_text("{}") and None, monkeypatch)
    before(Saver, "finish", 2, held.release, monkeypatch)
    assert train_attempt(folder) == 75
    assert held.calls == 1
    assert [event["checkpoint"] for event in events_of(folder, "checkpoint")] == ["step-4"]


def test_a_run_that_fails_while_a_checkpoint_is_written_still_has_and_names_it(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge() -> None:
        held.release()
        raise train_module.NotFinite("the loss is nan")

    folder, held = make_attempt(recipe()), Held(monkeypatch)
    before(train_module, "_move", 6, diverge, monkeypatch)
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json")
    assert result is not None
    assert result["reason"] == "Diverged"
    assert "the last good checkpoint is step-4" in result["message"]
    assert [event["checkpoint"] for event in events_of(folder, "checkpoint")] == ["step-4"]


def test_a_disk_that_fails_again_and_again_ends_the_attempt_with_nothing_half_written(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Path) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(checkpoint_module, "_fsync_file", failing)
    folder = make_attempt(recipe(steps=40))
    assert train_attempt(folder) == 1
    assert not (folder / "result.json").exists()
    assert list((folder / "checkpoints").iterdir()) == []
    assert len(events_of(folder, "warning")) == train_module.SAVE_TRIES - 1


@pytest.mark.e2e
def test_a_kill_during_a_write_leaves_only_proven_checkpoints(
    make_attempt: Callable[..., Path], events_of: EventsOf, fork: Callable[..., Any]
) -> None:
    folder = make_attempt(recipe(steps=2000, every=4))

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
        steps = [event["step"] for event in events_of(folder, "step")] if (folder / "events.jsonl").exists() else []
        if steps and steps[-1] >= 12:
            break
        time.sleep(0.02)
    time.sleep(0.1)
    trainer.end()
    assert [path.name for path in (folder / "checkpoints").glob(".*")] == [".staging-epoch-1"]
    assert [content_of(path)["step"] for path, _ in rundir.list_checkpoints(folder)] == [4]
    assert [event["step"] for event in events_of(folder, "step")] == list(range(1, 13))  # the next save would wait
    assert [event["checkpoint"] for event in events_of(folder, "checkpoint")] == ["step-4"]


def contents(**weights: torch.Tensor) -> Contents:
    return Contents(
        weights=weights, tensors={}, state={}, step=1, epoch=1.0, run_document={}, processor={"of": "the model"}
    )


def test_copies_take_memory_once_and_what_is_tied_stays_tied() -> None:
    table, copies = torch.nn.Parameter(torch.arange(6.0).view(2, 3)), Copies()
    first = copies.hold(contents(embed=table, head=table), CPU)
    first.fill()
    with torch.no_grad():
        table += 1
    assert first.contents.weights["embed"].tolist() == [[0, 1, 2], [3, 4, 5]]
    second = copies.hold(contents(embed=table, head=table), CPU)
    second.fill()
    places = {copied.contents.weights[name].data_ptr() for copied in (first, second) for name in ("embed", "head")}
    assert len(places) == 1
    assert second.contents.weights["head"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_buffers_are_copied_at_once_and_what_nobody_trains_not_at_all() -> None:
    buffer, frozen = torch.tensor([1.0]), torch.nn.Parameter(torch.tensor([2.0]), requires_grad=False)
    held = Copies().hold(contents(mean=buffer, frozen=frozen), CPU).contents
    buffer += 1
    assert held.weights["mean"].tolist() == [1.0]
    assert held.weights["frozen"] is frozen


def test_memory_that_a_step_will_take_again_is_not_free_for_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 10**12
    monkeypatch.setattr(
        saving_module, "read_host_memory", lambda _: AvailableMemory(used=10**9, free=free, total=2 * free)
    )
    assert saving_module.available_bytes(free) == 10**9
    copies = Copies()
    copies.peak_bytes = free + 10**9
    with pytest.raises(MemoryError, match="0 MiB are free"):
        copies.hold(contents(weight=torch.nn.Parameter(torch.ones(1))), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_a_copy_is_exact_whatever_the_tensor(dtype: torch.dtype) -> None:
    whole = torch.arange(12).view(3, 4).to(dtype)
    given = {"whole": whole, "turned": whole.t(), "part": whole[:, 1], "one": whole[1, 1], "none": whole[:0]}
    parameters = {
        name: torch.nn.Parameter(value.clone(), requires_grad=dtype.is_floating_point) for name, value in given.items()
    }
    copied = Copies().hold(contents(**(parameters if dtype.is_floating_point else given)), CPU)
    copied.fill()
    assert all(torch.equal(copied.contents.weights[name], value) for name, value in given.items())
