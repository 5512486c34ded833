"""A controller over a temporary data folder, whose supervisors are real processes with small
trainers.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runyard import processes, rundir
from runyard.controller.accelerators import Device
from runyard.controller.api_client import ServerClient
from runyard.controller.main import Controller
from runyard.executors import StartRequest, Warmth
from runyard.ports import Identity
from runyard.protocol import Assignment
from runyard.settings import Settings
from tests.supervisor.fake_server import FakeServer
from vi.api.resources.runs.responses import Run

DEVICES = [Device(f"GPU-{number}", "NVIDIA A10", 22.5) for number in (1, 2)]

SUPERVISE = """
import sys
from pathlib import Path
from runyard.supervisor.main import supervise
exec(sys.argv[2])
sys.exit(supervise(Path(sys.argv[1]), endpoint=sys.argv[3], token=sys.stdin.read(), train=train))
"""


class ScriptExecutor:
    """Start real supervisors with a trainer given as text, which does not import torch."""

    def __init__(self, trainer: str) -> None:
        self.trainer = trainer
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, request: StartRequest) -> Identity | None:
        (request.folder / "logs").mkdir(exist_ok=True)
        with rundir.AttemptDir(request.folder).supervisor_log.open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    SUPERVISE,
                    str(request.folder),
                    self.trainer,
                    request.endpoint,
                ],
                env={
                    **os.environ,
                    **request.environment,
                    "RUNYARD_SUPERVISOR": request.mark,
                    "RUNYARD_ATTEMPT": processes.MARK_PLACEHOLDER,
                },
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(request.token.encode())
        process.stdin.close()
        self.started.append(process)
        return processes.identify(process.pid)

    def warmth(self) -> Warmth:
        return "off"

    def warm_up(self) -> None:
        raise AssertionError("an executor without a warm parent must not be asked to warm up")

    def reap(self) -> None:
        for process in self.started:
            process.poll()

    def close(self) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def settings(tmp_path: Path, server: Any) -> Settings:
    settings = Settings(data_dir=tmp_path / "data", grace_s=5.0)
    settings.secrets_dir.mkdir(parents=True)
    key = {"endpoint": server.endpoint, "key": "controller-key"}
    rundir.write_json(settings.secrets_dir / "controller.json", key)
    return settings


@pytest.fixture
def executor() -> Iterator[ScriptExecutor]:
    executor = ScriptExecutor("def train(folder): return 0")
    yield executor
    for process in executor.started:
        process.kill()
        process.wait()


class ControllerStarter:
    """Starts controllers, each in a thread of its own."""

    def __init__(self, settings: Settings, executor: ScriptExecutor) -> None:
        self._settings, self._executor = settings, executor
        self._running: dict[Controller, threading.Thread] = {}

    def __call__(self, devices: Sequence[Device] | None = None, **changes: Any) -> Controller:
        controller = Controller(
            replace(self._settings, **changes),
            machine_id="machine-1",
            client=ServerClient(self._settings.secrets_dir / "controller.json"),
            executor=self._executor,
            devices=DEVICES if devices is None else devices,
        )
        thread = self._running[controller] = threading.Thread(target=controller.run)
        thread.start()
        return controller

    def end(self, controller: Controller) -> None:
        """End a controller, and wait until it has ended."""
        controller.request_shutdown()
        self._running[controller].join()

    def end_all(self) -> None:
        for controller, thread in self._running.items():
            controller.request_shutdown()
            controller.request_shutdown()
            thread.join()


@pytest.fixture
def control(settings: Settings, executor: ScriptExecutor) -> Iterator[ControllerStarter]:
    """Start controllers, which end with the test at the latest."""
    control = ControllerStarter(settings, executor)
    yield control
    control.end_all()


@pytest.fixture
def assign() -> Callable[..., dict[str, Any]]:
    """Build an assignment as the server sends it."""

    def build_document(attempt: int = 1) -> dict[str, Any]:
        organization_id = f"org-{os.getpid()}"
        assignment = Assignment(
            organization_id=organization_id,
            run_id="run-1",
            attempt=attempt,
            token="token",
            lease_s=1.2,
            grace_s=5.0,
            run=Run(run_id="run-1", organization_id=organization_id),
        )
        document: dict[str, Any] = msgspec.to_builtins(assignment)
        return document

    return build_document
