"""``runyard top``: all running and waiting runs in the terminal."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.live.watch import kill_quietly, show_run
from runyard.cli.output import json_option, print_json

if TYPE_CHECKING:
    import vi
    from runyard.cli.live.feed import RunsState

PLAIN_EVERY_S = 5.0


@click.command()
@click.option("--once", is_flag=True, help="Print the runs once and exit.")
@data_dir_option
@json_option
def top(once: bool, data_dir: Path | None, as_json: bool) -> None:
    """Show running and waiting runs and the use of machines, live.

    Keys: arrows or j and k move, Enter watches the run, x kills it after a question, q quits.
    Without a terminal, a table is printed every 5 seconds. With --json, it is a document per line.

    \b
    Examples:
      runyard top
      runyard top --once --json
    """
    from runyard.cli.live.feed import Feed, read_runs
    from runyard.cli.live.screen import can_draw_screens

    with connect(data_dir) as client:
        if once:
            print_runs(read_runs(client), as_json=as_json)
            return
        if can_draw_screens() and not as_json:
            show_runs(client)
            return
        with Feed(lambda: read_runs(client), interval_s=PLAIN_EVERY_S) as feed:
            while True:
                print_runs(feed.wait(), as_json=as_json)
                time.sleep(PLAIN_EVERY_S)


def show_runs(client: "vi.Client") -> None:
    """Show all runs until the view is left; Enter shows one, whose view returns here."""
    from runyard.cli.live.feed import Feed, RunReader, read_runs
    from runyard.cli.live.runs_view import RunsView
    from runyard.cli.live.screen import has_plain_encoding, open_screen

    view = RunsView(kill=lambda one: kill_quietly(client, one), is_plain=has_plain_encoding())
    with open_screen() as screen, Feed(lambda: read_runs(client)) as feed:
        while True:
            screen.show(view, feed)
            if view.opened is None:
                return
            run_id, view.opened, view.is_left = view.opened, None, False
            reader = RunReader(client, run_id)
            with Feed(reader.read) as run_feed:
                show_run(screen, client, run_feed, reader, stays=True)


def print_runs(state: "RunsState", *, as_json: bool) -> None:
    """Print all runs as a table, or as one JSON document."""
    from runyard.cli.live.runs_view import COLUMNS, align_columns, build_rows, build_summary

    if as_json:
        document: dict[str, Any] = {
            "time": time.time_ns() // 1_000_000,
            "items": state.runs,
            "usage": state.usage,
        }
        print_json(document)
        return
    for text in [
        *build_summary(state),
        *align_columns([COLUMNS, *build_rows(state, is_plain=True)]),
    ]:
        click.echo(text)
    click.echo()
