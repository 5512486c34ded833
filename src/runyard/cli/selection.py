"""Which runs a command is about: ids, or filters; what is asked before many are changed, and what is said afterwards.

What a person confirms is what is done: filters are turned into ids first, and those ids are sent.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from runyard.cli.failures import EXIT_ERROR, EXIT_USAGE, CommandFailed
from runyard.cli.output import one_line, print_json, print_table

if TYPE_CHECKING:
    import vi
    from vi.api.resources.runs.responses import RunOutcome, RunOutcomes

CONDITIONS = ("Pending", "Running", "Succeeded", "Failed", "Error", "Cancelled")

_OPTIONS = (
    click.argument("run_ids", nargs=-1, metavar="[RUN_ID]..."),
    click.option("--condition", type=click.Choice(CONDITIONS, case_sensitive=False), help="Runs in this state."),
    click.option("--flow", help="Runs of this flow id."),
    click.option("--training-project", help="Runs of this training project or dataset."),
    click.option("--attribute", "attributes", metavar="KEY=VALUE", multiple=True, help="Runs with this attribute."),
    click.option("--since", "since_hours", type=float, metavar="HOURS", help="Runs created in the last so many hours."),
    click.option("--all", "every", is_flag=True, help="Every run."),
    click.option("--yes", "-y", is_flag=True, help="Do not ask."),
    click.option("--dry-run", is_flag=True, help="Say which runs it would be, and do nothing."),
)


@dataclass(frozen=True)
class Selection:
    """The runs that were named: ids, or filters of ``client.runs.list``, or all."""

    run_ids: tuple[str, ...]
    filter: dict[str, Any] | Literal["all"] | None
    yes: bool
    dry_run: bool

    @property
    def is_one_run(self) -> bool:
        """Whether it is about one run alone, as in the simplest use of a command."""
        return len(self.run_ids) == 1 and not self.dry_run


def selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name runs; it gets them as one argument, ``selection``."""

    @functools.wraps(command)
    def with_selection(
        run_ids: tuple[str, ...],
        condition: str | None,
        flow: str | None,
        training_project: str | None,
        attributes: tuple[str, ...],
        since_hours: float | None,
        every: bool,
        yes: bool,
        dry_run: bool,
        **others: Any,
    ) -> None:
        filters = filters_of(condition, flow, training_project, attributes, since_hours)
        if sum((bool(run_ids), bool(filters), every)) != 1:
            raise CommandFailed(
                "name the runs in one way: by their ids, by options such as --condition and --attribute, or with --all",
                exit_code=EXIT_USAGE,
            )
        filter: Any = None if run_ids else "all" if every else filters
        command(selection=Selection(run_ids, filter, yes, dry_run), **others)

    for option in reversed(_OPTIONS):
        option(with_selection)
    return with_selection


def filters_of(
    condition: str | None,
    flow: str | None,
    training_project: str | None,
    attributes: Iterable[str],
    since_hours: float | None,
) -> dict[str, Any]:
    """Return the options that were given as filters of ``client.runs.list``."""
    filters = {
        "condition": condition,
        "flow": flow,
        "training_project": training_project,
        "attribute": attributes_of(attributes) or None,
        "created_after": None if since_hours is None else round((time.time() - since_hours * 3600) * 1000),
    }
    return {name: value for name, value in filters.items() if value is not None}


def attributes_of(given: Iterable[str]) -> dict[str, str]:
    """Attributes from ``KEY=VALUE`` texts."""
    attributes = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandFailed(f"--attribute {text!r} is not KEY=VALUE", exit_code=EXIT_USAGE)
        attributes[key] = value
    return attributes


def apply_to_many(
    client: "vi.Client", verb: Literal["kill", "delete"], selection: Selection, *, grace_s: float | None = None
) -> "RunOutcomes":
    """Kill or delete the runs, after asking; returns one outcome for each.

    Raises:
        CommandFailed: nobody can be asked, or the answer was no.
    """
    options: dict[str, Any] = {} if grace_s is None else {"grace_s": grace_s}
    act: Callable[..., RunOutcomes] = getattr(client.runs, verb)
    named: dict[str, Any] = {"run_id": list(selection.run_ids)} if selection.run_ids else {"filter": selection.filter}
    if selection.dry_run:
        return act(**named, **options, dry_run=True)
    if not selection.yes:
        found = act(**named, **options, dry_run=True)
        if not found.run_ids:
            return found
        _show(found.items[:20], err=True)
        if len(found.items) > 20 or found.more:
            click.echo(f"and {len(found.items) - 20}{' or more' if found.more else ''} others", err=True)
        lost = " with all logs, metrics and checkpoints" if verb == "delete" else ""
        confirm(f"{verb.capitalize()} {_counted(len(found.run_ids))}{lost}?")
        outcomes = act(run_id=[item.run_id for item in found.items], **options)
        outcomes.more = found.more
        return outcomes
    outcomes = act(**named, **options)
    while outcomes.more:  # a filter takes a bounded number at once; what is done matches no more
        further = act(**named, **options)
        outcomes.items += further.items
        outcomes.more = further.more and bool(further.run_ids)
    return outcomes


def confirm(question: str) -> None:
    """Ask; only a yes goes on.

    Raises:
        CommandFailed: there is no terminal to ask on, or the answer was no.
    """
    if not has_terminal():
        raise CommandFailed(
            "nothing was done: there is no terminal to ask on; --yes does it without asking", exit_code=EXIT_USAGE
        )
    if not click.confirm(question, err=True):
        raise CommandFailed("nothing was done", exit_code=EXIT_ERROR)


def has_terminal() -> bool:
    """Whether a person can answer."""
    return sys.stdin is not None and sys.stdin.isatty()


def tell_outcomes(outcomes: "RunOutcomes", *, as_json: bool) -> None:
    """Print one line for each run; exit code 1 when one was refused."""
    if as_json:
        print_json(outcomes)
    elif outcomes.items:
        _show(outcomes.items)
    else:
        click.echo("no run matches", err=True)
    if outcomes.more:
        click.echo("there are more; repeat the command for the others", err=True)
    if outcomes.refused:
        raise click.exceptions.Exit(EXIT_ERROR)


def _show(items: "list[RunOutcome]", *, err: bool = False) -> None:
    rows = [(item.run_id, item.outcome, item.condition or "", one_line(item.message or "")) for item in items]
    print_table(("RUN", "OUTCOME", "CONDITION", "REASON"), rows, err=err)


def _counted(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"
