"""What the accelerator is: its name, memory and driver, and the peak of its arithmetic."""

import os
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runyard.trainer import environment

OPTIONAL_PACKAGES = ("bitsandbytes", "flash-attn", "trl", "accelerate", "triton")
DRIVER_FILE = Path("/proc/driver/nvidia/version")
QUERY_TIMEOUT_S = 10.0
GIB = 1 << 30

# Dense matrix products in 16 bits with sums in float32, in TFLOP/s, from the vendors' data sheets.
# A name is found by the first entry that it contains, so longer entries come first.
PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("gb200", 2500.0),
    ("b200", 2250.0),
    ("gh200", 989.0),
    ("h200 nvl", 835.0),
    ("h200", 989.0),
    ("h100 pcie", 756.0),
    ("h100 nvl", 835.0),
    ("h100", 989.0),
    ("h800", 989.0),
    ("h20", 148.0),
    ("a100", 312.0),
    ("a800", 312.0),
    ("l40s", 362.0),
    ("l40", 181.0),
    ("l4", 121.0),
    ("a10g", 70.0),
    ("a10", 125.0),
    ("a30", 165.0),
    ("a40", 150.0),
    ("rtx 6000 ada", 364.0),
    ("rtx a6000", 155.0),
    ("rtx 5090", 209.5),
    ("rtx 4090", 165.2),
    ("rtx 3090", 71.0),
    ("v100", 125.0),
    ("t4", 65.0),
    ("mi355x", 2516.0),
    ("mi325x", 1307.0),
    ("mi300x", 1307.0),
    ("mi250", 191.5),
    ("mi210", 181.0),
)


@dataclass(frozen=True, kw_only=True)
class DeviceDescription:
    """The device that checks run on. ``kind`` is torch's name of it."""

    kind: str
    name: str
    count: int
    memory_bytes: int
    capability: str
    has_bfloat16: bool
    driver: str

    @property
    def description(self) -> str:
        many = f"{self.count} x " if self.count > 1 else ""
        memory = f"{self.memory_bytes / GIB:.1f} GiB" if self.memory_bytes else "memory unknown"
        parts = [f"{many}{self.name}", memory, self.capability, self.driver]
        return ", ".join(part for part in parts if part)


def find_accelerator() -> DeviceDescription | None:
    """Return this machine's accelerator, or None. Initializes its driver."""
    import torch

    if not torch.accelerator.is_available():
        return None
    kind = torch.accelerator.current_accelerator().type
    module = getattr(torch, kind)
    properties = getattr(module, "get_device_properties", lambda device: None)(0)
    capability = ""
    if kind == "cuda":
        major, minor = torch.cuda.get_device_capability()
        capability = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
        capability = capability or f"capability {major}.{minor}"
    is_supported = getattr(module, "is_bf16_supported", None)
    options = {"including_emulation": False} if kind in ("cuda", "xpu") else {}
    return DeviceDescription(
        kind=kind,
        name=getattr(properties, "name", kind),
        count=torch.accelerator.device_count(),
        memory_bytes=int(getattr(properties, "total_memory", 0)),
        capability=capability,
        has_bfloat16=is_supported is None or bool(is_supported(**options)),
        driver=read_driver(),
    )


def read_driver() -> str:
    """Return the driver's version and the toolkit that torch was built with."""
    import torch

    parts = []
    if DRIVER_FILE.exists():
        words = DRIVER_FILE.read_text().split()
        found = next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "")
        parts.append(f"driver {found}")
    else:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True
            )
            parts.append(f"driver {done.stdout.split()[0]}")
        except (OSError, subprocess.SubprocessError, IndexError):
            pass
    for name, built in (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip)):
        if built:
            parts.append(f"{name} {built}")
    return ", ".join(parts)


def find_peak_flops(name: str) -> float | None:
    """Return the peak FLOP/s of a card by its name, or None for an unknown one."""
    words = name.casefold()
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS if part in words), None)


def list_versions() -> dict[str, str]:
    """Return the versions of packages; an optional one may be "not installed"."""
    found = dict(environment.versions())
    for name in OPTIONAL_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hide_accelerators() -> None:
    """Leave only the processor to this process and its descendants."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        os.environ[name] = ""


def describe_host() -> dict[str, Any]:
    return environment.hardware()
