"""What a training's numbers depend on besides its recipe and its data: versions, source revision, hardware.

It stands in the plan, and so in the run and in every checkpoint, for whoever wants to train the same again. Read once,
by the warm parent, which hands it on with everything it has imported: a run waits for none of it. Accelerators are
asked in the run's own process alone.
"""

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import runyard

# Whatever decodes, encodes, computes or draws at random.
PACKAGES = (
    "runyard",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "accelerate",
    "numpy",
    "pillow",
    "scikit-learn",
)
GIT_TIMEOUT_S = 2.0


def read_once() -> None:
    """Find out what the functions below remember from then on, in this process and in forks of it."""
    versions()
    revision()
    hardware()


@cache
def versions() -> dict[str, str]:
    """The interpreter's version and those of all packages that change numbers, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def revision() -> dict[str, Any] | None:
    """The git commit of the Runyard that runs here, and whether files were changed since; None where nobody knows.

    ``isDirty`` is None where git could not be asked, and for an installation from a repository, which has no changes
    that anybody could see.
    """
    root = Path(runyard.__file__).resolve().parents[2]
    # Not any repository above the package: an environment may lie within somebody's own.
    if (root / ".git").exists() and (root / "src" / "runyard").is_dir():
        commit = head_commit(root)
        return None if commit is None else {"commit": commit, "isDirty": _is_dirty(root)}
    commit = _installed_commit()
    return None if commit is None else {"commit": commit, "isDirty": None}


@cache
def hardware() -> dict[str, Any]:
    """This machine without its accelerators. ``cores`` are those that a process may use, memory is rounded."""
    return {
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memoryGiB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "architecture": platform.machine(),
        "system": platform.platform(),
    }


def accelerators() -> list[str]:
    """Names of the devices that this process may use. Begins to use CUDA, if there is any."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(number) for number in range(count)]


def head_commit(root: Path) -> str | None:
    """The commit that is checked out in a work tree, read from git's own files; None where they cannot be read."""
    try:
        folder = root / ".git"
        if folder.is_file():  # a further work tree of a repository elsewhere
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head or None
        common = folder / "commondir"
        shared = folder / common.read_text().strip() if common.is_file() else folder
        name = head.removeprefix("ref:").strip()
        for place in (folder, shared):
            if (place / name).is_file():
                return (place / name).read_text().strip() or None
        packed = (shared / "packed-refs").read_text().splitlines()
        return next((line.split(" ", 1)[0] for line in packed if line.endswith(f" {name}")), None)
    except OSError:
        return None


def _is_dirty(root: Path) -> bool | None:
    """Whether what was checked out differs from the commit, by what git says if it is quick to say so."""
    command = ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "--untracked-files=all"]
    try:
        asked = subprocess.run(
            [*command, "--", "src"], capture_output=True, timeout=GIT_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(asked.stdout.strip()) if asked.returncode == 0 else None


def _installed_commit() -> str | None:
    """The commit that pip installed from, where it was given a repository."""
    with suppress(PackageNotFoundError, ValueError):
        told = json.loads(distribution("runyard").read_text("direct_url.json") or "{}")
        commit = told.get("vcs_info", {}).get("commit_id")
        return str(commit) if commit else None
    return None


def _processor() -> str:
    """The processor's name as its maker gave it."""
    if sys.platform == "linux":
        with suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _instructions() -> str:
    """The widest vector instructions that torch computes with here, such as AVX512; sums end otherwise in others."""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def stay_offline() -> None:
    """Trainers use no network: what is not on the machine is refused, not fetched."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
