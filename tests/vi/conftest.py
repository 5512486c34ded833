"""Fixtures of the SDK tests: a scripted server, a clock that moves only in sleep, a byte server."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

KEY = "dtvi_" + "k" * 98


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_credentials_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("SECRET_KEY", "ORGANIZATION_ID", "API_ENDPOINT"):
        monkeypatch.delenv(f"DATATURE_VI_{name}", raising=False)
    monkeypatch.delenv("RUNYARD_CA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


class ScriptedServer:
    """Sends scripted responses in order.

    An exception in the script is a broken connection.
    """

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []
        self.script: list[httpx2.Response | Exception] = []
        self.transport = httpx2.MockTransport(self._answer)

    def answers(
        self, document: Any = None, *, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        content = b"" if document is None else json.dumps(document).encode()
        self.script.append(httpx2.Response(status, content=content, headers=headers))

    def breaks(self, error: Exception | None = None) -> None:
        self.script.append(
            error or httpx2.RemoteProtocolError("Server disconnected without sending a response.")
        )

    def refuses_connections(self) -> None:
        self.script.append(httpx2.ConnectError("Connection refused"))

    @property
    def asked(self) -> list[str]:
        """Return method and target of each request."""
        return [f"{request.method} {request.url.raw_path.decode()}" for request in self.requests]

    def body(self, number: int = -1) -> Any:
        return json.loads(self.requests[number].content)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        assert self.script, f"nobody expected {request.method} {request.url}"
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@dataclass
class Clock:
    """A clock that advances only in sleep."""

    now_s: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        self.now_s += duration_s

    async def async_sleep(self, duration_s: float) -> None:
        self.sleep(duration_s)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key() -> str:
    return KEY


@pytest.fixture
def run_document() -> Callable[..., dict[str, Any]]:
    """Return a run as the server writes it; ``conditions`` are names, or complete conditions."""

    def build(
        *conditions: str | dict[str, Any], run_id: str = "r-1", **status: Any
    ) -> dict[str, Any]:
        return {
            "kind": "Run",
            "workspaceId": "lab",
            "runId": run_id,
            "spec": {
                "flow": {
                    "name": "digits",
                    "schema": "v1",
                    "tolerations": {},
                    "settings": {},
                    "blocks": [],
                }
            },
            "status": {
                "log": "",
                "observedGeneration": 1,
                "conditions": [
                    item
                    if isinstance(item, dict)
                    else {
                        "condition": item,
                        "status": "Reached",
                        "lastTransitionTime": 1767225600000,
                    }
                    for item in conditions
                ],
                **status,
            },
            "metadata": {
                "timeCreated": 1767225600000,
                "lastUpdated": 1767229200000,
                "generation": 1,
                "attributes": {},
            },
            "selfLink": f"/workspaces/lab/runs/{run_id}",
            "etag": "e1",
        }

    return build


class ByteServer:
    """A real HTTP server with one file below ``/downloads/``, and ``documents`` as further answers.

    It fails once for each entry of ``faults`` when the file is requested.

    A fault is a number (cut the connection after so many bytes of the body), a status to answer
    with, or a word: ``no-ranges`` ignores the range of the request, ``wrong-range`` begins one
    byte too late, ``hold`` sends the first half and then nothing until ``release`` is set.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.faults: list[int | str | tuple[int, dict[str, str]]] = []
        self.documents: list[Any] = []
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.headers_seen: list[dict[str, str]] = []
        self.etag: str | None = None
        self.release = threading.Event()
        handler = type("Handler", (_ByteHandler,), {"bytes_server": self})
        self._http = _QuietServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.endpoint}/downloads/model.tar?signature=s3cret"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def close(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect, which these tests do on purpose."""


class _ByteHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bytes_server: ByteServer

    def do_HEAD(self) -> None:
        self.bytes_server.headers_seen.append(dict(self.headers))
        self._head(200, {"Content-Length": str(len(self.bytes_server.content))})

    def do_GET(self) -> None:
        server = self.bytes_server
        if not self.path.startswith("/downloads/"):
            server.asked.append(f"GET {self.path}")
            document = json.dumps(server.documents.pop(0)).encode()
            self._head(200, {"Content-Length": str(len(document))})
            self.wfile.write(document)
            return
        server.headers_seen.append(dict(self.headers))
        asked = self.headers.get("Range", "bytes=0-")
        server.ranges.append(asked)
        first = int(asked.removeprefix("bytes=").rstrip("-"))
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, tuple):
            self._head(fault[0], {"Content-Length": "0", **fault[1]})
            return
        if fault == "no-ranges":
            self._head(200, {"Content-Length": str(len(server.content))})
            self.wfile.write(server.content)
            return
        first += fault == "wrong-range"
        size = len(server.content)
        if first >= size:
            self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{size}"})
            return
        body = server.content[first:]
        self._head(
            206,
            {"Content-Length": str(len(body)), "Content-Range": f"bytes {first}-{size - 1}/{size}"},
        )
        if fault == "hold":
            self.wfile.write(body[: size // 2])
            server.release.wait(10)
            fault = 0
        self.wfile.write(body[:fault] if isinstance(fault, int) else body)
        if isinstance(fault, int):
            self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        if self.bytes_server.etag:
            self.send_header("ETag", self.bytes_server.etag)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def byte_server() -> Iterator[ByteServer]:
    server = ByteServer(bytes(range(256)) * 1024)
    yield server
    server.close()
