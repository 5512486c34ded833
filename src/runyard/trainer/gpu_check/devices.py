"""Checks of the device itself: that it is there, and how right and fast its products are."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from runyard.trainer.gpu_check.isolation import CheckReport
from runyard.trainer.gpu_check.machine import find_accelerator, find_peak_flops
from runyard.trainer.gpu_check.runs import CheckContext

SIDES = {True: 256, False: 8192}  # of the timed matrices: dry, and on a device
CHECKED_SIDE = 256
REPEATS = 10
# Largest error of a product of standard normal numbers, relative to its standard deviation.
TOLERANCES = {"float32": 1e-5, "tf32": 5e-3, "bfloat16": 5e-2, "float16": 5e-3}


def check_devices(context: CheckContext) -> CheckReport:
    """Report the accelerator and what the trainer concludes from it."""
    from runyard.trainer.main import detect_machine

    machine = detect_machine(context.threads)
    found = None if context.is_dry else find_accelerator()
    bfloat16 = "bfloat16" if machine.has_good_bfloat16 else "no bfloat16"
    name = machine.device_name if found is None else found.description
    numbers: dict[str, Any] = {"trainerDevice": machine.device, "count": 0, "name": name}
    if found is not None:
        peak = find_peak_flops(found.name)
        numbers |= {
            "kind": found.kind,
            "name": found.name,
            "count": found.count,
            "memoryBytes": found.memory_bytes,
            "capability": found.capability,
            "driver": found.driver,
            "peakTflops": None if peak is None else peak / 1e12,
        }
        if machine.device != found.kind:
            raise RuntimeError(f"the trainer would use {machine.device!r}, not {found.kind!r}")
    return CheckReport(f"{name}, {bfloat16}", numbers)


def check_matrix_products(context: CheckContext) -> CheckReport:
    """Compare products in every number format with float64, and time them."""
    device, parts, numbers = choose_device(context), [], {}
    for kind, tolerance in TOLERANCES.items():
        if kind == "tf32" and device.type != "cuda":
            continue
        error = measure_error(kind, device)
        speed = measure_speed(kind, device, SIDES[context.is_dry])
        numbers[kind] = {"error": error, "tflops": speed}
        parts.append(f"{kind} {speed:,.1f}" if speed >= 1 else f"{kind} {speed:.3f}")
        if error > tolerance:
            raise RuntimeError(f"products in {kind} are wrong by {error:.1e} of their deviation")
    return CheckReport(f"right in all formats; TFLOP/s: {', '.join(parts)}", numbers)


def measure_error(kind: str, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    side = CHECKED_SIDE
    left, right = (
        torch.randn(side, side, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    expected = left @ right
    with choose_tf32(kind == "tf32"):
        dtype = get_dtype(kind)
        found = (left.to(device, dtype) @ right.to(device, dtype)).double().cpu()
    return float((found - expected).abs().max() / expected.std())


def measure_speed(kind: str, device: torch.device, side: int) -> float:
    """Return the TFLOP/s of products of square matrices."""
    matrix = torch.randn(side, side, device=device).to(get_dtype(kind))
    with choose_tf32(kind == "tf32"):
        for _ in range(2):
            matrix @ matrix
        synchronize(device)
        started_s = time.perf_counter()
        for _ in range(REPEATS):
            matrix @ matrix
        synchronize(device)
    return 2 * side**3 * REPEATS / (time.perf_counter() - started_s) / 1e12


@contextlib.contextmanager
def choose_tf32(is_allowed: bool) -> Iterator[None]:
    """Permit or forbid TF32 in matrix products of float32, within the context."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if is_allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def get_dtype(kind: str) -> torch.dtype:
    dtype: torch.dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    return dtype


def choose_device(context: CheckContext) -> torch.device:
    if context.is_dry or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator().type)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all of its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
