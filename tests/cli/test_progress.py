"""The live line of a run."""

import io

from runyard.cli.progress import PhaseLines, ProgressLine, WorkLine, format_progress
from vi.api.resources.datasets.responses import DatasetImport, ImportProgress, ImportStatus
from vi.api.resources.runs.responses import Run, RunProgress, RunStatus
from vi.api.responses import ConditionKind, ResourceCondition


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_at(
    step: int, *, reason: str = "Training", kind: ConditionKind = ConditionKind.RUNNING
) -> Run:
    progress = RunProgress(
        step=step,
        total_steps=100,
        loss=0.51234,
        metric_name="accuracy",
        metric=0.9,
        baseline=0.125,
        seconds_left=12.0,
    )
    return Run(
        status=RunStatus(
            conditions=[ResourceCondition(condition=kind, reason=reason)], progress=progress
        )
    )


def test_the_line_says_step_loss_metric_and_time_left() -> None:
    assert format_progress(run_at(50)) == (
        "[============            ]  Running, Training  step 50/100  loss 0.5123  "
        "accuracy 0.9 (baseline 0.125)  12s left"
    )


def test_a_finished_run_has_no_time_left() -> None:
    assert "left" not in format_progress(
        run_at(100, reason="Completed", kind=ConditionKind.SUCCEEDED)
    )


def test_before_the_first_step_the_line_is_the_state() -> None:
    waiting = Run(
        status=RunStatus(
            conditions=[ResourceCondition(condition=ConditionKind.PENDING, reason="Queued")]
        )
    )
    assert format_progress(waiting) == "Pending, Queued"
    assert format_progress(Run()) == "Waiting"


def test_without_a_terminal_a_line_is_printed_per_condition_and_every_few_seconds() -> None:
    clock = [0.0]
    stream = io.StringIO()
    ended = run_at(5, reason="Completed", kind=ConditionKind.SUCCEEDED)
    runs = [
        (0, run_at(1)),
        (1, run_at(2)),
        (2, run_at(3, reason="Evaluating")),
        (60, run_at(4)),
        (61, ended),
    ]
    with ProgressLine(stream, now=lambda: clock[0]) as line:
        for clock[0], run in runs:
            line.update(run)
    steps = [
        text.partition("step ")[2].partition("/")[0] for text in stream.getvalue().splitlines()
    ]
    assert steps == ["1", "4", "5"]
    assert "\r" not in stream.getvalue()


def test_on_a_terminal_the_line_changes_in_place() -> None:
    stream = Terminal()
    with ProgressLine(stream) as line:
        line.update(run_at(1))
        line.update(run_at(2))
    assert stream.getvalue().count("\r\x1b[2K") == 2
    assert stream.getvalue().count("\n") == 1


def test_other_text_may_be_printed_between_two_lines() -> None:
    stream = Terminal()
    with ProgressLine(stream) as line:
        line.interrupt()  # nothing is drawn yet
        line.update(run_at(1))
        line.interrupt()
        stream.write("by the way\n")
        line.update(run_at(1))
    assert stream.getvalue().split("\n")[1] == "by the way"
    assert stream.getvalue().count("step 1/") == 2
    assert stream.getvalue().count("\n") == 3


def test_the_same_state_is_not_written_twice() -> None:
    stream = Terminal()
    with ProgressLine(stream) as line:
        line.update(run_at(1))
        line.update(run_at(1))
    assert stream.getvalue().count("\r") == 1


def test_local_progress_is_a_bar_on_a_terminal_and_few_lines_elsewhere() -> None:
    stream = Terminal()
    with WorkLine(stream) as line:
        line.update("Merging", 0, 0)
        line.update("Replaying", 1, 2)
    assert (
        stream.getvalue() == "\r\x1b[2KMerging\r\x1b[2K[============            ]  Replaying 1/2\n"
    )

    clock, file = [0.0], io.StringIO()
    with WorkLine(file, now=lambda: clock[0]) as line:
        for seconds, doing, done in [
            (0, "Merging", 0),
            (1, "Replaying", 0),
            (2, "Replaying", 5),
            (7, "Replaying", 9),
        ]:
            clock[0] = seconds
            line.update(doing, done, 10 if doing == "Replaying" else 0)
    assert [text.split("  ")[-1] for text in file.getvalue().splitlines()] == [
        "Merging", "Replaying 0/10", "Replaying 9/10",
    ]  # fmt: skip


def test_an_import_shows_how_each_phase_ends() -> None:
    stream, clock = io.StringIO(), [0.0]
    lines = PhaseLines(stream, now=lambda: clock[0])
    seen = [("Sending", 0), ("Sending", 3), ("Sending", 5), ("Inspecting", 0), ("Inspecting", 5)]
    for clock[0], (phase, done) in enumerate(seen):
        progress = ImportProgress(phase=phase, files=5, files_done=done)
        lines.update(DatasetImport(status=ImportStatus(progress=progress)))
    clock[0] = 60.0
    lines.update(DatasetImport(status=ImportStatus(progress=progress)))
    shown = [line.partition(" files")[0] for line in stream.getvalue().splitlines()]
    assert shown == ["Sending  0/5", "Sending  5/5", "Inspecting  0/5", "Inspecting  5/5"]
