"""``runyard doctor``: checks the installation and accelerators of this machine, and suggests fixes.

A finding is ``ok``, ``note`` (works with a limitation) or ``missing`` (a part does not work). torch
is queried in a separate process, because a broken installation may crash the process that imports
it.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from runyard.cli.connection import data_dir_option
from runyard.cli.output import format_size, json_option, print_json
from runyard.vi_package import FIX, describe_conflict, list_changed_files

if TYPE_CHECKING:
    from runyard.settings import Settings

State = Literal["ok", "note", "missing"]
Version = tuple[int, ...]

# The oldest releases without known relevant bugs, one for each release series with a fix.
PYTHON_FLOORS: tuple[Version, ...] = ((3, 11, 14), (3, 12, 12), (3, 13, 6))
SQLITE_FLOORS: tuple[Version, ...] = ((3, 44, 6), (3, 50, 7), (3, 51, 3))

REQUIRED = {
    "the SDK": ("httpx2", "msgspec", "rich"),
    "the server": ("granian", "sqlalchemy", "alembic", "pyyaml"),
    "the trainer": (
        "torch",
        "transformers",
        "peft",
        "safetensors",
        "tokenizers",
        "pillow",
        "scikit-learn",
        "numpy",
    ),
}
PACKAGE_FLOORS: dict[str, Version] = {
    "pillow": (12, 2, 0),
    "torch": (2, 10),
    "transformers": (5, 16, 2),
}
OPTIONAL = {
    "bitsandbytes": "4-bit base weights (quantization.enabled), and the optimizer adamw8bit",
    "ray": "more than one machine",
}
# Enough for the tiny preset and its checkpoints; real models need tens of GiB.
LITTLE_DISK_BYTES = 2 << 30

TORCH_QUERY = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
cuda = [torch.cuda.get_device_name(i) for i in range(count)]
mps = bool(getattr(torch.backends, "mps", None) and torch.backends.mps.is_available())
found = {"version": torch.__version__, "cuda": cuda, "mps": mps}
print(json.dumps({**found, "threads": torch.get_num_threads()}))
"""


class Diagnosis(NamedTuple):
    """Result of one check: its name, state, observation, and a suggestion."""

    name: str
    state: State
    observed: str
    suggestion: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the finding with the field names of the JSON output."""
        return {
            "name": self.name,
            "state": self.state,
            "seen": self.observed,
            "remedy": self.suggestion,
        }


@click.command()
@data_dir_option
@json_option
def doctor(data_dir: Path | None, as_json: bool) -> None:
    """Check the installation and suggest fixes. Exit code 1 if something is missing."""
    found = [
        python_finding(sys.version_info[:3]),
        sqlite_finding(parse_version(sqlite3.sqlite_version)),
        *package_findings(installed_version),
        vi_finding(describe_conflict(), list_changed_files(), vi_sdk=installed_version("vi-sdk")),
        *accelerator_findings(
            query_torch(), has_nvidia_driver=shutil.which("nvidia-smi") is not None
        ),
        *_data_dir_findings(data_dir),
    ]
    if as_json:
        print_json({"findings": [finding.to_json() for finding in found]})
    else:
        for finding in found:
            _print_finding(finding)
    if any(finding.state == "missing" for finding in found):
        raise click.exceptions.Exit(1)


def python_finding(running: Version) -> Diagnosis:
    """Check that the Python release has the fixes that matter."""
    return _check_floor(
        "Python", running, PYTHON_FLOORS, "its archive reader has known bugs; try: update Python"
    )


def sqlite_finding(running: Version) -> Diagnosis:
    """Check that the SQLite release has the fixes that matter."""
    return _check_floor(
        "SQLite",
        running,
        SQLITE_FLOORS,
        "its write-ahead log has a known bug; try: update Python's SQLite",
    )


def package_findings(version_of: Callable[[str], str | None]) -> list[Diagnosis]:
    """Check the required packages of each part, and the optional packages."""
    found = []
    for part, names in REQUIRED.items():
        versions = {name: version_of(name) for name in names}
        absent = [name for name, installed in versions.items() if installed is None]
        old = [
            name
            for name, installed in versions.items()
            if installed and _is_below_floor(name, installed)
        ]
        installed_list = ", ".join(
            f"{name} {installed}" for name, installed in versions.items() if installed
        )
        if absent:
            found.append(
                Diagnosis(
                    f"packages of {part}",
                    "missing",
                    f"without {', '.join(absent)}",
                    _install_suggestion(part),
                )
            )
        elif old:
            floors = ", ".join(f"{name} {_dotted(PACKAGE_FLOORS[name])}" for name in old)
            found.append(
                Diagnosis(
                    f"packages of {part}",
                    "note",
                    installed_list,
                    f"older versions than {floors} have known bugs; try: update",
                )
            )
        else:
            found.append(Diagnosis(f"packages of {part}", "ok", installed_list))
    for name, use in OPTIONAL.items():
        installed = version_of(name)
        found.append(
            Diagnosis(name, "ok", installed)
            if installed
            else Diagnosis(name, "note", "not installed", f"for {use}")
        )
    return found


def vi_finding(conflict: str | None, changed: list[str], *, vi_sdk: str | None) -> Diagnosis:
    """Check that the package ``vi`` is Runyard's and complete, and that vi-sdk is not installed."""
    if conflict is not None:
        observed, _, suggestion = conflict.partition("; try: ")
        return Diagnosis("package vi", "missing", observed, f"try: {suggestion}")
    if changed:
        return Diagnosis(
            "package vi",
            "missing",
            f"{len(changed)} files are not Runyard's, such as {changed[0]}",
            FIX,
        )
    if vi_sdk is not None:
        observed = f"Runyard's, but vi-sdk {vi_sdk} is also installed and has the same package"
        return Diagnosis("package vi", "note", observed, FIX)
    return Diagnosis("package vi", "ok", "Runyard's")


def accelerator_findings(
    torch: dict[str, object] | str, *, has_nvidia_driver: bool
) -> list[Diagnosis]:
    """Check the devices that a trainer can use.

    ``torch`` is the result of the query, or its error.
    """
    if isinstance(torch, str):
        return [Diagnosis("torch", "missing", torch, "try: scripts/setup, or reinstall torch")]
    found = [Diagnosis("torch", "ok", f"{torch['version']}, {torch['threads']} threads")]
    cuda = torch["cuda"]
    if isinstance(cuda, list) and cuda:
        found.append(Diagnosis("accelerators", "ok", ", ".join(cuda)))
    elif torch["mps"]:
        found.append(Diagnosis("accelerators", "ok", "Apple GPU (mps)"))
    elif has_nvidia_driver:
        suggestion = (
            "this torch is built without CUDA; try: install a CUDA build of the same version"
        )
        found.append(
            Diagnosis(
                "accelerators", "note", "an NVIDIA driver, which torch cannot use", suggestion
            )
        )
    else:
        found.append(
            Diagnosis(
                "accelerators",
                "note",
                "none",
                "the tiny preset trains on the CPU; larger models need a GPU",
            )
        )
    return found


def query_torch() -> dict[str, object] | str:
    """Return version and devices of torch, or a message if it cannot be imported."""
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-c", TORCH_QUERY],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "importing it takes longer than 120 s"
    try:
        result: dict[str, object] = json.loads(process.stdout.splitlines()[-1])
        return result
    except (ValueError, IndexError):
        return (
            process.stderr.strip().splitlines() or [f"it ended with exit code {process.returncode}"]
        )[-1]


def installed_version(name: str) -> str | None:
    """Return the version of a distribution without importing it; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def parse_version(text: str) -> Version:
    """Return the leading numbers of a version: ``2.13.0+cpu`` is (2, 13, 0)."""
    numbers = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _data_dir_findings(data_dir: Path | None) -> list[Diagnosis]:
    from runyard.cli.instance.instance import live_endpoint
    from runyard.settings import read_settings

    settings = read_settings(data_dir=data_dir)
    existing = next(
        folder for folder in (settings.data_dir, *settings.data_dir.parents) if folder.exists()
    )
    free = shutil.disk_usage(existing).free
    disk: State = "note" if free < LITTLE_DISK_BYTES else "ok"
    found = [
        Diagnosis(
            "disk",
            disk,
            f"{format_size(free)} free for {settings.data_dir}",
            "try: free disk space" if disk == "note" else "",
        )
    ]
    endpoint = live_endpoint(settings)
    if endpoint:
        found.append(Diagnosis("instance", "ok", f"up at {endpoint}"))
    else:
        found.append(
            Diagnosis("instance", "note", f"none is up for {settings.data_dir}", "try: runyard up")
        )
    secure_endpoint = endpoint if endpoint and endpoint.startswith("https:") else None
    if settings.tls_cert or secure_endpoint:
        found.append(certificate_finding(settings, secure_endpoint))
    return found


def certificate_finding(settings: "Settings", endpoint: str | None) -> Diagnosis:
    """Check the certificate of the settings with its key, else that of the running server.

    ``endpoint`` is that of the server; None if none serves TLS.
    """
    from runyard.security.tls import (
        EXPIRES_SOON_DAYS,
        describe_expiry,
        fetch_certificate,
        load_server_certificate,
    )
    from runyard.settings import SettingError

    try:
        served = settings.certificate_file.read_text("utf-8") if endpoint else ""
        certificate = load_server_certificate(settings) or fetch_certificate(endpoint or "", served)
    except SettingError as error:
        problem, _, fix = str(error).partition("; try: ")
        return Diagnosis("certificate", "missing", problem, f"try: {fix}")
    except OSError as error:
        return Diagnosis("certificate", "note", f"cannot be read: {error}", "try: runyard doctor")
    names = ", ".join(certificate.names) or "no host"
    observed = f"for {names}; {describe_expiry(certificate)}"
    if served and served.strip() != certificate.pem.strip():
        fix = "the server still presents an earlier one; try: restart it"
    elif certificate.days_left < EXPIRES_SOON_DAYS:
        fix = "it expires soon; try: renew it, and restart the server"
    elif not certificate.names:
        fix = "clients refuse a certificate without subjectAltName; try: one with the host's name"
    else:
        return Diagnosis("certificate", "ok", observed)
    return Diagnosis("certificate", "note", observed, fix)


def _check_floor(
    name: str, running: Version, floors: tuple[Version, ...], advice: str
) -> Diagnosis:
    # A release series without its own floor must be newer than all floors.
    floor = next((each for each in floors if each[:2] == running[:2]), floors[-1])
    if running < floor:
        fixed = ", ".join(_dotted(each) for each in floors)
        return Diagnosis(name, "note", _dotted(running), f"{advice} to one of {fixed} or newer")
    return Diagnosis(name, "ok", _dotted(running))


def _is_below_floor(name: str, installed: str) -> bool:
    return name in PACKAGE_FLOORS and parse_version(installed) < PACKAGE_FLOORS[name]


def _install_suggestion(part: str) -> str:
    extra = {"the server": "[server]", "the trainer": "[train]"}.get(part, "")
    return f"try: pip install 'runyard{extra}', or scripts/setup in a checkout"


def _dotted(numbers: Version) -> str:
    return ".".join(map(str, numbers))


def _print_finding(finding: Diagnosis) -> None:
    color = {"ok": "green", "note": "yellow", "missing": "red"}[finding.state]
    click.echo(f"{click.style(f'{finding.state:<8}', fg=color)} {finding.name}: {finding.observed}")
    if finding.suggestion:
        click.echo(f"         {finding.suggestion}")
