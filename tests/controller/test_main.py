"""A real controller and real supervisors with a fake server that records requests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard import processes, rundir
from runyard.controller import self_test
from runyard.controller.accelerators import Device
from runyard.controller.main import parse_mark
from runyard.protocol import LOST_OUT_OF_MEMORY, SelfTest
from runyard.settings import Settings, build_environment
from runyard.starting import EXIT_CANNOT_START

pytestmark = pytest.mark.skipif(not processes.IS_LINUX, reason="identities need /proc")

Control = Any
Assign = Callable[..., dict[str, Any]]

SAVES_ON_SIGTERM = """
def train(folder):
    import signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / "ready").write_text("")
    while True:
        time.sleep(600)
"""


NEVER_ENDS = """
def train(folder):
    import signal, time
    signal.signal(signal.SIGTERM, lambda *_: (folder / "asked").write_text(""))
    (folder / "ready").write_text("")
    while True:
        time.sleep(600)
"""


def locate_folder(settings: Settings, attempt: int = 1) -> Path:
    return rundir.AttemptDir.locate(settings.runs_dir, f"org-{os.getpid()}", "run-1", attempt).path


def identify_supervisor(folder: Path) -> Any:
    document = rundir.read_json(rundir.AttemptDir(folder).process)
    assert document is not None
    identity = processes.identify(document["supervisor"]["pid"])
    assert identity is not None
    return identity


def test_a_waiting_run_is_claimed_placed_and_reported(
    control: Control, server: Any, settings: Settings, assign: Assign
) -> None:
    server.waiting.append(assign())
    control()
    server.wait_for(lambda: server.reports)
    assert server.reports[0]["exit_code"] == 0
    assert server.processes[0]["machine_id"] == "machine-1"
    assert rundir.read_json(rundir.AttemptDir(locate_folder(settings)).run) is not None


def test_placements_are_fetched_before_anything_is_claimed(control: Control, server: Any) -> None:
    control()
    server.wait_for(lambda: "POST /internal/v1/claims" in server.calls)
    assert server.calls[0] == "GET /internal/v1/machines/machine-1"


def test_an_older_server_gets_the_fields_that_it_knows(control: Control, server: Any) -> None:
    control()
    server.wait_for(lambda: server.machines)
    assert server.machines["machine-1"] == {
        "host": socket.gethostname(),
        "labels": {"accelerator": ["a10"]},
        "accelerators": [{"name": "a10", "model": "NVIDIA A10", "count": 2, "memory_gib": 22.5}],
        "slots": 1,
    }


def test_a_failed_machine_report_does_not_stop_adoption(
    control: Control, server: Any, assign: Assign
) -> None:
    server.fail = lambda path, times: (
        "lose" if path.endswith("/machines/machine-1") and times == 2 else None
    )
    server.open.append(assign())
    control()
    server.wait_for(lambda: server.reports)
    assert server.reports[0]["exit_code"] == 0


def test_one_slot_runs_one_attempt_at_a_time(
    control: Control, server: Any, executor: Any, assign: Assign
) -> None:
    executor.trainer = SAVES_ON_SIGTERM
    server.waiting += [assign(1), assign(2)]
    control()
    server.wait_for(lambda: len(server.phases) >= 3)
    assert (len(server.waiting), len(executor.started)) == (1, 1)


WRITES_ITS_DEVICE = """
def train(folder):
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / "sees").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "everything"))
    while True:
        time.sleep(600)
"""
TWO_DEVICES = [Device("GPU-1", "NVIDIA A10"), Device("MIG-2", "NVIDIA A100 MIG 1g.5gb")]


def assign_other_run(document: dict[str, Any], number: int) -> dict[str, Any]:
    """Return the same assignment for another run, which needs no lock of the first."""
    return document | {
        "run_id": f"run-{number}",
        "run": document["run"] | {"runId": f"run-{number}"},
    }


@pytest.mark.parametrize(
    ("devices", "shared", "expected"),
    [
        (TWO_DEVICES, False, ["GPU-1", "MIG-2"]),
        (TWO_DEVICES, True, ["GPU-1", "GPU-1", "MIG-2"]),
        ([], False, ["everything"] * 3),
    ],
)
def test_each_slot_has_its_own_accelerator(
    control: Control,
    server: Any,
    settings: Settings,
    executor: Any,
    assign: Assign,
    devices: list[Device],
    shared: bool,
    expected: list[str],
) -> None:
    executor.trainer = WRITES_ITS_DEVICE
    server.waiting += [assign_other_run(assign(1), number) for number in (1, 2, 3)]
    control(devices, slots=3, share_accelerators=shared)
    runs = settings.runs_dir / f"org-{os.getpid()}"

    def read_devices() -> list[str]:
        return sorted(
            file.read_text() for file in runs.glob("*/attempts/1/sees") if file.read_text()
        )

    server.wait_for(lambda: len(read_devices()) >= len(expected))
    server.wait_for(lambda: len(server.phases) >= 3 * len(expected))
    assert read_devices() == expected
    assert len(server.waiting) == 3 - len(expected)


def test_a_run_with_several_accelerators_has_them_to_itself(
    control: Control, server: Any, settings: Settings, executor: Any, assign: Assign
) -> None:
    executor.trainer = WRITES_ITS_DEVICE
    several = assign_other_run(assign(1), 1)
    several["run"]["spec"] = {"flow": {"settings": {"resources": {"accelerators": 2}}}}
    server.waiting += [several, assign_other_run(assign(1), 2)]
    control([*TWO_DEVICES, Device("GPU-3", "NVIDIA A10")], slots=3)
    runs = settings.runs_dir / f"org-{os.getpid()}"
    sees = [runs / f"run-{number}/attempts/1/sees" for number in (1, 2)]
    server.wait_for(lambda: all(file.exists() and file.read_text() for file in sees))
    assert [file.read_text() for file in sees] == ["GPU-1,MIG-2", "GPU-3"]
    placed = [rundir.read_json(file.with_name("placed.json")) or {} for file in sees]
    assert [item["workers"] for item in placed] == [2, 1]
    server.wait_for(lambda: len(server.claims) == 2)  # no third claim: no accelerator is free
    offered = [claim["accelerators"] for claim in server.offers]
    assert (offered[0], sorted(set(offered))) == (3, [1, 3])


def test_a_restarted_controller_keeps_the_accelerator_of_a_living_run_reserved(
    control: Control, server: Any, settings: Settings, executor: Any, assign: Assign
) -> None:
    executor.trainer = WRITES_ITS_DEVICE
    server.waiting.append(assign_other_run(assign(1), 1))
    first = control(list(reversed(TWO_DEVICES)), slots=2, leave_running=True)
    runs = settings.runs_dir / f"org-{os.getpid()}"
    server.wait_for((runs / "run-1/attempts/1/sees").exists)
    control.end(first)
    server.waiting.append(assign_other_run(assign(1), 2))
    control(list(reversed(TWO_DEVICES)), slots=2, leave_running=False)
    server.wait_for((runs / "run-2/attempts/1/sees").exists)
    server.wait_for(lambda: (runs / "run-2/attempts/1/sees").read_text() != "")
    assert [(runs / f"run-{number}/attempts/1/sees").read_text() for number in (1, 2)] == [
        "MIG-2",
        "GPU-1",
    ]


def test_repeating_a_claim_whose_answer_was_lost_returns_the_same_attempt(
    control: Control, server: Any, executor: Any, assign: Assign
) -> None:
    server.waiting.append(assign())
    server.fail = lambda path, times: "lose" if path.endswith("/claims") and times == 1 else None
    control()
    server.wait_for(lambda: server.reports)
    assert (len(server.claims), len(executor.started)) == (1, 1)


def test_a_lost_supervisor_is_replaced_by_one_that_settles(
    control: Control, server: Any, settings: Settings, executor: Any, assign: Assign
) -> None:
    executor.trainer = SAVES_ON_SIGTERM
    server.waiting.append(assign())
    control()
    folder = locate_folder(settings)
    server.wait_for((folder / "ready").exists)
    trainer = rundir.read_json(rundir.AttemptDir(folder).process) or {}
    processes.send_signal(identify_supervisor(folder), signal.SIGKILL)
    server.wait_for(lambda: server.reports)
    # The kernel counts for the entire machine, and another test lets it run out of memory.
    assert server.reports[0]["cause"] in (
        "the supervisor was lost, and its trainer was ended",
        LOST_OUT_OF_MEMORY,
    )
    assert processes.identify(trainer["trainer"]["pid"]) is None
    assert len(executor.started) == 2


def test_a_kill_is_carried_out_although_the_supervisor_is_stopped(
    control: Control,
    server: Any,
    settings: Settings,
    executor: Any,
    assign: Assign,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runyard.controller.decide.UNRESPONSIVE_AFTER_S", 0.5)
    monkeypatch.setattr("runyard.controller.decide.ADOPT_EVERY_WHEN_UNRESPONSIVE_S", 0.3)
    executor.trainer = NEVER_ENDS
    server.waiting.append({**assign(), "grace_s": 0.5})
    control()
    folder = locate_folder(settings)
    server.wait_for((folder / "ready").exists)
    trainer = (rundir.read_json(rundir.AttemptDir(folder).process) or {})["trainer"]["pid"]
    processes.send_signal(identify_supervisor(folder), signal.SIGSTOP)
    with server.changed:
        server.open[0]["run"]["spec"]["killedAt"] = 1
    server.wait_for(lambda: server.reports)
    assert processes.identify(trainer) is None
    assert server.reports[0]["group_empty"] is True
    assert (folder / "asked").exists(), "it was asked to save first"


def test_too_little_disk_space_is_reported_with_the_claim_and_nothing_starts(
    control: Control, server: Any, executor: Any, assign: Assign, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [0]
    claims: list[dict[str, Any]] = []
    claim = server._claim
    monkeypatch.setattr(rundir, "free_bytes", lambda folder: free[0])

    def answer(offer: dict[str, Any]) -> dict[str, Any] | None:
        claims.append(offer)
        assignment: dict[str, Any] | None = None if offer["lacks_disk"] else claim(offer)
        return assignment

    monkeypatch.setattr(server, "_claim", answer)
    server.waiting.append(assign())
    control()
    server.wait_for(lambda: claims)
    assert (claims[0]["lacks_disk"], executor.started) == (True, [])
    free[0] = 1 << 40
    server.wait_for(lambda: server.reports)


def test_a_failed_start_is_retried(
    control: Control, server: Any, executor: Any, assign: Assign, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failures = executor.start, iter([OSError(28, "No space left on device")])

    def start_or_fail(order: Any) -> Any:
        for failure in failures:
            raise failure
        return start(order)

    monkeypatch.setattr(executor, "start", start_or_fail)
    server.waiting.append(assign())
    control()
    server.wait_for(lambda: server.reports)
    assert (server.reports[0]["exit_code"], len(executor.started)) == (0, 1)


def test_an_attempt_that_cannot_be_placed_is_left_to_its_lease(
    control: Control, server: Any, executor: Any, assign: Assign, settings: Settings
) -> None:
    settings.runs_dir.mkdir(parents=True)
    (settings.runs_dir / f"org-{os.getpid()}").write_text("in the way")
    server.waiting.append(assign())
    control()
    server.wait_for(lambda: server.calls.count("POST /internal/v1/claims") >= 2)
    assert executor.started == []


def test_a_living_supervisor_is_adopted_and_not_duplicated(
    control: Control, server: Any, settings: Settings, executor: Any, assign: Assign
) -> None:
    executor.trainer = SAVES_ON_SIGTERM
    server.waiting.append(assign())
    first = control(leave_running=True)
    server.wait_for((locate_folder(settings) / "ready").exists)
    first.request_shutdown()
    before = identify_supervisor(locate_folder(settings))
    adoptions = server.calls.count("GET /internal/v1/machines/machine-1")
    control(leave_running=True)
    server.wait_for(lambda: server.calls.count("GET /internal/v1/machines/machine-1") > adoptions)
    renewals = len(server.phases)
    server.wait_for(lambda: len(server.phases) >= renewals + 3)
    assert identify_supervisor(locate_folder(settings)) == before
    assert len(executor.started) == 1


def test_an_attempt_that_ended_without_a_controller_is_reported(
    control: Control, server: Any, settings: Settings, executor: Any, assign: Assign
) -> None:
    folder = locate_folder(settings)
    folder.mkdir(parents=True)
    rundir.write_json(
        rundir.AttemptDir(folder).process,
        {"bootId": "an earlier boot", "supervisor": {"pid": 1, "startTicks": 1}},
    )
    rundir.write_json(
        rundir.AttemptDir(folder).result,
        {"outcome": "Succeeded", "reason": "Completed", "message": ""},
    )
    server.open.append(assign())
    control()
    server.wait_for(lambda: server.reports)
    assert server.reports[0]["result"]["outcome"] == "Succeeded"
    assert not (folder / "ready").exists()


def test_a_run_deleted_with_its_final_report_frees_its_slot(
    control: Control, server: Any, settings: Settings, assign: Assign
) -> None:
    folder = locate_folder(settings)
    server.fail = lambda path, _: (
        shutil.rmtree(folder) if path.endswith("/finish") and folder.exists() else None
    )
    server.waiting += [assign(1), assign(2)]
    control()
    server.wait_for(lambda: len(server.reports) == 2, 30)
    assert not folder.exists()


def test_trainers_without_a_supervisor_are_killed(
    control: Control, server: Any, settings: Settings, tmp_path: Path
) -> None:
    locate_folder(settings, 7).mkdir(parents=True)
    ours, strangers = (
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            env={**os.environ, "RUNYARD_ATTEMPT": f"org-{os.getpid()}/{run}/7"},
        )
        for run in ("run-1", "run-of-another-instance")
    )
    control()
    assert ours.wait(10) == -signal.SIGKILL
    assert strangers.poll() is None
    strangers.kill()
    strangers.wait()


def test_shutdown_lets_runs_save_and_waits_for_them(
    control: Control, server: Any, settings: Settings, executor: Any, assign: Assign
) -> None:
    executor.trainer = SAVES_ON_SIGTERM
    server.waiting.append(assign())
    controller = control()
    server.wait_for((locate_folder(settings) / "ready").exists)
    server.waiting.append(assign(2))
    controller.request_shutdown()
    server.wait_for(lambda: server.reports)
    assert (server.reports[0]["exit_code"], server.reports[0]["cause"]) == (
        75,
        "stopped on request",
    )
    assert (rundir.read_json(rundir.AttemptDir(locate_folder(settings)).stop) or {})[
        "reason"
    ] == "leave"
    assert len(server.waiting) == 1, "nothing new is begun"


def test_a_second_controller_of_a_machine_exits_with_a_message(
    control: Control, server: Any, settings: Settings
) -> None:
    command = [sys.executable, "-P", "-m", "runyard.controller"]
    environ = {**os.environ, **build_environment(settings), "RUNYARD_WARM": "false"}
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as first:
        server.wait_for(lambda: "POST /internal/v1/claims" in server.calls)
        second = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=20, check=False
        )
        first.terminate()
        assert first.wait(10) == 0
    assert second.returncode == EXIT_CANNOT_START
    assert "another controller uses" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_missing_controller_key_is_waited_for(
    control: Control, server: Any, settings: Settings
) -> None:
    key_file = settings.secrets_dir / "controller.json"
    key = key_file.read_text()
    key_file.unlink()
    control()
    threading.Timer(0.2, key_file.write_text, [key]).start()
    server.wait_for(lambda: server.calls)


@pytest.mark.parametrize(
    "mark", ["", "-" * 300, "org/run", "org/run/x", "org/../1", "//1", "org/run/1/2"]
)
def test_an_invalid_mark_names_no_attempt(mark: str) -> None:
    assert parse_mark(mark) is None


def test_after_a_restore_an_attempt_that_had_ended_is_reported_again(
    control: Control, server: Any, settings: Settings, assign: Assign
) -> None:
    server.renewal["epoch"] = "e1"
    document = assign() | {"epoch": "e1", "store_epoch": "e1"}
    server.waiting.append(document)
    control()
    folder = locate_folder(settings)
    server.wait_for(lambda: rundir.AttemptDir(folder).closed.exists())
    with server.changed:
        server.renewal["epoch"] = "e2"
        server.open.append(document | {"store_epoch": "e2"})
    control(slots=2)  # fetches placements at its start; the other one does so every half minute
    server.wait_for(lambda: len(server.reports) == 2)
    assert [report["exit_code"] for report in server.reports] == [0, 0]
    server.wait_for(
        lambda: (rundir.read_json(rundir.AttemptDir(folder).closed) or {}).get("epoch") == "e2"
    )


def test_an_attempt_number_reused_after_a_restore_starts_once_the_older_one_ended(
    control: Control, server: Any, settings: Settings, executor: Any, assign: Assign
) -> None:
    executor.trainer = SAVES_ON_SIGTERM
    server.waiting.append(assign() | {"epoch": "e1", "store_epoch": "e1"})
    control()
    folder = locate_folder(settings)
    server.wait_for(lambda: (folder / "ready").exists())
    first = identify_supervisor(folder)
    with server.changed:
        server.is_refusing = True
        server.open.clear()
    server.wait_for(lambda: processes.check_liveness(first) == "dead")
    with server.changed:
        server.is_refusing = False
        server.waiting.append(assign() | {"epoch": "e2", "store_epoch": "e2"})
    server.wait_for(
        lambda: (folder.parent / "1-e1" / "ready").exists() and (folder / "ready").exists()
    )
    assert identify_supervisor(folder) != first


def test_each_self_test_that_the_server_asks_for_is_reported_once(
    control: Control, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, reported = list[str](), list[str]()

    def start(_folder: Path, on_result: Callable[[SelfTest], None]) -> None:
        started.append(f"test {len(started) + 1}")
        on_result(SelfTest(passed=False, message=started[-1]))

    def instruct(report: dict[str, Any]) -> dict[str, Any]:
        if report["self_test"] is not None:
            reported.append(report["self_test"]["message"])
        return {"remove": [], "self_test": len(reported) < 2}

    monkeypatch.setattr(self_test, "start", start)
    server.instructions = instruct
    control()
    server.wait_for(lambda: len(reported) >= 2)
    assert (started, reported) == (["test 1", "test 2"], ["test 1", "test 2"])
