"""``runyard runs logs`` and ``runyard runs samples``: what a trainer has printed and predicted."""

import re
import sys
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import CommandFailed
from runyard.cli.ids import complete_runs
from runyard.cli.output import (
    format_number,
    format_time,
    json_option,
    print_json,
    print_table,
    to_single_line,
)
from runyard.cli.time_arguments import Moment
from runyard.rundir import EXIT_DONE, EXIT_STOPPED

if TYPE_CHECKING:
    from vi.api.resources.runs.responses import LogLine, Run, Sample

STREAMS = ("events", "stdout", "stderr")
LEVELS = ("debug", "info", "warning", "error")
DEFAULT_TAIL = 100
_LEVEL_COLORS = {"warning": "yellow", "error": "red"}
_COLOR = re.compile(r"(\x1b\[[0-9;]*m)")
MAX_CELL = 40


@click.command("logs")
@click.argument("run_id", shell_complete=complete_runs)
@click.option(
    "--follow", "-f", "follows", is_flag=True, help="Print new lines until the run has ended."
)
@click.option(
    "--tail",
    "-n",
    type=click.IntRange(1),
    metavar="LINES",
    help=f"Newest lines to print. Default: {DEFAULT_TAIL} on a terminal, else all.",
)
@click.option("--all", "is_whole", is_flag=True, help="Print the whole log, also on a terminal.")
@click.option(
    "--since", type=Moment(is_past=True), metavar="TIME", help="First time, such as 10m or a date."
)
@click.option("--until", type=Moment(is_past=True), metavar="TIME", help="Last time.")
@click.option("--search", metavar="EXPRESSION", help="Lines that match this regular expression.")
@click.option("--text", metavar="TEXT", help="Lines that contain this text.")
@click.option("--case", "is_case_sensitive", is_flag=True, help="Distinguish upper and lower case.")
@click.option("--level", type=click.Choice(LEVELS), help="Lines of at least this level.")
@click.option(
    "--stream",
    "streams",
    type=click.Choice(STREAMS),
    multiple=True,
    help="Stream to print. Repeatable.",
)
@click.option("--attempt", type=click.IntRange(1), help="Lines of this attempt.")
@click.option(
    "--failed",
    "--log-failed",
    "is_failed",
    is_flag=True,
    help=f"The last lines of the newest attempt that failed. Default: {DEFAULT_TAIL}.",
)
@data_dir_option
@json_option
def print_logs(
    run_id: str,
    follows: bool,
    tail: int | None,
    is_whole: bool,
    since: int | None,
    until: int | None,
    search: str | None,
    text: str | None,
    is_case_sensitive: bool,
    level: Any,
    streams: tuple[Any, ...],
    attempt: int | None,
    is_failed: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Print the log of the trainer: events, standard output and standard error.

    \b
    runyard runs logs RUN                     the last lines
    runyard runs logs RUN --follow            and each new one
    runyard runs logs RUN --since 10m --search 'nan|overflow'
    runyard runs logs RUN --failed            why it failed
    """
    if search is not None and text is not None:
        raise click.UsageError("give either --search or --text")
    if is_whole and tail is not None:
        raise click.UsageError("give either --all or --tail")
    is_default_tail = tail is None and not is_whole and (is_failed or sys.stdout.isatty())
    count = 0
    with connect(data_dir) as client:
        if is_failed:
            attempt = _find_failed_attempt(client.runs.get(run_id))
        lines = client.runs.logs(
            run_id,
            follow=follows,
            since=0 if since is None else _to_datetime(since),
            until=None if until is None else _to_datetime(until),
            tail=DEFAULT_TAIL if is_default_tail else tail,
            stream=streams[0] if len(streams) == 1 else None,
            search=text if search is None else search,
            regex=search is not None,
            case_sensitive=is_case_sensitive,
            level=level,
            attempt=attempt,
        )
        for line in lines:
            if streams and line.stream not in streams:
                continue
            count += 1
            if as_json:
                print_json(line)
            else:
                click.echo(_format_line(line))
    if is_default_tail and count == DEFAULT_TAIL:
        click.echo(f"These are the last {DEFAULT_TAIL} lines. try: --tail 1000, or --all", err=True)


@click.command("samples")
@click.argument("run_id", shell_complete=complete_runs)
@click.option(
    "--evaluation",
    default="latest",
    show_default=True,
    metavar="STEP",
    help="Step of the evaluation.",
)
@click.option(
    "--order-by",
    type=click.Choice(("score", "index")),
    default="score",
    show_default=True,
    help="Worst first, or in the order of the held-out data.",
)
@click.option(
    "--index", type=click.IntRange(0), help="One sample in every evaluation, by its index."
)
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1), help="Maximum number."
)
@click.option(
    "--image",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the image of --index to this file.",
)
@data_dir_option
@json_option
def print_samples(
    run_id: str,
    evaluation: str,
    order_by: Any,
    index: int | None,
    limit: int,
    target: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Print sample predictions of an evaluation, or of one image in all of them.

    With --json, every sample with its boxes, one per line.
    """
    if evaluation != "latest" and not evaluation.isdecimal():
        raise click.BadParameter(f"{evaluation!r} is neither a step nor 'latest'")
    if target is not None and index is None:
        raise click.UsageError("--image needs the --index of a sample")
    with connect(data_dir) as client:
        if target is not None and index is not None:
            target.write_bytes(client.runs.sample_image(run_id, index))
            click.echo(str(target))
            return
        page = client.runs.samples(
            run_id,
            "latest" if evaluation == "latest" else int(evaluation),
            order_by,
            index=index,
            pagination={"page_size": min(limit, 1000)},
        )
        found = list(islice(page.all_items(), limit))
    if as_json:
        for sample in found:
            print_json(sample)
        return
    print_table(
        ("STEP", "INDEX", "SCORE", "PARSE", "QUESTION", "TRUTH", "PREDICTED", "IMAGE"),
        [_make_row(sample) for sample in found],
    )


def _find_failed_attempt(run: "Run") -> int:
    """Return the number of the newest attempt that failed.

    Raises:
        CommandFailed: None has.
    """
    for attempt in reversed(run.status.attempts):
        was_lost = attempt.exit_code is None and attempt.cause
        if attempt.signal or was_lost or attempt.exit_code not in (None, EXIT_DONE, EXIT_STOPPED):
            return attempt.attempt
    raise CommandFailed(
        f"no attempt of run {run.run_id} has failed; try: runyard runs logs {run.run_id}"
    )


def _format_line(line: "LogLine") -> str:
    stream = click.style(f"{line.stream:<6}", fg=_LEVEL_COLORS.get(line.level))
    return f"{format_time(line.time)}  {stream}  {_clean_text(line.text)}"


def _clean_text(text: str) -> str:
    """Return a line without control characters, except colors; ``click`` prints these to terminals
    only.
    """
    parts = _COLOR.split(text)
    if len(parts) == 1:
        return to_single_line(text)
    shown = (part if index % 2 else to_single_line(part) for index, part in enumerate(parts))
    return "".join(shown) + "\x1b[0m"


def _to_datetime(epoch_ms: int) -> datetime:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC)


def _make_row(sample: "Sample") -> tuple[object, ...]:
    return (
        sample.step,
        sample.index,
        format_number(sample.score),
        sample.parse,
        _shorten(sample.question),
        _shorten(sample.truth.text),
        _shorten(sample.predicted.text),
        sample.image.filename or f"{sample.image.width}x{sample.image.height}",
    )


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…"
