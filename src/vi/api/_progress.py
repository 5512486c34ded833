"""Progress bars on standard error, drawn only if it is a terminal.

The environment variable RUNYARD_NO_PROGRESS, set to anything but an empty text, disables them.

rich is loaded only when a bar is drawn. Each function is a context manager that yields one
function, which updates the bar; without a terminal that function does nothing.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vi.api._display import format_count, format_duration
from vi.api.resources.runs._summary import describe_progress, describe_state
from vi.api.resources.runs.responses import Run, RunProgress

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from vi.api.resources.datasets.responses import DatasetImport

NO_PROGRESS_VARIABLE = "RUNYARD_NO_PROGRESS"


@contextmanager
def run_progress(show: bool) -> Iterator[Callable[[Run], None]]:
    """Yield a function that shows a run in a bar: condition, steps, loss, metric, time left."""
    if not (show and _has_terminal()):
        yield lambda run: None
        return
    from rich.progress import BarColumn, TextColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}")]
    with _make_bar(columns) as bar:
        task = bar.add_task("Waiting", total=None, facts="")

        def draw(run: Run) -> None:
            progress = run.status.progress or RunProgress()
            bar.update(
                task,
                description=describe_state(run),
                total=progress.total_steps or None,
                completed=progress.step,
                facts=describe_progress(progress) if run.status.progress else "",
            )

        yield draw


@contextmanager
def import_progress(show: bool) -> "Iterator[Callable[[DatasetImport], None]]":
    """Yield a function that shows an import in a bar: phase, progress, rate, time left."""
    if not (show and _has_terminal()):
        yield lambda imported: None
        return
    from rich.progress import BarColumn, TextColumn

    with _make_bar(
        [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}")]
    ) as bar:
        task = bar.add_task("Sending", total=None, facts="")

        def draw(imported: "DatasetImport") -> None:
            done, total = _measure_phase(imported)
            facts = describe_import(imported)
            bar.update(
                task,
                description=imported.status.progress.phase,
                total=total,
                completed=done,
                facts=facts,
                refresh=True,
            )

        yield draw


@contextmanager
def byte_progress(
    title: str, *, total_bytes: int | None, show: bool
) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows the number of transferred bytes in a bar."""
    if not (show and _has_terminal()):
        yield lambda arrived_bytes: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    with _make_bar(columns) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda arrived_bytes: bar.update(task, completed=arrived_bytes)


def _measure_phase(imported: "DatasetImport") -> tuple[int, int | None]:
    """Return how much of the phase is done, and the total, or None if it is unknown."""
    progress = imported.status.progress
    if progress.phase == "Sending":
        return progress.bytes_done, imported.spec.size_bytes or None
    if progress.phase in ("Receiving", "Inspecting"):
        return progress.files_done, progress.files or None
    return (1, 1) if progress.phase == "Done" else (0, None)


def describe_import(imported: "DatasetImport") -> str:
    """Return files, bytes, images, rows, findings, rate and time left, as far as known."""
    progress, found = imported.status.progress, imported.status.findings
    facts = []
    if progress.phase in ("Sending", "Receiving", "Inspecting"):
        facts.append(f"{progress.files_done}/{progress.files} files")
    if progress.phase == "Sending":
        facts += [f"{progress.bytes_done / 1e6:.1f} MB", f"{progress.per_second / 1e6:.1f} MB/s"]
    else:
        facts.append(format_count(progress.images, "image"))
        if progress.rows:
            facts.append(f"{progress.rows_kept}/{progress.rows} rows")
        facts += [
            format_count(count, word)
            for count, word in ((found.errors, "error"), (found.warnings, "warning"))
            if count
        ]
        if progress.per_second:
            facts.append(f"{progress.per_second:.0f}/s")
    if progress.seconds_left:
        facts.append(f"{format_duration(progress.seconds_left)} left")
    return ", ".join(facts)


def _has_terminal() -> bool:
    if os.environ.get(NO_PROGRESS_VARIABLE):
        return False
    return sys.stderr is not None and sys.stderr.isatty()


def _make_bar(columns: "list[ProgressColumn]") -> "Progress":
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True)
