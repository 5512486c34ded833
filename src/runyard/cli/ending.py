"""The report on the runs of an instance that ends, made while its server still answers and kept for ``runyard down``.

Runs are read twice, before the controller ends and after it has: only then are they saved.
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
SHOWN = 100  # runs that are read one by one


class RunEnd(TypedDict):
    """One run at the end of an instance: ``outcome`` is saved, restarts, continues or its last state."""

    runId: str
    outcome: str
    step: int | None


class Ending:
    """The end of an instance. Nothing here keeps it from ending: what cannot be found out is not reported."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._running: list[str] = []
        self._waiting = 0
        self._is_complete = True
        self._runs: list[RunEnd] = []
        self._path = report_path(settings)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def begin(self) -> None:
        """Read which runs train now; call before the controller ends."""

        def ask(client: "vi.Client") -> None:
            from vi.api.types import PaginationParams

            page = PaginationParams(page_size=SHOWN)
            self._running = [run.run_id for run in client.runs.list(pagination=page, condition="Running").items]
            self._waiting = len(client.runs.list(pagination=page, condition="Pending").items)

        self._ask(ask)

    def finish(self) -> None:
        """Read what became of them; call when the controller has ended, before the server does."""
        if self._running:
            self._ask(lambda client: self._runs.extend(_describe_run(client, run_id) for run_id in self._running))
        with suppress(OSError):
            write_json(self._path, {"time": round(time.time() * 1000), **self._report()})

    def lines(self) -> list[str]:
        """Return the report for a person to read."""
        return format_report(self._report())

    def _report(self) -> dict[str, Any]:
        return {"waiting": self._waiting, "runs": self._runs, "isComplete": self._is_complete}

    def _ask(self, question: Any) -> None:
        try:
            with connect(self._settings.data_dir, timeout_s=ANSWER_TIMEOUT_S) as client:
                question(client)
        except Exception:  # whatever it is, it must not keep the instance from ending
            self._is_complete = False


def report_path(settings: Settings) -> Path:
    """Return the path of the report on the last end of an instance."""
    return settings.data_dir / "ended.json"


def read_report(settings: Settings) -> dict[str, Any]:
    """Return the report on the last end; empty when there is none."""
    return read_json(report_path(settings)) or {}


def format_report(report: dict[str, Any]) -> list[str]:
    """Return one line for each run that was training, and one for those that waited."""
    lines = [_line(run) for run in report.get("runs") or []]
    if waiting := report.get("waiting"):
        lines.append(f"{waiting} {'run waits' if waiting == 1 else 'runs wait'} and can begin after the next start.")
    if not report.get("isComplete", True):
        lines.append("The server did not answer at the end, so what became of further runs is not known.")
    return lines


def _line(run: RunEnd) -> str:
    match run["outcome"]:
        case "saved":
            return f"Run {run['runId']} was saved at step {run['step']}; it resumes at the next start."
        case "restarts":
            return f"Run {run['runId']} has no checkpoint yet; it begins again at the next start."
        case "continues":
            return f"Run {run['runId']} trains on without the instance; the next start takes it over."
        case state:
            return f"Run {run['runId']} ended: {state}."


def _describe_run(client: "vi.Client", run_id: str) -> RunEnd:
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
