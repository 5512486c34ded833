"""One instance of Runyard on this machine: the server and the controller as watched child processes.

``Instance`` starts both, waits until the server answers, starts a crashed one again with growing pauses, and ends both
in order. Each child leads a process group of its own, so that Ctrl-C in a terminal reaches only the watcher, which
then ends the controller first (it still has things to tell the server) and the server last.

A child that says by its exit status that it cannot start is not started again: its last line is the reason.

A data folder has one instance. The watcher holds ``instance.lock`` while it lives, and notes itself and its children in
``instance.json`` with boot id and start times. No child outlives the watcher for long: the controller reads the end of
a pipe that the watcher holds, and the server the end of one that watcher and controller hold. When the watcher is
killed, the controller therefore saves and stops its runs and ends, and then the server ends. The next watcher waits for
them, found by the note; a process id alone may have been given to a stranger. Supervisors are no children of these two.
"""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from runyard import processes
from runyard.cli.failures import EXIT_CANNOT_START, EXIT_ERROR, CommandFailed
from runyard.ports import Identity
from runyard.rundir import read_json, write_json
from runyard.settings import Settings, build_environment
from runyard.starting import EXIT_CANNOT_START as CANNOT_START
from runyard.starting import EXIT_NOT_NOW

STILL_STARTING_S = 60.0  # between two lines about a server that is not ready yet
END_TIMEOUT_S = 15.0

# A child that ends within EARLY_S of its start has crashed at start; CRASHES_AT_START of those in a row are enough.
EARLY_S = 10.0
CRASHES_AT_START = 4
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


def pause_before_restart(crashes: int) -> float | None:
    """Seconds to wait after so many crashes at start in a row; None when it is no use trying again."""
    if crashes >= CRASHES_AT_START:
        return None
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** max(0, crashes - 1))


def longest_end_s(settings: Settings) -> float:
    """How long a controller may take to end: its runs have their grace to save and stop, then it reports."""
    return settings.grace_s + END_TIMEOUT_S


@dataclass
class Child:
    """One of the two processes: what it is called, how it is started, and how it has fared."""

    name: str
    module: str
    owns_group: bool  # nothing in its process group may outlive it; a controller's group may hold supervisors
    end_timeout_s: float = END_TIMEOUT_S
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    crashes: int = 0
    restart_s: float | None = None


class Instance:
    """Server and controller over one data folder, from ``start`` to ``end``.

    ``say`` gets one sentence for everything worth knowing; ``is_unwanted`` tells a start that somebody has asked for
    the end meanwhile; ``server`` and ``controller`` are the modules to run. Use inside ``holding``, which keeps others
    out.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        say: Callable[[str], None],
        is_unwanted: Callable[[], bool],
        server: str = "runyard.server",
        controller: str = "runyard.controller",
    ):
        self._settings = settings
        self._say = say
        self._is_unwanted = is_unwanted
        self._server = Child("server", server, owns_group=True)
        self._controller = Child("controller", controller, owns_group=False, end_timeout_s=longest_end_s(settings))

        self._has_been_up = False
        # (read, write): the controller ends with us, and the server with both of us.
        self._controller_line, self._server_line = os.pipe(), os.pipe()
        self._descriptors = [*self._controller_line, *self._server_line]

    @property
    def children(self) -> list[Child]:
        return [self._server, self._controller]

    def start(self) -> str | None:
        """Start both and return the endpoint as soon as the server answers; None when that is no longer wanted.

        Raises:
            CommandFailed: the port is taken, or a child cannot start.
        """
        self._note()
        check_port_free(self._settings)
        self._settings.server_file.unlink(missing_ok=True)  # what an earlier server left must not look like readiness
        self._launch(self._server)
        endpoint = self._wait_until_ready()
        if endpoint is None:
            return None
        # A restarted server must come back where clients look for it, also when it was free to choose at first.
        self._settings = replace(self._settings, port=port_of(endpoint))
        self._launch(self._controller)
        self._has_been_up = True
        return endpoint

    def watch(self) -> None:
        """Look after both once; call often. Raises CommandFailed when a child keeps crashing."""
        for child in self.children:
            self._watch(child)
        for log in self._settings.logs_dir.glob("*.log"):
            rotate_log(log, self._settings.server_log_mib << 20)

    def end(self, *, before_server_ends: Callable[[], None] = lambda: None) -> None:
        """End the controller, then the server; what does not end in time is killed with its group. Never raises.

        ``before_server_ends`` is called while the server still answers and nothing of the controller is left.
        """
        end_child(self._controller)
        try:
            before_server_ends()
        finally:
            end_child(self._server)
            self._note_path.unlink(missing_ok=True)
            while self._descriptors:
                os.close(self._descriptors.pop())

    def kill(self) -> None:
        """End both at once, for somebody who has asked twice."""
        for child in self.children:
            kill_child(child)

    def end_orphans(self) -> None:
        """End what a watcher that was killed has left behind over this data folder, and wait for it."""
        noted = read_processes(self._settings)
        for name in ("controller", "server"):
            identity = noted.get(name)
            if identity is None or processes.check_liveness(identity) != "alive":
                continue
            self._say(f"Waiting for the {name} of an earlier start to end (process {identity.pid}).")
            _end_stranger(identity, longest_end_s(self._settings))

    @property
    def _note_path(self) -> Path:
        return note_path(self._settings)

    def _launch(self, child: Child) -> None:
        child.restart_s = None
        child.started_s = time.monotonic()
        with open(log_path(self._settings, child.name), "ab") as log:
            child.process = subprocess.Popen(
                [sys.executable, "-P", "-m", child.module, "--end-with-stdin"],
                env={**os.environ, **build_environment(self._settings)},
                stdin=(self._server_line if child is self._server else self._controller_line)[0],
                stdout=log,
                stderr=log,
                process_group=0,
                pass_fds=() if child is self._server else (self._server_line[1],),
            )
        self._note()

    def _note(self) -> None:
        """Write down who the processes of this instance are."""
        pids = {each.name: each.process.pid for each in self.children if each.process is not None}
        found = {name: processes.identify(pid) for name, pid in {"up": os.getpid(), **pids}.items()}
        write_json(
            self._note_path,
            {
                name: {"bootId": who.boot_id, "pid": who.pid, "startTicks": who.start_ticks}
                for name, who in found.items()
                if who is not None
            },
        )

    def _plan_restart(self, child: Child, returncode: int, now: float) -> None:
        kill_child(child)  # a worker of a crashed server would keep its port
        may_pass = returncode == EXIT_NOT_NOW
        if returncode == CANNOT_START or (may_pass and not self._has_been_up):
            reason = tail(log_path(self._settings, child.name), lines=1).strip()
            raise CommandFailed(
                f"the {child.name} cannot start: {reason}", exit_code=EXIT_ERROR if may_pass else EXIT_CANNOT_START
            )
        child.crashes = child.crashes + 1 if now - child.started_s < EARLY_S else 1
        pause_s = LONGEST_PAUSE_S if may_pass else pause_before_restart(child.crashes)
        how = ending(returncode)
        log = log_path(self._settings, child.name)
        if pause_s is None:
            raise CommandFailed(
                f"the {child.name} {how}, {child.crashes} times in a row; its log {log} ends with:\n{tail(log)}"
            )
        child.restart_s = now + pause_s
        self._say(f"The {child.name} {how}; starting it again in {pause_s:g} s. Its log: {log}")

    def _watch(self, child: Child) -> None:
        now = time.monotonic()
        if child.restart_s is not None:
            if now >= child.restart_s:
                self._launch(child)
        elif child.process is not None and child.process.poll() is not None:
            self._plan_restart(child, child.process.returncode, now)

    def _wait_until_ready(self) -> str | None:
        reported_s = time.monotonic()
        log = log_path(self._settings, "server")
        while True:
            if self._is_unwanted():
                return None
            self._watch(self._server)
            endpoint = live_endpoint(self._settings)
            if endpoint is not None:
                return endpoint
            if time.monotonic() - reported_s > STILL_STARTING_S:  # an upgrade of a large database takes minutes
                reported_s = time.monotonic()
                self._say(f"The server is still starting; its log {log} ends with:\n{tail(log, lines=1)}")
            time.sleep(0.05)


@contextmanager
def holding(settings: Settings) -> Iterator[None]:
    """Keep any other instance off this data folder.

    Raises:
        CommandFailed: an instance is running there already.
    """
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.logs_dir.mkdir(mode=0o700, exist_ok=True)
    with open(settings.data_dir / "instance.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            where = (read_json(settings.server_file) or {}).get("endpoint", "an address it has not chosen yet")
            raise CommandFailed(
                f"an instance is already running with the data folder {settings.data_dir}, at {where}; "
                "use that one, end it with Ctrl-C, or name another folder with --data-dir"
            ) from None
        yield


def note_path(settings: Settings) -> Path:
    """Where an instance notes who its processes are."""
    return settings.data_dir / "instance.json"


def read_processes(settings: Settings) -> dict[str, Identity]:
    """Return the processes that the note of a data folder names: ``up``, ``server``, ``controller``."""
    found = {}
    for name, who in (read_json(note_path(settings)) or {}).items():
        with suppress(KeyError, TypeError, ValueError):
            found[name] = Identity(str(who["bootId"]), int(who["pid"]), int(who["startTicks"]))
    return found


def rotate_log(path: Path, limit_bytes: int) -> None:
    """Set a log that has grown beyond a limit aside as ``<name>.1``, in place of the one before; 0 is no limit.

    Its writer keeps it open for appending, so it is copied and emptied; a line written in between is lost.
    """
    with suppress(OSError):
        if 0 < limit_bytes < path.stat().st_size:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)


def live_endpoint(settings: Settings) -> str | None:
    """Where the server of a data folder answers now; None when it does not."""
    said = read_json(settings.server_file)
    endpoint = said.get("endpoint") if said else None
    return endpoint if isinstance(endpoint, str) and is_healthy(endpoint) else None


def is_healthy(endpoint: str) -> bool:
    """Whether a Runyard server answers at an endpoint."""
    import http.client
    import json

    connection = http.client.HTTPConnection(address_of(endpoint), timeout=5)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        return answer.status == 200 and json.loads(answer.read()).get("status") == "ok"
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return False
    finally:
        connection.close()


def address_of(endpoint: str) -> str:
    """Host and port of an endpoint."""
    from urllib.parse import urlsplit

    return urlsplit(endpoint).netloc


def port_of(endpoint: str) -> int:
    """The port of an endpoint."""
    from urllib.parse import urlsplit

    return urlsplit(endpoint).port or 80


def check_port_free(settings: Settings) -> None:
    """Refuse early, and with a remedy, when something else listens where the server shall.

    Raises:
        CommandFailed: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except (OSError, OverflowError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise CommandFailed(
                    f"port {settings.port} on {settings.host} is in use by another program; end that one, or choose "
                    f"another port with --port {settings.port + 1} (--port 0 takes a free one)"
                ) from error
            raise CommandFailed(
                f"cannot listen on {settings.host} port {settings.port}: {getattr(error, 'strerror', None) or error}; "
                "choose another address with --host and --port",
                exit_code=EXIT_CANNOT_START,
            ) from error


def end_child(child: Child) -> None:
    """Ask a child to end, wait for it, and kill it when it does not."""
    if child.process is None:
        return
    if child.process.poll() is None:
        child.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(child.end_timeout_s)
    kill_child(child)
    child.process.wait()


def kill_child(child: Child) -> None:
    """End a child now, and with it whatever shares a process group that is its alone."""
    if child.process is None:
        return
    if child.owns_group:
        signal_group(child.process.pid, signal.SIGKILL)
    elif child.process.poll() is None:
        child.process.kill()


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the process group that a child of ours leads; one that is gone needs no signal."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def ending(returncode: int) -> str:
    """How a process ended, as a part of a sentence."""
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


def log_path(settings: Settings, name: str) -> Path:
    """Where a child's output goes."""
    return settings.logs_dir / f"{name}.log"


def tail(path: Path, lines: int = 8) -> str:
    """The last lines of a log, indented."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 16384))
        text = _text(file)
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (nothing)"


def wait_for_end(identity: Identity, timeout_s: float) -> bool:
    """Wait for a process that is not our child; whether it has ended."""
    deadline_s = time.monotonic() + timeout_s
    while processes.check_liveness(identity) == "alive":
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def _end_stranger(identity: Identity, timeout_s: float) -> None:
    """End a process that is not our child, and that may be ending already."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        processes.send_signal(identity, number)
        if wait_for_end(identity, timeout_s):
            return


def _text(file: IO[bytes]) -> str:
    return file.read().decode(errors="replace")
