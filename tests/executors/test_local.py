"""Supervisors started on this machine: cold as a process, or forked from the warm parent."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runyard import processes, rundir
from runyard.executors import StartRequest
from runyard.executors.local import LocalExecutor
from runyard.settings import Settings
from tests.supervisor.fake_server import FakeServer
from vi._http import Trust

pytestmark = pytest.mark.skipif(not processes.IS_LINUX, reason="identities need /proc")

TOKEN = "ryat_the-token-of-this-attempt"
MARK = f"org-{os.getpid()}/run-1/1"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    fake.is_refusing = True  # so that no supervisor of these tests ever starts a trainer
    yield fake
    fake.close()


@pytest.fixture
def start_request(tmp_path: Path, server: Any) -> StartRequest:
    folder = tmp_path / "runs" / f"org-{os.getpid()}" / "run-1" / "attempts" / "1"
    folder.mkdir(parents=True)
    placed = {"organizationId": f"org-{os.getpid()}", "runId": "run-1", "attempt": 1}
    rundir.write_json(
        rundir.AttemptDir(folder).placed,
        {**placed, "machineId": "m", "leaseS": 15.0, "graceS": 5.0},
    )
    return StartRequest(folder=folder, mark=MARK, endpoint=server.endpoint, token=TOKEN)


def make_executor(tmp_path: Path, *, warm: bool) -> LocalExecutor:
    settings = Settings(data_dir=tmp_path, warm=warm)
    settings.machine_dir.mkdir()
    return LocalExecutor(settings)


def serve_one_answer(
    path: Path, answer: dict[str, Any]
) -> tuple[threading.Thread, list[dict[str, Any]]]:
    """Act as a warm parent for one request."""
    requests: list[dict[str, Any]] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection, connection.makefile("rwb") as file:
            requests.append(json.loads(file.readline()))
            file.write(json.dumps(answer).encode() + b"\n")
            file.flush()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread, requests


def is_reaped(executor: LocalExecutor) -> bool:
    executor.reap()
    return not executor._cold


class LivingParent:
    """A stand-in for the process of a living warm parent."""

    def poll(self) -> None:
        return None


def test_a_cold_supervisor_uses_its_token_and_exposes_it_nowhere(
    tmp_path: Path, server: Any, start_request: StartRequest
) -> None:
    shown: list[bytes] = []

    def look(path: str, times: int) -> None:
        for identity, _ in processes.find_marked(processes.SUPERVISOR_MARK, MARK.__eq__):
            shown.extend(
                Path(f"/proc/{identity.pid}/{name}").read_bytes() for name in ("cmdline", "environ")
            )

    server.fail = look
    executor = make_executor(tmp_path, warm=False)
    assert executor.warmth() == "off"
    identity = executor.start(start_request)
    assert identity is not None
    assert os.getsid(identity.pid) == identity.pid, "it outlives our session"
    server.wait_for(lambda: is_reaped(executor))
    assert rundir.AttemptDir(start_request.folder).closed.exists()
    assert server.credentials == {f"Bearer {TOKEN}"}
    assert shown and not any(TOKEN.encode() in text for text in shown)
    assert TOKEN not in repr(start_request)


def test_a_warm_parent_forks_the_supervisor(tmp_path: Path, start_request: StartRequest) -> None:
    executor = make_executor(tmp_path, warm=True)
    assert executor.warmth() == "down"
    executor._warm = LivingParent()  # type: ignore[assignment]
    assert executor.warmth() == "starting"
    thread, requests = serve_one_answer(tmp_path / "machine" / "warm.sock", {"pid": os.getpid()})
    assert executor.warmth() == "ready"
    start_request = replace(start_request, trust=Trust(ca="/ca.pem"))
    assert executor.start(start_request) == processes.identify(os.getpid())
    thread.join()
    assert requests == [
        {
            "folder": str(start_request.folder),
            "endpoint": start_request.endpoint,
            "token": TOKEN,
            "trust": {"ca": "/ca.pem", "certificate": ""},
            "log": str(rundir.AttemptDir(start_request.folder).supervisor_log),
        }
    ]


def test_a_supervisor_is_started_with_the_accelerator_of_its_request(
    tmp_path: Path, server: Any, start_request: StartRequest
) -> None:
    start_request = replace(start_request, environment={"CUDA_VISIBLE_DEVICES": "GPU-7"})
    seen: list[bytes] = []

    def look(path: str, times: int) -> None:
        for identity, _ in processes.find_marked(processes.SUPERVISOR_MARK, MARK.__eq__):
            seen.append(Path(f"/proc/{identity.pid}/environ").read_bytes())

    server.fail = look
    executor = make_executor(tmp_path, warm=False)
    executor.start(start_request)
    server.wait_for(lambda: is_reaped(executor))
    assert seen and all(b"CUDA_VISIBLE_DEVICES=GPU-7\0" in environment for environment in seen)
    (tmp_path / "warm").mkdir()
    executor = make_executor(tmp_path / "warm", warm=True)
    executor._warm = LivingParent()  # type: ignore[assignment]
    thread, requests = serve_one_answer(
        tmp_path / "warm" / "machine" / "warm.sock", {"pid": os.getpid()}
    )
    executor.start(start_request)
    thread.join()
    assert requests[0]["environment"] == {"CUDA_VISIBLE_DEVICES": "GPU-7"}


def test_a_failing_warm_parent_is_replaced_by_a_cold_start(
    tmp_path: Path, server: Any, start_request: StartRequest
) -> None:
    executor = make_executor(tmp_path, warm=True)
    executor._warm = LivingParent()  # type: ignore[assignment]
    thread, _ = serve_one_answer(tmp_path / "machine" / "warm.sock", {"error": "out of processes"})
    identity = executor.start(start_request)
    thread.join()
    assert identity is not None and identity.pid != os.getpid()
    server.wait_for(lambda: is_reaped(executor))


def test_a_socket_path_that_is_too_long_means_cold_starts(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / ("x" * 100), warm=True)
    assert LocalExecutor(settings).warmth() == "off"
