"""``runyard runs``: create, find, follow, compare, tag, kill and delete training runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import (
    EXIT_INTERRUPTED,
    EXIT_RUN_FAILED,
    EXIT_USAGE,
    CommandFailed,
    to_command_failure,
)
from runyard.cli.global_options import get_global_options
from runyard.cli.groups import NounGroup
from runyard.cli.ids import complete_runs
from runyard.cli.live.watch import watch_run
from runyard.cli.output import (
    colorize,
    format_age,
    format_duration,
    format_number,
    format_time,
    json_option,
    print_fields,
    print_json,
    print_table,
    to_single_line,
)
from runyard.cli.progress import ProgressLine
from runyard.cli.resources.flow_files import resolve_flow_argument, set_option
from runyard.cli.resources.run_output import print_logs, print_samples
from runyard.cli.resources.selection import (
    CONDITIONS,
    RunSelection,
    apply_to_many,
    build_filters,
    confirm,
    parse_attributes,
    print_outcomes,
    selection_options,
)
from runyard.cli.run_findings import print_findings

if TYPE_CHECKING:
    import vi
    from runyard.cli.resources.reproduce import Comparison, Evidence, Weights
    from vi.api.resources.runs.responses import Run


RUN_COLUMNS = ("RUN", "CONDITION", "REASON", "AGE", "STEP", "METRIC", "NAME", "FLOW")


@click.group(cls=NounGroup)
def runs() -> None:
    """Create, follow, compare, kill and delete training runs."""


runs.add_command(print_logs)
runs.add_command(print_samples)


@runs.command("list")
@click.option(
    "--condition", type=click.Choice(CONDITIONS, case_sensitive=False), help="Runs in this state."
)
@click.option("--flow", help="Runs of this flow id.")
@click.option("--training-project", help="Runs of this training project or dataset.")
@click.option(
    "--attribute",
    "attributes",
    metavar="KEY=VALUE",
    multiple=True,
    help="Runs with this attribute. Repeatable.",
)
@click.option(
    "--since", "since_hours", type=float, metavar="HOURS", help="Maximum age of the runs in hours."
)
@click.option(
    "--filter",
    "filter_text",
    metavar="TEXT",
    help="Runs that match a filter such as 'condition:Failed metric.iou>0.6'.",
)
@click.option(
    "--sort",
    metavar="FIELD",
    help="created, name, duration or metric.KEY, with - in front for descending. "
    "[default: -created]",
)
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1), help="Maximum number of runs."
)
@data_dir_option
@json_option
def list_runs(
    condition: str | None,
    flow: str | None,
    training_project: str | None,
    attributes: tuple[str, ...],
    since_hours: float | None,
    filter_text: str | None,
    sort: str | None,
    limit: int,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """List runs, newest first."""
    from vi.api.types import PaginationParams

    given = build_filters(condition, flow, training_project, attributes, since_hours)
    with connect(data_dir) as client:
        page = client.runs.list(
            pagination=PaginationParams(page_size=min(limit, 1000)),
            filter=filter_text,
            order_by=sort,
            **given,
        )
        found = list(islice(page.all_items(), limit))
    if as_json:
        print_json({"items": found})
    else:
        print_table(
            RUN_COLUMNS,
            [_row(run) for run in found],
        )


@runs.command("count")
@click.option("--filter", "filter_text", metavar="TEXT", help="Runs that match a filter.")
@data_dir_option
@json_option
def count_runs(filter_text: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Count runs by condition."""
    with connect(data_dir) as client:
        found = client.runs.count(filter=filter_text)
    if as_json:
        print_json(found)
        return
    rows = [(name, number) for name, number in found.conditions.items() if number]
    total = f"{found.total} or more" if found.more else found.total
    print_table(("CONDITION", "RUNS"), [*rows, ("total", total)])


@runs.command("get")
@click.argument("run_id", shell_complete=complete_runs)
@click.option("-w", "--web", "opens_page", is_flag=True, help="Open its page in a browser.")
@data_dir_option
@json_option
def get_run(run_id: str, opens_page: bool, data_dir: Path | None, as_json: bool) -> None:
    """Show a run: its state, progress and history; with --web, on its page."""
    with connect(data_dir) as client:
        run = client.runs.get(run_id)
        if opens_page:
            from runyard.cli.resources.sessions import open_page

            open_page(client, f"/ui/runs/{run.run_id}", as_json=as_json)
            return
    if as_json:
        print_json(run)
    else:
        _print_run(run)


@runs.command("create")
@click.option(
    "--flow",
    metavar="FILE|FLOW_ID",
    help="Flow file (.yaml, .json) or flow id. [default: tiny model on digits]",
)
@set_option
@click.option("--training-project", help="Training project or dataset to train on.")
@click.option(
    "--attribute",
    "attributes",
    metavar="KEY=VALUE",
    multiple=True,
    help="Attribute of the run. Repeatable.",
)
@click.option("--name", help="Name of the run. [default: the name of the flow]")
@click.option(
    "--run-id", help="Id of the run. Repeating the command with the same id creates no second run."
)
@click.option(
    "--resume-from",
    metavar="RUN_ID[/CHECKPOINT]",
    help="Checkpoint of another run to resume from: an id, best or latest. [default: latest]",
)
@click.option(
    "--wait",
    is_flag=True,
    help="Follow the run until it has ended; exit code 3 if it does not succeed.",
)
@data_dir_option
@json_option
def create_run(
    flow: str | None,
    assignments: tuple[str, ...],
    training_project: str | None,
    attributes: tuple[str, ...],
    name: str | None,
    run_id: str | None,
    resume_from: str | None,
    wait: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Create a training run.

    Without --flow, the tiny model is trained on the built-in handwritten digits. --set changes
    values of any flow: `runyard runs create --set vi-model.hyperparameters.epochs=5 --wait`.
    """
    with connect(data_dir, is_patient=True) as client:
        run = client.runs.create(
            flow=resolve_flow_argument(client, flow, assignments),
            training_project=training_project,
            metadata=parse_attributes(attributes) or None,
            run_id=run_id,
            resume_from=None if resume_from is None else parse_resume_from(resume_from),
            name=name,
        )
        if not as_json:
            print_findings(run.status.findings)
        if wait:
            if not as_json:
                click.echo(f"Run {run.run_id}")
            with _report_interrupt(run.run_id, data_dir):
                run = follow_run(client, run.run_id)
    if as_json:
        print_json(run)
    elif wait:
        _print_run(run)
    else:
        click.echo(run.run_id)


@runs.command("wait")
@click.argument(
    "run_ids", shell_complete=complete_runs, nargs=-1, required=True, metavar="RUN_ID..."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    metavar="SECONDS",
    help="Maximum time to wait (then exit code 7).",
)
@data_dir_option
@json_option
def wait_for_runs(
    run_ids: tuple[str, ...], timeout_s: float | None, data_dir: Path | None, as_json: bool
) -> None:
    """Follow runs until they have ended.

    Exit code 0 if all succeeded, 3 if one did not, 4 if one was deleted.

    \b
    Examples:
      runyard runs wait RUN_ID
      runyard runs wait RUN_ID RUN_ID --timeout 3600
    """
    if len(run_ids) > 1:
        _wait_for_many(run_ids, timeout_s, data_dir, as_json)
        return
    run_id = run_ids[0]
    with connect(data_dir, is_patient=True) as client, _report_interrupt(run_id, data_dir):
        run = follow_run(client, run_id, timeout_s=timeout_s)
    if as_json:
        print_json(run)
    else:
        _print_run(run)


def _wait_for_many(
    run_ids: tuple[str, ...], timeout_s: float | None, data_dir: Path | None, as_json: bool
) -> None:
    """Wait for runs one after another, and print them; exit with 3 if one did not succeed."""
    from vi import ViRunFailedError

    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    ended = []
    with connect(data_dir, is_patient=True) as client:
        for run_id in dict.fromkeys(run_ids):
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            with _report_interrupt(run_id, data_dir):
                try:
                    ended.append(follow_run(client, run_id, timeout_s=left_s))
                except ViRunFailedError as error:
                    if error.run is None:
                        raise
                    ended.append(error.run)
    if as_json:
        print_json({"items": ended})
    else:
        print_table(RUN_COLUMNS, [_row(run) for run in ended])
        for run in ended:
            print_findings(run.status.findings, prefix=f"{run.run_id}: ")
    if any(_condition(run) != "Succeeded" for run in ended):
        raise click.exceptions.Exit(EXIT_RUN_FAILED)


runs.add_command(watch_run)

tolerance_option = click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Maximum difference of losses to accept. [default: require bit-identical weights]",
)


@runs.command("reproduce")
@click.argument("run_id", shell_complete=complete_runs)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Follow the new run to its end, then compare.",
)
@tolerance_option
@data_dir_option
@json_option
def reproduce_run(
    run_id: str, wait: bool, tolerance: float | None, data_dir: Path | None, as_json: bool
) -> None:
    """Repeat the training of a run and compare the results; exit code 0 if they are the same, 3 if
    not.

    The new run uses the frozen flow with all measured and selected values, the same dataset version
    and the same starting point. Differences in versions, source code or hardware are printed before
    training.
    """
    from runyard.cli.resources.reproduce import list_notes

    with connect(data_dir, is_patient=True) as client:
        original = client.runs.get(run_id)
        run, pinned = _create_reproduction(client, original)
        _print_line(f"Run {run.run_id} reproduces {run_id}", err=as_json or not wait)
        for note in list_notes(original):
            _print_line(f"note: {note}")
        _print_line(f"pinned: {', '.join(f'{name} {value}' for name, value in pinned.items())}")
        if wait:
            with _report_interrupt(run.run_id, data_dir):
                _follow_and_warn(client, original, run.run_id)
            found = _compare_runs(client, run_id, run.run_id, tolerance)
    if wait:
        _print_comparison(found, as_json)
    else:
        _print_line(
            f"to compare them after it has ended: runyard runs compare {run_id} {run.run_id}"
        )
        if as_json:
            print_json(run)
        else:
            click.echo(run.run_id)


@runs.command("compare")
@click.argument("run_id", shell_complete=complete_runs)
@click.argument("other_run_id", shell_complete=complete_runs)
@tolerance_option
@data_dir_option
@json_option
def compare_runs(
    run_id: str, other_run_id: str, tolerance: float | None, data_dir: Path | None, as_json: bool
) -> None:
    """Compare two runs: loss of each step, last evaluation, last weights, versions and hardware.

    Exit code 0 if they are the same, 3 if not.
    """
    with connect(data_dir) as client:
        found = _compare_runs(client, run_id, other_run_id, tolerance)
    _print_comparison(found, as_json)


@runs.command("metrics")
@click.argument("run_id", shell_complete=complete_runs)
@click.option(
    "--keys",
    "--name",
    "names",
    metavar="KEY,...",
    multiple=True,
    help="Metrics to print, such as validation/loss. Repeatable.",
)
@click.option(
    "--last",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of newest steps.",
)
@click.option(
    "--points",
    type=click.IntRange(1, 5000),
    help="Print the whole course of each metric with at most as many rows.",
)
@click.option("--from", "from_step", type=click.IntRange(0), help="First step, with --points.")
@click.option("--to", "to_step", type=click.IntRange(0), help="Last step, with --points.")
@click.option("--plot", "plots", is_flag=True, help="Draw the course of each metric.")
@data_dir_option
@json_option
def print_metrics(
    run_id: str,
    names: tuple[str, ...],
    last: int,
    points: int | None,
    from_step: int | None,
    to_step: int | None,
    plots: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Print the metrics of a run: its newest steps, or with --points or --plot the whole course.

    With --json, every point, one per line; with --points every metric, one per line.
    """
    from runyard.cli.resources import series

    keys = [key for given in names for key in given.split(",") if key]
    with connect(data_dir) as client:
        if points is None and not plots and from_step is None and to_step is None:
            recorded = client.runs.metrics(run_id)
            if as_json:
                for point in recorded:
                    print_json(point)
            else:
                series.print_points(recorded, keys, last=last)
            return
        found = client.runs.series(
            run_id,
            points=points or series.PLOTTED_POINTS,
            keys=keys or None,
            from_step=from_step,
            to_step=to_step,
        )
    if as_json:
        series.print_series_json(found.items)
    else:
        series.print_series(found.items, plots=plots)


@runs.command("kill")
@selection_options
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="Seconds for each run to save and stop.",
)
@click.option("--wait", is_flag=True, help="Wait until all processes of the runs have exited.")
@data_dir_option
@json_option
def kill_runs(
    selection: RunSelection, grace_s: float | None, wait: bool, data_dir: Path | None, as_json: bool
) -> None:
    """Kill runs. Their checkpoints are kept.

    Select runs by ids, or by filters: pending and running runs that match all of them.
    """
    if selection.is_one_run:
        with connect(data_dir, is_patient=True) as client:
            run = client.runs.kill(selection.run_ids[0], grace_s)
            if wait:
                with _report_interrupt(run.run_id, data_dir, is_ending=True):
                    run = wait_for_end(client, run.run_id)
        if as_json:
            print_json(run)
        else:
            click.echo(
                f"{run.run_id} {'has ended' if wait else 'is ending'}: {colorize(_condition(run))}"
            )
        return
    with connect(data_dir, is_patient=True) as client:
        options = {} if grace_s is None else {"grace_s": grace_s}
        outcomes = apply_to_many(client, "kill", selection, **options)
        if wait and not selection.dry_run:
            for item in outcomes.items:
                if item.outcome == "Killed":
                    with _report_interrupt(item.run_id, data_dir, is_ending=True):
                        item.condition = wait_for_end(client, item.run_id).condition
    print_outcomes(outcomes, as_json=as_json)


@runs.command("delete")
@selection_options
@data_dir_option
@json_option
def delete_runs(selection: RunSelection, data_dir: Path | None, as_json: bool) -> None:
    """Delete runs with their logs, metrics and checkpoints permanently.

    Select runs by ids, or by filters: runs that match all of them.
    """
    with connect(data_dir, is_patient=True) as client:
        if selection.is_one_run:
            if not selection.yes:
                confirm(f"Delete {selection.run_ids[0]} with all logs, metrics and checkpoints?")
            deleted = client.runs.delete(selection.run_ids[0])
            if as_json:
                print_json(deleted)
            else:
                click.echo(f"deleted {deleted.id}")
            return
        outcomes = apply_to_many(client, "delete", selection)
    print_outcomes(outcomes, as_json=as_json)


@runs.command("tag")
@selection_options
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Attribute to set. Repeatable."
)
@click.option(
    "--remove", "removed", metavar="KEY", multiple=True, help="Attribute to remove. Repeatable."
)
@data_dir_option
@json_option
def tag_runs(
    selection: RunSelection,
    assignments: tuple[str, ...],
    removed: tuple[str, ...],
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Set or remove attributes of runs.

    Select runs by ids, or by filters: runs that match all of them.
    """
    tags = {**parse_attributes(assignments, option="--set"), **dict.fromkeys(removed)}
    if not tags:
        raise CommandFailed("expected: --set KEY=VALUE or --remove KEY", exit_code=EXIT_USAGE)
    with connect(data_dir, is_patient=True) as client:
        if selection.is_one_run:
            outcomes = client.runs.tag(list(selection.run_ids), tags)
        else:
            outcomes = apply_to_many(client, "tag", selection, set=tags)
    print_outcomes(outcomes, as_json=as_json)


@runs.command("rename")
@click.argument("run_id", shell_complete=complete_runs)
@click.argument("name")
@data_dir_option
@json_option
def rename_run(run_id: str, name: str, data_dir: Path | None, as_json: bool) -> None:
    """Give a run another name. An empty one is replaced by the name of the flow."""
    with connect(data_dir) as client:
        run = client.runs.update(run_id, name=name)
    if as_json:
        print_json(run)
    else:
        click.echo(f"{run.run_id} is now named {to_single_line(run.name)}")


def follow_run(client: "vi.Client", run_id: str, *, timeout_s: float | None = None) -> "Run":
    """Wait for a run with a progress line on stderr; raises like ``client.runs.wait``."""
    with ProgressLine() as line:
        return client.runs.wait(
            run_id, timeout=timeout_s, on_update=line.update, show_progress=False
        )


@contextmanager
def _report_interrupt(
    run_id: str, data_dir: Path | None, *, is_ending: bool = False
) -> Iterator[None]:
    """On Ctrl-C, print that the run itself continues, and how to follow or kill it."""
    try:
        yield
    except KeyboardInterrupt:
        where = "" if data_dir is None else f" --data-dir {data_dir}"
        click.echo(
            f"Interrupted; run {run_id} {'is still ending' if is_ending else 'continues'} on the "
            "server.\n"
            f"  follow it: runyard runs wait {run_id}{where}\n"
            f"  its log:   runyard runs logs {run_id} --follow{where}\n"
            f"  kill it:   runyard runs kill {run_id}{where}",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def wait_for_end(client: "vi.Client", run_id: str) -> "Run":
    """Wait for a run and return it, whether or not it succeeded."""
    from vi import ViRunFailedError

    try:
        return client.runs.wait(run_id, show_progress=False)
    except ViRunFailedError as error:
        if error.run is None:
            raise
        return error.run


def _create_reproduction(client: "vi.Client", original: "Run") -> "tuple[Run, dict[str, Any]]":
    """Create a run of the original's flow with pinned values; return the run and those values.

    Raises:
        CommandFailed: The original has not ended or has no plan, or its starting point was deleted.
    """
    from runyard.cli.resources.reproduce import ATTRIBUTE, pin_flow

    run_id, origin = original.run_id, original.spec.resume_from
    if original.condition is None or not original.condition.is_final:
        raise CommandFailed(f"run {run_id} has not ended; try: runyard runs wait {run_id}")
    if original.status.plan is None:
        raise CommandFailed(
            f"run {run_id} ended before it had a plan, so it has no training to repeat; try: "
            f"runyard runs get {run_id}"
        )
    flow, pinned = pin_flow(original)
    try:
        run = client.runs.create(
            flow=flow,
            training_project=original.spec.training_project,
            metadata={ATTRIBUTE: run_id},
            resume_from=None if origin is None else (origin.run_id, origin.checkpoint),
        )
    except Exception as error:
        refused = to_command_failure(error)
        if refused is None:
            raise
        message = f"run {run_id} cannot be reproduced: {refused.message}"
        raise CommandFailed(message, exit_code=refused.exit_code) from error
    return run, pinned


def _follow_and_warn(client: "vi.Client", original: "Run", run_id: str) -> None:
    """Wait for the reproduction; once it has a plan, print how that differs from the original's."""
    from vi import ViRunFailedError

    with ProgressLine() as line:
        is_warned = False

        def update(run: "Run") -> None:
            nonlocal is_warned
            if run.status.plan is not None and not is_warned:
                is_warned = True
                line.interrupt()
                _warn_of_differences(original, run)
            line.update(run)

        try:
            client.runs.wait(run_id, on_update=update, show_progress=False)
        except ViRunFailedError as error:
            if error.run is None:
                raise


def _warn_of_differences(original: "Run", run: "Run") -> None:
    from runyard.cli.resources.reproduce import differences, format_value

    found = differences(original.status.plan or {}, run.status.plan or {})
    if not found:
        _print_line(
            "versions, source, hardware, data and settings are the same as in the original run"
        )
        return
    _print_line("warning: the new run differs from the original, so its result may differ")
    rows = [
        (item.name, format_value(item.original), format_value(item.reproduction)) for item in found
    ]
    print_table(("DIFFERS", "ORIGINAL", "REPRODUCTION"), rows, err=True)


def _compare_runs(
    client: "vi.Client", run_id: str, other_run_id: str, tolerance: float | None
) -> "Comparison":
    from runyard.cli.resources.reproduce import compare

    return compare(
        _load_evidence(client, run_id), _load_evidence(client, other_run_id), tolerance=tolerance
    )


def _load_evidence(client: "vi.Client", run_id: str) -> "Evidence":
    from runyard.cli.resources.reproduce import Evidence

    run = client.runs.get(run_id)
    return Evidence(
        run=run, points=client.runs.metrics(run_id), weights=_hash_last_weights(client, run_id)
    )


def _hash_last_weights(client: "vi.Client", run_id: str) -> "Weights | None":
    """Return the hashes of the weights of the last checkpoint, which is downloaded temporarily."""
    from tempfile import TemporaryDirectory

    from runyard.cli.resources.reproduce import Weights
    from runyard.rundir import sha256_of
    from vi import ViNotFoundError

    try:
        model = client.models.get(run_id)
    except ViNotFoundError:
        return None
    with TemporaryDirectory(prefix="runyard-") as folder:
        client.models.download(run_id, model.model_id, save_dir=folder, show_progress=False)
        root = Path(folder, run_id, model.model_id)
        found = {
            str(path.relative_to(root)): sha256_of(path)
            for path in sorted(root.rglob("*.safetensors"))
        }
    return Weights(checkpoint=model.model_id, step=model.spec.step, files=found)


def _print_comparison(found: "Comparison", as_json: bool) -> None:
    """Print a comparison; exit with 3 if the runs differ."""
    from runyard.cli.resources.reproduce import build_rows, format_value

    if as_json:
        print_json(found)
    else:
        if found.differences:
            rows = [
                (item.name, format_value(item.original), format_value(item.reproduction))
                for item in found.differences
            ]
            print_table(("TRAINED WITH", "ORIGINAL", "REPRODUCTION"), rows)
            click.echo()
        print_table(("COMPARED", "ORIGINAL", "REPRODUCTION", ""), build_rows(found))
        click.echo(f"Verdict: {found.words}")
    if found.verdict == "different":
        raise click.exceptions.Exit(EXIT_RUN_FAILED)


def _print_line(text: str, *, err: bool = True) -> None:
    click.echo(to_single_line(text), err=err)


def parse_resume_from(given: str) -> tuple[str, str]:
    """Return run id and checkpoint of ``RUN_ID[/CHECKPOINT]``."""
    run_id, _, checkpoint = given.partition("/")
    return run_id, checkpoint or "latest"


def _condition(run: "Run") -> str:
    return run.condition.value if run.condition else "Unknown"


def _format_origin(run: "Run") -> str:
    origin = run.spec.resume_from
    return "" if origin is None else f"{origin.run_id}/{origin.checkpoint}, step {origin.step}"


def _row(run: "Run") -> tuple[object, ...]:
    progress = run.status.progress
    return (
        run.run_id,
        _condition(run),
        (run.status.conditions[-1].reason or "") if run.status.conditions else "",
        format_age(run.metadata.time_created),
        f"{progress.step}/{progress.total_steps}" if progress else "",
        f"{progress.metric_name} {format_number(progress.metric)}"
        if progress and progress.metric_name
        else "",
        to_single_line(run.name),
        run.spec.flow.name,
    )


def _print_run(run: "Run") -> None:
    from vi.api.resources.runs._summary import list_finding_fields

    progress = run.status.progress
    print_fields(
        [
            ("Run", run.run_id),
            ("Name", run.name),
            ("Condition", _condition(run)),
            ("Flow", run.spec.flow.name),
            ("Training project", run.spec.training_project),
            ("Resumes from", _format_origin(run)),
            ("Created", format_time(run.metadata.time_created)),
            (
                "Attributes",
                ", ".join(f"{key}={value}" for key, value in run.metadata.attributes.items()),
            ),
            ("Kill requested", format_time(run.spec.killed_at)),
            ("Step", f"{progress.step} of {progress.total_steps}" if progress else ""),
            ("Loss", format_number(progress.loss) if progress else ""),
            (
                "Metric",
                f"{progress.metric_name} {format_number(progress.metric)}"
                if progress and progress.metric_name
                else "",
            ),
            (
                "Time left",
                format_duration(progress.seconds_left)
                if progress and progress.seconds_left
                else "",
            ),
            *list_finding_fields(run),
        ]
    )
    if get_global_options().format in ("agent", "quiet"):
        return
    for condition in run.status.conditions:
        words = " ".join(
            filter(None, [condition.reason, condition.message and f"({condition.message})"])
        )
        time = format_time(condition.last_transition_time)
        click.echo(f"  {time}  {colorize(condition.condition.value)}  {to_single_line(words)}")
