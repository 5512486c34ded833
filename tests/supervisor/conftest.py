"""A run folder with an attempt to supervise, and a fake server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.supervisor.fake_server import FakeServer

RUN_TRAINER = """
import sys
from pathlib import Path
from runyard.supervisor.main import supervise
exec(Path(sys.argv[2]).read_text())
sys.exit(supervise(Path(sys.argv[1]), endpoint=sys.argv[3], token="t", train=train))
"""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An attempt that the controller has placed."""
    return place_attempt(tmp_path, attempt=1)


def place_attempt(data_dir: Path, *, attempt: int, run: str = "run-1") -> Path:
    folder = data_dir / "runs" / f"org-{os.getpid()}" / run / "attempts" / str(attempt)
    folder.mkdir(parents=True)
    placed = {
        "organizationId": f"org-{os.getpid()}",
        "runId": run,
        "attempt": attempt,
        "machineId": "machine-1",
        "leaseS": 1.2,
        "graceS": 5.0,
    }
    (folder / "placed.json").write_text(json.dumps(placed))
    return folder


@pytest.fixture
def start(tmp_path: Path, server: Any) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a supervisor whose trainer is the given Python text.

    It must define ``train(folder)``.
    """
    started: list[subprocess.Popen[bytes]] = []

    def run(folder: Path, trainer: str) -> subprocess.Popen[bytes]:
        script = tmp_path / f"trainer-{len(started)}.py"
        script.write_text(trainer)
        # Placeholders for the marks, as in the warm parent: the trainer is forked and never
        # executed.
        room = {"RUNYARD_ATTEMPT": "-" * 200, "RUNYARD_SUPERVISOR": "-" * 200}
        with (tmp_path / f"supervisor-{len(started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    RUN_TRAINER,
                    str(folder),
                    str(script),
                    server.endpoint,
                ],
                env={**os.environ, **room, "SECRET_TOKEN": "not for trainers"},
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def harness() -> SimpleNamespace:
    """Helpers for tests that need several servers and attempts."""
    return SimpleNamespace(new_server=FakeServer, place_attempt=place_attempt, script=RUN_TRAINER)
