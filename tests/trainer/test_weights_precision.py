"""Full training with bfloat16 weights: steps in float32, rounded at random, resumed bit for bit."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runyard.flows import FlowProblems, validate
from runyard.flows.blocks import Optimizer
from runyard.rundir import read_json
from runyard.trainer.export.export import export_model
from runyard.trainer.families import get_family_parts
from runyard.trainer.main import train_attempt
from runyard.trainer.steps import memory, rounding
from runyard.trainer.steps.optim import make_optimizers
from runyard.trainer.steps.rounding import (
    RoundedSteps,
    get_clip_scale,
    measure_norm,
    round_stochastically,
)
from tests.support.slow import mark_slow

OPTIMIZERS = ["adamw", "sgd", "muon", "adafactor"]
OPTIMIZERS += ["adamw8bit"] if importlib.util.find_spec("bitsandbytes") else []


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_at_random_keeps_the_mean(sign: int) -> None:
    """Between 1 and the next bfloat16 number, three quarters of the way."""
    distance = 2.0**-7
    value = sign * (1 + 0.75 * distance)
    rounded = round_stochastically(torch.full((100_000,), value), make_generator())
    assert rounded.dtype == torch.bfloat16
    assert set(rounded.float().tolist()) == {sign * 1.0, sign * (1 + distance)}
    mean = float(rounded.double().mean())
    assert mean == pytest.approx(value, abs=0.01 * distance)


def test_numbers_of_bfloat16_are_never_changed() -> None:
    exact = torch.randn(1000, generator=make_generator()).to(torch.bfloat16).float()
    exact = torch.cat([exact, torch.tensor([0.0, -0.0, 1e-40, 3e38]).to(torch.bfloat16).float()])
    assert torch.equal(round_stochastically(exact, make_generator(1)).float(), exact)


def test_updates_smaller_than_the_distance_of_two_numbers_are_not_lost() -> None:
    weights = torch.nn.Parameter(torch.ones(10_000, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weights], lr=1e-5)
    steps = RoundedSteps(seed=7)
    for step in range(50):
        weights.grad = torch.ones_like(weights)
        steps.take([optimizer], step=step, scale=1.0)
    assert weights.dtype == torch.bfloat16 and weights.grad is None
    assert float(weights.detach().double().mean()) == pytest.approx(1 - 50e-5, abs=5e-5)


Named = list[tuple[str, torch.nn.Parameter]]


def make_parameters(dtype: torch.dtype) -> Named:
    generator = make_generator(3)
    shapes = {"a.weight": (64, 96), "b.weight": (80, 64), "b.bias": (64,), "unused": (8,)}
    return [
        (
            name,
            torch.nn.Parameter(torch.randn(shape, generator=generator).bfloat16().to(dtype)),
        )
        for name, shape in shapes.items()
    ]


def take_steps(named: Named, optimizer: str, count: int = 1) -> list[torch.optim.Optimizer]:
    """Take steps with the same gradients whatever the dtype of the weights."""
    made = make_optimizers(
        named,
        Optimizer(name=optimizer),  # type: ignore[arg-type]
        learning_rate=0.01,
        rates=None,
        parts=get_family_parts("llava"),
    )
    generator = make_generator(4)
    for step in range(count):
        for name, parameter in named:
            if name != "unused":
                gradient = torch.randn(parameter.shape, generator=generator).bfloat16()
                parameter.grad = gradient.to(parameter.dtype)
        if named[0][1].dtype == torch.bfloat16:
            RoundedSteps(seed=7).take(made, step=step, scale=1.0)
        else:
            for each in made:
                each.step()
    return made


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_step_is_that_of_float32_rounded_to_a_neighbor(optimizer: str) -> None:
    exact, rounded = make_parameters(torch.float32), make_parameters(torch.bfloat16)
    take_steps(exact, optimizer)
    made = take_steps(rounded, optimizer)
    for (name, expected), (_, found) in zip(exact, rounded, strict=True):
        assert found.dtype == torch.bfloat16
        distance = expected.detach().abs() * 2.0**-7 + 1e-38
        assert bool(((found.float() - expected).abs() <= distance).all()), name
        assert torch.equal(found.float(), expected) == (name == "unused")
    state = [
        value
        for each in made
        for values in each.state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    ]
    assert not any(value.dtype == torch.bfloat16 for value in state)
    assert memory.count_optimizer_bytes(made) > 0 or optimizer == "adafactor"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_estimate_of_memory_knows_state_and_copies_in_float32(optimizer: str) -> None:
    named = [(name, parameter) for name, parameter in make_parameters(torch.bfloat16)][:3]
    numbers = sum(parameter.numel() for _, parameter in named)
    made = take_steps(named, optimizer)
    taken = memory.count_optimizer_bytes(made)
    for each in made:
        each.state.clear()
    shared = 2 * 256 * 4 if optimizer == "adamw8bit" else 0  # two tables of the values of a byte
    assert memory.estimate_optimizer_bytes(made) == taken - shared
    assert memory._estimate_update_bytes(made) >= 4 * 2 * numbers / len(made)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_size_of_chunks_changes_nothing(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = make_parameters(torch.bfloat16), make_parameters(torch.bfloat16)
    take_steps(whole, optimizer, count=2)
    monkeypatch.setattr(rounding, "CHUNK_NUMBERS", 100)
    take_steps(parts, optimizer, count=2)
    for (name, one), (_, other) in zip(whole, parts, strict=True):
        assert torch.equal(one, other), name


def test_clipping_computes_in_float32() -> None:
    exact, rounded = make_parameters(torch.float32), make_parameters(torch.bfloat16)
    for named in (exact, rounded):
        generator = make_generator(4)
        for _, parameter in named:
            gradient = torch.randn(parameter.shape, generator=generator).bfloat16()
            parameter.grad = gradient.to(parameter.dtype)
    norm = float(torch.nn.utils.get_total_norm([p.grad for _, p in exact if p.grad is not None]))
    assert measure_norm([p for _, p in rounded]) == pytest.approx(norm, rel=1e-6)
    assert get_clip_scale(norm, 2.0) == pytest.approx(2 / norm, rel=1e-4)
    assert get_clip_scale(norm, 1e9) == get_clip_scale(norm, float("inf")) == 1.0
    assert measure_norm([torch.nn.Parameter(torch.ones(2))]) == 0.0


STEPS = 4


def make_blocks(
    optimizer: str = "adamw", *, weights: Path | None = None
) -> dict[str, dict[str, Any]]:
    architecture = {"name": "auto", "weights": str(weights)} if weights else {"size": "tiny"}
    return {
        "vi-dataset": {"maxSamples": 40, "augmentation": {}},
        "vi-model": {
            "architecture": architecture,
            "training": {"mode": "full", "weightsPrecision": "bfloat16"},
            "hyperparameters": {
                "maxSteps": STEPS,
                "epochs": STEPS,
                "batchSize": 8,
                "microBatchSize": 4,
                "learningRate": 0.003,
                "optimizer": {"name": optimizer},
            },
            "checkpoint": {"every": {"steps": 2}, "keep": 9},
            "validation": {"maxSamples": 8, "every": {"steps": STEPS}},
            "evaluation": {"max_new_tokens": 4},
        },
    }


def read_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    model = load_file(checkpoint / "model_full" / "model.safetensors")
    state = load_file(checkpoint / "training_state" / "state.safetensors")
    return dict(model) | dict(state)


@pytest.mark.parametrize(
    "optimizer", mark_slow(OPTIMIZERS, unless=lambda name: name in ("adamw", "muon"))
)
def test_a_training_resumes_bit_for_bit(
    optimizer: str, make_attempt: Callable[..., Path], events_of: Callable[..., Any]
) -> None:
    whole = make_attempt(make_blocks(optimizer), run="whole")
    assert train_attempt(whole) == 0, (whole / "result.json").read_text()
    resume = whole / "checkpoints" / "step-2"
    resumed = make_attempt(make_blocks(optimizer), run="resumed", attempt=2, resume=resume)
    assert train_attempt(resumed) == 0, (resumed / "result.json").read_text()
    once, again = (
        read_tensors(folder / "checkpoints" / f"step-{STEPS}") for folder in (whole, resumed)
    )
    assert once.keys() == again.keys()
    assert [name for name in once if not torch.equal(once[name], again[name])] == []
    dtypes = {value.dtype for name, value in once.items() if not name.startswith("optimizer.")}
    assert dtypes == {torch.bfloat16, torch.uint8}  # weights, random state
    assert not any(
        value.dtype == torch.bfloat16 for name, value in once.items() if "optimizer." in name
    )
    losses = [event["values"]["loss"] for event in events_of(whole, "step")]
    assert losses[-1] < losses[0]
    plan = events_of(whole, "plan")[0]["plan"]
    assert plan["precision"]["reason"] == "training.weightsPrecision is bfloat16"
    assert plan["weightsPrecision"]["value"] == "bfloat16"


def test_an_export_answers_as_the_evaluation_did(
    make_attempt: Callable[..., Path], miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = make_attempt(make_blocks(weights=miniature("qwen2_5_vl")))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    checkpoint = folder / "checkpoints" / f"step-{STEPS}"
    config = read_json(checkpoint / "model_full" / "config.json") or {}
    assert config["dtype"] == "bfloat16"
    document = export_model(checkpoint, tmp_path / "out")
    assert (document["replayed"], document["different"]) == (8, 0)


def test_a_checkpoint_of_float32_weights_does_not_fit(
    make_attempt: Callable[..., Path], events_of: Callable[..., Any]
) -> None:
    blocks = make_blocks()
    blocks["vi-model"]["training"] = {"mode": "full"}
    source = make_attempt(blocks, run="other")
    assert train_attempt(source) == 0
    folder = make_attempt(make_blocks(), run="new")
    resume = {"folder": str(source / "checkpoints" / "step-2"), "runId": "other"}
    (folder / "resume.json").write_text(json.dumps(resume))
    assert train_attempt(folder) == 64
    message = (read_json(folder / "result.json") or {})["message"]
    assert "training.weightsPrecision is 'bfloat16' in the flow and 'float32'" in message


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"training": {"mode": "lora"}}, "training.mode is lora"),
        (
            {"training": {"mode": "full"}, "compute": {"precisionType": "float32"}},
            "set precisionType to auto or bfloat16",
        ),
    ],
)
def test_settings_that_it_has_no_effect_with_are_rejected(
    settings: dict[str, Any], says: str
) -> None:
    settings["training"]["weightsPrecision"] = "bfloat16"
    with pytest.raises(FlowProblems) as raised:
        validate({"blocks": [{"block": "vi-model", "settings": settings}]})
    [problem] = raised.value.problems
    assert problem.path == "/blocks/0/settings/training/weightsPrecision"
    assert says in problem.message
