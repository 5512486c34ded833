"""``runyard status``: whether an instance is up over a data folder, and what it is doing."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard import processes
from runyard.cli.connection import connect, data_dir_option
from runyard.cli.ending import ANSWER_TIMEOUT_S, format_report, read_report
from runyard.cli.failures import EXIT_DOWN, EXIT_ERROR, CommandFailed
from runyard.cli.instance import live_endpoint, read_processes
from runyard.cli.output import duration, json_option, print_fields, print_json, size

if TYPE_CHECKING:
    from runyard.settings import Settings

NAMES = ("up", "server", "controller")
COUNTED = 1000  # runs of one state that are counted; a page holds no more


@click.command()
@data_dir_option
@json_option
def status(data_dir: Path | None, as_json: bool) -> None:
    """Show whether an instance is up, and what it is doing.

    Exit code 0: server and controller are up, and `runyard up` watches them. 1: one of them is missing. 3: none is up.
    """
    from runyard.settings import read_settings

    settings = read_settings(data_dir=data_dir)
    found = inspect_instance(settings)
    if as_json:
        print_json(found)
    else:
        print_fields(_fields(found))
        for line in format_report(read_report(settings)) if found["state"] == "down" else []:
            click.echo(line)
    if found["state"] != "up":
        raise click.exceptions.Exit(EXIT_DOWN if found["state"] == "down" else EXIT_ERROR)


def inspect_instance(settings: "Settings") -> dict[str, Any]:
    """Return what is known about the instance over a data folder; ``state`` is up, partly up or down."""
    noted = read_processes(settings)
    alive = {name: noted[name] for name in NAMES if name in noted and processes.check_liveness(noted[name]) == "alive"}
    endpoint = live_endpoint(settings)
    is_up = [endpoint is not None, "controller" in alive, "up" in alive]
    there = next(folder for folder in (settings.data_dir, *settings.data_dir.parents) if folder.exists())
    runs = _count_runs(settings) if endpoint is not None else {}
    return {
        "state": "up" if all(is_up) else "partly up" if any(is_up) or alive else "down",
        "dataDir": str(settings.data_dir),
        "endpoint": endpoint,
        "processes": {name: who.pid for name, who in alive.items()},
        "uptimeSeconds": processes.get_age_s(alive["server"]) if "server" in alive else None,
        "runsRunning": runs.get("Running"),
        "runsWaiting": runs.get("Pending"),
        "diskFreeBytes": shutil.disk_usage(there).free,
        "databaseBytes": _size_bytes(settings),
    }


def _count_runs(settings: "Settings") -> dict[str, int]:
    """Count the runs that train and wait; empty where the key does not open the server."""
    from vi import ViError
    from vi.api.types import PaginationParams

    try:
        with connect(settings.data_dir, timeout_s=ANSWER_TIMEOUT_S) as client:
            page = PaginationParams(page_size=COUNTED)
            return {
                state: len(client.runs.list(pagination=page, condition=state).items) for state in ("Running", "Pending")
            }
    except (ViError, CommandFailed):
        return {}


def _size_bytes(settings: "Settings") -> int | None:
    if isinstance(settings.database, str):
        return None
    files = settings.database.parent.glob(f"{settings.database.name}*")
    return sum(path.stat().st_size for path in files)


def _fields(found: dict[str, Any]) -> list[tuple[str, object]]:
    uptime_s, database_bytes = found["uptimeSeconds"], found["databaseBytes"]
    return [
        ("instance", found["state"]),
        ("data folder", found["dataDir"]),
        ("endpoint", found["endpoint"]),
        ("processes", ", ".join(f"{name} {pid}" for name, pid in found["processes"].items())),
        ("up for", None if uptime_s is None else duration(uptime_s)),
        ("runs running", found["runsRunning"]),
        ("runs waiting", found["runsWaiting"]),
        ("disk free", size(found["diskFreeBytes"])),
        ("database", size(database_bytes) if database_bytes else None),
    ]
