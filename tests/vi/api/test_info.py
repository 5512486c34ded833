"""Output of ``run.info()`` and of the progress bars."""

import io
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from vi.api._display import format_duration
from vi.api._progress import byte_progress, run_progress
from vi.api.resources.runs.responses import Run, summarize_run

PROGRESS = {
    "step": 120,
    "totalSteps": 300,
    "loss": 0.25,
    "metricName": "accuracy",
    "metric": 0.9,
    "baseline": 0.1,
    "secondsLeft": 200,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(run_document: Callable[..., dict[str, Any]]) -> Run:
    last = {
        "condition": "Failed",
        "status": "Reached",
        "reason": "OutOfMemory",
        "message": "needs 9 GiB [of] RAM",
    }
    attempt = {
        "attempt": 1,
        "machine": "m",
        "timeStarted": 1000,
        "timeEnded": 91000,
        "exitCode": 1,
        "cause": "died",
    }
    document = run_document("Pending", "Running", last, progress=PROGRESS, attempts=[attempt])
    document["metadata"]["attributes"] = {"experiment": "[red]baseline"}
    return msgspec.convert(document, Run)


def test_info_prints_the_status_and_all_known_fields(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.info()
    text = " ".join(capsys.readouterr().out.split())
    for fact in (
        "Run r-1",
        "Failed (OutOfMemory)",
        "needs 9 GiB [of] RAM",
        "step 120/300, loss 0.2500, accuracy 0.9000 (baseline 0.1000), 3 min 20 s left",
        "digits (schema v1, 0 blocks)",
        "experiment = [red]baseline",
        "on m, took 1 min 30 s, exit code 1, died",
    ):
        assert fact in text


def test_info_of_a_run_without_history_has_no_condition(
    run_document: Callable[..., dict[str, Any]],
) -> None:
    facts = dict(summarize_run(msgspec.convert(run_document(), Run)))
    assert facts["Status"] == "no condition yet"
    assert "Progress" not in facts


def test_times_are_local(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC-3")
    time.tzset()
    try:
        assert dict(summarize_run(run))["Created"] == "2026-01-01 03:00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("duration_s", "text"), [(-1, "0 s"), (42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_formatted(duration_s: float, text: str) -> None:
    assert format_duration(duration_s) == text


def test_progress_is_drawn_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with run_progress(True) as draw:
        draw(run)
    with byte_progress("r-1/epoch-1", total_bytes=2000, show=True) as draw_bytes:
        draw_bytes(2000)
    assert "step 120/300, loss 0.2500, accuracy 0.9000" in terminal.getvalue()
    assert "r-1/epoch-1" in terminal.getvalue()


@pytest.mark.parametrize("show", [True, False])
def test_progress_is_silent_without_a_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch, show: bool
) -> None:
    stream = io.StringIO() if show else Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with run_progress(show) as draw, byte_progress("x", total_bytes=None, show=show) as draw_bytes:
        draw(run)
        draw_bytes(1)
    assert stream.getvalue() == ""
