"""Checks of memory: predicted against measured, and training on after it has run out."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from runyard.trainer.gpu_check.isolation import CheckReport
from runyard.trainer.gpu_check.numerics import (
    CLOSE,
    compare_gradients,
    compute_gradients,
    take_gradients,
)
from runyard.trainer.gpu_check.runs import (
    CheckContext,
    PreparedTraining,
    Settings,
    prepare_training,
)

CLOSE_MEMORY = 0.15  # of the measured peak
STEPS = 3
FULL: Settings = {"training": {"mode": "full", "freeze": []}}


def check_prediction(context: CheckContext) -> CheckReport:
    """Compare the predicted peak of a step with the measured one."""
    from runyard.trainer.steps.memory import format_bytes, return_freed_memory
    from runyard.trainer.train import accumulate_gradients, optimizer_step

    with prepare_training(context, "prediction", FULL) as training:
        state = training.state
        if state.memory_estimate is None:
            raise RuntimeError(f"no prediction: {state.plan.document['memory']['reason']}")
        predicted = state.memory_estimate.peak_bytes
        size = state.plan.micro_batch_size
        return_freed_memory()
        reset_peak(state.device)
        for _ in range(STEPS):
            accumulate_gradients(state, [state.longest_index] * state.plan.batch_size, 0, size)
            optimizer_step(state, 1.0)
        measured = read_peak(state.device)
    ratio = predicted / measured
    detail = f"{format_bytes(predicted)} predicted, {format_bytes(measured)} measured"
    if abs(ratio - 1) > CLOSE_MEMORY:
        raise RuntimeError(f"{detail}: off by {ratio - 1:+.0%}")
    return CheckReport(
        f"{detail} ({ratio - 1:+.1%})", {"predicted": predicted, "measured": measured}
    )


def check_shrinking(context: CheckContext) -> CheckReport:
    """Run out of memory in a step, and compare the step with smaller micro-batches."""
    from runyard.trainer.steps.memory import return_freed_memory
    from runyard.trainer.train import clear_gradients

    size = 8 * context.batch_size if context.is_dry else context.batch_size
    settings = FULL | {
        "onOutOfMemory": "shrink",
        "hyperparameters": {"batchSize": size, "microBatchSize": size},
    }
    with prepare_training(context, "shrinking", settings) as training:
        return_freed_memory()  # otherwise a step reuses what the one before has freed
        expected, reference = compute_gradients(training)
        needed = measure_activations(training)
        # On a processor, part of the memory comes from what was freed before.
        for allowed in (needed * tenths // 10 for tenths in range(9, 2, -1)):
            with limit_memory(training.state.device, allowed):
                loss = compute_or_shrink(training, size)
            shrunk = training.state.plan.micro_batch_size
            if shrunk < size:
                break
            clear_gradients(training.state)
        else:
            raise RuntimeError(f"memory did not run out with a micro-batch of {size}")
        found = take_gradients(training)
    worst = compare_gradients(found, reference)
    if not (worst <= CLOSE and abs(loss - expected) <= CLOSE * expected):
        raise RuntimeError(f"after shrinking, gradients differ by {worst:.1e} of the largest")
    return CheckReport(
        f"micro-batch {size} to {shrunk}, gradients within {worst:.1e} of the largest",
        {"before": size, "after": shrunk, "difference": worst},
    )


def compute_or_shrink(training: PreparedTraining, size: int) -> float:
    """Compute the gradients of the first batch as the loop does; return the loss."""
    from runyard.trainer import train

    settings = training.job.flow.model
    return train.compute_gradients(training.state, list(range(size)), 0, settings, training.events)


def measure_activations(training: PreparedTraining) -> int:
    """Return what a micro-batch takes, in bytes, as the trainer predicts it."""
    from runyard.trainer.steps.memory import measure_step_memory

    state = training.state
    step = measure_step_memory(
        state.build_batch,
        state.losses,
        state.optimizers,
        longest=state.longest_index,
        plan=state.plan,
        device=state.device,
    )
    return step.gradients + step.accumulating.peak(state.plan.micro_batch_size)


@contextlib.contextmanager
def limit_memory(device: torch.device, allowed: int) -> Iterator[None]:
    """Leave so many bytes in addition to what is in use now."""
    from runyard.trainer.steps.memory import trim_heap

    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        used = torch.cuda.memory_reserved(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (used + allowed) / total), device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    trim_heap()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (read_status("VmData") + allowed, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def read_peak(device: torch.device) -> int:
    """Return the peak since ``reset_peak``: of tensors on an accelerator, else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return read_status("VmHWM")


def read_status(name: str) -> int:
    """Return a line of ``/proc/self/status``, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)
