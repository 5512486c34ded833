"""``runyard events``: what has happened, and what happens, in order."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.output import (
    colorize,
    format_number,
    format_time,
    json_option,
    print_json,
    to_single_line,
)

if TYPE_CHECKING:
    from vi import Client
    from vi.api.resources.events.responses import Event

KINDS = ("run", "dataset", "import", "flow", "trainingProject", "view")
LAST = 50


@click.command()
@click.option("--run", "run_id", metavar="ID", help="Show events of this run only, all of them.")
@click.option("--kind", type=click.Choice(KINDS), help="Show events of this kind only.")
@click.option("--follow", "-f", is_flag=True, help="Keep showing new events until Ctrl-C.")
@click.option(
    "--after",
    type=click.IntRange(0),
    metavar="NUMBER",
    help="Show the events after this number, the first column.",
)
@click.option(
    "--last",
    type=click.IntRange(0, 1000),
    metavar="COUNT",
    help=f"Show the newest events. Default: {LAST}, and none with --follow.",
)
@data_dir_option
@json_option
def events(
    run_id: str | None,
    kind: str | None,
    follow: bool,
    after: int | None,
    last: int | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Show what has happened to runs, datasets, imports and flows, oldest first.

    Events are kept for 30 days. With --json, each is one line.

    Examples: `runyard events --follow`, `runyard events --run my-run`,
    `runyard events --after 1204 --json`
    """
    if after is not None and last is not None:
        raise click.UsageError("--after and --last exclude each other")
    if run_id is not None and last is not None:
        raise click.UsageError("--last cannot be combined with --run, which shows all events")
    with connect(data_dir) as client:
        if after is None and run_id is None:
            after = _find_start(client, (0 if follow else LAST) if last is None else last)
        found = client.events.iterate(after, run_id=run_id, kind=kind, follow=follow)
        _print_events(found, as_json=as_json)


def _find_start(client: "Client", last: int) -> int | None:
    """Return the number before the newest events; None if the oldest that is kept is after it."""
    newest = client.events.list("latest").next
    start = max(0, newest - last)
    return None if client.events.list(start, limit=1).reset else start


def _print_events(found: "Iterable[Event]", *, as_json: bool) -> None:
    for event in found:
        if as_json:
            print_json(event)
        else:
            click.echo(_format_event(event))


def _format_event(event: "Event") -> str:
    if event.what == "reset":
        return click.style(
            f"{event.number:>8}  events before this number are lost: they were removed for their "
            "age, or a backup was restored",
            fg="yellow",
        )
    cells = (
        f"{event.number:>8}",
        format_time(event.time),
        f"{event.kind} {event.target}",
        event.what,
        _describe(event.details),
        f"({event.actor})" if event.actor else "",
    )
    return "  ".join(to_single_line(cell) for cell in cells if cell)


def _describe(details: Mapping[str, Any]) -> str:
    """Return what the details of any event say, in a few words."""
    state = " ".join(
        colorize(str(details[name])) for name in ("condition", "reason") if details.get(name)
    )
    parts = [state]
    for name in ("attempt", "machine", "step", "checkpoint", "version", "state"):
        if details.get(name) is not None:
            parts.append(f"{name} {details[name]}")
    values = details.get("values") or details.get("metrics")
    if isinstance(values, dict):
        parts += [f"{name} {format_number(value)}" for name, value in sorted(values.items())]
    if details.get("changed"):
        parts.append(f"changed {', '.join(map(str, details['changed']))}")
    parts += [str(details[name]) for name in ("cause", "message", "why") if details.get(name)]
    return ", ".join(part for part in parts if part)
