"""Detects the accelerators that this machine may use, and the memory of each.

The controller does not load torch, so it runs ``nvidia-smi`` if that is installed. Without it the
driver's files still name the devices; their memory is then unknown. Of a partitioned device (MIG)
the partitions count, because CUDA opens only those. Devices that ``CUDA_VISIBLE_DEVICES`` hides
from the controller do not count: they belong to other programs. A machine without accelerators
offers its processor, with the memory of the machine or the limit of its cgroup.
"""

import logging
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runyard.protocol import Accelerator

log = logging.getLogger(__name__)

CPU = "cpu"
VISIBLE = "CUDA_VISIBLE_DEVICES"
SMI_TIMEOUT_S = 20.0
QUERY = ("--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits")
LIST = ("-L",)
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
RunNvidiaSmi = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True)
class Device:
    """One accelerator, or a partition of one.

    ``id`` is its name for CUDA: a UUID, or a number if no UUID is known. ``whole`` is the UUID of
    the device that a partition belongs to.
    """

    id: str
    model: str
    memory_gib: float | None = None
    whole: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which a process sees only this device."""
        return select_devices([self.id])


def select_devices(ids: Sequence[str]) -> dict[str, str]:
    """Return the environment variables with which a process sees only these devices."""
    if not ids:
        return {}
    visible = {VISIBLE: ",".join(ids)}
    # Numbered as by the driver
    return visible | ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if ids[0].isdigit() else {})


def list_devices(
    *, run_smi: RunNvidiaSmi | None = None, root: Path = Path("/"), visible: str | None = None
) -> list[Device]:
    """Return the accelerators that this process may use. ``root`` is the folder with ``proc``.

    ``visible`` is the value of ``CUDA_VISIBLE_DEVICES``; by default that of this process.
    """
    run_smi = run_smi or _run_nvidia_smi
    found = _parse_devices(run_smi(QUERY) or "")
    if found:
        parts = _parse_mig_parts(run_smi(LIST) or "", {device.id: device for device in found})
        divided = {part.whole for part in parts}
        groups = [
            [part for part in parts if part.whole == device.id]
            if device.id in divided
            else [device]
            for device in found
        ]
    else:
        groups = [[device] for device in _read_driver_files(root)]
    return _select_visible(groups, os.environ.get(VISIBLE) if visible is None else visible)


def summarize_accelerators(found: Sequence[Device], *, root: Path = Path("/")) -> list[Accelerator]:
    """Return what this machine offers, equal devices counted. ``root`` has ``proc`` and ``sys``."""
    if not found:
        return [
            Accelerator(
                name=CPU,
                model=_read_processor_model(root),
                count=1,
                memory_gib=_to_gib(_read_memory_limit(root)),
            )
        ]
    return [
        Accelerator(name=shorten_model(model), model=model, count=count, memory_gib=memory_gib)
        for (model, memory_gib), count in Counter(
            (device.model, device.memory_gib) for device in found
        ).items()
    ]


def make_labels(found: Sequence[Device]) -> dict[str, list[str]]:
    """Return the labels that a flow's tolerations may name, as short lower-case words such as
    ``h100``.
    """
    words = {
        word for device in found for word in re.findall(r"[a-z]*\d+[a-z]*", device.model.lower())
    }
    return {"accelerator": sorted(words) or [CPU]}


def limit_slots(slots: int, found: Sequence[Device], *, are_shared: bool) -> int:
    """Return how many runs may train at once: one per accelerator, unless they are shared."""
    return min(slots, len(found)) if found and not are_shared else slots


def find_least_used(found: Sequence[Device], used: Sequence[str], count: int = 1) -> list[Device]:
    """Return ``count`` devices with the fewest runs; ``used`` has the devices of each run."""
    counts = Counter(used)
    return sorted(found, key=lambda device: counts[device.id])[:count]


def shorten_model(model: str) -> str:
    """Return the name of a model in tolerations: its first word with a digit, such as ``h100``,
    else all words.
    """
    found = re.search(r"[a-z]*\d+[a-z]*", model.lower())
    return found[0] if found else "-".join(re.findall(r"[a-z]+", model.lower())) or "unknown"


def _run_nvidia_smi(arguments: Sequence[str]) -> str | None:
    """Return the output of ``nvidia-smi``; None if it is not installed or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("nvidia-smi failed: %s", error)
        return None


def _parse_devices(output: str) -> list[Device]:
    """Parse lines such as ``GPU-3f..., NVIDIA H100 80GB HBM3, 81559``; memory may be ``[N/A]``."""
    found = []
    for line in output.splitlines():
        id, comma, rest = line.partition(",")
        model, second, mebibytes = rest.rpartition(",")
        if comma and second and model.strip():
            memory = mebibytes.strip()
            found.append(
                Device(
                    id.strip(),
                    model.strip(),
                    _to_gib(int(memory) * MIB) if memory.isdigit() else None,
                )
            )
    return found


def _parse_mig_parts(output: str, wholes: dict[str, Device]) -> list[Device]:
    """Parse a list that names partitions below their device; the profile has their memory."""
    parts, whole = [], None
    for line in output.splitlines():
        uuid = re.search(r"\(UUID: ([^)]+)\)", line)
        if uuid is None:
            continue
        if line.startswith("GPU "):
            whole = wholes.get(uuid[1])
        elif whole is not None and (profile := re.search(r"MIG (\S+)", line)):
            memory = re.search(r"(\d+)gb", profile[1])
            model = f"{whole.model} MIG {profile[1]}"
            parts.append(
                Device(uuid[1], model, float(memory[1]) if memory else None, whole=whole.id)
            )
    return parts


def _read_driver_files(root: Path) -> list[Device]:
    """Return the devices in the driver's files, in bus order."""
    found = []
    for number, path in enumerate(sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))):
        text = _read_text(path)
        model = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
        uuid = re.search(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]+)\s*$", text, re.MULTILINE)
        if model:
            found.append(Device(uuid[1] if uuid else str(number), model[1].strip()))
    return found


def _select_visible(groups: Sequence[Sequence[Device]], visible: str | None) -> list[Device]:
    """Return the devices that ``CUDA_VISIBLE_DEVICES`` selects, in its order.

    As in CUDA, the list ends at the first invalid entry. A group is a device, or its partitions; a
    number or the UUID of the whole device selects all of them.
    """
    if visible is None:
        return [device for group in groups for device in group]
    every, chosen = [device for group in groups for device in group], list[Device]()
    for word in (word.strip() for word in visible.split(",")):
        if word.isdigit():
            named = list(groups[int(word)]) if int(word) < len(groups) else []
        else:
            named = [
                device
                for device in every
                if word and word in (device.id[: len(word)], device.whole[: len(word)])
            ]
            named = named if len({device.whole or device.id for device in named}) == 1 else []
        if not named:
            break
        chosen += [device for device in named if device not in chosen]
    return chosen


def _read_processor_model(root: Path) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read_text(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else ""


def _read_memory_limit(root: Path) -> int | None:
    """Return the machine's memory or the tightest limit of this process's cgroups, in bytes."""
    total = re.search(r"^MemTotal:\s*(\d+) kB$", _read_text(root / "proc/meminfo"), re.MULTILINE)
    known = [int(total[1]) * KIB] if total else []
    return min([*known, *_read_cgroup_limits(root)], default=None)


def _read_cgroup_limits(root: Path) -> list[int]:
    """Return the memory limits of our cgroup and its ancestors, for versions 1 and 2."""
    limits = []
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.strip("/")
        ancestors = [
            ancestor
            for ancestor in (folder, *folder.parents)
            if ancestor == top or top in ancestor.parents
        ]
        texts = [_read_text(ancestor / name).strip() for ancestor in ancestors]
        limits += [int(limit) for limit in texts if limit.isdigit()]
    return limits


def _read_text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _to_gib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / GIB, 2)
