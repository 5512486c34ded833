"""The server as a process: one data folder, one port, one event loop.

Two servers must never share a database, so the folder is locked first. The socket is bound here,
since the web server would silently share a port that is in use. The endpoint is written to disk
only after a request to it has succeeded. SIGTERM and SIGINT stop it cleanly: waiters are released,
queued writes are committed, files are removed.
"""

import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from runyard.processes import call_when_stdin_ends
from runyard.rundir import read_json
from runyard.security.transport import check_bind
from runyard.server.clock import AsyncSystemClock
from runyard.server.connections import BACKLOG, ConnectionGuard, bind_socket, raise_file_limit
from runyard.server.http.app import build_api, create_app, open_services
from runyard.server.http.gateway import Gateway
from runyard.server.http.proxies import Proxies
from runyard.server.opening import explain_failures
from runyard.server.services.access.bootstrap import write_endpoint
from runyard.server.services.access.secrets import write_private
from runyard.server.services.context import Services
from runyard.settings import Settings, read_settings
from runyard.starting import CannotStart

if TYPE_CHECKING:
    import ssl

    from runyard.security.tls import ServerCertificate

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
# Time that connections have to end by themselves when the server stops: idle ones, then those in
# use.
STOP_IDLE_TIMEOUT_S, STOP_BUSY_TIMEOUT_S = 0.5, 5.0
HTTP_BUFFER_BYTES = 64 * 1024  # of one connection: request headers, or an unread response


def main() -> int:
    """Serve until a signal; return the exit status.

    A foreseeable cause that prevents the start is reported as one line, the last on stderr.
    """
    os.umask(0o077)  # only this user may read what is created in the data folder
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # the store reports its migrations
    if "--end-with-stdin" in sys.argv[1:]:
        call_when_stdin_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with explain_failures():
            settings = read_settings()
            logging.getLogger().setLevel(settings.log_level.upper())
        with _lock_data_dir(settings):
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
    with explain_failures(settings):
        check_bind(settings)
        certificate = _load_certificate(settings)
    if certificate is not None:
        # Only this server can present a certificate with these names, so no other page reaches it
        # by a name that it has rebound.
        hosts = (settings.allowed_hosts, *certificate.hosts)
        settings = replace(settings, allowed_hosts=",".join(filter(None, hosts)))
    with _bind_socket(settings) as bound:
        async with _open_services(settings) as services:
            await _serve(settings, services, bound, certificate)


@contextlib.asynccontextmanager
async def _open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open store and secrets; only an error while they open prevents the start."""
    async with contextlib.AsyncExitStack() as stack:
        with explain_failures(settings):
            services = await stack.enter_async_context(
                open_services(settings, AsyncSystemClock(), run_ticker=True)
            )
        yield services


async def _serve(
    settings: Settings,
    services: Services,
    bound: socket.socket,
    certificate: "ServerCertificate | None",
) -> None:
    scheme = "http" if certificate is None else "https"
    endpoint = f"{scheme}://{_client_host(settings.host)}:{bound.getsockname()[1]}/"
    gateway = create_app(settings)
    gateway.services = services
    build_api()  # now, and not while the first request waits
    gc.freeze()  # what exists now lives as long as the server
    gc.enable()
    max_connections = raise_file_limit(settings.max_connections)
    guard = ConnectionGuard(
        bound,
        is_busy=gateway.is_busy,
        is_exempt=Proxies(settings).is_trusted,
        max_connections=max_connections,
        max_per_address=settings.connections_per_address,
    )
    gateway.drop_connection = guard.drop_connection
    server = _Server(gateway, bound, settings, backpressure=max_connections)
    guard.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    serving = asyncio.create_task(server.serve(), name="http")
    waiting = asyncio.create_task(stopping.wait(), name="signals")
    announcing = asyncio.create_task(
        _announce_when_up(settings, endpoint, certificate), name="announce"
    )
    # No client can find a server that is not announced, so a failed announcement stops it.
    announcing.add_done_callback(
        lambda task: None if task.cancelled() or not task.exception() else stopping.set()
    )
    try:
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        announcing.cancel()
        await _stop(server, services, serving, guard)
        waiting.cancel()
        _remove_server_file(settings.server_file)
        with contextlib.suppress(asyncio.CancelledError), explain_failures():
            await announcing


async def _stop(
    server: Server, services: Services, serving: asyncio.Task[None], guard: ConnectionGuard
) -> None:
    services.notifier.close()  # end long polls now, or stopping would wait for them
    server.stop()  # type: ignore[no-untyped-call]
    # Idle clients would keep the server from stopping.
    for timeout_s, busy in ((STOP_IDLE_TIMEOUT_S, False), (STOP_BUSY_TIMEOUT_S, True)):
        await asyncio.wait({serving}, timeout=timeout_s)
        guard.close(busy=busy)
    guard.stop()
    await serving


async def _announce_when_up(
    settings: Settings, endpoint: str, certificate: "ServerCertificate | None"
) -> None:
    """Write the endpoint to disk once a request to it has succeeded."""
    context = None
    if certificate is not None:
        from vi._http.tls import pin_certificate

        context = pin_certificate(certificate.pem)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await _is_answering(endpoint, context):
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise CannotStart(
            f"{endpoint} does not answer {START_TIMEOUT_S:g} s after the server began to listen; "
            "try: check what blocks it, and start again",
            may_pass=True,
        ) from error
    document: dict[str, Any] = {"endpoint": endpoint, "pid": os.getpid()}
    if certificate is not None:
        # Before the files that name it: a client that reads these finds the right certificate.
        write_private(settings.certificate_file, certificate.pem + "\n")
        document["certificate"] = str(settings.certificate_file)
        document["namedEndpoint"] = _name_endpoint(settings, endpoint, certificate)
    write_endpoint(settings, endpoint, certificate=document.get("certificate"))
    write_private(settings.server_file, json.dumps(document) + "\n")
    log.info(
        json.dumps({"event": "listening", "endpoint": endpoint, "dataDir": str(settings.data_dir)})
    )


def _name_endpoint(settings: Settings, endpoint: str, certificate: "ServerCertificate") -> str:
    """Return the endpoint that browsers and other machines use: a name in the certificate."""
    address = urlsplit(endpoint)
    if settings.public_url:
        return settings.public_url.rstrip("/") + "/"
    if address.hostname in certificate.names or not certificate.hosts:
        return endpoint
    return f"https://{certificate.hosts[0]}:{address.port}/"


async def _is_answering(endpoint: str, context: "ssl.SSLContext | None") -> bool:
    address = urlsplit(endpoint)
    try:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, ssl=context)
    except OSError:
        return False
    host = address.netloc.rpartition(":")[0]
    try:
        writer.write(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()


@contextlib.contextmanager
def _lock_data_dir(settings: Settings) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with explain_failures(settings):
            settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = stack.enter_context(open(settings.data_dir / "server.lock", "w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            document = read_json(settings.server_file) or {}
            endpoint = document.get("endpoint", "an unknown address")
            raise CannotStart(
                f"a server already uses {settings.data_dir} (at {endpoint}); try: stop it, or "
                "choose another --data-dir"
            ) from None
        yield


def _load_certificate(settings: Settings) -> "ServerCertificate | None":
    if not settings.tls_cert:
        return None
    from runyard.security.tls import load_server_certificate  # costs a start without TLS nothing

    return load_server_certificate(settings)


def _bind_socket(settings: Settings) -> socket.socket:
    """Return the bound socket to listen on; port 0 takes a free port."""
    try:
        return bind_socket(
            settings.host, settings.port, transfer_timeout_s=settings.transfer_timeout_s
        )
    except (OSError, OverflowError, UnicodeError) as error:
        raise CannotStart(
            f"cannot listen on {settings.host}:{settings.port}: "
            f"{getattr(error, 'strerror', None) or error}; try: stop what uses it, or choose "
            "another --port (0 takes a free one) or --host"
        ) from error


class _Server(Server):
    """Granian on a bound socket, with HTTP/1.1 only.

    Without the detection of HTTP/2, its timeout for headers also covers connections that never send
    a byte.
    """

    def __init__(
        self, gateway: Gateway, bound: socket.socket, settings: Settings, *, backpressure: int
    ) -> None:
        super().__init__(
            gateway,
            address=settings.host,
            port=bound.getsockname()[1],
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(
                header_read_timeout=round(settings.idle_timeout_s * 1000),
                max_buffer_size=HTTP_BUFFER_BYTES,
            ),
            log_enabled=False,
            websockets=False,
            ssl_cert=Path(settings.tls_cert) if settings.tls_cert else None,
            ssl_key=Path(settings.tls_key) if settings.tls_key else None,
            backlog=BACKLOG,
            backpressure=backpressure,
        )
        self._bound = bound

    def _init_shared_socket(self) -> None:
        """Hand the descriptor over: Granian owns and closes it from here."""
        self._shd = SocketHolder(self._bound.detach(), False, self.backlog)  # type: ignore[assignment,call-arg]


def _client_host(host: str) -> str:
    """Return the address that a client on this machine uses."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"  # noqa: S104
    return f"[{host}]" if ":" in host else host


def _remove_server_file(server_file: Path) -> None:
    document = read_json(server_file)
    if document is not None and document.get("pid") == os.getpid():
        server_file.unlink(missing_ok=True)
