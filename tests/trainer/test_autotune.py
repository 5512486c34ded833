"""The measurement of two ways to make batches, which must not delay the start of slow models."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from runyard.trainer.data.encode import Batch
from runyard.trainer.steps.autotune import ROUNDS, measure_speedup


class Losses:
    """A substitute for a model with its losses."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.ones(2))

    def __call__(self, batch: Batch) -> torch.Tensor:
        return self.weight.sum()

    def zero_gradients(self) -> None:
        self.weight.grad = None


@pytest.mark.parametrize(("seconds", "steps"), [(0.01, 1 + ROUNDS), (3.0, 1)])
def test_where_steps_are_long_the_first_of_each_kind_suffices(seconds: float, steps: int) -> None:
    readings = itertools.count(step=seconds)
    built = {"new": 0, "old": 0}

    def build(name: str, indices: Sequence[int]) -> Batch:
        built[name] += 1
        return Batch({"x": torch.ones(len(indices))}, torch.arange(1), torch.arange(1))

    losses: Any = Losses()
    speedup = measure_speedup(
        lambda indices, epoch: build("new", indices),
        lambda indices, epoch: build("old", indices),
        [[0]],
        losses,
        device=torch.device("cpu"),
        clock=lambda: next(readings),
    )
    assert speedup == pytest.approx(1.0)
    assert built == {"new": steps, "old": steps}
