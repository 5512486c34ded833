"""Packages from a folder of wheels, without installing them.

Uses the standard library alone: it runs before any package may be imported.
"""

import sys
import zipfile
from pathlib import Path


def add_wheels(folder: Path, target: Path) -> list[str]:
    """Extract every wheel in ``folder`` to ``target`` and put that on ``sys.path``.

    It comes last: packages that are installed are preferred. Returns the names of the wheels.

    Raises:
        ValueError: the folder has no wheel, or one has files outside of its own folder.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ValueError(f"no wheels in {folder}; try: a folder with files that end in .whl")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not (target / name).resolve().is_relative_to(target.resolve()):
                    raise ValueError(f"{wheel.name} has a file outside of its folder: {name}")
            archive.extractall(target)
    sys.path.append(str(target))
    return [wheel.name for wheel in wheels]


def find_wheels_argument(arguments: list[str]) -> str | None:
    """Return the value of ``--wheels``, before a parser of arguments may be imported."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == "--wheels":
            return following
        if argument.startswith("--wheels="):
            return argument.partition("=")[2]
    return None
