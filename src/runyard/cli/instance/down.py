"""``runyard down``: stop the instance of a data folder, wherever it was started."""

import signal
import time
from pathlib import Path

import click

from runyard import processes
from runyard.cli.connection import data_dir_option
from runyard.cli.failures import EXIT_TIME_UP, CommandFailed
from runyard.cli.instance.instance import (
    SHUTDOWN_TIMEOUT_S,
    max_shutdown_s,
    read_processes,
    wait_for_exit,
)
from runyard.cli.instance.shutdown_report import format_report, read_report
from runyard.cli.output import json_option, print_json


@click.command()
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Maximum time to wait (then exit code 7). [default: the grace period of the runs plus 30 "
    "s]",
)
@data_dir_option
@json_option
def down(timeout_s: float | None, data_dir: Path | None, as_json: bool) -> None:
    """Stop the instance of a data folder and report which runs were saved.

    Runs are saved and stopped, and resume at the next `runyard up`. Without a running instance,
    nothing happens.
    """
    from runyard.settings import read_settings

    settings = read_settings(data_dir=data_dir)
    recorded = read_processes(settings)
    alive = {
        name: process
        for name, process in recorded.items()
        if processes.check_liveness(process) == "alive"
    }
    if not alive:
        if as_json:
            print_json({"wasUp": False})
        else:
            click.echo(f"No instance of {settings.data_dir} is up.")
        return
    limit_s = max_shutdown_s(settings) + SHUTDOWN_TIMEOUT_S if timeout_s is None else timeout_s
    deadline_s = time.monotonic() + limit_s
    for name in ("up", "controller", "server"):  # `up` stops the other two itself
        if name in alive and (name == "up" or "up" not in alive):
            processes.send_signal(alive[name], signal.SIGTERM)
            wait_for_exit(alive[name], deadline_s - time.monotonic())
    remaining = [
        f"{name} (process {process.pid})"
        for name, process in alive.items()
        if processes.check_liveness(process) == "alive"
    ]
    if remaining:
        raise CommandFailed(
            f"still running after {limit_s:g} s: {', '.join(remaining)}; runs may still be saving; "
            "try: wait, then `runyard down` again",
            exit_code=EXIT_TIME_UP,
        )
    report = read_report(settings)
    if as_json:
        print_json(
            {"wasUp": True, "runs": report.get("runs") or [], "waiting": report.get("waiting") or 0}
        )
        return
    for line in format_report(report):
        click.echo(line)
    click.echo(f"The instance of {settings.data_dir} has stopped.")
