"""The server as a process: one data folder, one port, one event loop.

Two servers must never share a database, so the folder is locked first. The socket is bound here and handed to the web
server, which would share a port that is in use silently. Where we listen is written down only when a request to it has
been answered. SIGTERM and SIGINT end it cleanly: waiters are let go, what is queued is committed, files are removed.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from runyard.processes import call_when_stdin_ends
from runyard.rundir import read_json
from runyard.server.clock import SystemClock
from runyard.server.connections import BACKLOG, ConnectionGuard, bound_socket, connections_possible
from runyard.server.http.app import create_app, open_services
from runyard.server.http.gateway import Door
from runyard.server.http.proxies import Proxies
from runyard.server.opening import explain_failures
from runyard.server.services.access.bootstrap import announce
from runyard.server.services.access.secrets import write_private
from runyard.server.services.context import Services
from runyard.settings import Settings, read_settings
from runyard.starting import CannotStart

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
# What connections have to end by themselves when the server is asked to stop: silent ones, then those being served.
STOP_IDLE_TIMEOUT_S, STOP_BUSY_TIMEOUT_S = 0.5, 5.0
HTTP_BUFFER_BYTES = 64 * 1024  # of one connection: a request's headers, or a response that is not read yet


def main() -> int:
    """Serve until told to stop; the process's exit status.

    What can be foreseen to prevent a start is found before the web server starts, and is one line on stderr, the last.
    """
    os.umask(0o077)  # whatever is made below the data folder is ours alone
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # what it does is ours to report
    if "--end-with-stdin" in sys.argv[1:]:
        call_when_stdin_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with explain_failures():
            settings = read_settings()
            logging.getLogger().setLevel(settings.log_level.upper())
        with _data_dir_locked(settings):
            asyncio.run(serve(settings))
    except CannotStart as error:
        log.error("%s", error)
        return error.exit_status
    return 0


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        CannotStart: the address is taken or refused, or what the server needs cannot be opened.
    """
    _check_bind(settings)
    with _bound_socket(settings) as bound:
        async with _open_services(settings) as services:
            await _serve(settings, services, bound)


@contextlib.asynccontextmanager
async def _open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open store and secrets; only what happens while they open is a reason not to start."""
    async with contextlib.AsyncExitStack() as stack:
        with explain_failures(settings):
            services = await stack.enter_async_context(open_services(settings, SystemClock(), pulse=True))
        yield services


async def _serve(settings: Settings, services: Services, bound: socket.socket) -> None:
    port = int(bound.getsockname()[1])
    endpoint = f"http://{_client_host(settings.host)}:{port}/"
    door = create_app(settings, opened=services)
    most = connections_possible(settings.max_connections)
    guard = ConnectionGuard(
        bound,
        is_busy=door.is_busy,
        is_exempt=Proxies(settings).is_trusted,
        most=most,
        most_per_address=settings.connections_per_address,
    )
    door.drop = guard.drop
    server = _Server(door, bound, settings, backpressure=most)
    guard.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    serving = asyncio.create_task(server.serve(), name="http")
    waiting = asyncio.create_task(stopping.wait(), name="signals")
    announcing = asyncio.create_task(_announce_when_up(settings, endpoint, port), name="announce")
    # A server that nobody can find is of no use: what keeps it from being announced ends it.
    announcing.add_done_callback(lambda task: None if task.cancelled() or not task.exception() else stopping.set())
    try:
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        announcing.cancel()
        await _stop(server, door, serving, guard)
        waiting.cancel()
        _forget(settings.server_file)
        with contextlib.suppress(asyncio.CancelledError), explain_failures():
            await announcing


async def _stop(server: Server, door: Door, serving: asyncio.Task[None], guard: ConnectionGuard) -> None:
    if door.services is not None:
        door.services.changes.close()  # long polls answer now, or stopping would wait for them
    server.stop()  # type: ignore[no-untyped-call]
    # Clients that neither send nor read would keep the server from stopping.
    for timeout_s, busy in ((STOP_IDLE_TIMEOUT_S, False), (STOP_BUSY_TIMEOUT_S, True)):
        await asyncio.wait({serving}, timeout=timeout_s)
        guard.close(busy=busy)
    guard.stop()
    await serving


async def _announce_when_up(settings: Settings, endpoint: str, port: int) -> None:
    """Write down where we listen, once a request has really been answered."""
    host = _client_host(settings.host)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await _answers(host.strip("[]"), port, host):
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise CannotStart(
            f"{endpoint} does not answer {START_TIMEOUT_S:g} s after it began to listen; try: look for what blocks it, "
            "and start again",
            may_pass=True,
        ) from error
    announce(settings, endpoint)
    write_private(settings.server_file, json.dumps({"endpoint": endpoint, "pid": os.getpid()}) + "\n")
    log.info(json.dumps({"event": "listening", "endpoint": endpoint, "dataDir": str(settings.data_dir)}))


async def _answers(address: str, port: int, host: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    try:
        writer.write(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()


@contextlib.contextmanager
def _data_dir_locked(settings: Settings) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with explain_failures(settings):
            settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = stack.enter_context(open(settings.data_dir / "server.lock", "w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            told = read_json(settings.server_file) or {}
            where = told.get("endpoint", "an address it has not written down yet")
            raise CannotStart(
                f"a server already uses {settings.data_dir} (at {where}); stop it, or choose another --data-dir"
            ) from None
        yield


def _check_bind(settings: Settings) -> None:
    is_loopback = settings.host in ("localhost", "::1") or settings.host.startswith("127.")
    if not is_loopback and not settings.insecure_bind:
        raise CannotStart(
            f"{settings.host} is not a loopback address: keys and pictures would cross the network unencrypted. "
            "Put a TLS proxy in front of 127.0.0.1, or accept that with RUNYARD_INSECURE_BIND=1"
        )


def _bound_socket(settings: Settings) -> socket.socket:
    """The socket to listen on, bound, with a free port for port 0."""
    try:
        return bound_socket(settings.host, settings.port, transfer_timeout_s=settings.transfer_timeout_s)
    except (OSError, OverflowError, UnicodeError) as error:
        raise CannotStart(
            f"cannot listen on {settings.host}:{settings.port}: {getattr(error, 'strerror', None) or error}; "
            "try: stop what uses it, or choose another --port (0 takes a free one) or --host"
        ) from error


class _Server(Server):
    """Granian on a socket that is bound already, speaking HTTP/1.1 alone.

    Without the detection of HTTP/2 its timeout for headers covers connections that never send a byte, too.
    """

    def __init__(self, door: Door, bound: socket.socket, settings: Settings, *, backpressure: int) -> None:
        super().__init__(
            door,
            address=settings.host,
            port=bound.getsockname()[1],
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(
                header_read_timeout=round(settings.idle_timeout_s * 1000), max_buffer_size=HTTP_BUFFER_BYTES
            ),
            log_enabled=False,
            websockets=False,
            backlog=BACKLOG,
            backpressure=backpressure,
        )
        self._bound = bound

    def _init_shared_socket(self) -> None:
        """Hand the descriptor over: from now on Granian owns and closes it."""
        self._shd = SocketHolder(self._bound.detach(), False, self.backlog)  # type: ignore[assignment,call-arg]


def _client_host(host: str) -> str:
    """The address a client on this machine uses."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"  # noqa: S104
    return f"[{host}]" if ":" in host else host


def _forget(server_file: Path) -> None:
    told = read_json(server_file)
    if told is not None and told.get("pid") == os.getpid():
        server_file.unlink(missing_ok=True)
