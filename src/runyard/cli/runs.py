"""``runyard runs``: everything about training runs."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_USAGE, CommandFailed
from runyard.cli.output import (
    age,
    coloured,
    duration,
    json_option,
    local_time,
    number,
    one_line,
    print_fields,
    print_json,
    print_table,
)
from runyard.cli.progress import ProgressLine
from runyard.cli.recipes import flow_for, set_option

if TYPE_CHECKING:
    import vi
    from vi.api.resources.runs.responses import Run

CONDITIONS = ("Pending", "Running", "Succeeded", "Failed", "Error", "Cancelled")

STREAMS = ("events", "stdout", "stderr")


@click.group()
def runs() -> None:
    """Start, follow, kill and delete training runs."""


@runs.command("list")
@click.option("--condition", type=click.Choice(CONDITIONS, case_sensitive=False), help="Only runs in this state.")
@click.option("--flow", help="Only runs of this flow id.")
@click.option("--training-project", help="Only runs of this training project or dataset.")
@click.option("--attribute", "attributes", metavar="KEY=VALUE", multiple=True, help="Only runs with this attribute.")
@click.option(
    "--since", "since_hours", type=float, metavar="HOURS", help="Only runs created in the last so many hours."
)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="At most so many, newest first.")
@data_dir_option
@json_option
def list_runs(
    condition: str | None,
    flow: str | None,
    training_project: str | None,
    attributes: tuple[str, ...],
    since_hours: float | None,
    limit: int,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """List runs, newest first."""
    from vi.api.types import PaginationParams

    filters: dict[str, Any] = {
        "condition": condition,
        "flow": flow,
        "training_project": training_project,
        "attribute": attributes_of(attributes) or None,
        "created_after": None if since_hours is None else round((time.time() - since_hours * 3600) * 1000),
    }
    given = {name: value for name, value in filters.items() if value is not None}
    with connect(data_dir) as client:
        page = client.runs.list(pagination=PaginationParams(page_size=min(limit, 1000)), **given)
        found = list(_first(page.all_items(), limit))
    if as_json:
        print_json({"items": found})
    else:
        print_table(("RUN", "CONDITION", "REASON", "AGE", "STEP", "METRIC", "FLOW"), [_row(run) for run in found])


@runs.command("get")
@click.argument("run_id")
@data_dir_option
@json_option
def get_run(run_id: str, data_dir: Path | None, as_json: bool) -> None:
    """Show one run: its state, where training stands, and its history."""
    with connect(data_dir) as client:
        run = client.runs.get(run_id)
    if as_json:
        print_json(run)
    else:
        _print_run(run)


@runs.command("create")
@click.option(
    "--flow", metavar="FILE|FLOW_ID", help="Recipe file (.yaml, .json) or flow id. [default: the empty recipe]"
)
@set_option
@click.option("--training-project", help="Training project or dataset to train on.")
@click.option(
    "--attribute", "attributes", metavar="KEY=VALUE", multiple=True, help="An attribute to keep with the run."
)
@click.option("--run-id", help="The run's id, if you make your own; repeating a create with it starts nothing twice.")
@click.option(
    "--resume-from",
    metavar="RUN_ID[/CHECKPOINT]",
    help="Go on from another run's checkpoint: an id, best, or latest, which is the default.",
)
@click.option("--wait", is_flag=True, help="Follow the run until it ends; exit code 3 if it does not succeed.")
@data_dir_option
@json_option
def create_run(
    flow: str | None,
    assignments: tuple[str, ...],
    training_project: str | None,
    attributes: tuple[str, ...],
    run_id: str | None,
    resume_from: str | None,
    wait: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Start a training run.

    Without --flow it trains the tiny model on the built-in handwritten digits. Values are set on top of any recipe:
    `runyard runs create --set vi-model.hyperparameters.epochs=5 --wait`.
    """
    with connect(data_dir, is_patient=True) as client:
        run = client.runs.create(
            flow=flow_for(client, flow, assignments),
            training_project=training_project,
            metadata=attributes_of(attributes) or None,
            run_id=run_id,
            resume_from=None if resume_from is None else origin_of(resume_from),
        )
        if wait:
            if not as_json:
                click.echo(f"Run {run.run_id}")
            run = follow(client, run.run_id)
    if as_json:
        print_json(run)
    elif wait:
        _print_run(run)
    else:
        click.echo(run.run_id)


@runs.command("wait")
@click.argument("run_id")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Give up after so long (exit code 7).")
@data_dir_option
@json_option
def wait_for_run(run_id: str, timeout_s: float | None, data_dir: Path | None, as_json: bool) -> None:
    """Follow a run until it ends: exit code 0 when it succeeded, 3 when not, 4 when it was deleted meanwhile."""
    with connect(data_dir, is_patient=True) as client:
        run = follow(client, run_id, timeout_s=timeout_s)
    if as_json:
        print_json(run)
    else:
        _print_run(run)


@runs.command("logs")
@click.argument("run_id")
@click.option("--follow", "-f", "follows", is_flag=True, help="Go on until the run ends.")
@click.option("--stream", "streams", type=click.Choice(STREAMS), multiple=True, help="Only this stream. Repeatable.")
@data_dir_option
@json_option
def print_logs(run_id: str, follows: bool, streams: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """Print what the trainer wrote: its events, its standard output, its standard error."""
    with connect(data_dir) as client:
        for line in client.runs.logs(run_id, follow=follows):
            if streams and line.stream not in streams:
                continue
            if as_json:
                print_json(line)
            else:
                click.echo(f"{local_time(line.time)}  {line.stream:<6}  {one_line(line.text)}")


@runs.command("metrics")
@click.argument("run_id")
@click.option("--name", "names", multiple=True, help="Only this metric, such as validation/loss. Repeatable.")
@click.option(
    "--last", default=20, show_default=True, type=click.IntRange(1), help="At most so many steps, the newest."
)
@data_dir_option
@json_option
def print_metrics(run_id: str, names: tuple[str, ...], last: int, data_dir: Path | None, as_json: bool) -> None:
    """Print what was measured while training. With --json, every point, one a line."""
    with connect(data_dir) as client:
        points = list(client.runs.metrics(run_id))
    if as_json:
        for point in points:
            print_json(point)
        return
    shown = [point for point in points if not names or any(name in point.values for name in names)][-last:]
    columns = list(names) or sorted({name for point in shown for name in point.values})
    rows = [[point.step, number(point.epoch), *(number(point.values.get(name)) for name in columns)] for point in shown]
    print_table(["STEP", "EPOCH", *columns], rows)


@runs.command("kill")
@click.argument("run_id")
@click.option("--wait", is_flag=True, help="Return only when no process of the run is left.")
@data_dir_option
@json_option
def kill_run(run_id: str, wait: bool, data_dir: Path | None, as_json: bool) -> None:
    """End a run now. It keeps the checkpoints it has."""
    with connect(data_dir, is_patient=True) as client:
        run = client.runs.kill(run_id)
        if wait:
            run = ended(client, run_id)
    if as_json:
        print_json(run)
    else:
        click.echo(f"{run.run_id} is {'ended' if wait else 'ending'}: {coloured(_condition(run))}")


@runs.command("delete")
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN_ID...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@data_dir_option
def delete_runs(run_ids: tuple[str, ...], yes: bool, data_dir: Path | None) -> None:
    """Delete runs with their logs, metrics and checkpoints, for good."""
    if not yes:
        what = run_ids[0] if len(run_ids) == 1 else f"{len(run_ids)} runs"
        click.confirm(f"Delete {what} with all logs, metrics and checkpoints?", abort=True)
    with connect(data_dir, is_patient=True) as client:
        for run_id in run_ids:
            click.echo(f"deleted {client.runs.delete(run_id).id}")


def follow(client: "vi.Client", run_id: str, *, timeout_s: float | None = None) -> "Run":
    """Wait for a run with a live progress line on stderr; raises what ``client.runs.wait`` raises."""
    with ProgressLine() as line:
        return client.runs.wait(run_id, timeout=timeout_s, on_update=line.update, show_progress=False)


def ended(client: "vi.Client", run_id: str) -> "Run":
    """Wait for a run, and return it however it ended."""
    from vi import ViRunFailedError

    try:
        return client.runs.wait(run_id, show_progress=False)
    except ViRunFailedError as error:
        if error.run is None:
            raise
        return error.run


def origin_of(given: str) -> tuple[str, str]:
    """Run and checkpoint from ``RUN_ID[/CHECKPOINT]``."""
    run_id, _, checkpoint = given.partition("/")
    return run_id, checkpoint or "latest"


def attributes_of(given: Iterable[str]) -> dict[str, str]:
    """Attributes from ``KEY=VALUE`` texts."""
    attributes = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandFailed(f"--attribute {text!r} is not KEY=VALUE", exit_code=EXIT_USAGE)
        attributes[key] = value
    return attributes


def _first(items: "Iterable[Run]", limit: int) -> "Iterable[Run]":
    for count, item in enumerate(items, start=1):
        yield item
        if count == limit:
            return


def _condition(run: "Run") -> str:
    return run.condition.value if run.condition else "Unknown"


def _origin(run: "Run") -> str:
    origin = run.spec.resume_from
    return "" if origin is None else f"{origin.run_id}/{origin.checkpoint}, step {origin.step}"


def _row(run: "Run") -> tuple[object, ...]:
    progress = run.status.progress
    return (
        run.run_id,
        _condition(run),
        (run.status.conditions[-1].reason or "") if run.status.conditions else "",
        age(run.metadata.time_created),
        f"{progress.step}/{progress.total_steps}" if progress else "",
        f"{progress.metric_name} {number(progress.metric)}" if progress and progress.metric_name else "",
        run.spec.flow.name,
    )


def _print_run(run: "Run") -> None:
    progress = run.status.progress
    print_fields(
        [
            ("Run", run.run_id),
            ("Condition", _condition(run)),
            ("Flow", run.spec.flow.name),
            ("Training project", run.spec.training_project),
            ("Goes on from", _origin(run)),
            ("Created", local_time(run.metadata.time_created)),
            ("Attributes", ", ".join(f"{key}={value}" for key, value in run.metadata.attributes.items())),
            ("Kill asked for", local_time(run.spec.killed_at)),
            ("Step", f"{progress.step} of {progress.total_steps}" if progress else ""),
            ("Loss", number(progress.loss) if progress else ""),
            (
                "Metric",
                f"{progress.metric_name} {number(progress.metric)}" if progress and progress.metric_name else "",
            ),
            ("Time left", duration(progress.seconds_left) if progress and progress.seconds_left else ""),
        ]
    )
    for condition in run.status.conditions:
        words = " ".join(filter(None, [condition.reason, condition.message and f"({condition.message})"]))
        click.echo(
            f"  {local_time(condition.last_transition_time)}  {coloured(condition.condition.value)}  {one_line(words)}"
        )
