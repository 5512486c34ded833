"""``runyard down``: end the instance over a data folder, wherever it was started."""

import signal
import time
from pathlib import Path

import click

from runyard import processes
from runyard.cli.connection import data_dir_option
from runyard.cli.ending import format_report, read_report
from runyard.cli.failures import EXIT_TIME_UP, CommandFailed
from runyard.cli.instance import END_TIMEOUT_S, longest_end_s, read_processes, wait_for_end
from runyard.cli.output import json_option, print_json


@click.command()
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up after so long (exit code 7). [default: the runs' grace and half a minute]",
)
@data_dir_option
@json_option
def down(timeout_s: float | None, data_dir: Path | None, as_json: bool) -> None:
    """End the instance over a data folder; report which runs were saved.

    Runs are saved and stopped, and resume at the next `runyard up`. Where nothing is up this does nothing.
    """
    from runyard.settings import read_settings

    settings = read_settings(data_dir=data_dir)
    noted = read_processes(settings)
    alive = {name: who for name, who in noted.items() if processes.check_liveness(who) == "alive"}
    if not alive:
        if as_json:
            print_json({"wasUp": False})
        else:
            click.echo(f"No instance is up over {settings.data_dir}.")
        return
    limit_s = longest_end_s(settings) + END_TIMEOUT_S if timeout_s is None else timeout_s
    deadline_s = time.monotonic() + limit_s
    for name in ("up", "controller", "server"):  # `up` ends the other two; without it, the controller goes first
        if name in alive and (name == "up" or "up" not in alive):
            processes.send_signal(alive[name], signal.SIGTERM)
            wait_for_end(alive[name], deadline_s - time.monotonic())
    left = [f"{name} (process {who.pid})" for name, who in alive.items() if processes.check_liveness(who) == "alive"]
    if left:
        raise CommandFailed(
            f"still ending after {limit_s:g} s: {', '.join(left)}; its runs may still be saving; try: wait, then "
            "`runyard down` again",
            exit_code=EXIT_TIME_UP,
        )
    report = read_report(settings)
    if as_json:
        print_json({"wasUp": True, "runs": report.get("runs") or [], "waiting": report.get("waiting") or 0})
        return
    for line in format_report(report):
        click.echo(line)
    click.echo(f"The instance over {settings.data_dir} has ended.")
