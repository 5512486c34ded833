"""One instance of Runyard on this machine: server and controller as supervised child processes.

``Instance`` starts both, waits until the server responds, restarts a crashed child with growing
pauses, and stops both in order. Each child leads its own process group, so that Ctrl-C reaches only
this process. It stops the controller first, which still sends reports to the server, and the server
last. A child whose exit status says that it cannot start is not restarted; the last line of its log
is the reason.

A data folder has at most one instance. Its process holds ``instance.lock`` and records itself and
its children in ``instance.json`` with boot id and start times, since a process id alone may be
reused.

No child outlives this process for long. The controller reads a pipe that this process holds open,
and the server one that this process and the controller hold open. If this process is killed, the
controller saves and stops its runs and exits, then the server exits. The next instance waits for
them. Supervisors are not children of these processes.
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
from typing import IO, TYPE_CHECKING

from runyard import processes
from runyard.cli.failures import EXIT_CANNOT_START, EXIT_ERROR, CommandFailed
from runyard.ports import Identity
from runyard.rundir import read_json, write_json
from runyard.settings import Settings, build_environment
from runyard.starting import EXIT_CANNOT_START as CANNOT_START
from runyard.starting import EXIT_NOT_NOW

if TYPE_CHECKING:
    import http.client

    import vi

STILL_STARTING_S = 60.0  # interval of messages about a server that is not ready yet
SHUTDOWN_TIMEOUT_S = 15.0

# A child that exits within EARLY_S of its start has crashed at start; after CRASHES_AT_START of
# these in a row it is not restarted.
EARLY_S = 10.0
CRASHES_AT_START = 4
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


def compute_restart_pause(crashes: int) -> float | None:
    """Return the seconds to wait after this many consecutive crashes at start; None to give up."""
    if crashes >= CRASHES_AT_START:
        return None
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** max(0, crashes - 1))


def max_shutdown_s(settings: Settings) -> float:
    """Return the maximum seconds for a controller to stop, including the grace period of runs."""
    return settings.grace_s + SHUTDOWN_TIMEOUT_S


@dataclass
class Child:
    """Server or controller: its module, its process, and its crashes."""

    name: str
    module: str
    owns_group: bool  # kill its whole process group; a controller's group may contain supervisors
    end_timeout_s: float = SHUTDOWN_TIMEOUT_S
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    crashes: int = 0
    restart_s: float | None = None


class Instance:
    """Server and controller of one data folder, from ``start`` to ``stop``.

    ``say`` is called with messages for the user. ``is_stop_requested`` is polled during the start.
    ``server`` and ``controller`` are the modules to run. Use it inside ``lock_data_dir``.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        say: Callable[[str], None],
        is_stop_requested: Callable[[], bool],
        server: str = "runyard.server",
        controller: str = "runyard.controller",
    ):
        self._settings = settings
        self._say = say
        self._is_stop_requested = is_stop_requested
        self._server = Child("server", server, owns_group=True)
        self._controller = Child(
            "controller", controller, owns_group=False, end_timeout_s=max_shutdown_s(settings)
        )

        self._has_been_up = False
        # (read, write): the controller exits after this process, the server after both.
        self._controller_pipe, self._server_pipe = os.pipe(), os.pipe()
        self._descriptors = [*self._controller_pipe, *self._server_pipe]

    @property
    def children(self) -> list[Child]:
        return [self._server, self._controller]

    def start(self) -> str | None:
        """Start both and return the endpoint once the server responds.

        None if a stop is requested first.

        Raises:
            CommandFailed: The port is in use, or a child cannot start.
        """
        self._write_process_file()
        check_port_free(self._settings)
        # A file of an earlier server must not signal readiness.
        self._settings.server_file.unlink(missing_ok=True)
        self._launch(self._server)
        endpoint = self._wait_until_ready()
        if endpoint is None:
            return None
        # A restarted server must use the same port, even if it selected a free one at first.
        self._settings = replace(self._settings, port=parse_port(endpoint))
        self._launch(self._controller)
        self._has_been_up = True
        return endpoint

    def watch(self) -> None:
        """Restart children as needed and rotate logs; call often.

        Raises:
            CommandFailed: A child keeps crashing or cannot start.
        """
        for child in self.children:
            self._watch(child)
        for log in self._settings.logs_dir.glob("*.log"):
            rotate_log(log, self._settings.server_log_mib << 20)

    def stop(self, *, before_server_stops: Callable[[], None] = lambda: None) -> None:
        """Stop the controller, then the server; kill a child that does not stop in time.

        ``before_server_stops`` is called after the controller has exited, while the server still
        responds.
        """
        stop_child(self._controller)
        try:
            before_server_stops()
        finally:
            stop_child(self._server)
            self._process_file.unlink(missing_ok=True)
            while self._descriptors:
                os.close(self._descriptors.pop())

    def kill(self) -> None:
        """Kill both immediately, after a second stop request."""
        for child in self.children:
            kill_child(child)

    def stop_orphans(self) -> None:
        """Stop children of a killed instance of this data folder, and wait for them."""
        recorded = read_processes(self._settings)
        for name in ("controller", "server"):
            identity = recorded.get(name)
            if identity is None or processes.check_liveness(identity) != "alive":
                continue
            self._say(
                f"Waiting for the {name} of an earlier start to exit (process {identity.pid})."
            )
            _stop_process(identity, max_shutdown_s(self._settings))

    @property
    def _process_file(self) -> Path:
        return process_file(self._settings)

    def _launch(self, child: Child) -> None:
        child.restart_s = None
        child.started_s = time.monotonic()
        with open(log_path(self._settings, child.name), "ab") as log:
            child.process = subprocess.Popen(
                [sys.executable, "-P", "-m", child.module, "--end-with-stdin"],
                env={**os.environ, **build_environment(self._settings)},
                stdin=(self._server_pipe if child is self._server else self._controller_pipe)[0],
                stdout=log,
                stderr=log,
                process_group=0,
                pass_fds=() if child is self._server else (self._server_pipe[1],),
            )
        self._write_process_file()

    def _write_process_file(self) -> None:
        """Record the processes of this instance."""
        pids = {each.name: each.process.pid for each in self.children if each.process is not None}
        found = {name: processes.identify(pid) for name, pid in {"up": os.getpid(), **pids}.items()}
        write_json(
            self._process_file,
            {
                name: {"bootId": who.boot_id, "pid": who.pid, "startTicks": who.start_ticks}
                for name, who in found.items()
                if who is not None
            },
        )

    def _schedule_restart(self, child: Child, returncode: int, now: float) -> None:
        kill_child(child)  # a worker of a crashed server would hold the port
        is_temporary = returncode == EXIT_NOT_NOW
        if returncode == CANNOT_START or (is_temporary and not self._has_been_up):
            reason = read_log_tail(log_path(self._settings, child.name), lines=1).strip()
            raise CommandFailed(
                f"the {child.name} cannot start: {reason}",
                exit_code=EXIT_ERROR if is_temporary else EXIT_CANNOT_START,
            )
        child.crashes = child.crashes + 1 if now - child.started_s < EARLY_S else 1
        pause_s = LONGEST_PAUSE_S if is_temporary else compute_restart_pause(child.crashes)
        how = describe_exit(returncode)
        log = log_path(self._settings, child.name)
        if pause_s is None:
            raise CommandFailed(
                f"the {child.name} {how}, {child.crashes} times in a row; "
                f"its log {log} ends with:\n{read_log_tail(log)}"
            )
        child.restart_s = now + pause_s
        self._say(f"The {child.name} {how}; restarting it in {pause_s:g} s. Log: {log}")

    def _watch(self, child: Child) -> None:
        now = time.monotonic()
        if child.restart_s is not None:
            if now >= child.restart_s:
                self._launch(child)
        elif child.process is not None and child.process.poll() is not None:
            self._schedule_restart(child, child.process.returncode, now)

    def _wait_until_ready(self) -> str | None:
        reported_s = time.monotonic()
        log = log_path(self._settings, "server")
        while True:
            if self._is_stop_requested():
                return None
            self._watch(self._server)
            endpoint = live_endpoint(self._settings)
            if endpoint is not None:
                return endpoint
            # Upgrading a large database takes minutes.
            if time.monotonic() - reported_s > STILL_STARTING_S:
                reported_s = time.monotonic()
                self._say(
                    f"The server is still starting; its log {log} ends with:\n"
                    f"{read_log_tail(log, lines=1)}"
                )
            time.sleep(0.05)


@contextmanager
def lock_data_dir(settings: Settings) -> Iterator[None]:
    """Hold the lock of a data folder.

    Raises:
        CommandFailed: An instance is already running with it.
    """
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.logs_dir.mkdir(mode=0o700, exist_ok=True)
    with open(settings.data_dir / "instance.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            where = (read_json(settings.server_file) or {}).get(
                "endpoint", "an address that is not known yet"
            )
            raise CommandFailed(
                f"an instance is already running with the data folder {settings.data_dir}, at "
                f"{where}; try: use it, stop it with `runyard down`, or another --data-dir"
            ) from None
        yield


def process_file(settings: Settings) -> Path:
    """Return the path of the record of an instance's processes."""
    return settings.data_dir / "instance.json"


def read_processes(settings: Settings) -> dict[str, Identity]:
    """Return the recorded processes of a data folder: ``up``, ``server``, ``controller``."""
    found = {}
    for name, who in (read_json(process_file(settings)) or {}).items():
        with suppress(KeyError, TypeError, ValueError):
            found[name] = Identity(str(who["bootId"]), int(who["pid"]), int(who["startTicks"]))
    return found


def rotate_log(path: Path, limit_bytes: int) -> None:
    """Move a log above ``limit_bytes`` to ``<name>.1``, replacing the previous one; 0 means no
    limit.

    Its writer keeps it open for appending, so it is copied and truncated; a line written in between
    is lost.
    """
    with suppress(OSError):
        if 0 < limit_bytes < path.stat().st_size:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)


def live_endpoint(settings: Settings) -> str | None:
    """Return the endpoint of the running server of a data folder; None if none responds."""
    record = read_json(settings.server_file) or {}
    endpoint = record.get("endpoint")
    if isinstance(endpoint, str) and is_healthy(endpoint, record.get("certificate")):
        return endpoint
    return None


def name_endpoint(settings: Settings, endpoint: str) -> str:
    """Return the endpoint by a name that its certificate is valid for; itself without TLS."""
    record = read_json(settings.server_file) or {}
    return str(record.get("namedEndpoint") or endpoint)


def find_named_endpoint(client: "vi.Client") -> str:
    """Return the endpoint by which other machines, and browsers, reach the server of a client.

    A client on the server's own machine knows the certificate and connects to a loopback address.
    """
    certificate = client._credentials.trust.certificate
    if not certificate:
        return client.endpoint
    settings = Settings(data_dir=Path(certificate).parent)
    return name_endpoint(settings, client.endpoint).rstrip("/")


def is_healthy(endpoint: str, certificate: str | None = None) -> bool:
    """Return True if a Runyard server responds at an endpoint.

    With https it must present the certificate in the file ``certificate``.
    """
    import http.client
    import json

    try:
        connection = _open_connection(endpoint, certificate)
    except (OSError, ValueError):  # the server has been stopped, or is about to replace the file
        return False
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        return response.status == 200 and json.loads(response.read()).get("status") == "ok"
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return False
    finally:
        connection.close()


def _open_connection(endpoint: str, certificate: str | None) -> "http.client.HTTPConnection":
    """Return a connection to the server of a data folder, not connected yet.

    Raises:
        OSError, ValueError: The file of the certificate cannot be used.
    """
    import http.client

    address = parse_address(endpoint)
    if not endpoint.startswith("https:"):
        return http.client.HTTPConnection(address, timeout=5)
    from vi._http.tls import pin_certificate

    if not certificate:
        raise ValueError(f"{endpoint} without a certificate")
    context = pin_certificate(Path(certificate).read_text("utf-8"))
    return http.client.HTTPSConnection(address, timeout=5, context=context)


def parse_address(endpoint: str) -> str:
    """Return host and port of an endpoint."""
    from urllib.parse import urlsplit

    return urlsplit(endpoint).netloc


def parse_port(endpoint: str) -> int:
    """Return the port of an endpoint."""
    from urllib.parse import urlsplit

    parts = urlsplit(endpoint)
    return parts.port or (443 if parts.scheme == "https" else 80)


def check_port_free(settings: Settings) -> None:
    """Check that the server can listen on its address, before starting it.

    Raises:
        CommandFailed: The port is in use, or the address is invalid.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except (OSError, OverflowError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise CommandFailed(
                    f"port {settings.port} on {settings.host} is in use by another program; try: "
                    f"stop that program, or --port {settings.port + 1} (--port 0 selects a free "
                    "one)"
                ) from error
            raise CommandFailed(
                f"cannot listen on {settings.host} port {settings.port}: "
                f"{getattr(error, 'strerror', None) or error}; try: another --host and --port",
                exit_code=EXIT_CANNOT_START,
            ) from error


def stop_child(child: Child) -> None:
    """Terminate a child, wait for it, and kill it after the timeout."""
    if child.process is None:
        return
    if child.process.poll() is None:
        child.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(child.end_timeout_s)
    kill_child(child)
    child.process.wait()


def kill_child(child: Child) -> None:
    """Kill a child, and its process group if it owns that."""
    if child.process is None:
        return
    if child.owns_group:
        signal_group(child.process.pid, signal.SIGKILL)
    elif child.process.poll() is None:
        child.process.kill()


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the process group of a child; a missing group is ignored."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def describe_exit(returncode: int) -> str:
    """Return how a process exited, as part of a sentence."""
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"exited with code {returncode}"


def log_path(settings: Settings, name: str) -> Path:
    """Return the path of the log of a child."""
    return settings.logs_dir / f"{name}.log"


def read_log_tail(path: Path, lines: int = 8) -> str:
    """Return the last lines of a log, indented."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 16384))
        text = _read_text(file)
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (nothing)"


def wait_for_exit(identity: Identity, timeout_s: float) -> bool:
    """Wait for a process that is not our child; return True if it has exited."""
    deadline_s = time.monotonic() + timeout_s
    while processes.check_liveness(identity) == "alive":
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def _stop_process(identity: Identity, timeout_s: float) -> None:
    """Stop a process that is not our child, and that may be stopping already."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        processes.send_signal(identity, number)
        if wait_for_exit(identity, timeout_s):
            return


def _read_text(file: IO[bytes]) -> str:
    return file.read().decode(errors="replace")
