"""All running and waiting runs on a screen, with the use of each machine.

``RunsView`` decides what a key does and which lines are shown; it neither reads nor draws. The
cursor stays on its run when runs above it start or end.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runyard.cli.live.feed import RunsState
from runyard.cli.live.lines import (
    Line,
    choose_shape,
    describe_left,
    describe_usage,
    fit_lines,
    style_condition,
)
from runyard.cli.output import format_age, format_number, to_single_line

if TYPE_CHECKING:
    from vi.api.resources.runs.responses import Run

HELP = "↑↓ move   Enter watch   x kill   q quit"
COLUMNS = (
    "",
    "NAME",
    "RUN",
    "CONDITION",
    "PROGRESS",
    "LOSS",
    "METRIC",
    "LEFT",
    "AGE",
    "MACHINE",
    "USE",
)
_MAX_NAME = 28


class RunsView:
    """Screen of all runs that have not ended. ``opened`` is the run that Enter was pressed on."""

    def __init__(self, *, kill: Callable[[str], None], is_plain: bool = False) -> None:
        self.is_left = False
        self.opened: str | None = None
        self.notice = ""
        self._kill, self._is_plain = kill, is_plain
        self._selected: str | None = None
        self._to_confirm: str | None = None

    def press_key(self, key: str, state: RunsState | None) -> None:
        """Handle a key."""
        self.notice = ""
        runs = state.runs if state is not None else ()
        index = self._find_selected(runs)
        if self._to_confirm is not None:
            run_id, self._to_confirm = self._to_confirm, None
            if key in ("y", "Y"):
                self._kill(run_id)
                self.notice = f"kill requested: {run_id}"
            else:
                self.notice = "not killed"
        elif key in ("q", "escape"):
            self.is_left = True
        elif runs:
            self._press_on_run(key, runs, index)

    def build_lines(
        self, state: RunsState | None, *, problem: str, width: int, height: int
    ) -> list[Line]:
        """Return the lines of the screen, at most ``height``."""
        footer = Line(self._footer(problem), "bold" if self._to_confirm else "dim")
        if state is None:
            return fit_lines([Line("reading runs…")], footer, height=height)
        head = [Line(text, "bold") for text in build_summary(state)]
        if not state.runs:
            empty = Line("no run is running or waiting. try: runyard runs create")
            return fit_lines([*head, Line(""), empty], footer, height=height)
        rows = build_rows(state, is_plain=self._is_plain)
        index = self._find_selected(state.runs)
        self._selected = state.runs[index].run_id
        visible = max(1, height - len(head) - 3)
        first = max(0, min(index - visible // 2, len(rows) - visible))
        heading, *texts = align_columns([COLUMNS, *rows])
        body = [
            Line(
                text,
                "reverse" if number == index else style_condition(describe_condition(run)),
            )
            for number, (text, run) in enumerate(zip(texts, state.runs, strict=True))
        ]
        return fit_lines(
            [*head, Line(""), Line(heading, "bold"), *body[first : first + visible]],
            footer,
            height=height,
        )

    def _press_on_run(self, key: str, runs: "Sequence[Run]", index: int) -> None:
        moves = {"down": index + 1, "j": index + 1, "up": index - 1, "k": index - 1}
        moves |= {"home": 0, "g": 0, "end": len(runs) - 1, "G": len(runs) - 1}
        if key in moves:
            index = min(len(runs) - 1, max(0, moves[key]))
        self._selected = runs[index].run_id
        if key == "x":
            self._to_confirm = self._selected
        elif key == "enter":
            self.opened = self._selected
            self.is_left = True

    def _find_selected(self, runs: "Sequence[Run]") -> int:
        return next((number for number, run in enumerate(runs) if run.run_id == self._selected), 0)

    def _footer(self, problem: str) -> str:
        if self._to_confirm is not None:
            return f"kill run {self._to_confirm}? y/N   It saves a checkpoint and stops."
        return "   ".join(filter(None, [to_single_line(problem), self.notice, HELP]))


def build_summary(state: RunsState) -> list[str]:
    """Return the number of runs in each condition, and what the runs of each machine use."""
    counts = Counter(describe_condition(run) for run in state.runs)
    machines: dict[str, Counter[str]] = {}
    for run in state.runs:
        if describe_condition(run) == "Running" and (machine := find_machine(run)):
            used = machines.setdefault(machine, Counter())
            used["runs"] += 1
            used.update(state.usage.get(run.run_id, {}))  # adds the values
    text = f"{counts['Running']} running   {counts['Pending']} waiting"
    parts = [
        to_single_line(f"{name}: {format_runs(used['runs'])}   {describe_usage(used)}".rstrip())
        for name, used in sorted(machines.items())
    ]
    return [text, *parts]


def format_runs(count: int) -> str:
    """Return a number of runs with its noun."""
    return f"{count} run{'' if count == 1 else 's'}"


def build_rows(state: RunsState, *, is_plain: bool) -> list[tuple[str, ...]]:
    """Return one row per run, with the columns of ``COLUMNS``."""
    rows = []
    for run in state.runs:
        condition, progress = describe_condition(run), run.status.progress
        reason = run.status.conditions[-1].reason if run.status.conditions else None
        share = (
            f"{progress.step:,}/{progress.total_steps:,} {progress.step / progress.total_steps:.0%}"
            if progress and progress.total_steps
            else ""
        )
        metric = (
            f"{progress.metric_name} {format_number(progress.metric)}"
            if progress and progress.metric_name
            else ""
        )
        row = (
            choose_shape(condition, is_plain=is_plain),
            run.name if len(run.name) <= _MAX_NAME else run.name[: _MAX_NAME - 1] + "…",
            run.run_id,
            f"{condition} {reason or ''}".rstrip(),
            share,
            format_number(progress.loss) if progress else "",
            metric,
            describe_left(run).removesuffix(" left"),
            format_age(run.metadata.time_created),
            find_machine(run),
            describe_usage(state.usage.get(run.run_id, {})),
        )
        rows.append(tuple(to_single_line(cell) for cell in row))
    return rows


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one text per row, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def describe_condition(run: "Run") -> str:
    """Return the name of the condition of a run."""
    return run.condition.value if run.condition else "Unknown"


def find_machine(run: "Run") -> str:
    """Return the machine of the newest attempt; empty before the first."""
    return run.status.attempts[-1].machine if run.status.attempts else ""
