"""``runyard audit``: audit log of actions and rejected keys."""

from itertools import islice
from pathlib import Path

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.output import format_time, json_option, print_json, print_table
from runyard.cli.time_arguments import Moment


@click.command()
@click.option("--actor", help="Id of a key, `operator`, or `nobody` (rejected keys).")
@click.option("--action", help="Action, such as 'create run' or 'reject key'.")
@click.option(
    "--since",
    type=Moment(is_past=True),
    metavar="WHEN",
    help="Start of the period: 12h, 7d, or a date.",
)
@click.option("--until", type=Moment(is_past=True), metavar="WHEN", help="End of the period.")
@click.option(
    "--limit",
    default=50,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of entries.",
)
@data_dir_option
@json_option
def audit(
    actor: str | None,
    action: str | None,
    since: int | None,
    until: int | None,
    limit: int,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Show the audit log of actions and rejected keys, newest first.

    Requires an admin's key.

    Examples: `runyard audit --since 24h`, `runyard audit --action 'reject key'`,
    `runyard audit --actor 4fY0dZkPq3LmXw81 --json`
    """
    with connect(data_dir) as client:
        page = client.audit.list(
            {"page_size": min(limit, 1000)}, actor=actor, action=action, since=since, until=until
        )
        found = list(islice(page.all_items(), limit))
    if as_json:
        print_json({"items": found})
    else:
        rows = [
            (
                format_time(entry.time),
                entry.actor,
                entry.address,
                entry.action,
                entry.target,
                entry.count,
            )
            for entry in found
        ]
        print_table(("TIME", "ACTOR", "ADDRESS", "ACTION", "TARGET", "COUNT"), rows)
