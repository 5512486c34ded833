"""Real supervisors and trainers: kills in every phase, an unreachable server, full disks, lack of
memory.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runyard import processes, rundir
from runyard.supervisor.launch import filter_environment
from runyard.supervisor.main import count_excess_bytes
from runyard.trainer.main import is_stop_requested

pytestmark = pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")

Start = Callable[[Path, str], subprocess.Popen[bytes]]

BUSY = """
import signal, subprocess, time
def train(folder):
    from runyard import rundir
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rundir.EventWriter(folder, lambda: 1).write("phase", phase="PHASE", message="")
    subprocess.Popen(["/usr/bin/env", "-i", "/usr/bin/setsid", "-f", "/bin/sleep", "600"])
    time.sleep(0.1)
    (folder / "ready").write_text("")
    while True:
        time.sleep(600)
"""


IDLE = """
import time
def train(folder):
    (folder / "ready").write_text("")
    while True:
        time.sleep(600)
"""


def list_descendants(supervisor: subprocess.Popen[bytes]) -> list[Any]:
    found = processes.list_descendants(supervisor.pid)
    assert found
    return found


def kill(server: Any, *, grace_s: float) -> None:
    with server.changed:
        server.renewal = {"action": "kill", "lease_s": 1.2, "grace_s": grace_s, "epoch": "e1"}


def test_a_kill_ends_everything_in_each_phase(tmp_path: Path, harness: Any) -> None:
    """All phases run in parallel, each with its own server, because most of the time is waiting."""

    def run_one(phase: str) -> tuple[set[str], str, bool]:
        server, folder = (
            harness.new_server(),
            harness.place_attempt(tmp_path, attempt=1, run=f"run-{phase}"),
        )
        script = tmp_path / f"{phase}.py"
        script.write_text(BUSY.replace("PHASE", phase))
        room = {"RUNYARD_ATTEMPT": "-" * 200, "RUNYARD_SUPERVISOR": "-" * 200}
        command = [
            sys.executable,
            "-P",
            "-c",
            harness.script,
            str(folder),
            str(script),
            server.endpoint,
        ]
        supervisor = subprocess.Popen(
            command, env={**os.environ, **room}, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            server.wait_for(lambda: (folder / "ready").exists() and phase in server.phases)
            living = list_descendants(supervisor)
            kill(server, grace_s=0.2)
            assert supervisor.wait(20) == 0
            report = server.reports[0]
            return (
                {processes.check_liveness(identity) for identity in living},
                report["signal"],
                report["group_empty"],
            )
        finally:
            supervisor.kill()
            supervisor.wait()
            server.close()

    phases = ["Preparing", "Training", "Evaluating", "Saving"]
    with ThreadPoolExecutor(len(phases)) as pool:
        outcomes = dict(zip(phases, pool.map(run_one, phases), strict=True))
    assert outcomes == {phase: ({"dead"}, "SIGKILL", True) for phase in phases}


def test_a_kill_ends_an_attempt_that_waits_for_the_lock(
    folder: Path, server: Any, start: Start
) -> None:
    lock = rundir.AttemptDir(folder).run_lock
    lock.touch()
    # Without a mark it would be killed as one of ours.
    other = {
        **os.environ,
        processes.ATTEMPT_MARK: "org/another-run/1",
    }
    with subprocess.Popen(["/usr/bin/flock", str(lock), "/bin/sleep", "600"], env=other) as holder:
        try:
            server.wait_for(lambda: processes.list_descendants(holder.pid))
            supervisor = start(folder, BUSY)
            server.wait_for(lambda: server.phases)
            kill(server, grace_s=0.2)
            assert supervisor.wait(20) == 0
            assert holder.poll() is None
        finally:
            for identity in [
                *processes.list_descendants(holder.pid),
                processes.identify(holder.pid),
            ]:
                if identity is not None:
                    processes.send_signal(identity, signal.SIGKILL)
    assert not (folder / "ready").exists()
    assert server.reports[0]["exit_code"] == rundir.EXIT_STOPPED


def test_a_kill_ends_an_attempt_whose_checkpoint_is_being_verified(
    folder: Path, server: Any, start: Start
) -> None:
    slow = """
import runyard.supervisor.api_client as supervisor
def prepare_resume(folder, source, *, files):
    (folder / "proving").write_text("")
    __import__("time").sleep(600)
supervisor.prepare_resume = prepare_resume
"""
    supervisor = start(folder, slow + BUSY)
    server.wait_for((folder / "proving").exists)
    kill(server, grace_s=5.0)
    assert supervisor.wait(20) == 0
    assert not (folder / "ready").exists()
    assert server.reports[0]["exit_code"] == rundir.EXIT_STOPPED


def test_a_kill_while_the_last_lines_are_shipped_does_not_change_the_result(
    folder: Path, server: Any, start: Start
) -> None:
    server.fail = lambda path, times: "503" if path.endswith("/lines") else None
    supervisor = start(folder, 'def train(folder):\n    print("done", flush=True)\n    return 0\n')
    server.wait_for(rundir.AttemptDir(folder).exit.exists)
    kill(server, grace_s=0.2)
    phases = len(server.phases)
    server.wait_for(lambda: len(server.phases) > phases + 1)
    server.fail = lambda path, times: None
    assert supervisor.wait(20) == 0
    assert (server.reports[0]["exit_code"], server.lines["stdout"]) == (0, ["done"])


def test_the_supervisor_keeps_its_trainers_permit_fresh_and_a_stopped_one_does_not(
    folder: Path, server: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "PERMIT_S", 2 * rundir.PERMIT_EVERY_S)
    start(folder, IDLE)
    server.wait_for((folder / "ready").exists)
    assert not is_stop_requested(folder)
    written = rundir.read_permit_age_s(folder, 0.0)
    assert written is not None
    assert rundir.is_permit_fresh(folder, rundir.PERMIT_S - written)
    assert not rundir.is_permit_fresh(folder, rundir.PERMIT_S - written + 0.01)
    monkeypatch.setattr(time, "monotonic", lambda: rundir.PERMIT_S - written + 1000.0)
    assert is_stop_requested(folder), "the trainer saves and stops by itself"


def test_a_permit_is_renewed_repeatedly(folder: Path, server: Any, start: Start) -> None:
    start(folder, "from runyard import rundir\nrundir.PERMIT_EVERY_S = 0.1\n" + IDLE)
    server.wait_for((folder / "ready").exists)
    first = rundir.read_permit_age_s(folder, 0.0)
    server.wait_for(lambda: rundir.read_permit_age_s(folder, 0.0) != first)


def test_a_log_too_long_for_the_spool_loses_its_middle_and_no_event(
    folder: Path, server: Any, start: Start
) -> None:
    placed = json.loads(rundir.AttemptDir(folder).placed.read_text())
    rundir.AttemptDir(folder).placed.write_text(json.dumps({**placed, "spoolBytes": 2000}))
    talkative = """
def train(folder):
    from runyard import rundir
    events = rundir.EventWriter(folder, lambda: 1)
    for number in range(2000):
        events.write("step", step=number, epoch=0, values={"loss": 1.0})
        print(f"line {number}", flush=True)
    return 0
"""
    server.fail = lambda path, times: "503" if path.endswith("/lines") else None
    supervisor = start(folder, talkative)
    server.wait_for(rundir.AttemptDir(folder).exit.exists)
    server.fail = lambda path, times: None
    assert supervisor.wait(20) == 0
    assert [json.loads(line)["step"] for line in server.lines["events"]] == list(range(2000))
    note, *rest = server.lines["stdout"]
    assert note.endswith("more than spool_mib of it was waiting for the server]")
    assert rest[-1] == "line 1999"
    assert (
        int(note.split()[0][1:]) + sum(len(line) + 1 for line in rest)
        == rundir.AttemptDir(folder).stdout.stat().st_size
    )


def test_a_log_within_its_limit_is_read_completely(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\ntwo\nthree\n")
    assert count_excess_bytes(tmp_path / "log", 0, 14) == 0
    assert count_excess_bytes(tmp_path / "log", 4, 10) == 0
    assert count_excess_bytes(tmp_path / "log", 0, 8) == len(b"one\ntwo\n")
    assert count_excess_bytes(tmp_path / "absent", 0, 8) == 0


FULL = """
import errno
from runyard import rundir
write = rundir.write_json
def write_if_there_is_room(path, value):
    if (path.parent / "full").exists():
        (path.parent / "refused").write_text(path.name)
        raise OSError(errno.ENOSPC, "No space left on device")
    write(path, value)
rundir.write_json = write_if_there_is_room
import runyard.supervisor.main
runyard.supervisor.main.WRITE_RETRY_S = 0.05
"""


FILLS_THE_DISK = """
def train(folder):
    (folder / "trained").touch()
    (folder / "full").touch()
    return 0
"""


def test_a_full_disk_loses_neither_identity_nor_exit(
    folder: Path, server: Any, start: Start
) -> None:
    (folder / "full").touch()
    supervisor = start(folder, FULL + FILLS_THE_DISK)
    server.wait_for(
        lambda: (folder / "refused").exists() and (folder / "refused").read_text() == "process.json"
    )
    assert not (folder / "trained").exists(), "nothing trains before it is written who does"
    (folder / "full").unlink()
    server.wait_for(lambda: server.reports)
    assert (folder / "trained").exists()
    assert not (folder / "exit.json").exists()
    assert supervisor.poll() is None, "what waits for space is not given up"
    (folder / "full").unlink()
    assert supervisor.wait(20) == 0
    assert json.loads((folder / "exit.json").read_text())["exitCode"] == 0
    assert json.loads((folder / "closed.json").read_text())["how"] == "reported"


LOG_ON_A_FULL_DISK = """
import sys
def train(folder):
    sys.stdout = open("/dev/full", "w")
    print("finds no room when it is flushed")
    return 0
"""


def test_a_full_disk_at_the_last_log_line_does_not_change_the_exit_code(
    folder: Path, server: Any, start: Start
) -> None:
    assert start(folder, LOG_ON_A_FULL_DISK).wait(20) == 0
    assert [report["exit_code"] for report in server.reports] == [0]


CGROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """Create a memory cgroup with a limit of 64 MiB."""
    group = CGROUPS / f"runyard-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(64 << 20))
    except OSError as error:
        pytest.skip(f"no memory cgroup of version 1 to write to: {error}")
    yield group
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.02)


HUNGRY = """
import os
from pathlib import Path
def train(folder):
    from runyard import rundir
    rundir.EventWriter(folder, lambda: 1).write("phase", phase="Evaluating", message="")
    Path("GROUP", "cgroup.procs").write_text(str(os.getpid()))
    eaten = bytearray(512 << 20)
    for at in range(0, len(eaten), 4096):
        eaten[at] = 1
    return 0
"""


def test_an_out_of_memory_kill_is_reported(
    folder: Path, server: Any, start: Start, small_memory: Path
) -> None:
    assert start(folder, HUNGRY.replace("GROUP", str(small_memory))).wait(30) == 0
    assert server.reports[0]["signal"] == "SIGKILL"
    assert (
        server.reports[0]["cause"]
        == "out of memory: the kernel ended the trainer while it was Evaluating"
    )


def test_a_supervisor_lost_out_of_memory_is_reported_with_the_trainers_phase(
    folder: Path, server: Any, start: Start
) -> None:
    """The folder is as the dead supervisor left it: same boot, and the kernel's counter has grown
    since.
    """
    events = rundir.EventWriter(folder, lambda: 1)
    events.write("phase", phase="Saving", message="")
    events.close()
    left = {"bootId": processes.boot_id(), "supervisor": None, "trainer": None, "memoryKills": -1}
    rundir.write_json(rundir.AttemptDir(folder).process, left)
    assert start(folder, HUNGRY).wait(30) == 0
    expected = (
        "the supervisor was lost, and the kernel has run out of memory since it began and the "
        "trainer was Saving"
    )
    assert server.reports[0]["cause"] == expected


ANOTHER_PROCESS = """
import os, signal, time
from pathlib import Path
from runyard import processes, rundir
from runyard.supervisor.launch import filter_environment
from runyard.supervisor.main import count_excess_bytes
rundir.PERMIT_EVERY_S = 0.05
others = Path("FOLDER", "others")
processes.out_of_memory_kills = lambda: int(others.exists())
def train(folder):
    others.touch()
    before = permits = 0
    while permits < 4:
        now = rundir.AttemptDir(folder).permit.read_bytes()
        permits, before = permits + (now != before), now
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_earlier_out_of_memory_kill_is_attributed_to_another_process(
    folder: Path, server: Any, start: Start
) -> None:
    assert start(folder, ANOTHER_PROCESS.replace("FOLDER", str(folder))).wait(30) == 0
    assert server.reports[0]["cause"] == "killed by SIGKILL"


def test_a_trainer_sees_the_variables_of_its_libraries_and_no_secret() -> None:
    kept = {
        "CUDA_VISIBLE_DEVICES": "0",
        "HIP_VISIBLE_DEVICES": "0",
        "ROCR_VISIBLE_DEVICES": "0",
        "HSA_OVERRIDE_GFX_VERSION": "11.0.0",
        "MIOPEN_USER_DB_PATH": "/cache",
        "ONEAPI_DEVICE_SELECTOR": "level_zero:0",
        "ZE_AFFINITY_MASK": "0",
        "PYTORCH_ENABLE_MPS_FALLBACK": "1",
        "TRITON_CACHE_DIR": "/cache",
        "TORCHINDUCTOR_CACHE_DIR": "/cache",
    }
    hidden = {
        "RUNYARD_DATABASE": "x",
        "AWS_PROFILE": "x",
        "HF_TOKEN": "x",
        "TRITON_API_KEY": "x",
        "AMD_PASSWORD": "x",
    }
    assert filter_environment(kept | hidden) == kept
