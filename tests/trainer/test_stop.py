"""Stop requests in each phase lose no step; a resumed run equals an uninterrupted one."""

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

import runyard.trainer.checkpoints.async_checkpoint as saving_module
import runyard.trainer.checkpoints.checkpoint as checkpoint_module
import runyard.trainer.evaluation.evaluation as evaluation_module
import runyard.trainer.prepare as prepare_module
import runyard.trainer.train as train_module
from runyard.rundir import list_checkpoints, read_json, write_json
from runyard.trainer.checkpoints.checkpoint import is_proven, read_progress
from runyard.trainer.data.encode import Encoder
from runyard.trainer.main import train_attempt
from tests.support.slow import mark_slow

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
# Two steps an epoch; evaluated and saved at their ends, and once more after the seventh and last
# step. Patience counts evaluations, so one that is missing or done twice would show.
BLOCKS: dict[str, dict[str, Any]] = {
    "vi-dataset": {"maxSamples": 64},
    "vi-model": {
        "hyperparameters": {"maxSteps": 7},
        "validation": {"maxSamples": 8, "earlyStopping": {"patience": 50, "minDelta": 10.0}},
        "checkpoint": {"keep": 9},
    },
}

# The stops of the default suite, by function and call.
QUICK = (("accumulate_gradients", 3), ("read_prediction", 9), ("save_checkpoint", 2))


@pytest.fixture(scope="module")
def uninterrupted(
    write_attempt: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = write_attempt(tmp_path_factory.mktemp("uninterrupted"), BLOCKS)
    assert train_attempt(folder) == 0
    return folder


@pytest.fixture(autouse=True)
def own_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def sigterm_in(module: Any, name: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM at the start of the given call (from 1) of a function."""
    kept, calls = getattr(module, name), []

    def with_signal(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return kept(*arguments, **named)

    monkeypatch.setattr(module, name, with_signal)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    root = folder / "checkpoints" / "step-7"
    weights: dict[str, torch.Tensor] = load_file(root / "model_full" / "model.safetensors")
    weights |= load_file(root / "training_state" / "state.safetensors")
    return weights


def counters_of(folder: Path) -> dict[str, Any]:
    progress = msgspec.to_builtins(read_progress(folder / "checkpoints" / "step-7"))
    return {name: value for name, value in progress.items() if name != "trainSeconds"}


def values_by_step(events: list[dict[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    return [
        (
            event["step"],
            {
                name: value
                for name, value in event["values"].items()
                if name not in ("samplesPerSecond", "dataWaitShare")
            },
        )
        for event in events
    ]


@pytest.mark.parametrize(
    ("phase", "module", "name", "call", "last_step", "checkpoint"),
    mark_slow(
        [
            ("Preparing", prepare_module, "make_plan", 1, 0, None),
            ("Training", train_module, "accumulate_gradients", 3, 3, "step-3"),
            ("Training", train_module, "accumulate_gradients", 4, 4, "epoch-2"),
            ("Evaluating", evaluation_module, "sum_losses", 2, 4, "epoch-2"),
            ("Evaluating", evaluation_module, "read_prediction", 9, 4, "epoch-2"),
            ("Saving", train_module, "save_checkpoint", 2, 4, "epoch-2"),
            ("Evaluating", evaluation_module, "sum_losses", 4, 7, "step-7"),
        ],
        unless=lambda case: case[2:4] in QUICK,
    ),
)
def test_a_stop_in_each_phase_loses_no_step_and_changes_no_later_result(
    phase: str,
    module: Any,
    name: str,
    call: int,
    last_step: int,
    checkpoint: str | None,
    uninterrupted: Path,
    make_attempt: Callable[..., Path],
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = make_attempt(BLOCKS)
    with monkeypatch.context() as patch:
        if phase == "Saving":  # synchronously; test_async_checkpoint has a stop during a write
            patch.setattr(saving_module, "available_bytes", lambda _: 0)
        sigterm_in(module, name, call, patch)
        assert train_attempt(first) == 75
    result = read_json(first / "result.json")
    assert result is not None
    assert (result["outcome"], result["checkpoint"]) == ("Stopped", checkpoint)
    steps = values_by_step(events_of(first, "step"))
    assert [step for step, _ in steps] == list(range(1, last_step + 1))
    phases = [event["phase"] for event in events_of(first, "phase")]
    assert phase in phases

    resume = first / "checkpoints" / checkpoint if checkpoint else None
    again = make_attempt(BLOCKS, attempt=2, resume=resume)
    assert train_attempt(again) == 0
    assert steps + values_by_step(events_of(again, "step")) == values_by_step(
        events_of(uninterrupted, "step")
    )
    both = [*events_of(first, "evaluation"), *events_of(again, "evaluation")]
    assert values_by_step(both) == values_by_step(events_of(uninterrupted, "evaluation"))
    one, two = tensors_of(uninterrupted), tensors_of(again)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert counters_of(again) == counters_of(uninterrupted)
    saved = {
        event["checkpoint"]: event["metrics"]
        for folder in (first, again)
        for event in events_of(folder, "checkpoint")
    }
    expected = {
        event["checkpoint"]: event["metrics"] for event in events_of(uninterrupted, "checkpoint")
    }
    assert {name: saved[name] for name in expected} == expected


def test_an_evaluation_is_interrupted_within_an_answer(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token checks for a stop, and the module keeps its training mode and random state."""
    folder, evaluate, left = make_attempt(BLOCKS), evaluation_module.evaluate, []

    def with_stop(
        module: Any, *arguments: Any, check_cancelled: Callable[[], None], **named: Any
    ) -> Any:
        checks, state = [], torch.get_rng_state()

        def stop_at_the_fourth() -> None:
            checks.append(1)
            # The loss, the first group of prompts, its first token, its second.
            if len(checks) == 4:
                (folder / "stop.json").write_text("{}")
            check_cancelled()

        try:
            return evaluate(module, *arguments, check_cancelled=stop_at_the_fourth, **named)
        finally:
            left.append((len(checks), module.training, torch.equal(state, torch.get_rng_state())))

    monkeypatch.setattr(train_module, "evaluate", with_stop)
    assert train_attempt(folder) == 75
    assert left == [(4, True, True)]
    assert events_of(folder, "evaluation") == []
    progress = read_progress(folder / "checkpoints" / "epoch-1")
    assert progress.owes_evaluation
    assert progress.best_seen is None


def train_with_a_slow_evaluation(folder: Path) -> int:
    """Train with an evaluation that takes a minute; called in a separate process."""
    sum_losses = evaluation_module.sum_losses

    def slow(
        data: Any, indices: Any, losses: Any, device: Any, look: Callable[[], None], limit: Any
    ) -> Any:
        for _ in range(6000):
            time.sleep(0.01)
            look()
        return sum_losses(data, indices, losses, device, look, limit)

    evaluation_module.sum_losses = slow  # type: ignore[assignment]
    return train_attempt(folder)


def start_and_wait_for_evaluation(fork: Callable[..., Any], folder: Path) -> Any:
    """Return a trainer that has begun a slow evaluation."""
    trainer = fork(lambda: train_with_a_slow_evaluation(folder))
    events = folder / "events.jsonl"
    while trainer.poll() is None:
        if events.exists() and "Evaluating" in events.read_text():
            break
        time.sleep(0.02)
    return trainer


@pytest.mark.e2e
def test_a_real_trainer_in_a_long_evaluation_saves_and_ends_at_sigterm(
    uninterrupted: Path,
    make_attempt: Callable[..., Path],
    events_of: EventsOf,
    fork: Callable[..., Any],
) -> None:
    first = make_attempt(BLOCKS)
    trainer = start_and_wait_for_evaluation(fork, first)
    trainer.terminate()
    assert trainer.wait(30) == 75  # the full evaluation would have taken a minute
    assert [event["step"] for event in events_of(first, "step")] == [1, 2]
    again = make_attempt(BLOCKS, attempt=2, resume=first / "checkpoints" / "epoch-1")
    assert train_attempt(again) == 0
    assert json.dumps(values_by_step(events_of(again, "evaluation"))) == json.dumps(
        values_by_step(events_of(uninterrupted, "evaluation"))
    )
    one, two = tensors_of(uninterrupted), tensors_of(again)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.e2e
def test_a_kill_during_an_evaluation_loses_no_step(
    uninterrupted: Path,
    make_attempt: Callable[..., Path],
    events_of: EventsOf,
    fork: Callable[..., Any],
) -> None:
    first = make_attempt(BLOCKS)
    trainer = start_and_wait_for_evaluation(fork, first)
    trainer.end()
    ((saved, manifest),) = list_checkpoints(first)
    assert (manifest["step"], manifest["metrics"], manifest["isBest"]) == (2, {}, False)
    assert manifest["isUnevaluated"] is True
    again = make_attempt(BLOCKS, attempt=2, resume=saved)
    assert train_attempt(again) == 0
    steps = [*events_of(first, "step"), *events_of(again, "step")]
    assert values_by_step(steps) == values_by_step(events_of(uninterrupted, "step"))
    assert values_by_step(events_of(again, "evaluation")) == values_by_step(
        events_of(uninterrupted, "evaluation")
    )
    one, two = tensors_of(uninterrupted), tensors_of(again)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert counters_of(again) == counters_of(uninterrupted)


def test_a_checkpoint_is_proven_whenever_its_evaluation_is_added_and_has_it_in_the_end(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses to replace the manifest once; then the checkpoint is saved again."""
    refused: list[Path] = []

    def refuse_once(path: Path, value: Any, **named: Any) -> None:
        if path.name == "manifest.json" and path.exists():
            assert is_proven(path.parent)
            assert read_progress(path.parent).owes_evaluation
            if not refused:
                refused.append(path)
                raise OSError(errno.ENOSPC, "No space left on device")
        write_json(path, value, **named)

    monkeypatch.setattr(checkpoint_module, "write_json", refuse_once)
    folder = make_attempt(BLOCKS)

    assert train_attempt(folder) == 0

    warnings = [event["message"] for event in events_of(folder, "warning")]
    assert "epoch-1 is saved again: No space left on device" in warnings
    evaluations = {event["step"]: event["values"] for event in events_of(folder, "evaluation")}
    reported = events_of(folder, "checkpoint")
    assert [event["step"] for event in reported] == [2, 4, 6, 7]
    for event, (saved, manifest) in zip(reported, list_checkpoints(folder), strict=True):
        assert is_proven(saved)
        assert manifest["metrics"] == event["metrics"] == evaluations[event["step"]]
        assert manifest["isBest"] == event["isBest"]
        assert "isUnevaluated" not in manifest
        assert (saved / "predictions.jsonl").is_file()
        assert not read_progress(saved).owes_evaluation
    assert reported[0]["isBest"] is True


def test_reading_data_is_interrupted_between_samples(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = Encoder.encode, []

    def with_signal(self: Any, sample: Any, **options: Any) -> Any:
        encoded.append(sample)
        if len(encoded) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, sample, **options)

    monkeypatch.setattr(Encoder, "encode", with_signal)
    folder = make_attempt(BLOCKS)
    assert train_attempt(folder) == 75
    assert len(encoded) == prepare_module.SAMPLES_BETWEEN_CHECKS
    assert [event["phase"] for event in events_of(folder, "phase")] == ["Preparing"]
    assert not (folder / "checkpoints").exists()
