"""``runyard up``: rejected settings, the printed introduction, and processes.

The report of a shutdown is the one that docs/deployment.md shows.
"""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runyard.cli.connection import connect
from runyard.cli.instance.instance import live_endpoint, read_processes, wait_for_exit
from runyard.cli.instance.up import _catch_stop_requests, format_introduction
from runyard.processes import boot_id, identify
from runyard.settings import read_settings
from tests.support.commands import Runyard
from tests.support.howtos import check_output, read_blocks

KEY = "dtvi_" + "a" * 98
# Trains for hours, and saves only when it is stopped.
LONG_RECIPE = {
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


def test_listening_beyond_this_machine_must_be_allowed(runyard: Runyard) -> None:
    result = runyard("up", "--host", "0.0.0.0")  # noqa: S104 - it is refused
    assert result.exit_code == 2
    assert "--insecure-bind" in result.stderr
    assert not Path(".runyard").exists()


def test_a_certificate_that_cannot_be_used_ends_before_anything_is_created(
    runyard: Runyard, tmp_path: Path
) -> None:
    result = runyard("up", "--tls-cert", "none.crt", "--tls-key", "none.key")
    assert result.exit_code == 2
    assert f"cannot read {tmp_path / 'none.crt'} (No such file or directory)" in result.stderr
    alone = runyard("up", "--tls-cert", "none.crt")
    assert alone.exit_code == 2
    assert "try: both --tls-cert and --tls-key" in alone.stderr
    assert not Path(".runyard").exists()


def test_a_start_without_tls_loads_neither_ssl_nor_the_sdk() -> None:
    program = (
        "import sys, runyard.cli.instance.up as up; up.check_bind(up.read_settings({}));"
        "sys.exit(' '.join({'ssl', 'vi', 'runyard.security.tls'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_port_in_use_ends_with_a_sentence(runyard: Runyard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = runyard("up", "--port", str(port), "--data-dir", "data")
    assert result.exit_code == 1
    assert f"port {port} on 127.0.0.1 is in use" in result.stderr
    assert "Traceback" not in result.output


Words = Callable[[bool], str]


@pytest.fixture
def words(tmp_path: Path) -> Words:
    settings = read_settings({}, data_dir=tmp_path)
    settings.credentials_file.write_text(
        json.dumps({"secret_key": KEY, "organization_id": "org-1"})
    )
    return lambda shows_key: "\n".join(
        format_introduction(settings, "http://127.0.0.1:7878/", shows_key=shows_key)
    )


def test_the_introduction_names_endpoint_and_credentials_but_not_the_key(
    words: Words, tmp_path: Path
) -> None:
    text = words(False)
    assert "http://127.0.0.1:7878/" in text
    assert "org-1" in text
    assert f'vi.Client(config_file="{tmp_path}/credentials.json")' in text
    assert KEY not in text


def test_the_first_start_on_a_terminal_shows_the_key(words: Words) -> None:
    assert words(True).count(KEY) == 1


def test_the_shell_lines_of_the_introduction_set_the_key(words: Words) -> None:
    exports = [line for line in words(False).splitlines() if "export" in line]
    script = "\n".join([*exports, 'printf "%s" "$DATATURE_VI_SECRET_KEY"'])
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == KEY


@contextmanager
def up(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """``runyard up`` as a process, killed when a test leaves it behind."""
    environ = {**os.environ, "RUNYARD_WARM": "0"}
    command = [
        sys.executable,
        "-m",
        "runyard.cli",
        "up",
        "--port",
        "0",
        "--data-dir",
        str(data_dir),
        "--end-with-stdin",
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environ, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children_once_up(process: subprocess.Popen[str], data_dir: Path) -> list[int]:
    """Return the process ids of server and controller once up.

    The output must not contain the key.
    """
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("Ctrl-C"):
            break
    key = json.loads((data_dir / "credentials.json").read_text())["secret_key"]
    assert "Runyard is up.\n" in printed
    assert key not in "".join(printed)
    note = json.loads((data_dir / "instance.json").read_text())
    return [note["server"]["pid"], note["controller"]["pid"]]


@pytest.mark.e2e
def test_ctrl_c_ends_every_child_and_exits_with_0(tmp_path: Path) -> None:
    with up(tmp_path / "data") as process:
        children = children_once_up(process, tmp_path / "data")
        assert [identify(pid) is not None for pid in children] == [True, True]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert [identify(pid) for pid in children] == [None, None]


@pytest.mark.e2e
def test_server_and_controller_exit_after_their_instance_was_killed(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir) as killed:
        orphans = children_once_up(killed, data_dir)
        killed.kill()
        killed.wait()
        with up(data_dir) as process:  # waits for both, whether or not they have ended meanwhile
            children = children_once_up(process, data_dir)
            assert [identify(pid) for pid in orphans] == [None, None]
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.close()  # as when `| tee` ends first
            process.stdin.close()  # ends it as a signal would
            assert process.wait(30) == 0
            assert [identify(pid) for pid in children] == [None, None]


@contextmanager
def in_a_terminal(data_dir: Path, *before: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """``runyard up`` as the program in front of a terminal.

    Yields the terminal's other end and the process.
    """
    ours, theirs = pty.openpty()
    command = [
        *before,
        sys.executable,
        "-m",
        "runyard.cli",
        "up",
        "--port",
        "0",
        "--data-dir",
        str(data_dir),
    ]
    process = subprocess.Popen(
        command,
        env={**os.environ, "RUNYARD_WARM": "0"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # The terminal that is ours to lose.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield ours, process
    finally:
        process.kill()
        process.wait()


def read_until(terminal: int, words: bytes) -> None:
    printed = b""
    while words not in printed:
        printed += os.read(terminal, 4096)


@pytest.mark.e2e
def test_an_instance_ends_completely_when_its_terminal_closes(tmp_path: Path) -> None:
    settings = read_settings({}, data_dir=tmp_path / "data")
    with in_a_terminal(settings.data_dir) as (terminal, process):
        read_until(terminal, b"Ctrl-C stops it.")
        read_until(terminal, b"/ui/enter?next=%2Fui%2Fruns#")
        noted = read_processes(settings)
        assert set(noted) == {"up", "server", "controller"}
        os.close(terminal)  # the kernel sends SIGHUP, and every write fails from now on
        assert process.wait(30) == 0
        assert [wait_for_exit(who, 0) for who in noted.values()] == [True, True, True]
    assert json.loads((settings.data_dir / "ended.json").read_text())["runs"] == []
    assert not (settings.data_dir / "instance.json").exists()


@pytest.mark.e2e
def test_a_detached_instance_outlives_its_terminal_until_it_is_taken_down(
    runyard: Runyard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNYARD_WARM", "0")
    settings = read_settings({}, data_dir=tmp_path / "data")
    where = ("--data-dir", str(settings.data_dir))
    assert runyard("status", *where).exit_code == 3
    done = subprocess.run(
        [sys.executable, "-m", "runyard.cli", "up", "--detach", "--port", "0", *where],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    try:
        noted = read_processes(settings)
        assert os.getsid(noted["up"].pid) == noted["up"].pid
        endpoint = live_endpoint(settings)
        assert str(endpoint) in done.stdout
        assert str(settings.logs_dir) in done.stdout
        seen = runyard("status", "--json", *where)
        assert seen.exit_code == 0
        document = json.loads(seen.stdout)
        assert (document["state"], document["endpoint"]) == ("up", endpoint)
        assert document["processes"] == {name: who.pid for name, who in noted.items()}
        assert (document["runsRunning"], document["runsWaiting"]) == (0, 0)
        again = runyard("up", "--detach", "--port", "0", *where)
        assert again.exit_code == 1
        assert str(endpoint) in again.stderr
    finally:
        ended = runyard("down", *where)
    assert ended.exit_code == 0
    assert [wait_for_exit(who, 0) for who in noted.values()] == [True, True, True]
    assert runyard("status", *where).exit_code == 3
    idle = runyard("down", *where)
    assert (idle.exit_code, idle.stdout) == (0, f"No instance of {settings.data_dir} is up.\n")


def test_a_detached_start_that_fails_prints_the_reason_alone(
    runyard: Runyard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "server.db").write_bytes(b"this is no database" * 500)
    result = runyard("up", "--detach", "--port", "0", "--data-dir", "data")
    assert result.exit_code == 8
    assert result.stderr.startswith("Error: the server cannot start: the database")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_down_does_not_signal_a_process_with_a_reused_id(runyard: Runyard, tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        note = {"up": {"bootId": boot_id(), "pid": stranger.pid, "startTicks": 1}}
        (tmp_path / "instance.json").write_text(json.dumps(note))
        assert runyard("down", "--data-dir", str(tmp_path)).stdout.startswith("No instance of")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.e2e
@pytest.mark.train
def test_the_shutdown_reports_saved_runs_and_an_interrupted_wait_how_to_continue(
    runyard: Runyard, repository: Path, tmp_path: Path
) -> None:
    """One test for two cases, as it needs a training: Ctrl-C of --wait, then of the instance."""
    data_dir = tmp_path / "data"
    flow_file = tmp_path / "long.json"
    flow_file.write_text(json.dumps(LONG_RECIPE))
    where = ("--data-dir", str(data_dir))
    with up(data_dir) as process:
        children_once_up(process, data_dir)
        waiting = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "runyard.cli",
                "runs",
                "create",
                "--flow",
                str(flow_file),
                "--wait",
                *where,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stdout is not None
        run_id = waiting.stdout.readline().split()[1]
        later = runyard("runs", "create", "--flow", str(flow_file), *where).stdout.strip()
        with connect(data_dir) as client:
            while (
                progress := client.runs.get(run_id).status.progress
            ) is None or progress.step < 1:
                time.sleep(0.2)
        waiting.send_signal(signal.SIGINT)
        _, printed = waiting.communicate(timeout=30)
        assert waiting.returncode == 130
        assert f"run {run_id} continues on the server" in printed
        assert f"runyard runs wait {run_id} --data-dir {data_dir}" in printed
        assert f"runyard runs kill {run_id} --data-dir {data_dir}" in printed
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        report = process.stdout.read()
        assert process.wait(60) == 0
    saved = re.search(
        rf"^Run {run_id} was saved at step (\d+); it resumes at the next start\.$", report, re.M
    )
    assert saved is not None, report
    assert int(saved[1]) >= 1
    assert "1 pending run starts after the next start." in report
    page = read_blocks(repository / "docs/deployment.md")
    [shown] = [block.text for block in page if block.text.startswith("Run ")]
    check_output(shown, report)
    assert later not in report
    down = runyard("status", *where)
    assert (down.exit_code, saved[0] in down.stdout) == (3, True)


def test_only_a_repeated_ctrl_c_hurries_the_end() -> None:
    """At the end of a session SIGTERM and SIGHUP come together."""
    hurried: list[bool] = []
    with _catch_stop_requests(False) as stops:
        stops.on_repeat = lambda: hurried.append(True)
        assert not stops.wait(0)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stops.wait(1)
        assert hurried == []
        os.kill(os.getpid(), signal.SIGINT)
        assert stops.wait(1)
        assert hurried == [True]


def test_a_hangup_that_was_ignored_at_the_start_stays_ignored() -> None:
    """``nohup runyard up`` survives a hangup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _catch_stop_requests(False) as stops:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stops.wait(0.05)
    finally:
        signal.signal(signal.SIGHUP, before)
