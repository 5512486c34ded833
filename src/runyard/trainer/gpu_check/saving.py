"""Checks of checkpoints: copies in pinned memory, and a resumed run that continues bit for bit."""

import time
from pathlib import Path
from typing import Any

import torch

from runyard.rundir import CheckpointDir
from runyard.trainer.gpu_check.devices import synchronize
from runyard.trainer.gpu_check.isolation import CheckReport, Unavailable
from runyard.trainer.gpu_check.options import require_package
from runyard.trainer.gpu_check.runs import (
    CheckContext,
    Settings,
    prepare_training,
    train_run,
    write_attempt,
)

STEPS, SAVED_STEP = 6, 3


def check_copies(context: CheckContext) -> CheckReport:
    """Copy a training's tensors to host memory as a save does, and compare them."""
    from runyard.trainer.checkpoints.async_checkpoint import HostBuffers
    from runyard.trainer.checkpoints.checkpoint import collect_contents

    settings = {"training": {"mode": "full", "freeze": []}}
    with prepare_training(context, "copies", settings) as training:
        training.take_steps(1)
        state = training.state
        contents = collect_contents(
            state.model, state.optimizers, state.progress, run_document=state.run_document
        )
        buffers = HostBuffers()
        buffers.stage(contents, state.device).fill()  # allocates, which later saves need not
        synchronize(state.device)
        started_s = time.perf_counter()
        staged = buffers.stage(contents, state.device)
        staged.fill()
        seconds = time.perf_counter() - started_s
        copies = staged.contents.weights | staged.contents.tensors
        originals = contents.weights | contents.tensors
        wrong = [
            name
            for name, value in originals.items()
            if isinstance(value, torch.Tensor)
            and not torch.equal(copies[name].cpu(), value.detach().cpu())
        ]
        is_pinned = all(
            value.is_pinned() for value in copies.values() if isinstance(value, torch.Tensor)
        )
        size_bytes = sum(v.nbytes for v in copies.values() if isinstance(v, torch.Tensor))
    if wrong:
        raise RuntimeError(f"{len(wrong)} copies differ from their tensors, such as {wrong[0]}")
    if state.device.type == "cuda" and not is_pinned:
        raise RuntimeError("the copies are not in pinned memory")
    kind = "pinned" if is_pinned else "pageable"
    return CheckReport(
        f"{size_bytes >> 20:,} MiB to {kind} memory, {size_bytes / seconds / 1e9:.1f} GB/s",
        {"bytes": size_bytes, "seconds": seconds, "isPinned": is_pinned},
    )


def check_resuming(
    context: CheckContext, optimizer: str, weights_precision: str = "float32"
) -> CheckReport:
    """Compare a run that is resumed half-way with an uninterrupted one."""
    from runyard.trainer.main import detect_machine

    if optimizer == "adamw8bit":
        require_package("bitsandbytes")
    machine = detect_machine(context.threads)
    is_emulated = machine.device == "cuda" and not machine.has_good_bfloat16
    if weights_precision == "bfloat16" and is_emulated:
        raise Unavailable(f"not offered: {machine.device_name} only emulates bfloat16")
    settings: Settings = {
        "training": {"mode": "full", "freeze": [], "weightsPrecision": weights_precision},
        "compute": {"precisionType": weights_precision},
        "checkpoint": {"every": {"steps": SAVED_STEP}, "keep": 5},
        "hyperparameters": {"maxSteps": STEPS, "optimizer": {"name": optimizer}},
    }
    name = f"resume-{optimizer}-{weights_precision}"
    whole = write_attempt(context, name, settings)
    saved = find_checkpoints(train_run(whole))
    warn_about_waiting(whole)
    resumed = write_attempt(context, name, settings, attempt=2, resume=saved[SAVED_STEP])
    again = find_checkpoints(train_run(resumed))
    difference = compare_weights(again[STEPS], saved[STEPS])
    if difference:
        # Kernels with atomic additions sum in another order each time.
        repeated = write_attempt(context, name, settings, attempt=3)
        between = compare_weights(find_checkpoints(train_run(repeated))[STEPS], saved[STEPS])
        if not between:
            raise RuntimeError(
                f"weights differ by {difference:.1e}, while two whole runs are bit-equal"
            )
        return CheckReport(
            f"differs by {difference:.1e}; this device is not deterministic: two whole runs "
            f"differ by {between:.1e}",
            {"difference": difference, "betweenWholeRuns": between},
        )
    return CheckReport("saved in the background, bit-equal after resuming", {"difference": 0.0})


def find_checkpoints(events: list[dict[str, Any]]) -> dict[int, Path]:
    """Return the folders of saved checkpoints by step."""
    return {event["step"]: Path(event["folder"]) for event in events if event["ev"] == "checkpoint"}


def warn_about_waiting(folder: Path) -> None:
    """Raise RuntimeError if the run could not save in the background."""
    from runyard.trainer.gpu_check.runs import read_events

    for event in read_events(folder):
        if event["ev"] == "warning" and "saving synchronously" in event["message"]:
            raise RuntimeError(event["message"])


def compare_weights(found: Path, expected: Path) -> float:
    """Return the largest difference between the weights of two checkpoints."""
    from safetensors.torch import load_file

    file = Path("model.safetensors")
    left, right = (load_file(CheckpointDir(path).model_full / file) for path in (found, expected))
    return max(float((left[name] - right[name]).abs().max()) for name in right)
