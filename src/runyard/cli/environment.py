"""``runyard env``: what a bug report needs, without secrets, names and addresses."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from runyard.cli.output import json_option, print_fields, print_json

PACKAGES = (
    "httpx2",
    "msgspec",
    "rich",
    "click",
    "granian",
    "sqlalchemy",
    "psycopg",
    "pyarrow",
    "pillow",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
)
_VARIABLES = ("RUNYARD_", "DATATURE_VI_", "NO_COLOR", "CLICOLOR_FORCE")


@click.command()
@json_option
def show_environment(as_json: bool) -> None:
    """Print versions, for bug reports.

    Of variables, only the names are printed, because values may be secret.
    """
    found = inspect_environment()
    if as_json:
        print_json(found)
        return
    packages = {name: number for name, number in found["packages"].items() if number is not None}
    print_fields(
        [
            ("runyard", found["runyard"]),
            ("commit", _describe_commit(found["revision"])),
            ("python", found["python"]),
            ("system", found["system"]),
            *packages.items(),
            ("missing", ", ".join(name for name in PACKAGES if name not in packages)),
            ("variables", ", ".join(found["variables"])),
        ]
    )


def inspect_environment() -> dict[str, Any]:
    """Return the versions of Runyard, Python and the packages that it uses."""
    import os

    from runyard.trainer.environment import revision

    return {
        "runyard": _find_version("runyard"),
        "revision": revision(),
        "python": f"{platform.python_version()} ({Path(sys.executable).name})",
        "system": platform.platform(),
        "packages": {name: _find_version(name) for name in PACKAGES},
        "variables": sorted(name for name in os.environ if name.startswith(_VARIABLES)),
    }


def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _describe_commit(revision: dict[str, Any] | None) -> str:
    if revision is None:
        return "unknown"
    return f"{revision['commit']}{' with changes' if revision['isDirty'] else ''}"
