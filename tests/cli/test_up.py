"""``runyard up``: what it refuses, and what it tells a newcomer."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runyard.cli.instance import start_ticks
from runyard.cli.up import check_bind, introduction
from runyard.settings import read_settings

KEY = "dtvi_" + "a" * 98


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str, tmp_path: Path) -> None:
    check_bind(read_settings({}, data_dir=tmp_path, host=host))


def test_listening_beyond_this_machine_needs_to_be_meant(runyard) -> None:
    result = runyard("up", "--host", "0.0.0.0")  # noqa: S104 - it is refused
    assert result.exit_code == 2
    assert "--insecure-bind" in result.stderr
    assert not Path(".runyard").exists()


def test_listening_beyond_this_machine_can_be_meant(tmp_path: Path) -> None:
    check_bind(read_settings({}, data_dir=tmp_path, host="0.0.0.0", insecure_bind=True))  # noqa: S104


def test_a_port_in_use_ends_with_a_sentence(runyard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = runyard("up", "--port", str(port), "--data-dir", "data")
    assert result.exit_code == 1
    assert f"port {port} on 127.0.0.1 is in use" in result.stderr
    assert "Traceback" not in result.output


@pytest.fixture
def words(tmp_path: Path):
    settings = read_settings({}, data_dir=tmp_path)
    settings.credentials_file.write_text(json.dumps({"secret_key": KEY, "organization_id": "org-1"}))
    return lambda shows_key: "\n".join(introduction(settings, "http://127.0.0.1:7878/", shows_key=shows_key))


def test_the_introduction_names_endpoint_organisation_and_credentials_but_not_the_key(words, tmp_path: Path) -> None:
    text = words(False)
    assert "http://127.0.0.1:7878/" in text
    assert "org-1" in text
    assert f'vi.Client(config_file="{tmp_path}/credentials.json")' in text
    assert KEY not in text


def test_the_first_start_on_a_terminal_shows_the_key(words) -> None:
    assert words(True).count(KEY) == 1


def test_the_shell_lines_of_the_introduction_set_the_key(words) -> None:
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
    """Process ids of server and controller, as soon as ``up`` says that it is; the key must not be in what it says."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("Ctrl-C"):
            break
    key = json.loads((data_dir / "credentials.json").read_text())["secret_key"]
    assert "Runyard is up.\n" in said
    assert key not in "".join(said)
    note = json.loads((data_dir / "instance.json").read_text())
    return [note["server"]["pid"], note["controller"]["pid"]]


@pytest.mark.e2e
def test_ctrl_c_ends_every_child_and_exits_with_0(tmp_path: Path) -> None:
    with up(tmp_path / "data") as process:
        children = children_once_up(process, tmp_path / "data")
        assert [start_ticks(pid) is not None for pid in children] == [True, True]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert [start_ticks(pid) for pid in children] == [None, None]


@pytest.mark.e2e
def test_an_instance_survives_the_kill_of_its_watcher_and_the_next_one_takes_over(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir) as killed:
        orphans = children_once_up(killed, data_dir)
        killed.kill()
        killed.wait()
        assert [start_ticks(pid) is not None for pid in orphans] == [True, True]
        with up(data_dir) as process:
            children = children_once_up(process, data_dir)
            assert [start_ticks(pid) for pid in orphans] == [None, None]
            assert process.stdin is not None
            process.stdin.close()  # ends it as a signal would
            assert process.wait(30) == 0
            assert [start_ticks(pid) for pid in children] == [None, None]
