"""The evaluation before the first step: what it reports, and that training ignores it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

import runyard.trainer.evaluation.evaluation as evaluation_module
import runyard.trainer.prepare as prepare_module
import runyard.trainer.train as train_module
from runyard.flows.blocks import ModelSettings
from runyard.rundir import read_json
from runyard.trainer.checkpoints.checkpoint import read_progress
from runyard.trainer.main import train_attempt

EventsOf = Callable[[Path, str], list[dict[str, Any]]]


def make_blocks(*, is_on: bool = True, **model: Any) -> dict[str, dict[str, Any]]:
    """Return blocks of a flow of two epochs, each of two steps."""
    validation = {
        "maxSamples": 8,
        "beforeTraining": is_on,
        "earlyStopping": {"patience": 50, "minDelta": 10.0},
    }
    evaluation = {"do_sample": True, "seed": 3}
    model = {"hyperparameters": {"maxSteps": 4}, "evaluation": evaluation} | model
    return {"vi-dataset": {"maxSamples": 64}, "vi-model": {"validation": validation} | model}


def steps_of(folder: Path, events_of: EventsOf) -> list[tuple[int, float, float]]:
    return [
        (event["step"], event["values"]["loss"], event["values"]["gradNorm"])
        for event in events_of(folder, "step")
    ]


def list_evaluated(folder: Path, events_of: EventsOf) -> list[int]:
    return [event["step"] for event in events_of(folder, "evaluation")]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    root = folder / "checkpoints" / "epoch-2"
    weights: dict[str, torch.Tensor] = load_file(root / "model_full" / "model.safetensors")
    weights |= load_file(root / "training_state" / "state.safetensors")
    return weights


def counters_of(folder: Path) -> dict[str, Any]:
    progress = msgspec.to_builtins(read_progress(folder / "checkpoints" / "epoch-2"))
    return {name: value for name, value in progress.items() if name != "trainSeconds"}


@pytest.fixture(scope="module")
def without(write_attempt: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without an evaluation before its first step."""
    folder = write_attempt(tmp_path_factory.mktemp("without"), make_blocks(is_on=False))
    assert train_attempt(folder) == 0
    return folder


def check_same_training(folder: Path, without: Path, events_of: EventsOf) -> None:
    assert steps_of(folder, events_of) == steps_of(without, events_of)
    one, two = tensors_of(without), tensors_of(folder)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert counters_of(folder) == counters_of(without)


def test_step_0_is_evaluated_and_training_keeps_every_bit(
    without: Path, make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    folder = make_attempt(make_blocks())
    assert train_attempt(folder) == 0

    assert list_evaluated(folder, events_of) == [0, 2, 4]
    first, *later = events_of(folder, "evaluation")
    assert (first["epoch"], first["metricName"], len(first["previews"])) == (0, "exactMatch", 8)
    assert set(later[0]["values"]) <= set(first["values"])
    assert [event["phase"] for event in events_of(folder, "phase")][1:3] == [
        "Evaluating",
        "Training",
    ]
    check_same_training(folder, without, events_of)
    assert later == [
        {**event, "n": each["n"], "t": each["t"]}
        for event, each in zip(events_of(without, "evaluation"), later, strict=True)
    ]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {line["step"] for line in samples if line["kind"] == "sample"} == {0, 2, 4}
    (result, other) = (read_json(each / "result.json") for each in (folder, without))
    assert result == other


def test_a_resumed_run_does_not_evaluate_step_0_again(
    without: Path, make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    again = make_attempt(make_blocks(), resume=without / "checkpoints" / "epoch-1")
    assert train_attempt(again) == 0
    assert list_evaluated(again, events_of) == [4]
    for status in ({"progress": {"metric": 0.25, "metricName": "anls"}}, {"microBatchLimit": 16}):
        folder = make_attempt(make_blocks(), run=f"known-{len(status)}-{next(iter(status))}")
        config = json.loads((folder / "run.json").read_text())
        config["run"]["status"] = status
        (folder / "run.json").write_text(json.dumps(config))
        assert train_attempt(folder) == 0
        assert list_evaluated(folder, events_of) == [2, 4]


def test_the_base_model_is_no_checkpoint_and_never_the_best(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its answers are right, then none is."""
    answers = ['{"vqa":{"answer":"%s"}}', "none", "none"]
    truths: list[str] = []

    def say(_module: Any, _tokenizer: Any, _data: Any, count: int, **_: Any) -> list[str]:
        form = answers.pop(0)
        return [form % truth if "%" in form else form for truth in truths[:count]]

    load = prepare_module.prepare

    def load_and_note(*arguments: Any, **named: Any) -> Any:
        state = load(*arguments, **named)
        truths.extend(sample.truth.text for sample in state.data.validation)
        return state

    monkeypatch.setattr(evaluation_module, "generate_answers", say)
    monkeypatch.setattr(train_module, "prepare", load_and_note)
    folder = make_attempt(make_blocks())
    assert train_attempt(folder) == 0
    values = [event["values"]["validation/exactMatch"] for event in events_of(folder, "evaluation")]
    assert values == [1, 0, 0]
    saved = events_of(folder, "checkpoint")
    assert [(event["step"], event["isBest"]) for event in saved] == [(2, True), (4, False)]
    assert read_progress(folder / "checkpoints" / "epoch-2").best_seen == 0


@pytest.mark.parametrize("error", [RuntimeError("a bug\nwith details"), MemoryError("no memory")])
def test_training_begins_although_the_first_evaluation_fails(
    error: Exception,
    without: Path,
    make_attempt: Callable[..., Path],
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sum_losses, calls = evaluation_module.sum_losses, []

    def fail_once(*arguments: Any) -> tuple[float, int]:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return sum_losses(*arguments)

    monkeypatch.setattr(evaluation_module, "sum_losses", fail_once)
    folder = make_attempt(make_blocks())
    assert train_attempt(folder) == 0
    assert list_evaluated(folder, events_of) == [2, 4]
    first = str(error).splitlines()[0]
    assert events_of(folder, "warning")[0]["message"] == (
        f"the evaluation before the first step failed: {first}; training begins"
    )
    check_same_training(folder, without, events_of)


def end_in_first_evaluation(folder: Path, number: signal.Signals) -> int:
    """Train until a signal arrives in the first evaluation; called in a separate process."""
    sum_losses = evaluation_module.sum_losses

    def send(*arguments: Any) -> tuple[float, int]:
        signal.raise_signal(number)
        return sum_losses(*arguments)

    evaluation_module.sum_losses = send  # type: ignore[assignment]
    return train_attempt(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_kill_or_stop_in_the_first_evaluation_loses_nothing(
    number: signal.Signals,
    code: int,
    without: Path,
    make_attempt: Callable[..., Path],
    events_of: EventsOf,
    fork: Callable[..., Any],
) -> None:
    folder = make_attempt(make_blocks())
    assert fork(lambda: end_in_first_evaluation(folder, number)).wait(60) == code
    assert events_of(folder, "evaluation") == events_of(folder, "step") == []
    assert not (folder / "checkpoints").exists()
    if code > 0:
        result = read_json(folder / "result.json") or {}
        assert (result["outcome"], result["checkpoint"]) == ("Stopped", None)
    again = make_attempt(make_blocks(), attempt=2)
    assert train_attempt(again) == 0
    assert list_evaluated(again, events_of) == [0, 2, 4]
    check_same_training(again, without, events_of)


def test_the_default_evaluates_step_0() -> None:
    assert ModelSettings().validation.before_training
