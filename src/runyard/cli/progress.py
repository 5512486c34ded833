"""The live line of a run that somebody follows: step, loss, metric, time left.

On a terminal it is one line that changes in place; elsewhere it is a plain line whenever the run's condition changes
and every few seconds between, so that the log of a build stays readable. It goes to stderr, so stdout stays for
results.
"""

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from runyard.cli.output import duration, number, one_line

if TYPE_CHECKING:
    from vi.api.resources.datasets.responses import DatasetImport
    from vi.api.resources.runs.responses import Run
    from vi.api.responses import ConditionKind

PLAIN_LINE_EVERY_S = 5.0
BAR_WIDTH = 24


class ProgressLine:
    """Give ``update`` to ``client.runs.wait(on_update=...)``; leaving the context ends the line."""

    def __init__(self, stream: TextIO | None = None, *, now: Callable[[], float] = time.monotonic):
        self._stream = stream or sys.stderr
        self._now = now
        self._is_live = self._stream.isatty()
        self._last_condition: ConditionKind | None = None
        self._last_text = ""
        self._printed_s = float("-inf")

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live and self._last_text:
            self._stream.write("\n")
            self._stream.flush()

    def interrupt(self) -> None:
        """End the line that is being drawn, so that something else can be said; the next update begins a new one."""
        if self._is_live and self._last_text:
            self._stream.write("\n")
            self._stream.flush()
            self._last_text = ""

    def update(self, run: "Run") -> None:
        """Show where a run stands now."""
        condition, text = run.condition, line_of(run)
        if text == self._last_text:
            return
        if self._is_live:
            # A line that wraps could not be rewritten in place.
            self._stream.write(f"\r\x1b[2K{text[: shutil.get_terminal_size().columns - 1]}")
        elif condition != self._last_condition or self._now() - self._printed_s >= PLAIN_LINE_EVERY_S:
            self._stream.write(f"{text}\n")
            self._printed_s = self._now()
        else:
            return
        self._stream.flush()
        self._last_condition, self._last_text = condition, text


class PhaseLines:
    """Give ``update`` to ``client.datasets.import_folder(progress=...)`` where nobody watches: a line for each phase,
    and one every few seconds between."""

    def __init__(self, stream: TextIO | None = None, *, now: Callable[[], float] = time.monotonic):
        self._stream = stream or sys.stderr
        self._now = now
        self._last_phase = ""
        self._printed_s = float("-inf")

    def update(self, imported: "DatasetImport") -> None:
        """Say where an import stands now, if it is time to."""
        from vi.api._progress import import_text

        phase = imported.status.progress.phase
        if phase == self._last_phase and self._now() - self._printed_s < PLAIN_LINE_EVERY_S:
            return
        self._last_phase, self._printed_s = phase, self._now()
        self._stream.write(one_line(f"{phase}  {import_text(imported)}") + "\n")
        self._stream.flush()


class WorkLine:
    """Give ``update`` to work on this machine that tells what it does, how much is done, and how much there is."""

    def __init__(self, stream: TextIO | None = None, *, now: Callable[[], float] = time.monotonic):
        self._stream = stream or sys.stderr
        self._now = now
        self._is_live = self._stream.isatty()
        self._last_doing = ""
        self._printed_s = float("-inf")

    def __enter__(self) -> "WorkLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live and self._last_doing:
            self._stream.write("\n")
            self._stream.flush()

    def update(self, doing: str, done: int, total: int) -> None:
        """Show where the work stands now; without a terminal a line for each thing done, and every few seconds."""
        text = one_line(f"{bar(done / total)}  {doing} {done}/{total}" if total else doing)
        if self._is_live:
            self._stream.write(f"\r\x1b[2K{text[: shutil.get_terminal_size().columns - 1]}")
        elif doing != self._last_doing or self._now() - self._printed_s >= PLAIN_LINE_EVERY_S:
            self._stream.write(f"{text}\n")
            self._printed_s = self._now()
        self._stream.flush()
        self._last_doing = doing


def state_of(run: "Run") -> str:
    """Condition and reason in words."""
    if not run.status.conditions:
        return "Waiting"
    latest = run.status.conditions[-1]
    return one_line(f"{latest.condition.value}, {latest.reason}" if latest.reason else latest.condition.value)


def line_of(run: "Run") -> str:
    """One line about where a run stands."""
    progress = run.status.progress
    if progress is None or not progress.total_steps:
        return state_of(run)
    parts = [state_of(run), f"step {progress.step}/{progress.total_steps}"]
    if progress.loss is not None:
        parts.append(f"loss {number(progress.loss)}")
    if progress.metric_name and progress.metric is not None:
        parts.append(f"{one_line(progress.metric_name)} {number(progress.metric)}")
    if progress.seconds_left and not (run.condition and run.condition.is_final):
        parts.append(f"{duration(progress.seconds_left)} left")
    return f"{bar(progress.step / progress.total_steps)}  {'  '.join(parts)}"


def bar(share: float) -> str:
    """A bar of plain characters."""
    full = round(min(1.0, max(0.0, share)) * BAR_WIDTH)
    return "[" + "=" * full + " " * (BAR_WIDTH - full) + "]"
