"""``runyard audit``: who did what, and which keys were rejected."""

from itertools import islice
from pathlib import Path

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.moments import Moment
from runyard.cli.output import json_option, local_time, print_json, print_table


@click.command()
@click.option("--actor", help="Only of this key id, of `operator`, or of `nobody` (rejected keys).")
@click.option("--action", help="Only this action, such as 'create run' or 'reject key'.")
@click.option("--since", type=Moment(is_past=True), metavar="WHEN", help="Only from then on: 12h, 7d, or a date.")
@click.option("--until", type=Moment(is_past=True), metavar="WHEN", help="Only before then.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="At most so many, newest first.")
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
    """Show who did what, and which keys were rejected.

    The newest comes first. This needs an admin's key.

    Examples: `runyard audit --since 24h`, `runyard audit --action 'reject key'`,
    `runyard audit --actor 4fY0dZkPq3LmXw81 --json`
    """
    with connect(data_dir) as client:
        page = client.audit.list({"page_size": min(limit, 1000)}, actor=actor, action=action, since=since, until=until)
        found = list(islice(page.all_items(), limit))
    if as_json:
        print_json({"items": found})
    else:
        rows = [
            (local_time(entry.time), entry.actor, entry.address, entry.action, entry.target, entry.count)
            for entry in found
        ]
        print_table(("TIME", "ACTOR", "ADDRESS", "ACTION", "TARGET", "COUNT"), rows)
