"""Whether several ranks keep the whole model, or parts of it, decided from the memory."""

from types import SimpleNamespace
from typing import Any

import pytest

from runyard.flows import resolve
from runyard.trainer.plan import Plan
from runyard.trainer.prepare import choose_strategy
from runyard.trainer.sharding import explain_unshardable
from runyard.trainer.steps.memory import (
    AvailableMemory,
    MemoryEstimate,
    MemoryTimeline,
    Sharding,
    StepMemory,
    estimate_memory,
)
from vi.api.resources.flows.responses import FlowSpec

GIB = 1 << 30
# Weights of 8 GiB in float32, trained with AdamW.
STEP = StepMemory(
    whole_batch=None,
    accumulating=MemoryTimeline([GIB], [2 * GIB]),
    gradients=8 * GIB,
    optimizer=16 * GIB,
    update=0,
    inputs=0,
)
SHARDING = Sharding(ranks=4, weights=8 * GIB, gathered=GIB)


def estimate(free: int, sharding: Sharding | None) -> MemoryEstimate:
    """Return the estimate on an accelerator that has the weights already."""
    plan: Any = Plan(
        **dict.fromkeys(Plan.__dataclass_fields__, 0)  # type: ignore[arg-type]
        | {"device": "cuda", "batch_size": 2, "micro_batch_size": 1, "document": {}}
    )
    model = SimpleNamespace(training=SimpleNamespace(mode="full"), on_out_of_memory="shrink")
    flow: Any = SimpleNamespace(is_tiny=False, model=model)
    available = AvailableMemory(used=8 * GIB, free=free * GIB, total=(8 + free) * GIB)
    _, found = estimate_memory(
        plan, flow, measure=lambda: STEP, available=lambda: available, sharding=sharding
    )
    assert found is not None
    return found


def test_weights_are_sharded_only_where_the_whole_does_not_fit() -> None:
    # 25 GiB more are needed, or in 4 parts: 2 + 4 + 1 for the step, 2 gathered, less 6 dropped.
    ample, small, tiny = estimate(32, SHARDING), estimate(16, SHARDING), estimate(2, SHARDING)
    assert (ample.verdict, ample.fits_sharded) == ("Allow", False)
    assert (small.verdict, small.fits_sharded) == ("Allow", True)
    assert small.peak_bytes == 11 * GIB
    assert (tiny.verdict, tiny.fits_sharded) == ("Deny", False)
    without = estimate(16, None)
    assert (without.verdict, without.fits_sharded) == ("Deny", False)


@pytest.mark.parametrize(
    ("strategy", "free", "expected"),
    [("auto", 16, "fsdp"), ("auto", 32, "ddp"), ("ddp", 16, "ddp")],
)
def test_auto_follows_the_memory_and_the_flow_decides_otherwise(
    strategy: str, free: int, expected: str
) -> None:
    resources = {"workers": 4, "strategy": strategy}
    flow = resolve(FlowSpec(settings={"resources": resources}))
    state: Any = SimpleNamespace(memory_estimate=estimate(free, SHARDING))
    assert choose_strategy(state, flow, None)[0] == expected
    assert choose_strategy(state, flow, "an obstacle")[0] == "ddp"


@pytest.mark.parametrize(
    ("model", "precision", "word"),
    [
        ({"hyperparameters": {"optimizer": {"name": "adafactor"}}}, "float32", "adafactor"),
        ({}, "float16", "scaled loss"),
        ({"compute": {"compile": True}}, "float32", "compiled"),
        ({}, "bfloat16", None),
    ],
)
def test_what_cannot_be_sharded_is_explained(
    model: dict[str, Any], precision: str, word: str | None
) -> None:
    blocks = [{"block": "vi-model", "settings": model, "style": {}}]
    flow = resolve(FlowSpec(settings={"resources": {"workers": 2}}, blocks=blocks))  # type: ignore[arg-type]
    obstacle = explain_unshardable(flow, precision)
    assert obstacle is None if word is None else word in (obstacle or "")
