"""Training in float16 with a scaled loss: skipped steps, their limit, and which cards need it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runyard.flows import resolve
from runyard.rundir import read_json
from runyard.trainer import prepare as prepare_module
from runyard.trainer import train as train_module
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.main import train_attempt
from runyard.trainer.plan import Hardware, choose_precision
from runyard.trainer.steps.scaling import skip_step, take_scaled_step, unscale
from vi.api.resources.flows.responses import FlowBlock, FlowSpec

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
CARD = Hardware(
    device="cuda",
    device_name="Tesla T4",
    has_good_bfloat16=False,
    threads=1,
    versions={},
    revision=None,
    hardware={},
)


def make_blocks(steps: int) -> dict[str, dict[str, Any]]:
    return {
        "vi-dataset": {"maxSamples": 40},
        "vi-model": {
            "hyperparameters": {"maxSteps": steps, "epochs": 9, "batchSize": 4},
            "checkpoint": {"every": {"steps": 2}, "keep": 9},
            "validation": {"maxSamples": 4},
        },
    }


@pytest.fixture
def in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU use float16, as a card without bfloat16 does."""
    monkeypatch.setattr(prepare_module, "choose_precision", lambda *_: ("float16", "test"))


def break_losses(monkeypatch: pytest.MonkeyPatch, is_broken: Callable[[int], bool]) -> None:
    """Make the loss or a gradient of some steps, which count from 1, not a finite number."""
    accumulate, steps = train_module.accumulate_gradients, 0

    def accumulate_broken(state: Any, *arguments: Any) -> float:
        nonlocal steps
        steps += 1
        loss = accumulate(state, *arguments)
        if is_broken(steps):
            if steps % 2:
                return math.nan
            next(p for p in state.parameters if p.grad is not None).grad[0] = math.inf
        return loss

    monkeypatch.setattr(train_module, "accumulate_gradients", accumulate_broken)


@pytest.mark.usefixtures("in_float16")
def test_a_step_that_is_not_finite_is_skipped_and_resumes_bit_for_bit(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_attempt(make_blocks(8), run="whole")
    break_losses(monkeypatch, lambda step: step in (3, 6))
    assert train_attempt(whole) == 0
    values = [event["values"] for event in events_of(whole, "step")]
    assert [step for step, found in enumerate(values, 1) if "gradNorm" not in found] == [3, 6]
    assert [step for step, found in enumerate(values, 1) if "loss" not in found] == [3]
    warnings = [event["message"] for event in events_of(whole, "warning")]
    assert [warning for warning in warnings if "skipped" in warning] == [
        "step 3 was skipped: the loss is nan in float16; the loss scale is now 32768",
        "step 6 was skipped: the gradient is inf in float16; the loss scale is now 16384",
    ]
    resume = whole / "checkpoints" / "step-4"
    monkeypatch.undo()
    monkeypatch.setattr(prepare_module, "choose_precision", lambda *_: ("float16", "test"))
    break_losses(monkeypatch, lambda step: step + 4 == 6)
    again = make_attempt(make_blocks(8), run="again", resume=resume)
    assert train_attempt(again) == 0
    for name in ("model_full/model.safetensors", "training_state/state.safetensors"):
        one, two = (load_file(f / "checkpoints" / "step-8" / name) for f in (whole, again))
        assert [key for key in one if not torch.equal(one[key], two[key])] == []
    states = [
        read_json(folder / "checkpoints" / "step-8" / "training_state" / "state.json") or {}
        for folder in (whole, again)
    ]
    assert states[0]["scaler"] == states[1]["scaler"]


@pytest.mark.usefixtures("in_float16")
def test_a_run_whose_every_step_is_skipped_ends_with_the_reason(
    make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, lambda step: step > 2)
    folder = make_attempt(make_blocks(40))
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json") or {}
    assert result["reason"] == "Diverged"
    assert (
        "in 20 steps in a row, although the loss scale was lowered to 0.0625" in result["message"]
    )
    assert "compute.precisionType 'float32'" in result["message"]


def test_all_optimizers_take_a_step_or_none_does() -> None:
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD([p], lr=0.5) for p in parameters]
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(parameters[0].sum() + parameters[1].sum()).backward()
    parameters[1].grad = torch.full((2,), math.inf)
    unscale(scaler, optimizers)
    take_scaled_step(scaler, optimizers, norm=math.inf)
    assert [p.tolist() for p in parameters] == [[1, 1], [1, 1]]
    assert scaler.get_scale() == 32768
    skip_step(scaler)
    assert scaler.get_scale() == 16384

    parameters[1].grad = torch.full((2,), 16384.0)
    parameters[0].grad = torch.full((2,), 16384.0)
    unscale(scaler, optimizers)
    take_scaled_step(scaler, optimizers, norm=2.0)
    assert [p.tolist() for p in parameters] == [[0.5, 0.5], [0.5, 0.5]]


def test_a_card_without_bfloat16_trains_in_float16() -> None:
    def choose(requested: str, machine: Hardware) -> str:
        compute = {"compute": {"precisionType": requested}}
        settings = compute | {"architecture": {"name": "qwen3vl", "size": "2B"}}
        blocks = [FlowBlock("vi-dataset", {}), FlowBlock("vi-model", settings)]
        return choose_precision(resolve(FlowSpec(blocks=blocks)), machine)[0]

    newer = replace(CARD, has_good_bfloat16=True)
    assert (choose("auto", CARD), choose("auto", newer)) == ("float16", "bfloat16")
    assert choose("bfloat16", newer) == "bfloat16"
    with pytest.raises(InvalidFlow, match=r"'bfloat16' is not supported by Tesla T4.*'float16'"):
        choose("bfloat16", CARD)
