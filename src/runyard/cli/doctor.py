"""``runyard doctor``: what is installed on this machine, which accelerators it has, what is missing, what to do.

A finding is one of ``ok``, ``note`` (works, but there is something to know), or ``missing`` (a part will not work).
torch is asked in a process of its own, because a broken installation may end the process that imports it.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import click

from runyard.cli.connection import data_dir_option
from runyard.cli.output import json_option, print_json, size
from runyard.vi_package import FIX, describe_conflict, list_changed_files

State = Literal["ok", "note", "missing"]
Version = tuple[int, ...]

# The oldest releases without known faults that concern us, one for each series that was mended.
PYTHON_FLOORS: tuple[Version, ...] = ((3, 11, 14), (3, 12, 12), (3, 13, 6))
SQLITE_FLOORS: tuple[Version, ...] = ((3, 44, 6), (3, 50, 7), (3, 51, 3))

REQUIRED = {
    "the SDK": ("httpx2", "msgspec", "rich"),
    "the server": ("litestar", "granian", "sqlalchemy", "alembic"),
    "the trainer": ("torch", "transformers", "peft", "safetensors", "tokenizers", "pillow", "scikit-learn", "numpy"),
}
PACKAGE_FLOORS: dict[str, Version] = {
    "pillow": (12, 2, 0),
    "torch": (2, 10),
    "transformers": (5, 16, 2),
    "litestar": (2, 20, 1),
}
OPTIONAL = {
    "pyyaml": "recipes as YAML files; JSON works without",
    "bitsandbytes": "4-bit base weights (quantization.enabled), and the optimizer adamw8bit on CUDA",
    "ray": "more than one machine",
}
# Enough for the tiny preset and its checkpoints; real models need tens of GiB.
LITTLE_DISK_BYTES = 2 << 30

TORCH_QUESTION = """
import json, torch
cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
mps = bool(getattr(torch.backends, "mps", None) and torch.backends.mps.is_available())
print(json.dumps({"version": torch.__version__, "cuda": cuda, "mps": mps, "threads": torch.get_num_threads()}))
"""


class Finding(NamedTuple):
    """One thing looked at: what it is, how it stands, what was seen, and what to do about it."""

    name: str
    state: State
    seen: str
    remedy: str = ""


@click.command()
@data_dir_option
@json_option
def doctor(data_dir: Path | None, as_json: bool) -> None:
    """Say what is installed here, what is missing, and what to do. Exit code 1 when something is missing."""
    found = [
        python_finding(sys.version_info[:3]),
        sqlite_finding(parse_version(sqlite3.sqlite_version)),
        *package_findings(installed_version),
        vi_finding(describe_conflict(), list_changed_files(), vi_sdk=installed_version("vi-sdk")),
        *accelerator_findings(ask_torch(), has_nvidia_driver=shutil.which("nvidia-smi") is not None),
        *_data_dir_findings(data_dir),
    ]
    if as_json:
        print_json({"findings": [finding._asdict() for finding in found]})
    else:
        for finding in found:
            _print_finding(finding)
    if any(finding.state == "missing" for finding in found):
        raise click.exceptions.Exit(1)


def python_finding(running: Version) -> Finding:
    """Whether the interpreter is one of the mended releases."""
    return _floor_finding("Python", running, PYTHON_FLOORS, "its archive reader has known faults; update Python")


def sqlite_finding(running: Version) -> Finding:
    """Whether SQLite is one of the mended releases."""
    return _floor_finding(
        "SQLite", running, SQLITE_FLOORS, "its write-ahead log has a known fault; update Python's SQLite"
    )


def package_findings(version_of: Callable[[str], str | None]) -> list[Finding]:
    """What of the packages each part needs is there, and what is optional."""
    found = []
    for part, names in REQUIRED.items():
        versions = {name: version_of(name) for name in names}
        absent = [name for name, installed in versions.items() if installed is None]
        old = [name for name, installed in versions.items() if installed and _is_below_floor(name, installed)]
        listed = ", ".join(f"{name} {installed}" for name, installed in versions.items() if installed)
        if absent:
            found.append(
                Finding(f"packages of {part}", "missing", f"without {', '.join(absent)}", _install_remedy(part))
            )
        elif old:
            floors = ", ".join(f"{name} {_dotted(PACKAGE_FLOORS[name])}" for name in old)
            found.append(Finding(f"packages of {part}", "note", listed, f"known faults below {floors}; update"))
        else:
            found.append(Finding(f"packages of {part}", "ok", listed))
    for name, use in OPTIONAL.items():
        installed = version_of(name)
        found.append(
            Finding(name, "ok", installed) if installed else Finding(name, "note", "not installed", f"for {use}")
        )
    return found


def vi_finding(conflict: str | None, changed: list[str], *, vi_sdk: str | None) -> Finding:
    """Whether the package ``vi`` is Runyard's, whole, and not threatened by vi-sdk, which has the same name."""
    if conflict is not None:
        seen, _, remedy = conflict.partition("; try: ")
        return Finding("package vi", "missing", seen, f"try: {remedy}")
    if changed:
        return Finding("package vi", "missing", f"{len(changed)} files are not Runyard's, such as {changed[0]}", FIX)
    if vi_sdk is not None:
        seen = f"Runyard's, but vi-sdk {vi_sdk} is installed beside it and installs the same package"
        return Finding("package vi", "note", seen, FIX)
    return Finding("package vi", "ok", "Runyard's")


def accelerator_findings(torch: dict[str, object] | str, *, has_nvidia_driver: bool) -> list[Finding]:
    """What a trainer would compute on; ``torch`` is its answer, or why it gave none."""
    if isinstance(torch, str):
        return [Finding("torch", "missing", torch, "run scripts/setup again, or reinstall torch")]
    found = [Finding("torch", "ok", f"{torch['version']}, {torch['threads']} threads")]
    cuda = torch["cuda"]
    if isinstance(cuda, list) and cuda:
        found.append(Finding("accelerators", "ok", ", ".join(cuda)))
    elif torch["mps"]:
        found.append(Finding("accelerators", "ok", "Apple GPU (mps)"))
    elif has_nvidia_driver:
        remedy = "this torch is built without CUDA; install a CUDA build of the same version"
        found.append(Finding("accelerators", "note", "an NVIDIA driver, which torch cannot use", remedy))
    else:
        found.append(
            Finding("accelerators", "note", "none", "the tiny preset trains on the CPU; larger models need a GPU")
        )
    return found


def ask_torch() -> dict[str, object] | str:
    """What torch says about itself and its devices; a sentence when it cannot be asked."""
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-c", TORCH_QUESTION], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "importing it takes longer than 120 s"
    try:
        answer: dict[str, object] = json.loads(asked.stdout.splitlines()[-1])
        return answer
    except (ValueError, IndexError):
        return (asked.stderr.strip().splitlines() or [f"it ended with exit code {asked.returncode}"])[-1]


def installed_version(name: str) -> str | None:
    """A distribution's version, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def parse_version(text: str) -> Version:
    """The leading numbers of a version: ``2.13.0+cpu`` is (2, 13, 0)."""
    numbers = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _data_dir_findings(data_dir: Path | None) -> list[Finding]:
    from runyard.cli.instance import live_endpoint
    from runyard.settings import read_settings

    settings = read_settings(data_dir=data_dir)
    there = next(folder for folder in (settings.data_dir, *settings.data_dir.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    disk: State = "note" if free < LITTLE_DISK_BYTES else "ok"
    found = [Finding("disk", disk, f"{size(free)} free for {settings.data_dir}", "make room" if disk == "note" else "")]
    endpoint = live_endpoint(settings)
    if endpoint:
        found.append(Finding("instance", "ok", f"up at {endpoint}"))
    else:
        found.append(Finding("instance", "note", f"none is up over {settings.data_dir}", "start one with `runyard up`"))
    return found


def _floor_finding(name: str, running: Version, floors: tuple[Version, ...], fault: str) -> Finding:
    # A series that nobody mended is as good as its neighbours only when it is newer than all of them.
    floor = next((each for each in floors if each[:2] == running[:2]), floors[-1])
    if running < floor:
        mended = ", ".join(_dotted(each) for each in floors)
        return Finding(name, "note", _dotted(running), f"{fault} to one of {mended} or newer")
    return Finding(name, "ok", _dotted(running))


def _is_below_floor(name: str, installed: str) -> bool:
    return name in PACKAGE_FLOORS and parse_version(installed) < PACKAGE_FLOORS[name]


def _install_remedy(part: str) -> str:
    extra = {"the server": "[server]", "the trainer": "[train]"}.get(part, "")
    return f"pip install 'runyard{extra}', or scripts/setup in a checkout"


def _dotted(numbers: Version) -> str:
    return ".".join(map(str, numbers))


def _print_finding(finding: Finding) -> None:
    colour = {"ok": "green", "note": "yellow", "missing": "red"}[finding.state]
    click.echo(f"{click.style(f'{finding.state:<8}', fg=colour)} {finding.name}: {finding.seen}")
    if finding.remedy:
        click.echo(f"         {finding.remedy}")
