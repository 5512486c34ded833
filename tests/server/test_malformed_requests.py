"""Malformed bytes never make the server fail: no 500, no traceback, and it keeps serving.

Each case is bytes as no HTTP library would send them. An accepted case must
get the response that fits its meaning, if it has one; ``None`` stands for a connection that is
closed without a response, which is acceptable for garbage.
"""

import asyncio
import contextlib
import random
import re
import socket
from collections.abc import Iterator

import pytest

from runyard.server.http.routes import ROUTES
from runyard.server.pages.routes import PAGES
from tests.server.processes import ServerProcess, exchange, running_server

FAILURES = ("Traceback", "panicked", "Exception", '"status":500', "internal server error")
DIGITS = "9" * 5000
PLACE = re.compile(r"\{(\w+):\w+\}")
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {"idle_timeout_s": 2, "transfer_timeout_s": 2}
    with running_server(tmp_path_factory.mktemp("malformed") / "data", **settings) as started:
        with started.client() as client:
            assert client.put(started.path("runs/r1"), json={"spec": {}}).status_code == 201
        yield started
        assert not [failure for failure in FAILURES if failure in started.log()], started.log()[
            -4000:
        ]


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in STATUS.findall(answer)]


def assert_answers(
    server: ServerProcess, requests: list[bytes], expected: dict[int, set[int]] | None = None
) -> None:
    """Assert that every request gets a status below 500, or a closed connection.

    ``expected`` has the statuses of some, by position.
    """

    async def scenario() -> list[bytes]:
        limit = asyncio.Semaphore(20)

        async def ask(request: bytes) -> bytes:
            async with limit:
                return await exchange(server, request)

        return await asyncio.gather(*(ask(request) for request in requests))

    for number, (request, answer) in enumerate(zip(requests, asyncio.run(scenario()), strict=True)):
        got = statuses(answer)
        assert all(status < 500 for status in got), (request[:300], answer[:300])
        if expected is not None and number in expected:
            assert set(got) <= expected[number] and got, (request[:300], answer[:300])
    assert_serves(server)


def assert_serves(server: ServerProcess) -> None:
    assert server.process.poll() is None, server.log()[-4000:]
    with server.client() as client:
        assert client.get(server.path("runs/r1")).status_code == 200
    assert not [failure for failure in FAILURES if failure in server.log()], server.log()[-4000:]


# Streams do not end.
EVERYTHING = [route for route in ROUTES + PAGES if not route.is_endless]


def list_hostile_paths(server: ServerProcess) -> list[str]:
    """Return paths of every route, with a hostile value in each parameter."""
    hostile = (
        DIGITS[:400],
        "%00",
        "%ff%fe",
        "%zz",
        "%",
        "..%2f",
        "%E2%82",
        "-1",
        "1" * 30,
        "a;b",
        "%0d%0aX: y",
    )
    return [fill_path(route.path, server.org, value) for route in EVERYTHING for value in hostile]


def fill_path(path: str, org: str, value: str) -> str:
    """Return a route's path with ``value`` in each parameter but the organization."""
    return PLACE.sub(lambda found: org if found[1] == "org" else value, path)


def test_hostile_values_in_every_parameter_of_every_route(server: ServerProcess) -> None:
    heads = [
        server.head("GET", target, connection="close") for target in list_hostile_paths(server)
    ]
    heads += [
        server.head(
            route.method,
            fill_path(route.path, server.org, "9" * 19),
            connection="close",
            content_length="2",
        )
        + b"{}"
        for route in EVERYTHING
        if not route.path.endswith(("/storage/restores", "/storage/backups"))
    ]
    assert_answers(server, heads)


def test_numbers_of_five_thousand_digits(server: ServerProcess) -> None:
    run, logs = server.path("runs/r1"), server.path("runs/r1/logs")
    close = {"connection": "close"}
    requests = [
        server.head("GET", run, range=f"bytes={DIGITS}-", **close),
        server.head("GET", run, range=f"bytes=-{DIGITS}", **close),
        server.head("GET", "/downloads/link", range=f"bytes={DIGITS}-{DIGITS}", **close),
        server.head("GET", run, content_length=DIGITS, **close),
        server.head("PUT", run, content_length=DIGITS, **close),
        server.head("PUT", "/uploads/link", content_length="9" * 19, **close),
        server.head("PUT", run, content_length="-5", **close),
        server.head("PUT", run, content_length="5, 6", **close),
        server.head("PUT", run, content_length="0x10", **close),
        server.head("GET", f"{logs}?since={DIGITS}", **close),
        server.head("GET", f"{logs}?wait={DIGITS}", **close),
        server.head("GET", f"{logs}?limit=-{DIGITS}", **close),
        server.head("GET", f"{server.path('runs')}?s={DIGITS}", **close),
        server.head("GET", f"{server.path('runs')}?p={DIGITS}", **close),
        server.head("GET", f"{server.path('runs')}?createdAfter=1e{DIGITS[:10]}", **close),
        server.head("GET", server.path(f"datasets/d/assets/a/annotations/{DIGITS[:250]}"), **close),
    ]
    body = b'{"spec": {"flow": {"blocks": [], "x": ' + DIGITS.encode() + b"}}}"
    requests.append(
        server.head("PUT", server.path("runs/big"), content_length=str(len(body)), **close) + body
    )
    body = b'{"spec": {"killedAt": ' + b"9" * 30 + b"}}"
    requests.append(server.head("PATCH", run, content_length=str(len(body)), **close) + body)
    assert_answers(server, requests)


def test_broken_framing(server: ServerProcess) -> None:
    put = server.head("PUT", server.path("runs/r9"), transfer_encoding="chunked")
    fixed = server.head("PUT", server.path("runs/r9"), content_length="50")
    get = server.head("GET", server.path("runs/r1"))
    close = server.head("GET", server.path("runs/r1"), connection="close")
    host = f"{server.host}:{server.port}".encode()
    requests = [
        put + b"zz\r\n{}\r\n0\r\n\r\n",
        put + b"5\r\n{}\r\n0\r\n\r\n",
        put + b"-1\r\n{}\r\n0\r\n\r\n",
        put + b"f" * 5000 + b"\r\n{}\r\n0\r\n\r\n",
        put + b"2;" + b"e" * 20000 + b"\r\n{}\r\n0\r\n\r\n",
        put + b"2\r\n{}\r\n0\r\nX-Trailer: 1\r\n\r\n",
        put + b"2\r\n{}\r\n0\r\n" + b"X: 1\r\n" * 5000 + b"\r\n",
        put + b"2\n{}\n0\n\n",
        fixed + b"{}",  # then nothing: 408
        server.head("PUT", server.path("runs/r9"), content_length="2", transfer_encoding="chunked")
        + b"0\r\n\r\n",
        server.head("PUT", server.path("runs/r9"), transfer_encoding="gzip, chunked")
        + b"0\r\n\r\n",
        server.head("PUT", server.path("runs/r9"), expect="100-continue", content_length="2")
        + b"{}",
        get + get + get + close,
        get * 200 + close,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/0.9\r\n\r\n",
        b"GET /health HTTP/3.7\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET http://" + host + b"/health HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n"
        b"\r\n",
        b"GET http://evil.example/health HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"GET //health HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
        b"GET * HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
        b"CONNECT " + host + b" HTTP/1.1\r\nhost: " + host + b"\r\n\r\n",
        server.head("CONNECT", "other.example:443"),
        server.head("TRACE", server.path("runs/r1"), connection="close"),
        server.head("OPTIONS", "*", connection="close"),
        server.head("BREW", server.path("runs/r1"), connection="close"),
        server.head(
            "GET", server.path("runs/r1"), connection="Upgrade, HTTP2-Settings", upgrade="h2c"
        ),
        server.head(
            "GET",
            server.path("runs/r1"),
            connection="Upgrade",
            upgrade="websocket",
            sec_websocket_version="13",
            sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
        ),
        get.replace(b"\r\n\r\n", b"\r\nx-folded: a\r\n b\r\n\r\n"),
        get.replace(b"\r\n\r\n", b"\r\nx-nul: a\0b\r\n\r\n"),
        get.replace(b"\r\n\r\n", b"\r\nno colon\r\n\r\n"),
        get.replace(b"\r\n\r\n", b"\r\nx y: z\r\n\r\n"),
        get.replace(b"\r\n\r\n", b"\r\n: z\r\n\r\n"),
        get.replace(b"\r\n\r\n", b"\r\nx-high: \xff\xfe\r\nconnection: close\r\n\r\n"),
        get.replace(b"\r\n\r\n", b"\r\nif-match: \xff\xfe\r\nconnection: close\r\n\r\n"),
        get.replace(b"\r\n\r\n", b"\r\nx: " + b"a" * 20_000 + b"\r\nconnection: close\r\n\r\n"),
        get.replace(b"\r\n\r\n", b"\r\nx: " + b"a" * 200_000 + b"\r\n\r\n"),
        get.replace(b"\r\n\r\n", b"\r\nx: 1" * 5000 + b"\r\n\r\n"),
        b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
        b"GET /" + b"a" * 90_000 + b" HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
        b"GET /he\0alth HTTP/1.1\r\nhost: " + host + b"\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
        b"GET /downloads/%00%ff HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
        b"GET /downloads/a.b.c HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
        b"PUT /uploads/%zz HTTP/1.1\r\nhost: " + host + b"\r\ncontent-length: 5\r\nconnection: "
        b"close\r\n\r\nhello",
        b"GET /health\xff HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
        b"\r\n\r\n\r\nGET /health HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
        b"\0" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),  # TLS
        bytes(range(256)) * 100,
    ]
    assert_answers(
        server,
        requests,
        {0: {400}, 8: {408}, 12: {200}, 13: {200}, 18: {400}, 20: {200}, 39: {431}},
    )


def test_requests_with_random_bytes_changed(server: ServerProcess) -> None:
    body = b'{"spec": {"flow": {"blocks": []}}, "metadata": {"attributes": {"a": "b"}}}'
    whole = (
        server.head(
            "PUT",
            server.path("runs/r7"),
            content_length=str(len(body)),
            range="bytes=0-1",
            connection="close",
        )
        + body
    )
    chance, requests = random.Random(7), []  # noqa: S311 - repeatable, not secret
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(changed))
            act = chance.randrange(3)
            if act == 0:
                changed[place] = chance.randrange(256)
            elif act == 1:
                del changed[place : place + chance.randint(1, 30)]
            else:
                changed[place:place] = bytes(chance.choices(range(256), k=chance.randint(1, 30)))
            if not changed:
                break
        requests.append(bytes(changed))
    assert_answers(server, requests)


def test_clients_may_disconnect_at_any_moment(server: ServerProcess) -> None:
    """Within the head, the body, a chunk, an upload, a restore, a long poll, and the response."""
    internal = server.head("POST", "/internal/v1/claims", content_length="100")
    beginnings: list[bytes] = [
        b"GET /hea",
        server.head("PUT", server.path("runs/r5"), content_length="100") + b'{"spec"',
        server.head("PUT", server.path("runs/r5"), transfer_encoding="chunked") + b'10\r\n{"spec"',
        server.head("PATCH", server.path("runs/r1"), content_length="100"),
        server.head("POST", server.path("storage/restores"), content_length="100000") + b"x" * 600,
        server.head("POST", server.path("storage/backups"), content_length="0"),
        server.head("PUT", "/uploads/link", content_length="1000") + b"x",
        server.head("GET", server.path("runs/r1/logs?since=9000000&wait=30")),
        server.head("GET", server.path("runs?s=1000")),
        internal + b"{",
    ]
    for reset in (False, True):
        for beginning in beginnings:
            leaving = socket.create_connection((server.host, server.port))
            if reset:
                leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with contextlib.suppress(ConnectionError):
                leaving.sendall(beginning)
            leaving.settimeout(0.05)
            with contextlib.suppress(OSError):
                leaving.recv(100)
            leaving.close()
    assert_serves(server)


def test_a_half_closed_connection_gets_a_response_or_is_closed(server: ServerProcess) -> None:
    for request in (
        server.head("GET", server.path("runs/r1")),
        server.head("PUT", "/uploads/x", content_length="9"),
    ):
        with socket.create_connection((server.host, server.port), timeout=30) as half:
            half.sendall(request)
            half.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := half.recv(65536):
                answer += piece
        assert all(status < 500 for status in statuses(answer)), answer[:300]
    assert_serves(server)
