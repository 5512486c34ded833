"""A running instance, and runs on it that do not end by themselves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vi
from runyard.processes import ATTEMPT_MARK, find_marked
from tests.support.waiting import eventually
from vi.api.resources.runs.responses import Run

# Trains for hours unless killed, and never stops to evaluate or save.
LONG_RECIPE: dict[str, Any] = {
    "name": "Long training",
    "blocks": [
        {
            "block": "vi-model",
            "settings": {
                "hyperparameters": {"epochs": 10000},
                "checkpoint": {"every": {"steps": 1000000}},
                "validation": {"every": {"steps": 1000000}},
            },
        }
    ],
}
# A third of the share of others; a trainer must still end in time when it is killed.
LONG_RUN_NICENESS = 5
END_TIMEOUT_S = 30


@dataclass(frozen=True)
class Instance:
    """A running server and controller, and the run of the empty flow that started with them.

    ``training`` is the process of ``examples/quick_training.py``, whose output goes to
    ``training_output``.
    """

    data_dir: Path
    endpoint: str
    secret_key: str
    organization_id: str
    trained_run_id: str
    training: subprocess.Popen[bytes]
    training_output: Path

    @property
    def credentials_file(self) -> Path:
        return self.data_dir / "credentials.json"

    @property
    def environ(self) -> dict[str, str]:
        """The three variables that point either client at this instance."""
        return name_variables(
            {
                "endpoint": self.endpoint,
                "secret_key": self.secret_key,
                "organization_id": self.organization_id,
            }
        )

    def client(self) -> vi.Client:
        return vi.Client(
            secret_key=self.secret_key, organization_id=self.organization_id, endpoint=self.endpoint
        )


class LongRuns:
    """Runs that do not end by themselves: one is Running in the only slot, others wait."""

    def __init__(self, client: vi.Client) -> None:
        self._client = client
        self._started: list[str] = []

    def running(self) -> Run:
        """A run that is Running now; another one if a test has killed the last."""
        if not self._in("Pending", "Running"):
            self._start()
        found = eventually(lambda: self._in("Running"), timeout_s=60, what="a long run is running")
        _lower_priority(found[0].run_id)
        return found[0]

    def pending(self) -> Run:
        """A run that waits for the slot."""
        self.running()
        if not self._in("Pending"):
            self._start()
        return self._in("Pending")[0]

    def end(self) -> None:
        """Kill all, newest first: killing the running one first would start the next."""
        for run_id in reversed(self._started):
            end_run(self._client, run_id)

    def _start(self) -> None:
        self._started.append(self._client.runs.create(flow=LONG_RECIPE).run_id)

    def _in(self, *names: str) -> list[Run]:
        found = []
        for run_id in self._started:
            with suppress(vi.ViNotFoundError):
                run = self._client.runs.get(run_id)
                if run.condition is not None and run.condition.value in names:
                    found.append(run)
        return found


def _lower_priority(run_id: str) -> None:
    """Lower the priority of a run's trainer: it trains only to be Running, while tests wait.

    Where the kernel groups processes by session, the group has a priority of its own.
    """
    for identity, _ in find_marked(ATTEMPT_MARK, lambda mark: f"/{run_id}/" in mark):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, identity.pid, LONG_RUN_NICENESS)
            Path(f"/proc/{identity.pid}/autogroup").write_text(str(LONG_RUN_NICENESS))


EndRun = Callable[[vi.Client, str], None]


def end_run(client: vi.Client, run_id: str) -> None:
    """Kill a run and wait until it has ended.

    One that is gone or has ended already needs nothing.
    """
    with suppress(vi.ViNotFoundError, vi.ViConflictError):
        client.runs.kill(run_id)
        eventually(
            lambda: (now := client.runs.get(run_id).condition) and now.is_final,
            timeout_s=END_TIMEOUT_S,
            what=f"run {run_id} has ended",
        )


def name_variables(credentials: dict[str, str]) -> dict[str, str]:
    """The three variables that point either client at the instance of these credentials."""
    return {
        "DATATURE_VI_API_ENDPOINT": credentials["endpoint"],
        "DATATURE_VI_SECRET_KEY": credentials["secret_key"],
        "DATATURE_VI_ORGANIZATION_ID": credentials["organization_id"],
    }
