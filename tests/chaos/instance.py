"""A real instance for fault injection: server and controller processes, a breakable link, a disk of
its own.

Server and controller have separate data folders, as on two machines. The controller's folder has
the address of the link instead of the server's. So all calls of controller and supervisors pass
through the link, also after the server restarts. A thread restarts dead processes, as ``runyard
up`` does, but sooner and without limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vi
from runyard import processes
from runyard.ports import Identity
from runyard.rundir import read_json
from tests.chaos.disk import Disk
from tests.chaos.link import Link
from tests.chaos.postgresql import PostgreSql
from vi.api.resources.runs.responses import Run

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
CLOCK_STEPS_WITHIN_S = 1
START_TIMEOUT_S = 60.0
WATCH_EVERY_S = 0.05
FLOW_STEPS = 64
FLOW: dict[str, Any] = {
    "name": "Chaos",
    "settings": {"attempts": 100},
    "blocks": [
        {"block": "vi-dataset", "settings": {"maxSamples": 96}},
        {
            "block": "vi-model",
            "settings": {
                "hyperparameters": {
                    "epochs": 1000,
                    "maxSteps": FLOW_STEPS,
                    "batchSize": 8,
                    "microBatchSize": 8,
                },
                "checkpoint": {"every": {"steps": 8}},
                "validation": {"every": {"steps": 16}, "maxSamples": 4},
                # A smaller micro-batch would change the last bits of the weights.
                "onOutOfMemory": "fail",
            },
        },
    ],
}


FLOW_OF_RANKS = FLOW | {"settings": {"attempts": 100, "resources": {"workers": 2}}}


class ChaosInstance:
    """An instance with its logs in ``folder`` and its data on ``disk``; ``environ`` has extra
    settings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        disk: Disk | None = None,
        seed: int = 0,
        fakes_clock: bool = False,
        environ: dict[str, str] | None = None,
        on_postgresql: bool = False,
    ):
        self._environ = environ or {}
        self.disk = disk
        self.base = (disk.folder if disk else folder) / "d"
        self.server_dir, self.machine_dir = self.base / "s", self.base / "m"
        self._postgresql = PostgreSql(self.base / "p") if on_postgresql else None
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)
        self._clock_file = folder / "clock" if fakes_clock and FAKETIME else None
        self.port = _find_free_port()
        self.link = Link(("127.0.0.1", self.port), seed=seed)
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopped = threading.Event()
        self._restarts_paused = threading.Event()
        self._guard = threading.Lock()
        self.answered_after_s: list[float] = []
        self.server_died_at_s: float | None = None
        self.double_trainings: list[str] = []
        self.organization_id = self.secret_key = ""

    @property
    def has_clock(self) -> bool:
        return self._clock_file is not None

    @property
    def has_postgresql(self) -> bool:
        return self._postgresql is not None

    def start(self, *, with_controller: bool = True) -> None:
        """Start the instance.

        Without ``with_controller`` only the server, so that nothing trains.
        """
        self.set_clock_offset(0)
        for folder in (self.server_dir, self.machine_dir / "secrets"):
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        if self._postgresql is not None:
            self.start_child("postgresql")
            self._postgresql.wait_until_up()
        self.start_child("server")
        self.wait_until_up()
        credentials = read_json(self.server_dir / "credentials.json") or {}
        self.organization_id, self.secret_key = (
            credentials["organization_id"],
            credentials["secret_key"],
        )
        self.write_link_endpoint()
        if with_controller:
            self.start_child("controller")
        threading.Thread(target=self._restart_dead, name="watch", daemon=True).start()
        threading.Thread(target=self._watch_for_double_training, name="sample", daemon=True).start()

    def write_link_endpoint(self) -> None:
        """Write the controller's key file with the link's address instead of the server's, and sync
        it.
        """
        known = read_json(self.server_dir / "secrets" / "controller.json") or {}
        key_file, server_file = (
            self.machine_dir / "secrets" / "controller.json",
            self.machine_dir / "server.json",
        )
        key_file.write_text(json.dumps({"endpoint": self.link.endpoint, "key": known["key"]}))
        key_file.chmod(0o600)
        server_file.write_text(json.dumps({"endpoint": self.link.endpoint, "pid": os.getpid()}))
        os.sync()

    def start_child(self, name: str) -> None:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RUNYARD_", "DATATURE_"))
        }
        environ |= {
            "RUNYARD_DATA_DIR": str(self.server_dir if name == "server" else self.machine_dir),
            "RUNYARD_PORT": str(self.port),
            "RUNYARD_THREADS": "1",
            "RUNYARD_SLOTS": "1",
            "RUNYARD_LEASE_S": "3",
            "RUNYARD_GRACE_S": "5",
            "OMP_NUM_THREADS": "1",
            **self._environ,
        }
        # Only the server: under libfaketime, sleeping until a monotonic time fails with EINVAL.
        if self._clock_file is not None and name == "server":
            environ |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self._clock_file),
                # Without a cache, each clock call reads the file
                "FAKETIME_CACHE_DURATION": str(CLOCK_STEPS_WITHIN_S),
                "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # otherwise its waits on conditions spin
                "DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        command, options = [sys.executable, "-P", "-m", f"runyard.{name}"], {}
        if self._postgresql is not None:
            environ["RUNYARD_DATABASE_URL"] = self._postgresql.url
            if name == "postgresql":
                command, options = self._postgresql.command, self._postgresql.options
        with open(self.logs / f"{name}.log", "ab") as log:
            self.children[name] = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,
            )

    def set_clock_offset(self, seconds: int) -> None:
        """Set the offset of the server's wall clock; its monotonic clock is not changed."""
        if self._clock_file is not None:
            self._clock_file.write_text(f"{seconds:+d}s\n")

    def wait_until_up(self) -> float:
        """Wait until the server answers; return the seconds that took."""
        began_s = time.monotonic()
        while not self._is_healthy():
            assert time.monotonic() - began_s < START_TIMEOUT_S, (
                f"the server is not up; see {self.logs}/server.log"
            )
            time.sleep(0.02)
        return time.monotonic() - began_s

    def client(self, endpoint: str | None = None) -> vi.Client:
        endpoint = endpoint or f"http://127.0.0.1:{self.port}/"
        return vi.Client(
            secret_key=self.secret_key, organization_id=self.organization_id, endpoint=endpoint
        )

    def list_supervisors(self) -> list[tuple[Identity, str]]:
        return processes.find_marked(processes.SUPERVISOR_MARK, self._is_own_mark)

    def list_trainers(self) -> list[tuple[Identity, str]]:
        return processes.find_marked(processes.ATTEMPT_MARK, self._is_own_mark)

    def find_process(self, part: str) -> Identity | None:
        """Return the living process of a part: server, controller, warm, supervisor, trainer, or
        rank, which is a trainer that does not lead.
        """
        if part in ("server", "controller", "postgresql"):
            return processes.identify(self.children[part].pid)
        if part == "warm":
            socket_path = str(self.machine_dir / "machine" / "warm.sock").encode()
            for entry in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    is_fork = not (entry / "environ").read_bytes().count(b"RUNYARD_ATTEMPT=----")
                    if socket_path in words and not is_fork:
                        return processes.identify(int(entry.name))
            return None
        found = self.list_supervisors() if part == "supervisor" else self.list_trainers()
        if part == "rank":  # rank 0 is forked first
            found = sorted(found, key=lambda item: (item[0].start_ticks, item[0].pid))[1:]
        return found[0][0] if found else None

    def locate_attempts(self, run_id: str) -> Path:
        return self.machine_dir / "runs" / self.organization_id / run_id / "attempts"

    def list_events(self, run_id: str) -> list[dict[str, Any]]:
        """Return the events of the newest attempt so far."""
        with contextlib.suppress(OSError, ValueError):
            newest = max(self.locate_attempts(run_id).iterdir(), key=lambda path: int(path.name))
            return read_events(newest / "events.jsonl")
        return []

    def pause_restarts(self) -> None:
        """Restart no process until ``resume_restarts``."""
        with self._guard:
            self._restarts_paused.set()

    def resume_restarts(self) -> None:
        # The database first, as it was started first
        for name, child in list(self.children.items()):
            if child.poll() is not None:
                self.start_child(name)
                if name == "postgresql" and self._postgresql is not None:
                    self._postgresql.wait_until_up()
        self._restarts_paused.clear()

    def kill_all(self) -> list[int]:
        """Send SIGKILL to every process of this instance; return their ids."""
        for child in self.children.values():
            if child.poll() is None:
                child.kill()
            child.wait()
        killed = []
        for _ in range(200):
            living = self._list_own_pids()
            if not living:
                break
            killed += living
            for pid in living:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        return sorted(set(killed))

    def _list_own_pids(self) -> list[int]:
        mark = str(self.base).encode()
        # PostgreSQL overwrites its environment with its title, but stays in its folder.
        return [
            pid
            for pid in _list_pids()
            if pid != os.getpid() and (mark in _read_environ(pid) or _has_cwd_below(self.base, pid))
        ]

    def freeze_all(self) -> None:
        """Send SIGSTOP to every process of this instance, and wait until none runs."""
        ours = self._list_own_pids()
        for pid in ours:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
        wait_until_stopped(ours)

    def cut_power(self, on_cut: Callable[[], None] = lambda: None) -> None:
        """Simulate a power failure: stop processes and disk, kill every process, and start all
        again.

        The processes are stopped first: on a disk that was shut down during a journal commit an
        fsync may still succeed, and a machine without power acknowledges nothing.
        """
        assert self.disk is not None
        self.pause_restarts()
        self.freeze_all()
        self.disk.cut_power()
        on_cut()
        self.kill_all()
        self.disk.come_back()
        self.resume_restarts()
        self.wait_until_up()

    def shut_down(self) -> list[str]:
        """Shut down in an orderly way; return the processes left over."""
        self.pause_restarts()
        for name, wait_s in (("controller", 25), ("server", 15), ("postgresql", 15)):
            child = self.children.get(name)
            if child is not None and child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.send_signal(signal.SIGINT if name == "postgresql" else signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(wait_s)
        # A supervisor that has closed its attempt may still be exiting
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s and (self.list_trainers() or self.list_supervisors()):
            time.sleep(0.1)
        left = [f"trainer of {mark}" for _, mark in self.list_trainers()]
        left += [f"supervisor of {mark}" for _, mark in self.list_supervisors()]
        left += [name for name, child in self.children.items() if child.poll() is None]
        return left

    def close(self) -> None:
        self._stopped.set()
        self._restarts_paused.set()
        self.kill_all()
        self.link.close()

    def _is_own_mark(self, mark: str) -> bool:
        return bool(self.organization_id) and mark.startswith(self.organization_id + "/")

    def _is_healthy(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection,
        ):
            connection.settimeout(1)
            connection.sendall(
                b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            )
            return b" 200 " in connection.recv(200)
        return False

    def _restart_dead(self) -> None:
        while not self._stopped.wait(WATCH_EVERY_S):
            with self._guard:
                if self._restarts_paused.is_set():
                    continue
                for name, child in list(self.children.items()):
                    if child.poll() is not None and not self._restarts_paused.is_set():
                        if name == "server":
                            self.server_died_at_s = time.monotonic()
                        self.start_child(name)
            if self.server_died_at_s is not None and self._is_healthy():
                self.answered_after_s.append(time.monotonic() - self.server_died_at_s)
                self.server_died_at_s = None

    def _watch_for_double_training(self) -> None:
        """Watch for two trainers of one run.

        A trainer with an open pipe waits at its gate and does not train.
        """
        before: set[str] = set()
        while not self._stopped.wait(0.1):
            training: dict[str, list[str]] = {}
            for identity, mark in self.list_trainers():
                if not _is_at_gate(identity.pid):
                    training.setdefault(mark.rpartition("/")[0], []).append(
                        f"{mark} as {identity.pid}"
                    )
            now = {
                " and ".join(sorted(who))
                for who in training.values()
                if len({w.split()[0] for w in who}) > 1
            }
            self.double_trainings += sorted(now & before)
            before = now


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events that a trainer has written, without torn lines."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def retry_until_answered(look: Callable[[], Any], *, timeout_s: float = 60) -> Any:
    """Call ``look`` until the server answers."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return look()
        except (vi.ViNetworkError, vi.ViTimeoutError, vi.ViServerError):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)


def wait_until_final(client: vi.Client, run_id: str, *, timeout_s: float) -> Run | None:
    """Wait until the run has ended, and return it; None on a timeout."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        run: Run = retry_until_answered(lambda: client.runs.get(run_id))
        if run.condition is not None and run.condition.is_final:
            return run
        time.sleep(0.1)
    return None


def wait_until_stopped(pids: list[int]) -> None:
    """Wait after SIGSTOP until none of the processes runs."""
    deadline_s = time.monotonic() + 10
    while any(_read_process_state(pid) in "RSD" for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.001)


def _is_at_gate(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return any(
            str(entry.readlink()).startswith("pipe:") for entry in Path(f"/proc/{pid}/fd").iterdir()
        )
    return True  # it has ended or is ending


def _list_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _read_process_state(pid: int) -> str:
    """Return the kernel's state:

    R running, S sleeping, D in the kernel, T stopped; X if it is gone.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _has_cwd_below(folder: Path, pid: int) -> bool:
    with contextlib.suppress(OSError):
        return folder in Path(f"/proc/{pid}/cwd").readlink().parents
    return False


def _read_environ(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        if processes.identify(pid) is not None:
            return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def _find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
