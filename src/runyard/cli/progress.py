"""Progress lines on stderr: runs, imports and local work.

On a terminal, one line is updated in place. Elsewhere, a plain line is printed on each change of
condition and every few seconds, so that build logs remain readable. stdout is reserved for results.
RUNYARD_NO_PROGRESS and ``--format agent`` disable all of them.
"""

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from runyard.cli.global_options import get_global_options
from runyard.cli.output import format_duration, format_number, to_single_line

if TYPE_CHECKING:
    from vi.api.resources.datasets.responses import DatasetImport
    from vi.api.resources.runs.responses import Run, RunProgress
    from vi.api.responses import ConditionKind

PLAIN_LINE_EVERY_S = 5.0
BAR_WIDTH = 24


class ProgressLine:
    """Progress line of a run; pass ``update`` to ``client.runs.wait(on_update=...)``."""

    def __init__(self, stream: TextIO | None = None, *, now: Callable[[], float] = time.monotonic):
        self._stream = stream or sys.stderr
        self._now = now
        self._is_live = self._stream.isatty()
        self._is_shown = get_global_options().shows_progress
        self._last_condition: ConditionKind | None = None
        self._last_text = ""
        self._printed_s = float("-inf")

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live and self._last_text:
            self._stream.write("\n")
            self._stream.flush()

    def interrupt(self) -> None:
        """End the current line, so that other text can be printed.

        The next update starts a new one.
        """
        if self._is_live and self._last_text:
            self._stream.write("\n")
            self._stream.flush()
            self._last_text = ""

    def update(self, run: "Run") -> None:
        """Show the current state of a run."""
        condition, text = run.condition, format_progress(run)
        if text == self._last_text or not self._is_shown:
            return
        if self._is_live:
            # A line that wraps could not be rewritten in place.
            self._stream.write(f"\r\x1b[2K{text[: shutil.get_terminal_size().columns - 1]}")
        elif (
            condition != self._last_condition or self._now() - self._printed_s >= PLAIN_LINE_EVERY_S
        ):
            self._stream.write(f"{text}\n")
            self._printed_s = self._now()
        else:
            return
        self._stream.flush()
        self._last_condition, self._last_text = condition, text


class PhaseLines:
    """Progress lines of an import without a terminal: how each phase begins and ends.

    During a long phase one more is printed every few seconds. Pass ``update`` to
    ``client.datasets.import_folder(progress=...)``.
    """

    def __init__(self, stream: TextIO | None = None, *, now: Callable[[], float] = time.monotonic):
        self._stream = stream or sys.stderr
        self._now = now
        self._last_phase = self._last_text = self._printed_text = ""
        self._printed_s = float("-inf")

    def update(self, imported: "DatasetImport") -> None:
        """Print the state of an import if the phase changed or the interval has passed."""
        from vi.api._progress import describe_import

        phase = imported.status.progress.phase
        if not get_global_options().shows_progress:
            return
        is_new = phase != self._last_phase
        if is_new:
            self._print(self._last_text)
        self._last_phase = phase
        self._last_text = to_single_line(f"{phase}  {describe_import(imported)}")
        if is_new or self._now() - self._printed_s >= PLAIN_LINE_EVERY_S:
            self._print(self._last_text)

    def _print(self, text: str) -> None:
        if text == self._printed_text:
            return
        self._printed_text, self._printed_s = text, self._now()
        self._stream.write(f"{text}\n")
        self._stream.flush()


class WorkLine:
    """Progress line of work on this machine, such as copying a model."""

    def __init__(self, stream: TextIO | None = None, *, now: Callable[[], float] = time.monotonic):
        self._stream = stream or sys.stderr
        self._now = now
        self._is_live = self._stream.isatty()
        self._last_doing = ""
        self._printed_s = float("-inf")

    def __enter__(self) -> "WorkLine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live and self._last_doing:
            self._stream.write("\n")
            self._stream.flush()

    def update(self, doing: str, done: int, total: int) -> None:
        """Show the current activity and how much of it is done."""
        if not get_global_options().shows_progress:
            return
        text = to_single_line(f"{bar(done / total)}  {doing} {done}/{total}" if total else doing)
        if self._is_live:
            self._stream.write(f"\r\x1b[2K{text[: shutil.get_terminal_size().columns - 1]}")
        elif doing != self._last_doing or self._now() - self._printed_s >= PLAIN_LINE_EVERY_S:
            self._stream.write(f"{text}\n")
            self._printed_s = self._now()
        self._stream.flush()
        self._last_doing = doing


def describe_state(run: "Run") -> str:
    """Return the condition and its reason."""
    if not run.status.conditions:
        return "Waiting"
    latest = run.status.conditions[-1]
    return to_single_line(
        f"{latest.condition.value}, {latest.reason}" if latest.reason else latest.condition.value
    )


def format_progress(run: "Run") -> str:
    """Return the state of a run as one line."""
    progress = run.status.progress
    if progress is None or not progress.total_steps:
        return describe_state(run)
    parts = [describe_state(run), f"step {progress.step}/{progress.total_steps}"]
    if progress.loss is not None:
        parts.append(f"loss {format_number(progress.loss)}")
    if progress.metric_name and progress.metric is not None:
        parts.append(f"{to_single_line(progress.metric_name)} {format_metric(progress)}")
    if progress.seconds_left and not (run.condition and run.condition.is_final):
        parts.append(f"{format_duration(progress.seconds_left)} left")
    return f"{bar(progress.step / progress.total_steps)}  {'  '.join(parts)}"


def format_metric(progress: "RunProgress") -> str:
    """Return the metric of the newest evaluation, and its baseline if there is one."""
    value = format_number(progress.metric)
    if progress.baseline is None:
        return value
    return f"{value} (baseline {format_number(progress.baseline)})"


def bar(share: float) -> str:
    """Return a bar of plain characters for a share from 0 to 1."""
    full = round(min(1.0, max(0.0, share)) * BAR_WIDTH)
    return "[" + "=" * full + " " * (BAR_WIDTH - full) + "]"
