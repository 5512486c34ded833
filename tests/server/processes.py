"""A server process over a fresh data folder with two members' keys, and raw socket clients."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from runyard.security import key_format
from runyard.server.services.access import bootstrap, keys
from runyard.server.services.access.secrets import open_secrets
from runyard.settings import Settings
from runyard.store import Store
from runyard.store.access import keys as key_rows

START_TIMEOUT_S = 60.0


@dataclass
class ServerProcess:
    """A running server; ``key`` and ``other_key`` belong to the same organization."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    org: str
    key: str
    other_key: str
    log_file: Path

    def client(self, key: str | None = None, *, timeout_s: float = 60.0) -> httpx2.Client:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx2.Client(
            base_url=f"http://{self.host}:{self.port}", headers=headers, timeout=timeout_s
        )

    def path(self, rest: str) -> str:
        return f"/workspaces/{self.org}/{rest}"

    def head(self, method: str, target: str, *, key: str | None = None, **headers: str) -> bytes:
        """Return the head of a request with a key, as bytes."""
        given = {
            "host": f"{self.host}:{self.port}",
            "authorization": f"Bearer {key or self.key}",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [
            f"{method} {target} HTTP/1.1",
            *(f"{name}: {value}" for name, value in given.items()),
            "",
            "",
        ]
        return "\r\n".join(lines).encode("latin-1")

    def log(self) -> str:
        return self.log_file.read_text()

    def sockets(self) -> int:
        """Return the number of open sockets of the process."""
        count = 0
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += descriptor.readlink().name.startswith("socket:")
        return count

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()


@contextlib.contextmanager
def running_server(data_dir: Path, **settings: Any) -> Iterator[ServerProcess]:
    """Start a server with these settings, and stop it when the test ends in any way."""
    other_key = asyncio.run(_prepare(Settings(data_dir=data_dir)))
    log_file = data_dir / "server.log"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")
    }
    environment |= {"RUNYARD_DATA_DIR": str(data_dir), "RUNYARD_PORT": "0"}
    environment |= {f"RUNYARD_{name.upper()}": str(value) for name, value in settings.items()}
    with open(log_file, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "runyard.server"], env=environment, stderr=log
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not (data_dir / "server.json").exists():
            assert process.poll() is None, log_file.read_text()
            assert time.monotonic() < deadline_s, log_file.read_text()
            time.sleep(0.02)
        credentials = json.loads((data_dir / "credentials.json").read_text())
        address = urlsplit(credentials["endpoint"])
        assert address.hostname is not None
        assert address.port is not None
        yield ServerProcess(
            process,
            address.hostname,
            address.port,
            credentials["organization_id"],
            credentials["secret_key"],
            other_key,
            log_file,
        )
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def allow_sockets(count: int) -> None:
    """Raise this process's limit of open sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 256
    assert hard == resource.RLIM_INFINITY or needed <= hard, (
        f"this needs {needed} open files, and {hard} are allowed"
    )
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class Crowd:
    """Sockets of one attacker, which stay open until the end."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.sockets: list[socket.socket] = []

    async def connect(
        self, first_bytes: bytes = b"", *, receive_buffer: int | None = None
    ) -> socket.socket | None:
        """Return a connected socket that has sent ``first_bytes``.

        None if the server refused the connection.
        """
        loop = asyncio.get_running_loop()
        connected = socket.socket()
        connected.setblocking(False)
        if receive_buffer is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sockets.append(connected)
        try:
            await loop.sock_connect(connected, (self._server.host, self._server.port))
            if first_bytes:
                await loop.sock_sendall(connected, first_bytes)
        except OSError:
            return None
        return connected

    def close(self) -> None:
        for connected in self.sockets:
            connected.close()


@contextlib.asynccontextmanager
async def crowd(server: ServerProcess) -> AsyncIterator[Crowd]:
    gathered = Crowd(server)
    try:
        yield gathered
    finally:
        gathered.close()


async def exchange(server: ServerProcess, request: bytes, *, timeout_s: float = 60.0) -> bytes:
    """Send bytes on a new connection, and return everything received until it is closed."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    received = b""
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(timeout_s):
            while piece := await reader.read(65536):
                received += piece
    writer.close()
    return received


async def _prepare(settings: Settings) -> str:
    """Make organization and keys as the first start does.

    Return the secret of another member's key.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    secrets = open_secrets(settings.secrets_dir)
    store = Store(settings.database)
    try:
        await bootstrap.bootstrap(settings, store, secrets.pepper, now_ms=1_700_000_000_000)
        org = json.loads(settings.credentials_file.read_text())["organization_id"]
        other_key = key_format.new_key()
        parts = key_format.parse(other_key)
        assert parts is not None
        mac = keys.secret_mac(secrets.pepper, parts.secret)
        await store.write(
            lambda connection: key_rows.add(
                connection,
                key_id=parts.key_id,
                org=org,
                role="member",
                secret_mac=mac,
                name="other",
                time_ms=1,
            )
        )
    finally:
        store.close()
    return other_key
