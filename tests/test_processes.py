"""Identities and marks of real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runyard import processes
from runyard.ports import Identity

pytestmark = pytest.mark.skipif(not processes.IS_LINUX, reason="reads /proc")

Spawn = Callable[..., subprocess.Popen[str]]
MARK = f"org/run-{os.getpid()}/1"


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start Python with code that prints a line when it is ready.

    All processes end with the test.
    """
    started: list[subprocess.Popen[str]] = []

    def run(code: str, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline()
        return process

    yield run
    for process in started:
        for identity in processes.list_descendants(process.pid):
            processes.send_signal(identity, signal.SIGKILL)
        process.kill()
        process.communicate()


SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


def identify(process: subprocess.Popen[str]) -> Identity:
    identity = processes.identify(process.pid)
    assert identity is not None
    return identity


def test_a_process_is_alive_until_it_has_ended(spawn: Spawn) -> None:
    process = spawn(SLEEP)
    identity = identify(process)
    assert processes.check_liveness(identity) == "alive"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert processes.check_liveness(identity) == "dead", "a zombie does nothing any more"
    process.wait()
    assert processes.check_liveness(identity) == "dead"


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "another boot"}])
def test_another_process_with_the_same_id_is_neither_alive_nor_signaled(
    spawn: Spawn, change: dict[str, object]
) -> None:
    process = spawn(SLEEP)
    stranger = replace(identify(process), **change)  # type: ignore[arg-type]
    assert processes.check_liveness(stranger) == "dead"
    assert processes.send_signal(stranger, signal.SIGKILL) is False
    assert processes.check_liveness(identify(process)) == "alive"


def test_a_process_that_may_not_be_inspected_is_unknown_and_not_signaled(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = spawn(SLEEP)
    identity = identify(process)

    def refuse(pid: int) -> None:
        raise PermissionError(pid)

    monkeypatch.setattr(processes, "identify", refuse)
    assert processes.check_liveness(identity) == "unknown"
    assert processes.send_signal(identity, signal.SIGKILL) is False
    assert process.poll() is None


def test_a_signal_reaches_the_process_it_is_meant_for(spawn: Spawn) -> None:
    process = spawn(SLEEP)
    assert processes.send_signal(identify(process), signal.SIGKILL) is True
    assert process.wait() == -signal.SIGKILL


def test_a_mark_is_found_in_the_environment_a_process_was_started_with(spawn: Spawn) -> None:
    process = spawn(SLEEP, RUNYARD_ATTEMPT=MARK)
    assert processes.find_marked("RUNYARD_ATTEMPT", MARK.__eq__) == [(identify(process), MARK)]
    assert processes.find_marked("RUNYARD_ATTEMPT", "another".__eq__) == []


FORK_AND_MARK = """
import os, sys, time
from runyard import processes
if os.fork() == 0:
    mark = sys.argv[1] if len(sys.argv) > 1 else os.environ["WANTED"]
    processes.set_mark("RUNYARD_ATTEMPT", mark)
    print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_fork_of_a_parent_with_placeholders_has_its_own_mark(spawn: Spawn) -> None:
    parent = spawn(FORK_AND_MARK, RUNYARD_ATTEMPT=processes.MARK_PLACEHOLDER, WANTED=MARK)
    (child,) = processes.list_descendants(parent.pid)
    assert processes.find_marked("RUNYARD_ATTEMPT", MARK.__eq__) == [(child, MARK)]
    assert (
        Path(f"/proc/{parent.pid}/environ").read_bytes().count(processes.MARK_PLACEHOLDER.encode())
        == 1
    )


DOUBLE_FORK = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("ready", flush=True)
    time.sleep(600)
time.sleep(600)
"""


def test_descendants_are_found_in_other_sessions_too(spawn: Spawn) -> None:
    assert len(processes.list_descendants(spawn(DOUBLE_FORK).pid)) == 2


def test_a_holder_of_a_file_is_found_by_inode_after_the_name_is_gone(
    spawn: Spawn, tmp_path: Path
) -> None:
    path = tmp_path / "run.lock"
    holder = spawn("import os, sys; file = open(os.environ['LOCK'], 'w'); " + SLEEP, LOCK=str(path))
    other_name = tmp_path / "other"
    other_name.hardlink_to(path)
    path.unlink()
    assert processes.list_holders(other_name) == [identify(holder)]
    assert processes.list_holders(path) == []


def test_the_kernels_count_of_memory_kills_can_be_read() -> None:
    assert processes.count_memory_kills() >= 0
