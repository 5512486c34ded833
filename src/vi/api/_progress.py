"""Progress bars, drawn only where somebody can see them: on a terminal, on standard error.

rich is loaded when a bar is really drawn. Each function is a context that hands out one function to feed the bar with;
without a terminal that function does nothing.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vi.api.resources.datasets.responses import DatasetImport
from vi.api.resources.datasets.results import counted
from vi.api.resources.runs.responses import Run, RunProgress

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


@contextmanager
def run_progress(show: bool) -> Iterator[Callable[[Run], None]]:
    """A bar for one run: condition, steps, loss, metric, time left."""
    if not (show and _has_terminal()):
        yield lambda run: None
        return
    from rich.progress import BarColumn, TextColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}")]
    with _bar(columns) as bar:
        task = bar.add_task("Waiting", total=None, facts="")

        def draw(run: Run) -> None:
            progress = run.status.progress or RunProgress()
            bar.update(
                task,
                description=state_text(run),
                total=progress.total_steps or None,
                completed=progress.step,
                facts=progress_text(progress) if run.status.progress else "",
            )

        yield draw


@contextmanager
def import_progress(show: bool) -> Iterator[Callable[[DatasetImport], None]]:
    """A bar for one import: what is being done, how much of it, how fast, time left."""
    if not (show and _has_terminal()):
        yield lambda imported: None
        return
    from rich.progress import BarColumn, TextColumn

    with _bar([TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}")]) as bar:
        task = bar.add_task("Sending", total=None, facts="")

        def draw(imported: DatasetImport) -> None:
            done, total = import_share(imported)
            facts = import_text(imported)
            bar.update(
                task, description=imported.status.progress.phase, total=total, completed=done, facts=facts, refresh=True
            )

        yield draw


@contextmanager
def byte_progress(title: str, *, total_bytes: int | None, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar for one transfer, fed with the number of bytes that are there."""
    if not (show and _has_terminal()):
        yield lambda arrived_bytes: None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    with _bar(columns) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda arrived_bytes: bar.update(task, completed=arrived_bytes)


def state_text(run: Run) -> str:
    """Condition and reason in a few words."""
    if not run.status.conditions:
        return "no condition yet"
    last = run.status.conditions[-1]
    return f"{last.condition.value} ({last.reason})" if last.reason else last.condition.value


def progress_text(progress: RunProgress) -> str:
    """Steps, loss, metric and time left, as far as they are known."""
    facts = [f"step {progress.step}/{progress.total_steps}" if progress.total_steps else f"step {progress.step}"]
    if progress.loss is not None:
        facts.append(f"loss {progress.loss:.4f}")
    if progress.metric is not None:
        facts.append(f"{progress.metric_name or 'metric'} {progress.metric:.4f}")
    if progress.seconds_left is not None:
        facts.append(f"{duration_text(progress.seconds_left)} left")
    return ", ".join(facts)


def import_share(imported: DatasetImport) -> tuple[int, int | None]:
    """How much of the phase is done, and of how much; None where nobody knows."""
    progress = imported.status.progress
    if progress.phase == "Sending":
        return progress.bytes_done, imported.spec.size_bytes or None
    if progress.phase in ("Receiving", "Inspecting"):
        return progress.files_done, progress.files or None
    return (1, 1) if progress.phase == "Done" else (0, None)


def import_text(imported: DatasetImport) -> str:
    """Files, bytes, pictures, rows, findings, rate and time left, as far as the phase has them."""
    progress, found = imported.status.progress, imported.status.findings
    facts = []
    if progress.phase in ("Sending", "Receiving", "Inspecting"):
        facts.append(f"{progress.files_done}/{progress.files} files")
    if progress.phase == "Sending":
        facts += [f"{progress.bytes_done / 1e6:.1f} MB", f"{progress.per_second / 1e6:.1f} MB/s"]
    else:
        facts.append(counted(progress.images, "picture"))
        if progress.rows:
            facts.append(f"{progress.rows_kept}/{progress.rows} rows")
        facts += [
            counted(count, word) for count, word in ((found.errors, "error"), (found.warnings, "warning")) if count
        ]
        if progress.per_second:
            facts.append(f"{progress.per_second:.0f} a second")
    if progress.seconds_left:
        facts.append(f"{duration_text(progress.seconds_left)} left")
    return ", ".join(facts)


def duration_text(duration_s: float) -> str:
    """A duration as people say it: ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole_s = max(0, round(duration_s))
    if whole_s < 60:
        return f"{whole_s} s"
    if whole_s < 3600:
        return f"{whole_s // 60} min {whole_s % 60} s"
    return f"{whole_s // 3600} h {whole_s % 3600 // 60} min"


def _has_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _bar(columns: "list[ProgressColumn]") -> "Progress":
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True)
