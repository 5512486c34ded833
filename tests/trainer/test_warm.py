"""The warm parent, with real processes, because a fork needs them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runyard.trainer.warm import request_fork

CHILD = """
import json, os, sys
def go(folder, *, endpoint, token, trust, train):
    cuda = sys.modules["torch"].cuda  # CUDA reads its variables once, when a process first uses it
    is_untouched = not cuda.is_initialized() and not cuda._is_in_bad_fork()
    is_untouched = is_untouched and cuda._cached_device_count is None
    child = {"endpoint": endpoint, "token": token, "trust": trust,
            "leads": os.getsid(0) == os.getpid(), "mark": os.environ.get("RUNYARD_ATTEMPT"),
            "sees": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "is_untouched": is_untouched, "descriptors": sorted(os.listdir("/proc/self/fd"))}
    (folder / "child.json").write_text(json.dumps(child))
    return train(folder)
"""


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A warm parent's socket and process id."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "child_of_the_warm_parent.py").write_text(CHILD)
    path = folder / "warm.sock"
    command = [
        sys.executable,
        "-m",
        "runyard.trainer.warm",
        str(path),
        "--child",
        "child_of_the_warm_parent:go",
    ]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(folder)}) as process:
        try:
            wait_for(path.is_socket)
            yield path, process.pid
        finally:
            process.terminate()
    assert process.returncode == 0
    assert not path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_parent_has_one_thread_and_a_private_socket(warm: tuple[Path, int]) -> None:
    path, pid = warm
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_child_trains_in_its_own_session(
    warm: tuple[Path, int], make_attempt: Callable[..., Path]
) -> None:
    path, parent = warm
    folder = make_attempt(
        {"vi-dataset": {"maxSamples": 40}, "vi-model": {"hyperparameters": {"maxSteps": 1}}}
    )
    request = {
        "folder": str(folder),
        "endpoint": "http://127.0.0.1:1/",
        "token": "t",
        "trust": {"ca": "/ca.pem"},
        "log": str(folder / "log"),
    }
    environment = {"RUNYARD_ATTEMPT": "org/run/1", "CUDA_VISIBLE_DEVICES": "GPU-7"}
    answer = request_fork(path, {**request, "environment": environment})
    stat = Path(f"/proc/{answer['pid']}/stat").read_text().rpartition(")")[2].split()
    assert (int(stat[1]), int(stat[19])) == (parent, answer["startTicks"])
    # Reaped at once: not even a zombie stays.
    wait_for(lambda: not Path(f"/proc/{answer['pid']}").exists())
    child = json.loads((folder / "child.json").read_text())
    assert (child["endpoint"], child["token"], child["leads"], child["mark"]) == (
        "http://127.0.0.1:1/", "t", True, "org/run/1",
    )  # fmt: skip
    assert child["trust"] == {"ca": "/ca.pem"}
    assert (child["sees"], child["is_untouched"]) == ("GPU-7", True)
    assert len(child["descriptors"]) == 4  # the three, and the listing's own
    assert json.loads((folder / "result.json").read_text())["outcome"] == "Succeeded"
    assert "saved" in (folder / "log").read_text()


@pytest.mark.parametrize(
    "line", [b"nonsense\n", b"[]\n", b'{"folder": 1}\n', b"", b"x" * 70_000 + b"\n"]
)
def test_an_invalid_request_is_answered_and_does_no_harm(
    warm: tuple[Path, int], line: bytes
) -> None:
    path, _ = warm
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        try:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            assert "error" in json.loads(connection.makefile().readline())
        except (BrokenPipeError, ConnectionResetError):
            assert len(line) > 65_536
    os.kill(warm[1], 0)


def test_it_ends_when_the_process_that_started_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "warm.sock"
    serving = (
        "import sys; from pathlib import Path; from runyard.trainer.warm import serve;"
        "serve(Path(sys.argv[1]), lambda *a, **k: 0, lambda folder: 0)"
    )
    starter = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {serving!r}, "
        "sys.argv[1]]);" + ("print(p.pid, flush=True); input()")
    )
    with subprocess.Popen(
        [sys.executable, "-c", starter, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        wait_for(path.is_socket)
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not path.exists())
    wait_for(lambda: not _is_alive(pid))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_spin_briefly_unless_the_environment_says_otherwise(
    given: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runyard.trainer.main import shorten_spinning

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that the change is undone as well
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    shorten_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == found
