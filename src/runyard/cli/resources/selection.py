"""Selection of runs by ids or filters, confirmation before many are changed, and output of
outcomes.

Filters are resolved to ids before the confirmation, and those ids are sent, so that exactly the
confirmed runs are changed.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from runyard.cli.failures import EXIT_ERROR, EXIT_USAGE, CommandFailed
from runyard.cli.global_options import get_global_options
from runyard.cli.ids import complete_runs
from runyard.cli.output import print_json, print_table, to_single_line

if TYPE_CHECKING:
    import vi
    from vi.api.resources.runs.responses import RunOutcome, RunOutcomes

CONDITIONS = ("Pending", "Running", "Succeeded", "Failed", "Error", "Cancelled")

_OPTIONS = (
    click.argument("run_ids", shell_complete=complete_runs, nargs=-1, metavar="[RUN_ID]..."),
    click.option(
        "--condition",
        type=click.Choice(CONDITIONS, case_sensitive=False),
        help="Runs in this state.",
    ),
    click.option("--flow", help="Runs of this flow id."),
    click.option("--training-project", help="Runs of this training project or dataset."),
    click.option(
        "--attribute",
        "attributes",
        metavar="KEY=VALUE",
        multiple=True,
        help="Runs with this attribute.",
    ),
    click.option(
        "--since",
        "since_hours",
        type=float,
        metavar="HOURS",
        help="Maximum age of the runs in hours.",
    ),
    click.option(
        "--filter",
        "filter_text",
        metavar="TEXT",
        help="Runs that match a filter such as 'condition:Failed owner=kim'.",
    ),
    click.option("--all", "every", is_flag=True, help="Every run."),
    click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation."),
    click.option("--dry-run", is_flag=True, help="Print the selected runs without changing them."),
)


@dataclass(frozen=True)
class RunSelection:
    """Selected runs: ids, filters of ``client.runs.list``, a filter text, or all."""

    run_ids: tuple[str, ...]
    filter: dict[str, Any] | str | None
    yes: bool
    dry_run: bool

    @property
    def is_one_run(self) -> bool:
        """True for a single id without a dry run."""
        return len(self.run_ids) == 1 and not self.dry_run


def selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select runs to a command, which receives them as ``selection``."""

    @functools.wraps(command)
    def with_selection(
        run_ids: tuple[str, ...],
        condition: str | None,
        flow: str | None,
        training_project: str | None,
        attributes: tuple[str, ...],
        since_hours: float | None,
        filter_text: str | None,
        every: bool,
        yes: bool,
        dry_run: bool,
        **others: Any,
    ) -> None:
        filters = build_filters(condition, flow, training_project, attributes, since_hours)
        if sum((bool(run_ids), bool(filters), bool(filter_text), every)) != 1:
            raise CommandFailed(
                "expected: exactly one of run ids, --filter, filters such as --condition and "
                "--attribute, or --all",
                exit_code=EXIT_USAGE,
            )
        filter: Any = None if run_ids else "all" if every else filter_text or filters
        command(selection=RunSelection(run_ids, filter, yes, dry_run), **others)

    for option in reversed(_OPTIONS):
        option(with_selection)
    return with_selection


def build_filters(
    condition: str | None,
    flow: str | None,
    training_project: str | None,
    attributes: Iterable[str],
    since_hours: float | None,
) -> dict[str, Any]:
    """Return the given options as filters of ``client.runs.list``."""
    filters = {
        "condition": condition,
        "flow": flow,
        "training_project": training_project,
        "attribute": parse_attributes(attributes) or None,
        "created_after": None
        if since_hours is None
        else round((time.time() - since_hours * 3600) * 1000),
    }
    return {name: value for name, value in filters.items() if value is not None}


def parse_attributes(given: Iterable[str], *, option: str = "--attribute") -> dict[str, str]:
    """Return attributes from ``KEY=VALUE`` texts.

    Raises:
        CommandFailed: A text is malformed.
    """
    attributes = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandFailed(
                f"{option} {text!r} is malformed, expected: KEY=VALUE", exit_code=EXIT_USAGE
            )
        attributes[key] = value
    return attributes


def apply_to_many(
    client: "vi.Client",
    verb: Literal["kill", "delete", "tag"],
    selection: RunSelection,
    **options: Any,
) -> "RunOutcomes":
    """Kill, delete or tag the selected runs after a confirmation; return one outcome per run.

    Raises:
        CommandFailed: There is no terminal for the confirmation, or the answer was no.
    """
    change: Callable[..., RunOutcomes] = getattr(client.runs, verb)
    selected: dict[str, Any] = (
        {"run_id": list(selection.run_ids)} if selection.run_ids else {"filter": selection.filter}
    )
    if selection.dry_run:
        return change(**selected, **options, dry_run=True)
    if not selection.yes:
        found = change(**selected, **options, dry_run=True)
        if not found.run_ids:
            return found
        _print_outcome_table(found.items[:20], err=True)
        if len(found.items) > 20 or found.more:
            click.echo(
                f"and {len(found.items) - 20}{' or more' if found.more else ''} others", err=True
            )
        lost = " with all logs, metrics and checkpoints" if verb == "delete" else ""
        confirm(f"{verb.capitalize()} {_format_count(len(found.run_ids))}{lost}?")
        outcomes = change(run_id=[item.run_id for item in found.items], **options)
        outcomes.more = found.more
        return outcomes
    outcomes = change(**selected, **options)
    while outcomes.more:  # a filter selects a bounded number; changed runs no longer match
        further = change(**selected, **options)
        outcomes.items += further.items
        outcomes.more = further.more and bool(further.run_ids)
    return outcomes


def confirm(question: str) -> None:
    """Ask for confirmation.

    Raises:
        CommandFailed: There is no terminal, or the answer was no.
    """
    if not has_terminal():
        raise CommandFailed(
            "nothing was changed: no terminal to ask for confirmation; try: --yes",
            exit_code=EXIT_USAGE,
        )
    if not click.confirm(question, err=True):
        raise CommandFailed("nothing was changed", exit_code=EXIT_ERROR)


def has_terminal() -> bool:
    """Return True if there is a person at a terminal to answer questions."""
    return get_global_options().is_interactive and sys.stdin is not None and sys.stdin.isatty()


def print_outcomes(outcomes: "RunOutcomes", *, as_json: bool) -> None:
    """Print one line per run; exit with 1 if one was refused."""
    if as_json:
        print_json(outcomes)
    elif outcomes.items:
        _print_outcome_table(outcomes.items)
    else:
        click.echo("no run matches", err=True)
    if outcomes.more:
        click.echo("further runs match; try: repeat the command", err=True)
    if outcomes.refused:
        raise click.exceptions.Exit(EXIT_ERROR)


def _print_outcome_table(items: "list[RunOutcome]", *, err: bool = False) -> None:
    rows = [
        (item.run_id, item.outcome, item.condition or "", to_single_line(item.message or ""))
        for item in items
    ]
    print_table(("RUN", "OUTCOME", "CONDITION", "REASON"), rows, err=err)


def _format_count(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"
