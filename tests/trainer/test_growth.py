"""``microBatchSize: auto``: a larger micro-batch where memory suffices and it is faster.

Accelerators try it. Here the CPU does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import runyard.trainer.prepare as prepare_module
import runyard.trainer.ranks as ranks_module
from runyard.rundir import read_json
from runyard.trainer.checkpoints.checkpoint import read_progress
from runyard.trainer.main import train_attempt
from runyard.trainer.steps.growth import measure_growth
from runyard.trainer.steps.memory import AvailableMemory, read_available_memory

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
GIB = 1 << 30


@pytest.fixture
def attempt(
    make_attempt: Callable[..., Path], miniature: Callable[[str], Path]
) -> Callable[..., Path]:
    def make(*, size: int | str = "auto", steps: int = 2, **named: Any) -> Path:
        model = {
            "architecture": {"weights": str(miniature("llava")), "name": "auto"},
            "training": {"mode": "full"},
            "hyperparameters": {"maxSteps": steps, "batchSize": 12, "microBatchSize": size},
            "validation": {"maxSamples": 1},
            "evaluation": {"max_new_tokens": 1},
            "compute": {"featureCache": False, "precisionType": "float32"},
            "packing": False,
        }
        return make_attempt({"vi-dataset": {"maxSamples": 24}, "vi-model": model}, **named)

    return make


@pytest.fixture(autouse=True)
def cpu_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "FIXED_DEVICES", ())


def measure(monkeypatch: pytest.MonkeyPatch, found: float | None) -> list[tuple[int, int]]:
    """Let the trial find this speedup; return the sizes that are tried."""
    tried: list[tuple[int, int]] = []

    def try_sizes(*_: Any, size: int, larger: int, **__: Any) -> float | None:
        tried.append((size, larger))
        return found

    monkeypatch.setattr(prepare_module, "measure_growth", try_sizes)
    return tried


def read_entry(folder: Path, events_of: EventsOf) -> tuple[int, str]:
    entry = events_of(folder, "plan")[0]["plan"]["microBatchSize"]
    return entry["value"], entry["reason"]


def list_losses(folder: Path, events_of: EventsOf) -> list[float]:
    return [event["values"]["loss"] for event in events_of(folder, "step")]


def test_a_faster_larger_micro_batch_is_used_recorded_and_kept(
    attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = measure(monkeypatch, 1.5)
    folder = attempt(run="grown")
    assert train_attempt(folder) == 0
    assert tried == [(4, 12)]
    reason = "memory suffices, and samples pass 1.50 times as fast as with 4 (measured)"
    assert read_entry(folder, events_of) == (12, reason)
    plan = events_of(folder, "plan")[0]["plan"]
    assert plan["memory"]["reason"].startswith("Allow: estimated for a micro-batch of 12 times")
    assert plan["accumulation"]["value"] == 1
    saved = folder / "checkpoints" / "epoch-1"
    assert read_progress(saved).micro_batch_size == 12
    run = read_json(saved / "model_full" / "run.json") or {}
    assert run["status"]["plan"]["microBatchSize"]["value"] == 12

    # Gradients are the same up to rounding; a resumed run measures nothing.
    usual = attempt(run="usual", size=4)
    assert train_attempt(usual) == 0
    assert list_losses(folder, events_of) == pytest.approx(list_losses(usual, events_of), rel=1e-5)
    again = attempt(run="grown", attempt=2, steps=3, resume=saved)
    whole = attempt(run="whole", steps=3)
    assert train_attempt(again) == train_attempt(whole) == 0
    assert tried == [(4, 12)] * 2
    assert read_entry(again, events_of) == (12, "as measured when this training started")
    assert list_losses(again, events_of) == list_losses(whole, events_of)[2:]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (1.02, "; with 12 samples pass 1.02 times as fast (measured)"),
        (None, "; 12 ran out of memory in a trial"),
    ],
)
def test_otherwise_the_micro_batch_stays_and_the_plan_says_why(
    found: float | None,
    reason: str,
    attempt: Callable[..., Path],
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure(monkeypatch, found)
    folder = attempt(steps=1)
    assert train_attempt(folder) == 0
    size, why = read_entry(folder, events_of)
    assert (size, why.endswith(reason)) == (4, True)
    assert read_progress(folder / "checkpoints" / "step-1").micro_batch_size is None


def test_what_memory_or_the_flow_does_not_permit_is_not_tried(
    attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = measure(monkeypatch, 2.0)
    # The same throughout: what this process uses changes with the tests before.
    used = read_available_memory(torch.device("cpu")).used

    def give(free: int) -> None:
        available = AvailableMemory(used=used, free=free, total=64 * GIB)
        monkeypatch.setattr(ranks_module, "read_available_memory", lambda _: available)

    give(32 * GIB)
    for size in (4, 12):
        folder = attempt(run=f"fixed-{size}", steps=1, size=size)
        assert train_attempt(folder) == 0
        assert read_entry(folder, events_of) == (size, "flow")
    needed = events_of(folder, "plan")[0]["plan"]["memory"]["value"]
    monkeypatch.setattr(prepare_module, "FIXED_DEVICES", ("cpu",))
    folder = attempt(run="on-cpu", steps=1)
    assert train_attempt(folder) == 0
    assert tried == []
    monkeypatch.setattr(prepare_module, "FIXED_DEVICES", ())
    give(int(needed / 0.7) - used - (1 << 20))
    folder = attempt(run="little", steps=1)
    assert train_attempt(folder) == 0
    assert [larger for _, larger in tried if larger == 12] == []


def test_the_trial_times_both_sizes_and_leaves_no_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    times = iter((0.0, 6.0, 6.0, 10.0, 10.0, 13.0, 13.0, 18.0))
    sizes: list[int] = []

    class Batch:
        label_count = 1

        def to(self, _: torch.device) -> "Batch":
            return self

    class Losses:
        def __call__(self, _: Batch) -> torch.Tensor:
            return weight.sum() * float(torch.rand(()))

        def zero_gradients(self) -> None:
            weight.grad = None

    def build(indices: Any, _epoch: int) -> Any:
        sizes.append(len(indices))
        if len(indices) > 12:
            raise MemoryError
        return Batch()

    def run(larger: int) -> float | None:
        return measure_growth(
            build,
            Losses(),  # type: ignore[arg-type]
            longest=0,
            size=4,
            larger=larger,
            device=torch.device("cpu"),
            clock=lambda: next(times),
        )

    before = torch.get_rng_state()
    assert run(12) == (4 / 4) / (3 / 12)
    assert sizes == [12, 4, 12, 4]
    assert weight.grad is None
    assert torch.equal(before, torch.get_rng_state())
    times = iter((0.0,))
    assert run(24) is None
