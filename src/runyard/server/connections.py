"""The server's TCP connections: their maximum number, and which are closed when there are too many.

An application sees a connection only after its first request has been parsed. So the protection
against idle connections acts on sockets: kernel options that every accepted connection inherits,
and a thread that closes the longest idle connections that serve no request. It never closes a new
connection, so a client that sends a request gets its response however many others stay idle.

docs/decisions/connections.md has the reasons and the measurements.
"""

import contextlib
import logging
import os
import resource
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

log = logging.getLogger(__name__)

BACKLOG = 4096  # connections that the kernel holds until they are accepted
RESERVED_FILES = 512  # descriptors left for the database, blobs and worker processes
UNSENT_BYTES = 128 * 1024  # of a response that a client does not read, kept by the kernel
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 10, 3

INTERVAL_S = 0.25
# The share of the cap at which the longest idle connections are closed, whatever their address, and
# the share that remains after that, so that a flood costs few sweeps.
CROWDED_SHARE, RELIEVED_SHARE = 0.75, 0.6
# Checking thousands of connections must not keep the thread of the event loop from running.
CHECKS_PER_PAUSE, PAUSE_S, SHARE_OF_TIME = 32, 0.0005, 0.2
# Offset of tcpi_last_data_recv, milliseconds, in struct tcp_info of <linux/tcp.h>.
LAST_DATA_RECEIVED = 52
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: discard unsent bytes

Peer = tuple[str, int]


def raise_file_limit(max_connections: int) -> int:
    """Raise the soft limit on open files to the hard one.

    Return how many connections fit, at most ``max_connections``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    possible = max_connections
    if files != resource.RLIM_INFINITY:
        possible = min(max_connections, max(files - RESERVED_FILES, files // 2))
    if possible < max_connections:
        log.warning(
            "max_connections is %d, but this process may open %d files; up to %d connections are "
            "accepted. try: raise the limit on open files (ulimit -n, LimitNOFILE=), or set "
            "RUNYARD_MAX_CONNECTIONS=%d",
            max_connections, files, possible, possible,
        )  # fmt: skip
    return possible


def bind_socket(host: str, port: int, *, transfer_timeout_s: float) -> socket.socket:
    """Return a bound socket, not listening yet, with the options that its connections inherit.

    Raises:
        OSError: the address is in use or cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, value in (
            # A client that acknowledges nothing, or whose receive window stays closed, is
            # disconnected.
            ("TCP_USER_TIMEOUT", round(transfer_timeout_s * 1000)),
            ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
            ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
            ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
            ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ):
            if hasattr(socket, option):  # not every platform has all of them
                bound.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        bound.bind((host, port))
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


@dataclass(frozen=True)
class Connection:
    """One accepted connection, as the kernel sees it."""

    descriptor: int
    peer: Peer
    idle_ms: int


class ConnectionGuard:
    """A thread that closes idle connections, the longest idle first, when there are too many.

    ``is_busy`` returns whether a request of a peer is in progress; such a connection is never
    closed as idle. Addresses that ``is_exempt`` (trusted proxies, behind which many clients share
    an address) count only in the total. It inspects the process's own descriptors, so it needs no
    privilege.
    """

    def __init__(
        self,
        bound: socket.socket,
        *,
        is_busy: Callable[[Peer], bool],
        max_connections: int,
        max_per_address: int,
        is_exempt: Callable[[str], bool] = lambda address: False,
    ) -> None:
        self._family, self._port = bound.family, bound.getsockname()[1]
        self._is_busy = is_busy
        self._max_connections, self._max_per_address = max_connections, max_per_address
        self._is_exempt = is_exempt
        self._files_before = len(_list_descriptors())
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; connections stay as they are."""
        self._stopping.set()
        self._thread.join()

    def close(self, *, busy: bool) -> None:
        """Close every connection without a request in progress.

        With ``busy`` the others as well.
        """
        for connection in self._connections():
            if busy or not self._is_busy(connection.peer):
                self._close(connection)

    def sweep(self) -> int:
        """Close idle connections beyond the caps; return how many were closed."""
        connections = list(self._connections())
        idle = [connection for connection in connections if not self._is_busy(connection.peer)]
        per_address = Counter(connection.peer[0] for connection in connections)
        crowded = {
            address
            for address, count in per_address.items()
            if count > self._max_per_address and not self._is_exempt(address)
        }
        total, closed = len(connections), 0
        is_crowded = total > self._max_connections * CROWDED_SHARE
        for connection in sorted(idle, key=lambda connection: -connection.idle_ms):
            address = connection.peer[0]
            is_too_many = (
                address in crowded and per_address[address] > self._max_per_address * RELIEVED_SHARE
            )
            if is_too_many or (is_crowded and total > self._max_connections * RELIEVED_SHARE):
                self._close(connection)
                per_address[address] -= 1
                total, closed = total - 1, closed + 1
                _pause_after(closed)
        return closed

    def drop_connection(self, peer: Peer, *, keep_unsent: bool = False) -> None:
        """Close the connection of ``peer``, if it is open.

        ``keep_unsent`` still delivers unsent bytes.
        """
        for connection in self._connections():
            if connection.peer == peer:
                self._close(connection, keep_unsent=keep_unsent)
                return

    def _run(self) -> None:
        fewest = min(self._max_per_address, int(self._max_connections * CROWDED_SHARE))
        interval_s = INTERVAL_S
        while not self._stopping.wait(interval_s):
            begun_s, closed = time.monotonic(), 0
            try:
                if len(_list_descriptors()) - self._files_before > fewest and (
                    closed := self.sweep()
                ):
                    log.warning("closed %d idle connections: there were too many", closed)
            except Exception:  # an error must not end the guard
                log.exception("the connections could not be checked")
            # While there are too many, sweep again soon, within a share of the interpreter's time.
            interval_s = (
                min(INTERVAL_S, (time.monotonic() - begun_s) / SHARE_OF_TIME)
                if closed
                else INTERVAL_S
            )

    def _connections(self) -> Iterator[Connection]:
        for number, descriptor in enumerate(_list_descriptors(), 1):
            _pause_after(number)
            # The web server's thread may close a descriptor at any moment, and it may be another
            # file by now: inspecting it is harmless, and ``_close`` checks a duplicate again.
            try:
                inspected = socket.socket(
                    self._family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=descriptor
                )
            except OSError:
                continue  # not a socket
            try:
                if inspected.getsockname()[1] != self._port:
                    continue
                address, port, *_ = inspected.getpeername()
                about = inspected.getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_INFO, LAST_DATA_RECEIVED + 4
                )
            except (OSError, IndexError):
                continue  # of another family, listening, or gone
            finally:
                inspected.detach()
            (idle_ms,) = struct.unpack_from("I", about, LAST_DATA_RECEIVED)
            yield Connection(descriptor, (address, port), idle_ms)

    def _close(self, connection: Connection, *, keep_unsent: bool = False) -> None:
        """Shut a connection down; the web server then sees its end and closes the descriptor."""
        with contextlib.suppress(OSError):
            kept = socket.socket(
                self._family,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                fileno=os.dup(connection.descriptor),
            )
            with kept:
                if (
                    kept.getsockname()[1] == self._port
                    and kept.getpeername()[:2] == connection.peer
                ):
                    if not keep_unsent:
                        kept.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                    kept.shutdown(socket.SHUT_RDWR)


def _pause_after(number: int) -> None:
    if number % CHECKS_PER_PAUSE == 0:
        time.sleep(PAUSE_S)


def _list_descriptors() -> list[int]:
    """Return the open descriptors of this process; none where the system does not list them."""
    try:
        # Names alone, without a Path for each.
        return [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    except FileNotFoundError:
        return []
