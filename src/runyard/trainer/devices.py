"""The device that a trainer uses: the CPU, or an accelerator of any kind that torch supports.

torch names the cards of NVIDIA and AMD both ``cuda``, those of Intel ``xpu``, and Apple's ``mps``.
Everything that needs to know the kind is here. Where torch has one function for all of them
(``torch.accelerator``), it is used. On the CPU every function does nothing, or what it always did.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

KINDS = ("cuda", "xpu", "mps")
CPU = torch.device("cpu")
STATE_PREFIX = "random."  # of random states in a checkpoint, followed by the kind of device


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes of an accelerator: those of live tensors, what more tensors could have, and all."""

    used: int
    free: int
    total: int


def find_device() -> torch.device:
    """Return this machine's accelerator, or the CPU where there is none that is supported."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None and found.type in KINDS else CPU


def count_devices() -> int:
    """Return how many accelerators this process may use."""
    return torch.accelerator.device_count() if find_device() != CPU else 0


def list_device_names() -> list[str]:
    """Return the names of the accelerators that this process may use. Initializes them."""
    device = find_device()
    return [get_device_name(device, number) for number in range(count_devices())]


def get_device_name(device: torch.device, number: int = 0) -> str:
    if device.type == "cpu":
        return "CPU"
    if device.type == "mps":  # there is only one, and torch has no name for it
        return "Apple GPU"
    return str(_get_module(device).get_device_name(number))


def has_good_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16. Emulated, other formats are faster.

    Apple's are not known: the first generation lacks them.
    """
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if device.type == "mps":
        return False
    return bool(_get_module(device).is_bf16_supported(including_emulation=False))


def read_memory(device: torch.device) -> DeviceMemory:
    """Return the memory of an accelerator. Memory that torch holds unused counts as free."""
    if device.type == "mps":
        module = _get_module(device)
        total, used = int(module.recommended_max_memory()), int(module.current_allocated_memory())
        return DeviceMemory(used=used, free=max(0, total - used), total=total)
    free, total = torch.accelerator.get_memory_info(device)
    used = torch.accelerator.memory_allocated(device)
    held = torch.accelerator.memory_reserved(device) - used
    return DeviceMemory(used=used, free=free + held, total=total)


def synchronize(device: torch.device) -> None:
    """Wait until the accelerator has done all work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def return_memory(device: torch.device) -> None:
    """Return memory that torch holds unused to the accelerator's driver."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def has_streams(device: torch.device) -> bool:
    """Return whether copies to pinned host memory can run next to the training."""
    return device.type in ("cuda", "xpu")


def read_random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the random generators, by their names in a checkpoint."""
    states = {f"{STATE_PREFIX}cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[f"{STATE_PREFIX}{device.type}"] = _get_module(device).get_rng_state()
    return states


def restore_random_states(tensors: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore the states in a checkpoint that are of the CPU and of this kind of device."""
    torch.set_rng_state(tensors[f"{STATE_PREFIX}cpu"])
    name = f"{STATE_PREFIX}{device.type}"
    if device.type != "cpu" and name in tensors:
        _get_module(device).set_rng_state(tensors[name])


@contextlib.contextmanager
def keep_random_states(device: torch.device) -> Iterator[None]:
    """Restore the states of the random generators at the end."""
    states = read_random_states(device)
    try:
        yield
    finally:
        restore_random_states(states, device)


def _get_module(device: torch.device) -> Any:
    """Return torch's module of a kind of device, such as ``torch.xpu``."""
    return torch.get_device_module(device.type)
