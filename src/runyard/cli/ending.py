"""What becomes of the runs when an instance ends: found out while its server still answers, kept for ``runyard down``.

Runs that were training are looked at twice, before the controller ends and after it has: only then they are saved.
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
SHOWN = 100  # runs that are looked at one by one


class Ended(TypedDict):
    """One run at the end of an instance: ``outcome`` is saved, restarts, goes-on or its last state."""

    runId: str
    outcome: str
    step: int | None


class Ending:
    """The end of an instance. Nothing here keeps it from ending: what cannot be found out is not reported."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._running: list[str] = []
        self._waiting = 0
        self._runs: list[Ended] = []
        self._path = report_path(settings)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def begin(self) -> None:
        """Find out which runs train now; call before the controller ends."""

        def ask(client: "vi.Client") -> None:
            from vi.api.types import PaginationParams

            page = PaginationParams(page_size=SHOWN)
            self._running = [run.run_id for run in client.runs.list(pagination=page, condition="Running").items]
            self._waiting = len(client.runs.list(pagination=page, condition="Pending").items)

        self._ask(ask)

    def finish(self) -> None:
        """Find out what became of them; call when the controller has ended, before the server does."""
        if self._running:
            self._ask(lambda client: self._runs.extend(_ended(client, run_id) for run_id in self._running))
        with suppress(OSError):
            write_json(self._path, {"time": round(time.time() * 1000), "waiting": self._waiting, "runs": self._runs})

    def lines(self) -> list[str]:
        """What to tell a person."""
        return told({"waiting": self._waiting, "runs": self._runs})

    def _ask(self, question: Any) -> None:
        # Whatever goes wrong here must not keep the instance from ending.
        with suppress(Exception), connect(self._settings.data_dir, timeout_s=ANSWER_TIMEOUT_S) as client:
            question(client)


def report_path(settings: Settings) -> Path:
    """Where the last end of an instance is kept."""
    return settings.data_dir / "ended.json"


def last_report(settings: Settings) -> dict[str, Any]:
    """What is known about the last end; empty when nothing is."""
    return read_json(report_path(settings)) or {}


def told(report: dict[str, Any]) -> list[str]:
    """One line for each run that was training, and one for those that waited."""
    lines = [_line(run) for run in report.get("runs") or []]
    if waiting := report.get("waiting"):
        lines.append(f"{waiting} {'run waits' if waiting == 1 else 'runs wait'} and can begin after the next start.")
    return lines


def _line(run: Ended) -> str:
    match run["outcome"]:
        case "saved":
            return f"Run {run['runId']} was saved at step {run['step']}; it resumes at the next start."
        case "restarts":
            return f"Run {run['runId']} has no checkpoint yet; it begins again at the next start."
        case "goes-on":
            return f"Run {run['runId']} trains on without the instance; the next start takes it over."
        case state:
            return f"Run {run['runId']} ended: {state}."


def _ended(client: "vi.Client", run_id: str) -> Ended:
    from vi import ViNotFoundError

    run = client.runs.get(run_id)
    state = run.condition.value if run.condition else "Unknown"
    if run.condition is not None and run.condition.is_final:
        return {"runId": run_id, "outcome": state, "step": None}
    if state == "Running":
        return {"runId": run_id, "outcome": "goes-on", "step": None}
    try:
        step = client.models.get(run_id).spec.step
    except ViNotFoundError:
        return {"runId": run_id, "outcome": "restarts", "step": None}
    return {"runId": run_id, "outcome": "saved", "step": step}
