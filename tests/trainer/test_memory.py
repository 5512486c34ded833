"""The memory estimate: its parts, its peak compared with the kernel's, and its consequences."""

import importlib.util
import itertools
import multiprocessing
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runyard.trainer.prepare as prepare_module
import runyard.trainer.ranks as ranks_module
import runyard.trainer.steps.memory as memory_module
import runyard.trainer.steps.trial_budget as trial_budget
import runyard.trainer.train as train_module
from runyard.flows.blocks import Optimizer
from runyard.rundir import read_json
from runyard.trainer.data.encode import Batch
from runyard.trainer.families import PARTS
from runyard.trainer.main import train_attempt
from runyard.trainer.steps.memory import (
    AvailableMemory,
    LiveBytesRecorder,
    MemoryTimeline,
    StepMemory,
    count_optimizer_bytes,
    estimate_optimizer_bytes,
    is_out_of_memory,
    measure_step_memory,
    read_available_memory,
    read_host_memory,
    return_freed_memory,
    trim_heap,
)
from runyard.trainer.steps.optim import make_optimizers
from runyard.trainer.steps.rounding import RoundedSteps
from runyard.trainer.steps.trial_budget import NoTimeLeft, TrialBudget

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
MIB = 1 << 20
CPU = torch.device("cpu")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
BATCH = 4


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
        torch.AcceleratorError("HIP error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate`"),
        RuntimeError("cudaErrorMemoryAllocation"),
        RuntimeError("XPU out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 7.9 GB)"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_running_out_of_memory_is_recognized_on_every_device(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376"),
        ValueError("out of memory"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_other_errors_do_not_count_as_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_live_bytes_are_counted_once_per_storage_until_it_is_freed() -> None:
    weight = torch.ones(100, 50, requires_grad=True)  # created before, so it does not count
    with LiveBytesRecorder() as live:
        made = torch.ones(10, 100) @ weight
        at_most = made.t().relu()
        del at_most
        made.sum().backward()
        del made
    # Ones, their product, and the relu of a view of it; then a gradient of 100 by 50 remains.
    assert live.timeline[1] >= 4 * (10 * 100 + 10 * 50)
    assert live.peak >= 4 * (10 * 100 + 10 * 50 + 100 * 50)
    assert live.timeline[-1] <= live.peak
    assert weight.grad is not None
    assert live._live == 4 * 100 * 50


@pytest.mark.parametrize(
    "name",
    ["adamw", "muon", "sgd", "adafactor", pytest.param("adamw8bit", marks=needs_bitsandbytes)],
)
def test_the_estimated_optimizer_state_is_the_state_after_a_step(name: Any) -> None:
    shapes = {
        "text.weight": (90, 60),
        "embed.weight": (90, 24),
        "norm.weight": (24,),
        "patch.weight": (8, 3, 4, 4),
    }
    named = [(n, torch.nn.Parameter(torch.randn(shape))) for n, shape in shapes.items()]
    optimizers = make_optimizers(
        named, Optimizer(name=name), learning_rate=1e-3, rates=None, parts=PARTS["llava"]
    )
    estimated = estimate_optimizer_bytes(optimizers)
    for _, parameter in named:
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    shared = 2 * 256 * 4 if name == "adamw8bit" else 0  # two tables of the values of a byte
    assert count_optimizer_bytes(optimizers) == estimated + shared
    assert estimate_optimizer_bytes(optimizers) == 0  # as in a resumed training


def test_the_timeline_of_a_larger_micro_batch_follows_from_one_and_two_samples() -> None:
    assert MemoryTimeline([10, 90, 40], [12, 92, 70]).peak(1) == 90
    # At another operation than with one.
    assert MemoryTimeline([10, 90, 40], [12, 92, 70]).peak(3) == 100
    # Different operations: from the peaks.
    assert MemoryTimeline([10, 90], [12, 92, 70]).peak(3) == 94
    step = StepMemory(
        whole_batch=MemoryTimeline([50], [80]),
        accumulating=MemoryTimeline([20], [50]),
        gradients=40,
        optimizer=7,
        update=90,
        inputs=1,
    )
    assert (step.peak(4, 4), step.peak(2, 4), step.peak(1, 4)) == (
        4 + 7 + 140,
        4 + 7 + 130,
        4 + 7 + 130,
    )


class Wide(torch.nn.Module):  # type: ignore[misc]
    """A substitute for a model with its losses; 5 million parameters."""

    max_rows = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            *(
                m
                for _ in range(5)
                for m in (torch.nn.Linear(1024, 1024), torch.nn.GELU(), torch.nn.LayerNorm(1024))
            )
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        inputs = batch.inputs["x"].to(next(self.parameters()).dtype)
        total: torch.Tensor = self.layers(inputs).float().square().sum()
        return total

    def zero_gradients(self) -> None:
        self.zero_grad(set_to_none=True)


def build_batch(indices: Any, epoch: int) -> Batch:
    return Batch({"x": torch.ones(len(indices), 256, 1024)}, torch.arange(3), torch.arange(3))


class PlanOf:
    """The fields of a plan that the estimate reads."""

    def __init__(self, micro_batch_size: int) -> None:
        self.micro_batch_size, self.batch_size = micro_batch_size, BATCH


def measure_peaks(micro_batch_size: int, name: Any, dtype: torch.dtype) -> tuple[bool, int, int]:
    return_freed_memory()
    torch.set_num_threads(1)
    model = Wide().to(dtype)
    optimizers = make_optimizers(
        list(model.named_parameters()),
        Optimizer(name=name),
        learning_rate=1e-3,
        rates=None,
        parts=PARTS["llava"],
    )
    plan: Any = PlanOf(micro_batch_size)
    state = torch.get_rng_state()
    step = measure_step_memory(build_batch, model, optimizers, longest=0, plan=plan, device=CPU)
    is_untouched = torch.equal(torch.get_rng_state(), state) and all(
        p.grad is None for p in model.parameters()
    )
    trim_heap()
    before, mapped_before = status("VmRSS"), status("RssFile")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        parts = [build_batch(range(micro_batch_size), 0) for _ in range(BATCH // micro_batch_size)]
        for part in parts:
            model(part).backward()
        if dtype == torch.bfloat16:
            RoundedSteps(seed=7).take(optimizers, step=0, scale=1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    step = replace(step, first_use=0)  # as the code is not counted below
    # Code that is read for the first time is not what a step needs.
    grown = status("VmHWM") - before - (status("RssFile") - mapped_before)
    return is_untouched, step.peak(micro_batch_size, BATCH), grown


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@pytest.fixture(scope="module")
def fresh_process() -> Iterator[ProcessPoolExecutor]:
    """A process whose heap no other test has fragmented, which a fork of this one would have."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize(
    ("micro_batch_size", "name", "dtype"),
    [
        (BATCH, "adamw", torch.float32),
        (1, "sgd", torch.float32),
        (1, "adamw", torch.bfloat16),
    ],
)
def test_the_estimated_peak_is_the_kernels(
    micro_batch_size: int, name: str, dtype: torch.dtype, fresh_process: ProcessPoolExecutor
) -> None:
    answer = fresh_process.submit(measure_peaks, micro_batch_size, name, dtype)
    is_untouched, estimated, found = answer.result()
    assert is_untouched
    assert estimated == pytest.approx(found, rel=0.15)


def test_a_cgroups_limit_applies_below_the_machines(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 8000 kB\nMemAvailable: 6000 kB\nSwapTotal: 1000 kB\n",
        "proc/self/statm": "100 50 0 0 0 0 0",
        "proc/self/cgroup": "0::/runs/one\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = read_host_memory(tmp_path)
    assert (found.free, found.total, found.name) == (6000 * 1024, 9000 * 1024, "the machine")
    folder = tmp_path / "sys/fs/cgroup/runs"
    (folder / "one").mkdir(parents=True)
    (folder / "one/memory.max").write_text("max\n")
    (folder / "memory.max").write_text("4096000\n")
    (folder / "memory.current").write_text("3000000\n")
    (folder / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    found = read_host_memory(tmp_path)
    assert (found.free, found.total, found.name) == (4096000 - 2500000, 4096000, "the cgroup")


@pytest.fixture
def with_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the available bytes for a process that uses none yet."""
    monkeypatch.setattr(memory_module, "FIRST_USE_BYTES", 0)

    def give(*, free: int, total: int) -> None:
        monkeypatch.setattr(
            ranks_module,
            "read_available_memory",
            lambda device: AvailableMemory(used=0, free=free, total=total),
        )

    return give


@pytest.fixture
def attempt(
    make_attempt: Callable[..., Path], miniature: Callable[[str], Path]
) -> Callable[..., Path]:
    def make(*, run: str = "run", **model: Any) -> Path:
        settings = {
            "architecture": {"weights": str(miniature("llava")), "name": "auto"},
            "hyperparameters": {"maxSteps": 1, "batchSize": 8, "microBatchSize": 8},
            "validation": {"maxSamples": 1},
            "evaluation": {"max_new_tokens": 1},
            "compute": {"featureCache": False, "precisionType": "float32"},
            "packing": False,
        }
        return make_attempt(
            {"vi-dataset": {"maxSamples": 16}, "vi-model": settings | model}, run=run
        )

    return make


def memory_of(folder: Path, events_of: EventsOf) -> dict[str, Any]:
    plan: dict[str, Any] = events_of(folder, "plan")[0]["plan"]
    return plan


def test_more_than_the_total_ends_before_the_first_step(
    attempt: Callable[..., Path], with_memory: Callable[..., None], events_of: EventsOf
) -> None:
    with_memory(free=MIB, total=MIB // 100)
    folder = attempt(training={"mode": "full"})
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json") or {}
    assert result["reason"] == "OutOfMemory"
    reason = memory_of(folder, events_of)["memory"]["reason"]
    assert reason.startswith("Deny: ")
    assert reason in result["message"]
    assert "training.mode 'lora'" in reason
    assert not events_of(folder, "step")


def test_a_training_that_may_shrink_uses_a_micro_batch_that_fits(
    attempt: Callable[..., Path],
    with_memory: Callable[..., None],
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepare_module, "SLOW_PASS_S", 0.0)
    with_memory(free=9000 * MIB, total=9000 * MIB)
    ample = attempt(run="ample")
    assert train_attempt(ample) == 0
    bound = memory_of(ample, events_of)["memory"]
    assert bound["reason"].startswith("Allow: extrapolated from one sample ")
    # Less than four times the bound is not ample, so the other passes follow.
    with_memory(free=3 * bound["value"], total=9000 * MIB)
    measured = attempt(run="measured")
    assert train_attempt(measured) == 0
    memory = memory_of(measured, events_of)["memory"]
    assert memory["reason"].startswith("Allow: estimated ")
    assert memory["value"] < bound["value"]
    with_memory(free=9000 * MIB, total=memory["value"] - 1)
    folder = attempt(onOutOfMemory="shrink")
    assert train_attempt(folder) == 0
    plan = memory_of(folder, events_of)
    assert plan["microBatchSize"]["value"] < 8
    assert plan["batchSize"]["value"] == 8
    assert "would need" in plan["microBatchSize"]["reason"]
    state = read_json(folder / "checkpoints" / "step-1" / "training_state" / "state.json") or {}
    assert state["progress"]["microBatchLimit"] == plan["microBatchSize"]["value"]


def make_budget(seconds_per_reading: float, samples_of_run: float) -> TrialBudget:
    """Return a budget whose clock advances with every reading, so by that much in each trial."""
    readings = itertools.count(step=seconds_per_reading)
    return TrialBudget(samples_of_run, clock=lambda: next(readings))


@pytest.mark.parametrize(
    ("seconds", "samples_of_run", "limit_s"),
    [(0.1, 100, 10), (2, 400, 40), (2, 10_000, 60)],
)
def test_memory_trials_may_take_five_percent_of_a_run_between_ten_seconds_and_a_minute(
    seconds: float, samples_of_run: float, limit_s: float
) -> None:
    budget = make_budget(seconds, samples_of_run)
    assert budget.permits(1000, "the first")  # nobody knows yet what it costs
    with budget.time(1):
        pass
    assert budget.limit_s == pytest.approx(limit_s)
    fitting = int((limit_s - seconds) / seconds)
    assert budget.permits(fitting, "a small one")
    assert str(budget) == ""
    assert not budget.permits(fitting + 2, "a large one")
    assert str(budget).startswith(f"a large one (about {(fitting + 2) * seconds:.0f} s) skipped: ")


def test_one_pass_is_enough_where_its_bound_is() -> None:
    torch.manual_seed(0)
    model = Wide()
    plan: Any = PlanOf(4)
    passes: list[int] = []
    bounds: list[StepMemory] = []

    def count_and_build(indices: Any, epoch: int) -> Batch:
        passes.append(len(indices))
        return build_batch(indices, epoch)

    def note_bound(bound: StepMemory) -> bool:
        bounds.append(bound)
        return True

    found = measure_step_memory(
        count_and_build,
        model,
        [torch.optim.AdamW(model.parameters())],
        longest=0,
        plan=plan,
        device=CPU,
        is_enough=note_bound,
    )
    assert passes == [1]
    assert [found] == bounds
    assert found.is_bound
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("seconds", "is_whole"), [(1.0, True), (2.5, False)])
def test_slow_passes_leave_an_upper_bound_of_the_memory(seconds: float, is_whole: bool) -> None:
    torch.manual_seed(0)
    model = Wide()
    plan: Any = PlanOf(4)
    optimizers = [torch.optim.AdamW(model.parameters())]

    bounds: list[StepMemory] = []

    def note_bound(bound: StepMemory) -> bool:
        bounds.append(bound)
        return False

    def measure(budget: TrialBudget | None) -> StepMemory:
        return measure_step_memory(
            build_batch,
            model,
            optimizers,
            longest=0,
            plan=plan,
            device=CPU,
            budget=budget,
            is_enough=note_bound,
        )

    budget = make_budget(seconds, samples_of_run=1)
    found, exact = measure(budget), measure(None)
    assert all(bound.peak(4, 4) >= exact.peak(4, 4) for bound in bounds)
    assert (found.whole_batch is not None) is is_whole
    assert found.peak(4, 4) >= exact.peak(4, 4)
    assert bool(budget.skipped) is not is_whole
    with pytest.raises(NoTimeLeft):
        measure(make_budget(9.0, samples_of_run=1))


def test_a_plan_says_which_memory_trials_it_skipped(
    attempt: Callable[..., Path],
    with_memory: Callable[..., None],
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_memory(free=MIB // 100, total=9000 * MIB)  # one pass is not enough
    monkeypatch.setattr(trial_budget, "MAX_S", 0.0)
    folder = attempt()
    assert train_attempt(folder) == 0
    memory = memory_of(folder, events_of)["memory"]
    assert memory["value"] is None
    assert re.fullmatch(
        r"not estimated; the measurement of memory \(about \d+ s\) skipped: "
        r"trials may take 0 s and took \d+",
        memory["reason"],
    )


def test_a_trial_of_the_largest_micro_batch_is_skipped_where_it_takes_too_long(
    attempt: Callable[..., Path],
    with_memory: Callable[..., None],
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []
    original = train_module.compute_gradients

    def record(state: Any, indices: list[int], *others: Any) -> float:
        tried.append(state.progress.step)
        return original(state, indices, *others)

    def permits(budget: TrialBudget, samples: int, name: str) -> bool:
        if samples == 8:
            budget.skipped.append(name)
        return samples < 8

    monkeypatch.setattr(train_module, "compute_gradients", record)
    with_memory(free=MIB // 100, total=9000 * MIB)
    folder = attempt(run="tried")
    assert train_attempt(folder) == 0
    assert tried == [0, 0]
    monkeypatch.setattr(TrialBudget, "permits", permits)
    folder = attempt(run="skipped")
    assert train_attempt(folder) == 0
    assert tried == [0, 0, 0]
    reason = memory_of(folder, events_of)["memory"]["reason"]
    assert "; a trial of the largest micro-batch skipped: trials may take " in reason


def test_more_than_the_free_memory_is_a_warning(
    attempt: Callable[..., Path], with_memory: Callable[..., None], events_of: EventsOf
) -> None:
    with_memory(free=MIB // 100, total=9000 * MIB)
    folder = attempt()
    assert train_attempt(folder) == 0
    explanation = memory_of(folder, events_of)["memory"]["reason"]
    assert explanation.startswith("Warn: ")
    assert any(explanation in event["message"] for event in events_of(folder, "warning"))


def test_this_machine_has_memory_and_the_process_uses_some() -> None:
    found = read_available_memory(CPU)
    assert 0 < found.used < found.total
    assert 0 < found.free <= found.total
    assert np.isfinite(found.total)
