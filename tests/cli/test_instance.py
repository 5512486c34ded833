"""Monitoring of server and controller, with two small programs as stand-ins."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runyard.cli import failures
from runyard.cli.failures import CommandFailed
from runyard.cli.instance import instance as module
from runyard.cli.instance.instance import (
    Instance,
    check_port_free,
    compute_restart_pause,
    live_endpoint,
    lock_data_dir,
    parse_port,
    rotate_log,
)
from runyard.processes import identify
from runyard.settings import Settings, read_settings
from runyard.starting import EXIT_CANNOT_START, EXIT_NOT_NOW

SERVER = """
import http.server, json, os, pathlib
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"status": "ok"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["RUNYARD_PORT"])), Health)
note = {"endpoint": f"http://127.0.0.1:{server.server_port}/", "pid": os.getpid()}
pathlib.Path(os.environ["RUNYARD_DATA_DIR"], "server.json").write_text(json.dumps(note))
server.serve_forever()
"""
CONTROLLER = "import time\ntime.sleep(60)\n"
CRASHING = "import sys\nsys.exit('the database is locked')\n"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings over an empty folder, with the stand-in programs importable by the children."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {
        "stand_in_server": SERVER,
        "stand_in_controller": CONTROLLER,
        "crashing": CRASHING,
    }.items():
        (programs / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(programs))
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    return read_settings({}, data_dir=tmp_path / "data", port=0)


@contextmanager
def started(settings: Settings, messages: list[str], **modules: str) -> Iterator[Instance]:
    programs = {"server": "stand_in_server", "controller": "stand_in_controller"} | modules
    instance = Instance(settings, say=messages.append, is_stop_requested=lambda: False, **programs)
    with lock_data_dir(settings):
        try:
            instance.start()
            yield instance
        finally:
            instance.stop()


def until(is_true: Callable[[], object], *, timeout_s: float = 10) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.01)


def pids(instance: Instance) -> list[int]:
    return [child.process.pid for child in instance.children if child.process is not None]


@pytest.mark.parametrize("status", [EXIT_CANNOT_START, EXIT_NOT_NOW])
def test_a_server_that_cannot_start_is_started_once_and_its_message_shown(
    settings: Settings, status: int, tmp_path: Path
) -> None:
    text = (
        f"import sys\nprint('warming up')\nprint('no such key; try: another')\nsys.exit({status})\n"
    )
    (tmp_path / "programs" / "refusing.py").write_text(text)
    messages: list[str] = []
    with pytest.raises(CommandFailed) as caught, started(settings, messages, server="refusing"):
        pass
    assert caught.value.message == "the server cannot start: no such key; try: another"
    assert caught.value.exit_code == (
        failures.EXIT_CANNOT_START if status == EXIT_CANNOT_START else 1
    )
    assert messages == []
    assert (settings.logs_dir / "server.log").read_text().count("warming up") == 1


def test_a_controller_that_cannot_start_ends_the_instance_with_its_message(
    settings: Settings, tmp_path: Path
) -> None:
    text = f"import sys\nprint('another one works here')\nsys.exit({EXIT_CANNOT_START})\n"
    (tmp_path / "programs" / "refusing.py").write_text(text)

    def watch(instance: Instance) -> bool:
        instance.watch()
        return False

    with (
        pytest.raises(
            CommandFailed, match=r"^the controller cannot start: another one works here$"
        ),
        started(settings, [], controller="refusing") as instance,
    ):
        until(lambda: watch(instance))


def test_temporary_failures_are_retried_once_an_instance_has_been_up(
    settings: Settings, tmp_path: Path
) -> None:
    """A database that is unavailable while a crashed server restarts must not end the instance."""
    messages: list[str] = []
    with started(settings, messages) as instance:
        (tmp_path / "programs" / "stand_in_server.py").write_text(
            f"import sys\nsys.exit({EXIT_NOT_NOW})\n"
        )
        os.kill(pids(instance)[0], signal.SIGKILL)

        def has_two_messages() -> bool:
            instance.watch()
            return len(messages) == 2

        until(has_two_messages)
    assert (
        f"exited with code {EXIT_NOT_NOW}; restarting it in {module.LONGEST_PAUSE_S:g} s"
        in messages[1]
    )


def test_a_log_that_grew_too_large_is_rotated_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with open(log, "ab", buffering=0) as writer:
        writer.write(b"x" * 2000)
        rotate_log(log, 4000)
        assert log.stat().st_size == 2000
        rotate_log(log, 1000)
        writer.write(b"after\n")
        rotate_log(log, 0)
    assert log.read_bytes() == b"after\n"
    assert (tmp_path / "server.log.1").read_bytes() == b"x" * 2000


@pytest.mark.parametrize(
    ("crashes", "pause_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, None), (9, None)]
)
def test_restart_pauses_grow_until_it_gives_up(crashes: int, pause_s: float | None) -> None:
    assert compute_restart_pause(crashes) == pause_s


def test_server_and_controller_run_between_start_and_stop(settings: Settings) -> None:
    with started(settings, []) as instance:
        children = pids(instance)
        assert live_endpoint(settings) is not None
        assert [identify(pid) is not None for pid in children] == [True, True]
    assert [identify(pid) for pid in children] == [None, None]
    assert not (settings.data_dir / "instance.json").exists()


def test_each_child_leads_its_own_process_group_away_from_ctrl_c(settings: Settings) -> None:
    with started(settings, []) as instance:
        assert [os.getpgid(pid) for pid in pids(instance)] == pids(instance)


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_child_is_restarted_and_reported(settings: Settings, which: int) -> None:
    messages: list[str] = []
    with started(settings, messages) as instance:
        endpoint, before = live_endpoint(settings), pids(instance)
        os.kill(before[which], signal.SIGKILL)

        def is_replaced() -> bool:
            instance.watch()
            return pids(instance)[which] != before[which]

        until(is_replaced)
        until(lambda: live_endpoint(settings) == endpoint)
    name = ("server", "controller")[which]
    assert messages == [
        f"The {name} was ended by SIGKILL; restarting it in 0.01 s. Log: "
        f"{settings.logs_dir}/{name}.log"
    ]


def test_a_server_that_cannot_start_ends_the_start_with_its_reason(settings: Settings) -> None:
    with (
        pytest.raises(CommandFailed, match=r"4 times in a row.*\n  the database is locked"),
        started(settings, [], server="crashing"),
    ):
        pass


def test_a_controller_that_keeps_crashing_ends_the_instance_with_its_log(
    settings: Settings,
) -> None:
    def watch(instance: Instance) -> bool:
        instance.watch()
        return False

    with (
        pytest.raises(
            CommandFailed, match=r"the controller exited with code 1.*\n  the database is locked"
        ),
        started(settings, [], controller="crashing") as instance,
    ):
        until(lambda: watch(instance))


def test_a_stop_request_during_the_start_launches_no_controller(settings: Settings) -> None:
    instance = Instance(
        settings,
        say=print,
        is_stop_requested=lambda: True,
        server="stand_in_server",
        controller="crashing",
    )
    with lock_data_dir(settings):
        assert instance.start() is None
        assert len(pids(instance)) == 1
        instance.stop()


def test_a_second_instance_over_one_folder_is_refused_with_the_address_of_the_first(
    settings: Settings,
) -> None:
    with started(settings, []):
        with (
            pytest.raises(CommandFailed, match="already running with the data folder") as caught,
            lock_data_dir(settings),
        ):
            pass
        assert str(live_endpoint(settings)) in caught.value.message


def test_children_of_a_killed_instance_are_stopped_by_the_next_one(settings: Settings) -> None:
    """The stand-ins do not read standard input, like a child that hangs."""
    messages: list[str] = []
    with started(settings, []) as killed:
        following = Instance(settings, say=messages.append, is_stop_requested=lambda: False)
        following.stop_orphans()
        assert [identify(pid) for pid in pids(killed)] == [None, None]
        assert len(messages) == 2


def test_a_stranger_with_a_recycled_process_id_is_left_alone(settings: Settings) -> None:
    settings.data_dir.mkdir()
    with started(settings, []) as instance:
        note = settings.data_dir / "instance.json"
        known = json.loads(note.read_text())
        note.write_text(json.dumps({name: who | {"startTicks": 1} for name, who in known.items()}))
        Instance(settings, say=print, is_stop_requested=lambda: False).stop_orphans()
        assert all(identify(pid) is not None for pid in pids(instance))


def test_a_port_in_use_is_reported_with_a_suggestion(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            CommandFailed, match=f"port {port} on 127.0.0.1 is in use.*--port {port + 1}"
        ):
            check_port_free(read_settings({}, data_dir=tmp_path, port=port))


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"cannot listen on 192\.0\.2\.1"):
        check_port_free(read_settings({}, data_dir=tmp_path, port=0, host="192.0.2.1"))


def test_an_endpoint_without_a_port_has_the_usual_one() -> None:
    assert (parse_port("http://localhost:7878/"), parse_port("http://localhost/")) == (7878, 80)
    assert parse_port("https://localhost/") == 443
