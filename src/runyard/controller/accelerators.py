"""Which accelerators this machine may use, and how much memory each of them has: what the driver's own program says.

The controller loads no torch, so it asks ``nvidia-smi`` where there is one. A driver without that program still names
its devices; their memory is then not known. Of a device that is divided (MIG) the parts count, since CUDA opens nothing
else of it. What ``CUDA_VISIBLE_DEVICES`` hides from the controller does not count: it belongs to somebody else. A
machine without accelerators offers its processor, with the memory of the machine or what its cgroup leaves of it.
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
ASK_TIMEOUT_S = 20.0
QUERY = ("--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits")
LIST = ("-L",)
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
Ask = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True)
class Device:
    """One accelerator, or a part of one. ``id`` is what CUDA knows it by: a UUID, or a number where no UUID is known.

    ``whole`` is the UUID of the device it is a part of.
    """

    id: str
    model: str
    memory_gib: float | None = None
    whole: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process sees this device and no other."""
        if self.id.isdigit():
            return {VISIBLE: self.id, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # as the driver counts them
        return {VISIBLE: self.id}


def devices(*, ask: Ask | None = None, root: Path = Path("/"), visible: str | None = None) -> list[Device]:
    """The accelerators that this process may use. ``root`` is where ``proc`` is.

    ``visible`` is what ``CUDA_VISIBLE_DEVICES`` says; by default that of this process.
    """
    ask = ask or _ask_nvidia
    found = _read(ask(QUERY) or "")
    if found:
        parts = _read_parts(ask(LIST) or "", {device.id: device for device in found})
        divided = {part.whole for part in parts}
        groups = [
            [part for part in parts if part.whole == device.id] if device.id in divided else [device]
            for device in found
        ]
    else:
        groups = [[device] for device in _of_driver(root)]
    return _visible(groups, os.environ.get(VISIBLE) if visible is None else visible)


def accelerators(found: Sequence[Device], *, root: Path = Path("/")) -> list[Accelerator]:
    """Everything this machine offers, equal ones counted. ``root`` is where ``proc`` and ``sys`` are."""
    if not found:
        return [Accelerator(name=CPU, model=_processor(root), count=1, memory_gib=_gib(_main_memory(root)))]
    return [
        Accelerator(name=short_name(model), model=model, count=count, memory_gib=memory_gib)
        for (model, memory_gib), count in Counter((device.model, device.memory_gib) for device in found).items()
    ]


def labels(found: Sequence[Device]) -> dict[str, list[str]]:
    """What a flow's tolerations may name: the accelerators here, by short lower-case names such as ``h100``."""
    words = {word for device in found for word in re.findall(r"[a-z]*\d+[a-z]*", device.model.lower())}
    return {"accelerator": sorted(words) or [CPU]}


def runs_at_once(slots: int, found: Sequence[Device], *, are_shared: bool) -> int:
    """How many runs this machine takes: no more than it has accelerators, unless they are shared."""
    return min(slots, len(found)) if found and not are_shared else slots


def least_used(found: Sequence[Device], used: Sequence[str]) -> Device | None:
    """The device that the fewest runs have; ``used`` names that of each run."""
    counts = Counter(used)
    return min(found, key=lambda device: counts[device.id], default=None)


def short_name(model: str) -> str:
    """The word by which a flow's tolerations name a model: the first with a digit, such as ``h100``, else all of it."""
    found = re.search(r"[a-z]*\d+[a-z]*", model.lower())
    return found[0] if found else "-".join(re.findall(r"[a-z]+", model.lower())) or "unknown"


def _ask_nvidia(arguments: Sequence[str]) -> str | None:
    """What the driver's program says; None where there is none, or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("nvidia-smi does not answer: %s", error)
        return None


def _read(said: str) -> list[Device]:
    """Devices from lines such as ``GPU-3f..., NVIDIA H100 80GB HBM3, 81559``; some say ``[N/A]`` for memory."""
    found = []
    for line in said.splitlines():
        id, comma, rest = line.partition(",")
        model, second, mebibytes = rest.rpartition(",")
        if comma and second and model.strip():
            memory = mebibytes.strip()
            found.append(Device(id.strip(), model.strip(), _gib(int(memory) * MIB) if memory.isdigit() else None))
    return found


def _read_parts(said: str, wholes: dict[str, Device]) -> list[Device]:
    """The parts of divided devices from a list that names each below its device; the profile tells their memory."""
    parts, whole = [], None
    for line in said.splitlines():
        uuid = re.search(r"\(UUID: ([^)]+)\)", line)
        if uuid is None:
            continue
        if line.startswith("GPU "):
            whole = wholes.get(uuid[1])
        elif whole is not None and (profile := re.search(r"MIG (\S+)", line)):
            memory = re.search(r"(\d+)gb", profile[1])
            model = f"{whole.model} MIG {profile[1]}"
            parts.append(Device(uuid[1], model, float(memory[1]) if memory else None, whole=whole.id))
    return parts


def _of_driver(root: Path) -> list[Device]:
    """What the driver's own files name, in the order of their places on the bus."""
    found = []
    for number, path in enumerate(sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))):
        text = _text(path)
        model = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
        uuid = re.search(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]+)\s*$", text, re.MULTILINE)
        if model:
            found.append(Device(uuid[1] if uuid else str(number), model[1].strip()))
    return found


def _visible(groups: Sequence[Sequence[Device]], visible: str | None) -> list[Device]:
    """The devices that ``CUDA_VISIBLE_DEVICES`` leaves, in its order: as CUDA does, up to the first that is none.

    A group is a device, or the parts of one; a number or the UUID of the whole names all of them.
    """
    if visible is None:
        return [device for group in groups for device in group]
    every, chosen = [device for group in groups for device in group], list[Device]()
    for word in (word.strip() for word in visible.split(",")):
        if word.isdigit():
            named = list(groups[int(word)]) if int(word) < len(groups) else []
        else:
            named = [device for device in every if word and word in (device.id[: len(word)], device.whole[: len(word)])]
            named = named if len({device.whole or device.id for device in named}) == 1 else []
        if not named:
            break
        chosen += [device for device in named if device not in chosen]
    return chosen


def _processor(root: Path) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else ""


def _main_memory(root: Path) -> int | None:
    """Bytes of the machine's memory, or of the tightest limit of the cgroups this process is in."""
    total = re.search(r"^MemTotal:\s*(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    known = [int(total[1]) * KIB] if total else []
    return min([*known, *_cgroup_limits(root)], default=None)


def _cgroup_limits(root: Path) -> list[int]:
    """Of our own cgroup and all above it: version 2, and version 1 where the memory controller is."""
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.strip("/")
        above = [place for place in (folder, *folder.parents) if place == top or top in place.parents]
        said = [_text(place / name).strip() for place in above]
        limits += [int(limit) for limit in said if limit.isdigit()]
    return limits


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _gib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / GIB, 2)
