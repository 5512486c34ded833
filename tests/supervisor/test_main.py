"""Real supervisors with small real trainers and a fake server that records requests."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard import processes
from runyard.protocol import LOST_OUT_OF_MEMORY
from runyard.supervisor import messages as msg
from runyard.supervisor.api_client import AttemptClient

pytestmark = pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")

Start = Callable[[Path, str], subprocess.Popen[bytes]]

SUCCEEDS = """
import json, os, hashlib, time
def train(folder):
    from runyard import rundir
    events = rundir.EventWriter(folder, lambda: 1)
    events.write("phase", phase="Training", message="")
    for step in range(30):
        events.write("step", step=step, epoch=0, values={"loss": 1.0})
    checkpoint = folder / "checkpoints" / "epoch-1"
    (checkpoint / "model_full").mkdir(parents=True)
    (checkpoint / "training_state").mkdir()
    files = []
    for name in ("model_full/model.safetensors", "training_state/state.json"):
        (checkpoint / name).write_bytes(name.encode())
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        files.append({"path": name, "sizeBytes": len(name), "sha256": sha256})
    rundir.write_json(checkpoint / "manifest.json", {
        "checkpoint": "epoch-1", "step": 30, "epoch": 1, "metrics": {"validation/loss": 0.5},
        "isBest": True, "time": 5, "files": files})
    result = {"outcome": "Succeeded", "reason": "Completed", "message": ""}
    rundir.write_json(folder / "result.json", result)
    print("environment", json.dumps(sorted(os.environ)))
    print("key dtvi_abcdefghijklmnop end", flush=True)
    os.write(1, b"a torn last line")
    return 0
"""


def wait_for_exit(process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> int:
    return process.wait(timeout=timeout_s)


def read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def list_steps(server: Any) -> list[int]:
    events = [json.loads(line) for line in server.lines["events"]]
    return [event["step"] for event in events if event["ev"] == "step"]


def list_survivors(folder: Path) -> list[Any]:
    mark = "/".join((folder.parts[-4], folder.parts[-3], folder.parts[-1]))
    return processes.find_marked(processes.ATTEMPT_MARK, mark.__eq__)


def test_a_good_attempt_is_announced_shipped_stored_and_reported(
    folder: Path, server: Any, start: Start
) -> None:
    assert wait_for_exit(start(folder, SUCCEEDS)) == 0
    assert server.processes[0]["machine_id"] == "machine-1"
    assert list_steps(server) == list(range(30))
    assert server.checkpoints[0]["checkpoint_id"] == "epoch-1"
    assert {file["path"] for file in server.checkpoints[0]["files"]} == {
        "model_full/model.safetensors",
        "training_state/state.json",
    }
    assert sorted(server.blobs.values()) == [
        b"model_full/model.safetensors",
        b"training_state/state.json",
    ]
    report = server.reports[0]
    assert (report["exit_code"], report["signal"], report["group_empty"]) == (0, None, True)
    assert report["result"]["outcome"] == "Succeeded"
    assert read_json(folder / "exit.json")["cause"] == "exit code 0"
    assert read_json(folder / "closed.json")["how"] == "reported"
    assert read_json(folder / "process.json")["trainer"]["pid"] > 0
    assert [call for call in server.calls if not call.endswith("/renew")][-1].endswith("/finish")


def test_a_trainer_sees_no_secret_and_ships_none(folder: Path, server: Any, start: Start) -> None:
    wait_for_exit(start(folder, SUCCEEDS))
    names = json.loads(server.lines["stdout"][0].removeprefix("environment "))
    assert "RUNYARD_ATTEMPT" in names and "PATH" in names
    assert not {"SECRET_TOKEN", "RUNYARD_SUPERVISOR"} & set(names)
    assert server.lines["stdout"][1:] == ["key dtvi_… end", "a torn last line"]


def test_a_supervisor_whose_run_is_deleted_with_its_report_ends(
    folder: Path, server: Any, start: Start
) -> None:
    server.fail = lambda path, _: (
        shutil.rmtree(folder) if path.endswith("/finish") and folder.exists() else None
    )
    assert wait_for_exit(start(folder, SUCCEEDS)) == 0
    assert not folder.exists()


@pytest.mark.parametrize("failure", ["503", "lose"])
def test_each_line_arrives_once_although_the_server_fails(
    folder: Path, server: Any, start: Start, failure: str
) -> None:
    server.fail = lambda path, times: failure if times % 2 else None
    assert wait_for_exit(start(folder, SUCCEEDS)) == 0
    assert list_steps(server) == list(range(30))
    assert server.lines["stdout"][-1] == "a torn last line"
    assert {report["checkpoint_id"] for report in server.checkpoints} == {"epoch-1"}
    assert len({json.dumps(report["result"]) for report in server.reports}) == 1


STUBBORN = """
import os, signal, subprocess, sys, time
def train(folder):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", sleeper])
    subprocess.Popen(["/usr/bin/env", "-i", "/usr/bin/setsid", "-f", sys.executable, "-c", sleeper])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    stopped = subprocess.Popen([sys.executable, "-c", sleeper])
    os.kill(stopped.pid, signal.SIGSTOP)
    time.sleep(1)
    (folder / "ready").write_text("")
    while True:
        time.sleep(600)
"""


def wait_for_descendants(
    folder: Path, supervisor: subprocess.Popen[bytes], server: Any
) -> list[Any]:
    server.wait_for((folder / "ready").exists)
    below = processes.list_descendants(supervisor.pid)
    assert len(below) >= 5
    return below


def test_a_kill_leaves_no_process_of_a_stubborn_tree(
    folder: Path, server: Any, start: Start
) -> None:
    supervisor = start(folder, STUBBORN)
    below = wait_for_descendants(folder, supervisor, server)
    with server.changed:
        server.renewal = {"action": "kill", "lease_s": 1.2, "grace_s": 0.3, "epoch": "e1"}
    assert wait_for_exit(supervisor) == 0
    assert [processes.check_liveness(identity) for identity in below] == ["dead"] * len(below)
    assert list_survivors(folder) == []
    report = server.reports[0]
    assert (report["signal"], report["group_empty"]) == ("SIGKILL", True)
    assert report["cause"] == "killed with SIGKILL after the grace period"
    assert read_json(folder / "stop.json")["reason"] == "kill"


def test_a_refused_renewal_kills_the_trainer_and_reports_nothing(
    folder: Path, server: Any, start: Start
) -> None:
    supervisor = start(folder, STUBBORN)
    below = wait_for_descendants(folder, supervisor, server)
    server.is_refusing = True
    assert wait_for_exit(supervisor) == 0
    assert [processes.check_liveness(identity) for identity in below] == ["dead"] * len(below)
    assert server.reports == []
    assert read_json(folder / "closed.json")["how"] == "refused"


SAVES_ON_SIGTERM = """
import signal, sys, time
from pathlib import Path
def train(folder):
    def stop(*_):
        print("saving because of", (folder / "stop.json").read_text(), flush=True)
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    (folder / "ready").write_text("")
    while True:
        time.sleep(600)
"""


def test_a_supervisor_asked_to_stop_lets_its_trainer_save(
    folder: Path, server: Any, start: Start
) -> None:
    supervisor = start(folder, SAVES_ON_SIGTERM)
    server.wait_for((folder / "ready").exists)
    supervisor.terminate()
    assert wait_for_exit(supervisor) == 0
    assert '"leave"' in server.lines["stdout"][0]
    assert (server.reports[0]["exit_code"], server.reports[0]["cause"]) == (
        75,
        "stopped on request",
    )


def test_a_trainer_dies_with_its_supervisor_and_the_next_one_settles(
    folder: Path, server: Any, start: Start
) -> None:
    first = start(folder, SAVES_ON_SIGTERM + "    # never reached\n")
    server.wait_for((folder / "ready").exists)
    trainer = read_json(folder / "process.json")["trainer"]["pid"]
    first.kill()
    first.wait()
    (folder / "ready").unlink()
    assert wait_for_exit(start(folder, SAVES_ON_SIGTERM)) == 0
    assert processes.identify(trainer) is None
    assert not (folder / "ready").exists()
    # The kernel counts for the entire machine, and another test lets it run out of memory.
    assert server.reports[0]["cause"] in (
        "the supervisor was lost, and its trainer was ended",
        LOST_OUT_OF_MEMORY,
    )
    assert server.reports[0]["exit_code"] is None


def test_a_result_left_by_a_lost_attempt_is_reported(
    folder: Path, server: Any, start: Start
) -> None:
    server.fail = lambda path, times: "503" if path.endswith(("/finish", "/lines")) else None
    first = start(folder, SUCCEEDS)
    server.wait_for(lambda: (folder / "exit.json").exists())
    first.kill()
    first.wait()
    server.fail = lambda path, times: None
    assert wait_for_exit(start(folder, SUCCEEDS)) == 0
    assert server.reports[0]["result"]["outcome"] == "Succeeded"
    assert server.reports[0]["exit_code"] == 0
    assert list_steps(server) == list(range(30))


EVALUATES = """
import os, time
def train(folder):
    for number in range(200):
        with open(folder / "samples.jsonl", "ab", buffering=0) as file:
            file.write(b'{"kind":"sample","step":1,"index":%d}\\n' % number)
    (folder / "ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    with open(folder / "samples.jsonl", "ab", buffering=0) as file:
        file.write(b'{"kind":"sample","step":2,"index":0}\\n{"kind":"sam')
    os.abort()
"""


def test_each_sample_arrives_once_although_two_supervisors_are_killed(
    folder: Path, server: Any, start: Start
) -> None:
    placed = read_json(folder / "placed.json")
    (folder / "placed.json").write_text(json.dumps({**placed, "spoolBytes": 100}))
    server.fail = lambda path, times: "lose" if path.endswith("/lines") and times % 2 else None
    first = start(folder, EVALUATES)
    server.wait_for(lambda: len(server.lines["samples"]) == 200)
    server.fail = lambda path, times: "503" if path.endswith(("/finish", "/lines")) else None
    (folder / "go").touch()
    server.wait_for((folder / "exit.json").exists)
    for supervisor in (first, start(folder, EVALUATES)):
        supervisor.kill()
        supervisor.wait()
    server.fail = lambda path, times: "lose" if path.endswith("/lines") and times % 2 else None
    assert wait_for_exit(start(folder, EVALUATES)) == 0
    found = [json.loads(line) for line in server.lines["samples"]]  # the torn line is not sent
    assert [(line["step"], line["index"]) for line in found] == [
        *((1, number) for number in range(200)),
        (2, 0),
    ]


def test_a_second_supervisor_leaves_the_folder_alone(
    folder: Path, server: Any, start: Start
) -> None:
    first = start(folder, SAVES_ON_SIGTERM)
    server.wait_for((folder / "ready").exists)
    assert wait_for_exit(start(folder, SAVES_ON_SIGTERM)) == 3
    assert first.poll() is None
    os.kill(first.pid, signal.SIGTERM)
    assert wait_for_exit(first) == 0


def test_a_trainer_killed_from_outside_is_reported(folder: Path, server: Any, start: Start) -> None:
    supervisor = start(folder, SAVES_ON_SIGTERM)
    server.wait_for((folder / "ready").exists)
    os.kill(read_json(folder / "process.json")["trainer"]["pid"], signal.SIGSEGV)
    assert wait_for_exit(supervisor) == 0
    assert (server.reports[0]["signal"], server.reports[0]["cause"]) == (
        "SIGSEGV",
        "killed by SIGSEGV",
    )


WAITS_FOR_FILE = SUCCEEDS.replace(
    '    rundir.write_json(folder / "result.json"',
    "    print('said', flush=True)\n    while not (folder / 'go').exists():\n        "
    "time.sleep(0.01)\n"
    '    rundir.write_json(folder / "result.json"',
)


def test_what_a_restore_has_undone_is_shipped_again_once_and_before_the_report(
    folder: Path, server: Any, start: Start
) -> None:
    """The server loses lines and a checkpoint and gets another store id, while the trainer writes
    nothing.
    """
    server.renewal["epoch"] = "e1"
    process = start(folder, WAITS_FOR_FILE)
    server.wait_for(
        lambda: server.checkpoints and len(list_steps(server)) == 30 and server.lines["stdout"]
    )
    with server.changed:
        server.renewal["epoch"] = "e2"
        for record in (server.lines, server.offsets, server.checkpoints):
            record.clear()
    server.wait_for(
        lambda: server.checkpoints and len(list_steps(server)) == 30 and server.lines["stdout"]
    )
    assert server.reports == []
    (folder / "go").touch()
    assert wait_for_exit(process) == 0
    assert list_steps(server) == list(range(30))
    assert server.lines["stdout"].count("said") == 1
    assert [report["epoch"] for report in server.reports] == ["e2"]
    assert read_json(folder / "closed.json")["epoch"] == "e2"


def test_the_answer_to_a_report_says_whether_it_was_final(folder: Path, server: Any) -> None:
    alive, gone = (
        msg.ExitStatus(exit_code=0, group_empty=is_empty, cause="exit code 0")
        for is_empty in (False, True)
    )
    client = AttemptClient(server.endpoint, token="t", folder=folder)
    answers = [client.report(word, time_ms=1, result=None) for word in (alive, gone)]
    assert answers == [msg.ReportAccepted(is_last=False), msg.ReportAccepted(is_last=True)]
    server.answer = lambda *_: (422, {"code": "Invalid", "message": "no"})
    answers = [client.report(word, time_ms=1, result=None) for word in (alive, gone)]
    assert answers == [
        msg.ServerUnreachable("reports"),
        msg.UploadRejected("reports", msg.REPORT, "no"),
    ]


def test_a_report_that_json_cannot_represent_is_not_retried_forever(
    folder: Path, server: Any
) -> None:
    client = AttemptClient(server.endpoint, token="t", folder=folder)
    ended = msg.ExitStatus(exit_code=0, group_empty=True, cause="exit code 0")
    answer = client.report(ended, time_ms=1, result={"loss": float("nan")})
    assert isinstance(answer, msg.UploadRejected)
    assert "/result/loss is nan" in answer.why
    assert server.reports == []
