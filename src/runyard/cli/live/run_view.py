"""One run on a screen: state and progress, the curve of one metric, the end of its log.

``RunView`` decides what a key does and which lines are shown; it neither reads nor draws.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from runyard.cli.live.curve import draw_curve
from runyard.cli.live.feed import RunState
from runyard.cli.live.lines import (
    Line,
    choose_shape,
    describe_left,
    describe_usage,
    fit_lines,
    style_condition,
)
from runyard.cli.output import format_duration, format_number, to_single_line
from runyard.cli.progress import bar, format_metric

if TYPE_CHECKING:
    from vi.api.resources.runs.responses import Run

HELP = "k kill   m next metric   q leave"
_MIN_CURVE_HEIGHT = 3


class RunView:
    """Screen of one run.

    ``kill`` is called after the question was answered with yes, ``select`` with the name of the
    metric to read next.
    """

    def __init__(
        self,
        run_id: str,
        *,
        kill: Callable[[str], None],
        select: Callable[[str], None],
        is_plain: bool = False,
    ) -> None:
        self.run_id = run_id
        self.is_left = False
        self.notice = ""
        self._kill, self._select, self._is_plain = kill, select, is_plain
        self._is_confirming = False
        self._metric: str | None = None

    def press_key(self, key: str, state: RunState | None) -> None:
        """Handle a key."""
        self.notice = ""
        if self._is_confirming:
            self._is_confirming = False
            if key in ("y", "Y"):
                self._kill(self.run_id)
                self.notice = "kill requested: the run saves a checkpoint and stops"
            else:
                self.notice = "not killed"
        elif key in ("q", "escape"):
            self.is_left = True
        elif key == "m":
            self._select_next(state)
        elif key == "k":
            if state is not None and is_ended(state.run):
                self.notice = "the run has ended"
            else:
                self._is_confirming = True

    def build_lines(
        self, state: RunState | None, *, problem: str, width: int, height: int
    ) -> list[Line]:
        """Return the lines of the screen, at most ``height``."""
        footer = Line(self._footer(problem), "bold" if self._is_confirming else "dim")
        if state is None:
            return fit_lines([Line(f"run {self.run_id}: reading…")], footer, height=height)
        head = build_head(state.run, is_plain=self._is_plain)
        if state.usage:
            head.append(Line(describe_usage(state.usage), "dim"))
        head.append(Line(""))
        left = height - len(head) - 1
        curve_height = max(_MIN_CURVE_HEIGHT, min(14, left // 2))
        curve = self._build_curve(state, width=width, height=curve_height)
        body = [*head, *curve]
        log_height = max(0, height - len(body) - 1)
        lines = [Line(to_single_line(line.text)) for line in state.lines[-log_height:]]
        return fit_lines([*body, *(lines if log_height else [])], footer, height=height)

    def _build_curve(self, state: RunState, *, width: int, height: int) -> list[Line]:
        if state.metric is None:
            return [Line("no metrics yet", "dim"), Line("")]
        step, value = state.curve[-1]
        title = f"{to_single_line(state.metric)}  {format_number(value)}  step {step:,.0f}"
        drawn = draw_curve(state.curve, width=width, height=height, is_plain=self._is_plain)
        return [Line(title, "bold"), *(Line(text, "cyan") for text in drawn), Line("")]

    def _select_next(self, state: RunState | None) -> None:
        if state is None or not state.metrics:
            return
        names = list(state.metrics)
        shown = self._metric or state.metric
        index = names.index(shown) + 1 if shown in names else 0
        self._metric = names[index % len(names)]
        self._select(self._metric)
        self.notice = f"reading {to_single_line(self._metric)}"

    def _footer(self, problem: str) -> str:
        if self._is_confirming:
            return f"kill run {self.run_id}? y/N   It saves a checkpoint and stops."
        return "   ".join(filter(None, [to_single_line(problem), self.notice, HELP]))


def build_head(run: "Run", *, is_plain: bool = False) -> list[Line]:
    """Return the lines above the curve: name, condition, progress."""
    condition = run.condition.value if run.condition else "Unknown"
    last = run.status.conditions[-1] if run.status.conditions else None
    why = (
        " ".join(filter(None, [last.reason, last.message and f"({last.message})"])) if last else ""
    )
    lines = [
        Line(to_single_line(f"{run.name}  {run.run_id}"), "bold"),
        Line(
            to_single_line(f"{choose_shape(condition, is_plain=is_plain)} {condition}  {why}"),
            style_condition(condition),
        ),
    ]
    for finding in run.status.findings:
        lines.append(Line(to_single_line(f"! {finding.message}"), "yellow"))
    progress = run.status.progress
    if progress is None:
        return lines
    facts = [
        f"step {progress.step:,}" + (f"/{progress.total_steps:,}" if progress.total_steps else "")
    ]
    if progress.total_steps:
        facts.insert(
            0,
            f"{bar(progress.step / progress.total_steps)} "
            f"{progress.step / progress.total_steps:.0%}",
        )
    if progress.loss is not None:
        facts.append(f"loss {format_number(progress.loss)}")
    if progress.metric is not None:
        facts.append(f"{progress.metric_name or 'metric'} {format_metric(progress)}")
    if left := describe_left(run):
        facts.append(left)
    return [*lines, Line(to_single_line("  ".join(facts)))]


def is_ended(run: "Run") -> bool:
    """Return True if the run is in a final state."""
    return run.condition is not None and run.condition.is_final


def describe_duration(run: "Run") -> str:
    """Return how long a run took from its creation to its last transition."""
    if not run.status.conditions:
        return ""
    end_ms = run.status.conditions[-1].last_transition_time
    return format_duration(max(0, end_ms - run.metadata.time_created) / 1000)
