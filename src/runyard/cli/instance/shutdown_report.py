"""Report on the runs of an instance that shuts down, also written to disk for ``runyard down``.

Runs are read before the controller stops and after it: only then are they saved. The server must
still be running both times.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from runyard.cli.connection import connect
from runyard.rundir import read_json, write_json
from runyard.settings import Settings

if TYPE_CHECKING:
    import vi

ANSWER_TIMEOUT_S = 5.0
SHOWN = 100  # maximum number of running runs in the report


class RunAtShutdown(TypedDict):
    """One run at shutdown; ``outcome`` is saved, restarts, continues or its final state."""

    runId: str
    outcome: str
    step: int | None


class ShutdownReport:
    """Report on a shutdown. Failures never prevent the shutdown; the report is then incomplete."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._running: list[str] = []
        self._waiting = 0
        self._is_complete = True
        self._runs: list[RunAtShutdown] = []
        self._path = report_path(settings)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def record_running(self) -> None:
        """Read which runs are running; call before the controller stops."""

        def read_runs(client: "vi.Client") -> None:
            from vi.api.types import PaginationParams

            page = PaginationParams(page_size=SHOWN)
            self._running = [
                run.run_id for run in client.runs.list(pagination=page, condition="Running").items
            ]
            self._waiting = len(client.runs.list(pagination=page, condition="Pending").items)

        self._query(read_runs)

    def record_outcomes(self) -> None:
        """Read the outcome of those runs.

        Call after the controller has stopped, before the server.
        """
        if self._running:
            self._query(
                lambda client: self._runs.extend(
                    _describe_run(client, run_id) for run_id in self._running
                )
            )
        with suppress(OSError):
            write_json(self._path, {"time": round(time.time() * 1000), **self._report()})

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        return format_report(self._report())

    def _report(self) -> dict[str, Any]:
        return {"waiting": self._waiting, "runs": self._runs, "isComplete": self._is_complete}

    def _query(self, read: Any) -> None:
        try:
            with connect(self._settings.data_dir, timeout_s=ANSWER_TIMEOUT_S) as client:
                read(client)
        except Exception:  # no failure may prevent the shutdown
            self._is_complete = False


def report_path(settings: Settings) -> Path:
    """Return the path of the report on the last shutdown."""
    return settings.data_dir / "ended.json"


def read_report(settings: Settings) -> dict[str, Any]:
    """Return the report on the last shutdown; empty without one."""
    return read_json(report_path(settings)) or {}


def format_report(report: dict[str, Any]) -> list[str]:
    """Return one line per run that was running, and one for the pending runs."""
    lines = [_line(run) for run in report.get("runs") or []]
    if waiting := report.get("waiting"):
        lines.append(
            f"{waiting} pending {'run starts' if waiting == 1 else 'runs start'} after the next "
            "start."
        )
    if not report.get("isComplete", True):
        lines.append(
            "The server did not respond during shutdown, so the outcome of other runs is unknown."
        )
    return lines


def _line(run: RunAtShutdown) -> str:
    match run["outcome"]:
        case "saved":
            return (
                f"Run {run['runId']} was saved at step {run['step']}; it resumes at the next start."
            )
        case "restarts":
            return f"Run {run['runId']} has no checkpoint yet; it restarts at the next start."
        case "continues":
            return (
                f"Run {run['runId']} continues without the instance; the next start monitors it "
                "again."
            )
        case state:
            return f"Run {run['runId']} ended: {state}."


def _describe_run(client: "vi.Client", run_id: str) -> RunAtShutdown:
    from vi import ViNotFoundError

    run = client.runs.get(run_id)
    state = run.condition.value if run.condition else "Unknown"
    if run.condition is not None and run.condition.is_final:
        return {"runId": run_id, "outcome": state, "step": None}
    if state == "Running":
        return {"runId": run_id, "outcome": "continues", "step": None}
    try:
        step = client.models.get(run_id).spec.step
    except ViNotFoundError:
        return {"runId": run_id, "outcome": "restarts", "step": None}
    return {"runId": run_id, "outcome": "saved", "step": step}
