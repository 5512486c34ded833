"""``runyard runs``: everything about training runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_INTERRUPTED, EXIT_RUN_FAILED, CommandFailed, explain
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
from runyard.cli.selection import (
    CONDITIONS,
    Selection,
    apply_to_many,
    attributes_of,
    confirm,
    filters_of,
    selection_options,
    tell_outcomes,
)

if TYPE_CHECKING:
    import vi
    from runyard.cli.reproduce import Comparison, Evidence, Weights
    from vi.api.resources.runs.responses import Run

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

    given = filters_of(condition, flow, training_project, attributes, since_hours)
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
            with _continues_without_us(run.run_id, data_dir):
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
    with connect(data_dir, is_patient=True) as client, _continues_without_us(run_id, data_dir):
        run = follow(client, run_id, timeout_s=timeout_s)
    if as_json:
        print_json(run)
    else:
        _print_run(run)


tolerance_option = click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Also content with losses that are at most so far apart. [default: only the same weights, bit for bit]",
)


@runs.command("reproduce")
@click.argument("run_id")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow it to its end, then compare.")
@tolerance_option
@data_dir_option
@json_option
def reproduce_run(run_id: str, wait: bool, tolerance: float | None, data_dir: Path | None, as_json: bool) -> None:
    """Train a run again as it was trained, and compare: exit code 0 when it is the same, 3 when not.

    Its frozen recipe is taken with everything that was measured or chosen for it, on the same version of the data and
    from the same beginning. What differs in versions, source or hardware is told before training.
    """
    from runyard.cli.reproduce import notes_on

    with connect(data_dir, is_patient=True) as client:
        original = client.runs.get(run_id)
        run, pinned = _train_again(client, original)
        _say(f"Run {run.run_id} reproduces {run_id}", err=as_json or not wait)
        for note in notes_on(original):
            _say(f"note: {note}")
        _say(f"pinned: {', '.join(f'{name} {value}' for name, value in pinned.items())}")
        if wait:
            with _continues_without_us(run.run_id, data_dir):
                _follow_and_warn(client, original, run.run_id)
            found = _compared(client, run_id, run.run_id, tolerance)
    if wait:
        _tell_comparison(found, as_json)
    else:
        _say(f"compare them when it has ended: runyard runs compare {run_id} {run.run_id}")
        if as_json:
            print_json(run)
        else:
            click.echo(run.run_id)


@runs.command("compare")
@click.argument("run_id")
@click.argument("other_run_id")
@tolerance_option
@data_dir_option
@json_option
def compare_runs(run_id: str, other_run_id: str, tolerance: float | None, data_dir: Path | None, as_json: bool) -> None:
    """Compare two runs: every step's loss, the last evaluation, the last weights, and what they were trained with.

    Exit code 0 when they are the same, 3 when not.
    """
    with connect(data_dir) as client:
        found = _compared(client, run_id, other_run_id, tolerance)
    _tell_comparison(found, as_json)


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
@selection_options
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="Time for each run to save and stop.",
)
@click.option("--wait", is_flag=True, help="Return only when no process of the runs is left.")
@data_dir_option
@json_option
def kill_runs(selection: Selection, grace_s: float | None, wait: bool, data_dir: Path | None, as_json: bool) -> None:
    """End runs now. They keep the checkpoints they have.

    Name runs by their ids, or by options: those that wait or train and match all of them.
    """
    if selection.is_one_run:
        with connect(data_dir, is_patient=True) as client:
            run = client.runs.kill(selection.run_ids[0], grace_s)
            if wait:
                with _continues_without_us(run.run_id, data_dir, is_ending=True):
                    run = ended(client, run.run_id)
        if as_json:
            print_json(run)
        else:
            click.echo(f"{run.run_id} is {'ended' if wait else 'ending'}: {coloured(_condition(run))}")
        return
    with connect(data_dir, is_patient=True) as client:
        outcomes = apply_to_many(client, "kill", selection, grace_s=grace_s)
        if wait and not selection.dry_run:
            for item in outcomes.items:
                if item.outcome == "Killed":
                    with _continues_without_us(item.run_id, data_dir, is_ending=True):
                        item.condition = ended(client, item.run_id).condition
    tell_outcomes(outcomes, as_json=as_json)


@runs.command("delete")
@selection_options
@data_dir_option
@json_option
def delete_runs(selection: Selection, data_dir: Path | None, as_json: bool) -> None:
    """Delete runs with their logs, metrics and checkpoints, for good.

    Name runs by their ids, or by options: those that match all of them.
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
    tell_outcomes(outcomes, as_json=as_json)


def follow(client: "vi.Client", run_id: str, *, timeout_s: float | None = None) -> "Run":
    """Wait for a run with a live progress line on stderr; raises what ``client.runs.wait`` raises."""
    with ProgressLine() as line:
        return client.runs.wait(run_id, timeout=timeout_s, on_update=line.update, show_progress=False)


@contextmanager
def _continues_without_us(run_id: str, data_dir: Path | None, *, is_ending: bool = False) -> Iterator[None]:
    """Report on Ctrl-C that only the waiting ends, and how to follow or kill the run."""
    try:
        yield
    except KeyboardInterrupt:
        where = "" if data_dir is None else f" --data-dir {data_dir}"
        click.echo(
            f"Interrupted; run {run_id} {'is still ending' if is_ending else 'continues'} on the server.\n"
            f"  follow it: runyard runs wait {run_id}{where}\n"
            f"  its log:   runyard runs logs {run_id} --follow{where}\n"
            f"  kill it:   runyard runs kill {run_id}{where}",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def ended(client: "vi.Client", run_id: str) -> "Run":
    """Wait for a run, and return it however it ended."""
    from vi import ViRunFailedError

    try:
        return client.runs.wait(run_id, show_progress=False)
    except ViRunFailedError as error:
        if error.run is None:
            raise
        return error.run


def _train_again(client: "vi.Client", original: "Run") -> "tuple[Run, dict[str, Any]]":
    """A new run of the original's recipe, and what was pinned in it.

    Raises:
        CommandFailed: the original is not over, was never planned, or what it began from is gone.
    """
    from runyard.cli.reproduce import ATTRIBUTE, pinned_flow

    run_id, origin = original.run_id, original.spec.resume_from
    if original.condition is None or not original.condition.is_final:
        raise CommandFailed(f"run {run_id} is not over yet; wait for it: runyard runs wait {run_id}")
    if original.status.plan is None:
        raise CommandFailed(
            f"run {run_id} ended before it had a plan, so there is no training to repeat; see runyard runs get {run_id}"
        )
    flow, pinned = pinned_flow(original)
    try:
        run = client.runs.create(
            flow=flow,
            training_project=original.spec.training_project,
            metadata={ATTRIBUTE: run_id},
            resume_from=None if origin is None else (origin.run_id, origin.checkpoint),
        )
    except Exception as error:
        refused = explain(error)
        if refused is None:
            raise
        message = f"run {run_id} cannot be trained again as it was: {refused.message}"
        raise CommandFailed(message, exit_code=refused.exit_code) from error
    return run, pinned


def _follow_and_warn(client: "vi.Client", original: "Run", run_id: str) -> None:
    """Wait for the reproduction however it ends; once it has a plan, say how that differs from the original's."""
    from vi import ViRunFailedError

    with ProgressLine() as line:
        is_told = False

        def update(run: "Run") -> None:
            nonlocal is_told
            if run.status.plan is not None and not is_told:
                is_told = True
                line.interrupt()
                _warn_of_differences(original, run)
            line.update(run)

        try:
            client.runs.wait(run_id, on_update=update, show_progress=False)
        except ViRunFailedError as error:
            if error.run is None:
                raise


def _warn_of_differences(original: "Run", run: "Run") -> None:
    from runyard.cli.reproduce import differences, in_words

    found = differences(original.status.plan or {}, run.status.plan or {})
    if not found:
        _say("the same versions, source, hardware, data and numbers as before")
        return
    _say("warning: it trains with something else than before, so it may end otherwise")
    rows = [(item.name, in_words(item.original), in_words(item.reproduction)) for item in found]
    print_table(("DIFFERS", "ORIGINAL", "REPRODUCTION"), rows, err=True)


def _compared(client: "vi.Client", run_id: str, other_run_id: str, tolerance: float | None) -> "Comparison":
    from runyard.cli.reproduce import compare

    return compare(_evidence(client, run_id), _evidence(client, other_run_id), tolerance=tolerance)


def _evidence(client: "vi.Client", run_id: str) -> "Evidence":
    from runyard.cli.reproduce import Evidence

    run = client.runs.get(run_id)
    return Evidence(run=run, points=client.runs.metrics(run_id), weights=_last_weights(client, run_id))


def _last_weights(client: "vi.Client", run_id: str) -> "Weights | None":
    """Hashes of the last checkpoint's weights; it is fetched whole, and nothing of it stays."""
    from tempfile import TemporaryDirectory

    from runyard.cli.reproduce import Weights
    from runyard.rundir import sha256_of
    from vi import ViNotFoundError

    try:
        model = client.models.get(run_id)
    except ViNotFoundError:
        return None
    with TemporaryDirectory(prefix="runyard-") as folder:
        client.models.download(run_id, model.model_id, save_dir=folder, show_progress=False)
        root = Path(folder, run_id, model.model_id)
        found = {str(path.relative_to(root)): sha256_of(path) for path in sorted(root.rglob("*.safetensors"))}
    return Weights(checkpoint=model.model_id, step=model.spec.step, files=found)


def _tell_comparison(found: "Comparison", as_json: bool) -> None:
    """Print it; a difference ends the command with exit code 3."""
    from runyard.cli.reproduce import in_words, table_of

    if as_json:
        print_json(found)
    else:
        if found.differences:
            rows = [(item.name, in_words(item.original), in_words(item.reproduction)) for item in found.differences]
            print_table(("TRAINED WITH", "ORIGINAL", "REPRODUCTION"), rows)
            click.echo()
        print_table(("COMPARED", "ORIGINAL", "REPRODUCTION", ""), table_of(found))
        click.echo(f"Verdict: {found.words}")
    if found.verdict == "different":
        raise click.exceptions.Exit(EXIT_RUN_FAILED)


def _say(text: str, *, err: bool = True) -> None:
    click.echo(one_line(text), err=err)


def origin_of(given: str) -> tuple[str, str]:
    """Run and checkpoint from ``RUN_ID[/CHECKPOINT]``."""
    run_id, _, checkpoint = given.partition("/")
    return run_id, checkpoint or "latest"


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
