"""``runyard status``: state of the instance of a data folder."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard import processes
from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_DOWN, EXIT_ERROR, CommandFailed
from runyard.cli.instance.instance import live_endpoint, read_processes
from runyard.cli.instance.shutdown_report import ANSWER_TIMEOUT_S, format_report, read_report
from runyard.cli.output import format_duration, format_size, json_option, print_fields, print_json

if TYPE_CHECKING:
    from runyard.settings import Settings

NAMES = ("up", "server", "controller")
COUNTED = 1000  # maximum count of runs in one state; the size of a page


@click.command()
@data_dir_option
@json_option
def status(data_dir: Path | None, as_json: bool) -> None:
    """Show the state of an instance, its processes and runs.

    Exit code 0: server and controller are up and supervised by `runyard up`; 1: one of them is
    missing; 3: none is up.
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
    """Return the state of the instance of a data folder; ``state`` is up, partly up or down."""
    recorded = read_processes(settings)
    alive = {
        name: recorded[name]
        for name in NAMES
        if name in recorded and processes.check_liveness(recorded[name]) == "alive"
    }
    endpoint = live_endpoint(settings)
    is_up = [endpoint is not None, "controller" in alive, "up" in alive]
    existing = next(
        folder for folder in (settings.data_dir, *settings.data_dir.parents) if folder.exists()
    )
    runs = _count_runs(settings) if endpoint is not None else {}
    return {
        "state": "up" if all(is_up) else "partly up" if any(is_up) or alive else "down",
        "dataDir": str(settings.data_dir),
        "endpoint": endpoint,
        "processes": {name: who.pid for name, who in alive.items()},
        "uptimeSeconds": processes.get_age_s(alive["server"]) if "server" in alive else None,
        "runsRunning": runs.get("Running"),
        "runsWaiting": runs.get("Pending"),
        "diskFreeBytes": shutil.disk_usage(existing).free,
        "databaseBytes": _size_bytes(settings),
    }


def _count_runs(settings: "Settings") -> dict[str, int]:
    """Return the number of running and pending runs; empty if the server rejects the key."""
    from vi import ViError
    from vi.api.types import PaginationParams

    try:
        with connect(settings.data_dir, timeout_s=ANSWER_TIMEOUT_S) as client:
            page = PaginationParams(page_size=COUNTED)
            return {
                state: len(client.runs.list(pagination=page, condition=state).items)
                for state in ("Running", "Pending")
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
        ("up for", None if uptime_s is None else format_duration(uptime_s)),
        ("runs running", found["runsRunning"]),
        ("runs waiting", found["runsWaiting"]),
        ("disk free", format_size(found["diskFreeBytes"])),
        ("database", format_size(database_bytes) if database_bytes else None),
    ]
