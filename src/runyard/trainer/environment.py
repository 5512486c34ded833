"""What a training depends on besides its flow and its data: versions, source revision, hardware.

It is part of the plan, and so of the run and of every checkpoint, to make the training
reproducible. The warm parent reads it once, so that its forks need not. Accelerators are queried
only in the run's own process.
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

# Packages that decode, encode, compute or use random numbers.
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
    """Fill the caches of the functions below, in this process and in forks of it."""
    versions()
    revision()
    hardware()


@cache
def versions() -> dict[str, str]:
    """Return the versions of the interpreter and of installed packages that affect results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def revision() -> dict[str, Any] | None:
    """Return the git commit of this Runyard, and whether files were changed; None if unknown.

    ``isDirty`` is None if git could not be run, and for an installation from a repository, whose
    changes are not visible.
    """
    root = Path(runyard.__file__).resolve().parents[2]
    # Not any repository above the package: the environment may be inside another repository.
    if (root / ".git").exists() and (root / "src" / "runyard").is_dir():
        commit = head_commit(root)
        return None if commit is None else {"commit": commit, "isDirty": _is_dirty(root)}
    commit = _installed_commit()
    return None if commit is None else {"commit": commit, "isDirty": None}


@cache
def hardware() -> dict[str, Any]:
    """Return this machine without accelerators: usable cores, rounded memory, and so on."""
    return {
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memoryGiB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "architecture": platform.machine(),
        "system": platform.platform(),
    }


def head_commit(root: Path) -> str | None:
    """Return the commit checked out in a work tree, from git's own files; None if unreadable."""
    try:
        folder = root / ".git"
        if folder.is_file():  # an additional work tree of a repository
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head or None
        common = folder / "commondir"
        shared = folder / common.read_text().strip() if common.is_file() else folder
        name = head.removeprefix("ref:").strip()
        for parent in (folder, shared):
            if (parent / name).is_file():
                return (parent / name).read_text().strip() or None
        packed = (shared / "packed-refs").read_text().splitlines()
        return next((line.split(" ", 1)[0] for line in packed if line.endswith(f" {name}")), None)
    except OSError:
        return None


def _is_dirty(root: Path) -> bool | None:
    """Return whether the work tree differs from the commit; None if git is missing or too slow."""
    command = [
        "git",
        "--no-optional-locks",
        "-C",
        str(root),
        "status",
        "--porcelain",
        "--untracked-files=all",
    ]
    try:
        done = subprocess.run(
            [*command, "--", "src"],
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None


def _installed_commit() -> str | None:
    """Return the commit that pip installed from, if it was given a repository."""
    with suppress(PackageNotFoundError, ValueError):
        source = json.loads(distribution("runyard").read_text("direct_url.json") or "{}")
        commit = source.get("vcs_info", {}).get("commit_id")
        return str(commit) if commit else None
    return None


def _processor() -> str:
    """Return the processor's model name."""
    if sys.platform == "linux":
        with suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _instructions() -> str:
    """Return torch's widest vector instructions, such as AVX512; they affect the last bits."""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def stay_offline() -> None:
    """Forbid the libraries to use the network: missing files are an error, not a download."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
