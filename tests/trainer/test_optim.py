"""Learning rates over a run, parameter groups, and that every optimizer learns."""

import sys
from typing import Literal

import pytest
import torch

from runyard.flows.blocks import LearningRates, Schedule
from runyard.flows.blocks import Optimizer as Settings
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.families import get_family_parts
from runyard.trainer.steps.optim import Named, make_optimizers, rate_factor, set_rates

PARTS = get_family_parts("llava")


def factors(name: str, **more: float) -> list[float]:
    schedule = Schedule(name=name, warmup_fraction=0.1, min_factor=more.get("low", 0.1))  # type: ignore[arg-type]
    return [rate_factor(step, total=100, warmup=10, schedule=schedule) for step in range(100)]


def test_the_rate_rises_to_one_and_falls_to_the_lowest() -> None:
    for name in ("cosine", "linear", "wsd"):
        values = factors(name)
        assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert max(values) == pytest.approx(1.0)
        assert values[10:] == sorted(values[10:], reverse=True)
        assert 0.1 <= values[-1] < 0.2
    assert set(factors("constant")[10:]) == {1.0}
    assert factors("wsd")[70] == 1.0


def test_a_run_of_one_step_has_a_rate() -> None:
    assert rate_factor(0, total=1, warmup=1, schedule=Schedule()) == 1.0


def parameters() -> Named:
    torch.manual_seed(0)
    shapes = {
        "model.vision_tower.layer.weight": (4, 4),
        "model.multi_modal_projector.linear.weight": (4, 4),
        "model.language_model.layer.weight": (4, 4),
        "model.language_model.layer.bias": (4,),
        "model.language_model.embed_tokens.weight": (8, 4),
    }
    return [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]


def test_parameter_groups_have_their_own_rates_and_gains_do_not_decay() -> None:
    rates = LearningRates(vision=1e-4, projector=2e-4)
    (optimizer,) = make_optimizers(
        parameters(), Settings(weight_decay=0.1), learning_rate=1e-3, rates=rates, parts=PARTS
    )
    groups = {(g["base_lr"], g["weight_decay"]): len(g["params"]) for g in optimizer.param_groups}
    assert groups == {(1e-4, 0.1): 1, (2e-4, 0.1): 1, (1e-3, 0.1): 2, (1e-3, 0.0): 1}
    assert set_rates([optimizer], 0.5) == 5e-4


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "muon"])
def test_every_optimizer_reduces_the_loss(
    name: Literal["adamw", "sgd", "adafactor", "muon"],
) -> None:
    named = parameters()
    settings = Settings(name=name, weight_decay=0.0)
    optimizers = make_optimizers(named, settings, learning_rate=0.01, rates=None, parts=PARTS)

    def loss() -> torch.Tensor:
        return sum((p.square().sum() for _, p in named), torch.zeros(()))

    before = float(loss().detach())
    for _ in range(10):
        loss().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert float(loss().detach()) < before


def test_muon_takes_hidden_matrices_only() -> None:
    settings = Settings(name="muon")
    muon, rest = make_optimizers(
        parameters(), settings, learning_rate=0.01, rates=None, parts=PARTS
    )
    assert sum(len(group["params"]) for group in muon.param_groups) == 3
    assert sum(len(group["params"]) for group in rest.param_groups) == 2


def test_an_optimizer_that_is_not_installed_is_refused_with_a_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    settings = Settings(name="adamw8bit")
    with pytest.raises(InvalidFlow, match="use 'adamw'"):
        make_optimizers(parameters(), settings, learning_rate=0.01, rates=None, parts=PARTS)
