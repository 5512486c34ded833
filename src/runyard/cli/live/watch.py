"""``runyard runs watch``: one run in the terminal, until it ends or the view is left."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import (
    EXIT_WATCHED_CANCELLED,
    EXIT_WATCHED_ERROR,
    EXIT_WATCHED_FAILED,
)
from runyard.cli.ids import complete_runs
from runyard.cli.output import colorize, json_option, print_json, to_single_line
from runyard.cli.progress import PLAIN_LINE_EVERY_S, format_progress

if TYPE_CHECKING:
    import vi
    from runyard.cli.live.feed import Feed, RunReader, RunState
    from runyard.cli.live.screen import Screen
    from vi.api.resources.runs.responses import Run

EXIT_CODES = {
    "Failed": EXIT_WATCHED_FAILED,
    "Error": EXIT_WATCHED_ERROR,
    "Cancelled": EXIT_WATCHED_CANCELLED,
}
_PAUSE_S = 0.2


@click.command("watch")
@click.argument("run_id", shell_complete=complete_runs)
@click.option(
    "--exit-status",
    "reports_condition",
    is_flag=True,
    help="Exit code 10 if the run ends in Failed, 11 in Error, 12 in Cancelled.",
)
@data_dir_option
@json_option
def watch_run(run_id: str, reports_condition: bool, data_dir: Path | None, as_json: bool) -> None:
    """Watch a run: progress, time left, a curve and the end of its log.

    Keys: k kills the run after a question, m shows the next metric, q leaves; the run continues.
    Without a terminal, the state and the log are printed as lines. With --json, the run is printed
    whenever it has changed, one document per line.

    \b
    Examples:
      runyard runs watch RUN_ID
      runyard runs watch RUN_ID --exit-status && echo done
    """
    from runyard.cli.live.feed import Feed, RunReader
    from runyard.cli.live.screen import can_draw_screens, open_screen

    with connect(data_dir) as client:
        client.runs.get(run_id)  # an unknown run is an error before the screen is cleared
        reader = RunReader(client, run_id)
        with Feed(reader.read) as feed:
            run: Run | None
            if as_json:
                run = print_documents(feed)
            elif can_draw_screens():
                with open_screen() as screen:
                    run = show_run(screen, client, feed, reader)
                _print_end(run, run_id)
            else:
                run = print_lines(feed)
    if reports_condition and run is not None and run.condition is not None:
        raise click.exceptions.Exit(EXIT_CODES.get(run.condition.value, 0))


def show_run(
    screen: "Screen",
    client: "vi.Client",
    feed: "Feed[RunState]",
    reader: "RunReader",
    *,
    stays: bool = False,
) -> "Run | None":
    """Show a run until it has ended, or with ``stays`` until the view is left.

    Return its last state.
    """
    from runyard.cli.live.run_view import RunView, is_ended
    from runyard.cli.live.screen import has_plain_encoding

    view = RunView(
        reader.run_id,
        kill=lambda one: kill_quietly(client, one),
        select=reader.select,
        is_plain=has_plain_encoding(),
    )
    screen.show(view, feed, until_ended=None if stays else lambda state: is_ended(state.run))
    return feed.latest.run if feed.latest is not None else None


def kill_quietly(client: "vi.Client", run_id: str) -> None:
    """Kill a run; one that has ended meanwhile, or is gone, needs nothing."""
    import vi

    try:
        client.runs.kill(run_id)
    except (vi.ViConflictError, vi.ViNotFoundError):
        return


def print_documents(feed: "Feed[RunState]") -> "Run":
    """Print the run as JSON whenever it has changed, until it has ended; return it."""
    from runyard.cli.live.run_view import is_ended

    printed = None
    while True:
        state = feed.wait()
        if state.run != printed:
            print_json(state.run)
            printed = state.run
        if is_ended(state.run):
            return state.run
        time.sleep(_PAUSE_S)


def print_lines(feed: "Feed[RunState]") -> "Run":
    """Print the state of the run and its log as lines until it has ended; return it."""
    from runyard.cli.live.run_view import is_ended

    number, condition, printed_s = 0, None, float("-inf")
    while True:
        state = feed.wait()
        for line in state.lines:
            if line.number > number:
                click.echo(to_single_line(line.text))
                number = line.number
        is_due = time.monotonic() - printed_s >= PLAIN_LINE_EVERY_S
        if state.run.condition != condition or is_due:
            click.echo(format_progress(state.run))
            condition, printed_s = state.run.condition, time.monotonic()
        if is_ended(state.run):
            return state.run
        time.sleep(_PAUSE_S)


def _print_end(run: "Run | None", run_id: str) -> None:
    from runyard.cli.live.run_view import describe_duration, is_ended

    if run is not None and is_ended(run) and run.condition is not None:
        click.echo(f"{run_id} {colorize(run.condition.value)} after {describe_duration(run)}")
    else:
        click.echo(f"run {run_id} continues. try: runyard runs watch {run_id}", err=True)
