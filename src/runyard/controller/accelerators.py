"""Which accelerators this machine has, and how much memory each of them: what the driver's own program says.

The controller loads no torch, so it asks ``nvidia-smi`` where there is one. A driver without that program still names
its devices; their memory is then not known. A machine without accelerators offers its processor, with the memory of
the machine or what its cgroup leaves of it.
"""

import logging
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from runyard.protocol import Accelerator

log = logging.getLogger(__name__)

CPU = "cpu"
ASK_TIMEOUT_S = 20.0
QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def accelerators(*, ask: Callable[[], str | None] | None = None, root: Path = Path("/")) -> list[Accelerator]:
    """Everything this machine offers, equal ones counted. ``root`` is where ``proc`` and ``sys`` lie."""
    said = (ask or _ask_nvidia)()
    found = _read(said) if said is not None else []
    found = found or [(model, None) for model in _models_of_driver(root)]
    if not found:
        return [Accelerator(name=CPU, model=_processor(root), count=1, memory_gib=_gib(_main_memory(root)))]
    return [
        Accelerator(name=short_name(model), model=model, count=count, memory_gib=memory_gib)
        for (model, memory_gib), count in Counter(found).items()
    ]


def short_name(model: str) -> str:
    """The word by which a flow's tolerations name a model: the first with a digit, such as ``h100``, else all of it."""
    found = re.search(r"[a-z]*\d+[a-z]*", model.lower())
    return found[0] if found else "-".join(re.findall(r"[a-z]+", model.lower())) or "unknown"


def _ask_nvidia() -> str | None:
    """What the driver's program says; None where there is none, or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        return subprocess.run(
            [program, *QUERY], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("nvidia-smi does not answer: %s", error)
        return None


def _read(said: str) -> list[tuple[str, float | None]]:
    """Model and GiB from lines such as ``NVIDIA H100 80GB HBM3, 81559``; some devices say ``[N/A]`` for memory."""
    found = []
    for line in said.splitlines():
        model, comma, mebibytes = line.rpartition(",")
        if comma and model.strip():
            memory = mebibytes.strip()
            found.append((model.strip(), _gib(int(memory) * MIB) if memory.isdigit() else None))
    return found


def _models_of_driver(root: Path) -> list[str]:
    texts = (path.read_text() for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")))
    models = (re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in texts)
    return [model[1].strip() for model in models if model]


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
