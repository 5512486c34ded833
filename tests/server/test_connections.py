"""Connection limits, and the resources that one request may hold."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from runyard.server.connections import ConnectionGuard, Peer, bind_socket, raise_file_limit
from runyard.server.http.capacity import CHUNK_BYTES, Capacity, Exchange, Pace, Slots, parse_decimal
from runyard.server.http.request import HEADERS, SERVICES
from runyard.server.services.errors import Refusal
from runyard.server.services.notifications import Notifier
from runyard.settings import PREFIX, SettingError, Settings, read_settings
from tests.support.server import TestServer


class Listener:
    """A listening socket with a guard, and both ends of its connections in this process."""

    def __init__(self, stack: ExitStack, host: str = "127.0.0.1") -> None:
        self._stack = stack
        self.bound = stack.enter_context(bind_socket(host, 0, transfer_timeout_s=30))
        self.bound.listen(64)
        self.bound.setblocking(True)
        self.busy: set[Peer] = set()

    def guard(self, **caps: Any) -> ConnectionGuard:
        return ConnectionGuard(self.bound, is_busy=self.busy.__contains__, **caps)

    def connect(self, count: int, *, source: str = "127.0.0.1") -> list[socket.socket]:
        """Connect clients; the first is the longest idle."""
        clients = []
        for _ in range(count):
            client = socket.socket(self.bound.family)
            client.bind((source, 0))
            client.connect(self.bound.getsockname())
            self._stack.enter_context(client)
            self._stack.enter_context(self.bound.accept()[0])
            clients.append(client)
            time.sleep(0.012)  # what the kernel reports has a resolution of some milliseconds
        return clients

    def list_open(self, clients: list[socket.socket]) -> list[int]:
        """Return the indexes of clients whose connection is open."""
        return [index for index, client in enumerate(clients) if not _has_ended(client)]


def _has_ended(client: socket.socket) -> bool:
    client.settimeout(0.02)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.fixture
def listener() -> Iterator[Listener]:
    with ExitStack() as stack:
        yield Listener(stack)


def test_the_longest_idle_connections_of_an_address_are_closed(listener: Listener) -> None:
    clients = listener.connect(10)
    assert listener.guard(max_connections=1000, max_per_address=10).sweep() == 0
    listener.connect(1, source="127.0.0.2")
    # To 60 % of the cap.
    assert listener.guard(max_connections=1000, max_per_address=9).sweep() == 5
    assert listener.list_open(clients) == [5, 6, 7, 8, 9]


def test_a_connection_that_has_just_sent_data_is_not_the_longest_idle(listener: Listener) -> None:
    clients = listener.connect(5)
    clients[0].send(b"GET")
    time.sleep(0.02)
    listener.guard(max_connections=1000, max_per_address=4).sweep()
    assert 0 in listener.list_open(clients)


def test_connections_being_served_stay(listener: Listener) -> None:
    clients = listener.connect(6)
    listener.busy |= {client.getsockname() for client in clients[:5]}
    assert listener.guard(max_connections=1000, max_per_address=1).sweep() == 1
    assert listener.list_open(clients) == [0, 1, 2, 3, 4]
    listener.guard(max_connections=1000, max_per_address=1).close(busy=True)
    assert listener.list_open(clients) == []


def test_many_addresses_cannot_use_up_all_connections(listener: Listener) -> None:
    clients = [
        client
        for number in range(2, 18)
        for client in listener.connect(1, source=f"127.0.0.{number}")
    ]
    # From above 75 % to 60 %.
    assert listener.guard(max_connections=20, max_per_address=10).sweep() == 4
    assert listener.list_open(clients) == list(range(4, 16))


def test_a_trusted_proxy_has_no_connection_cap(listener: Listener) -> None:
    clients = listener.connect(6)
    assert (
        listener.guard(
            max_connections=1000,
            max_per_address=2,
            is_exempt=lambda address: address == "127.0.0.1",
        ).sweep()
        == 0
    )
    assert len(listener.list_open(clients)) == 6


def test_one_client_is_dropped_by_its_address_and_port(listener: Listener) -> None:
    clients = listener.connect(3)
    listener.guard(max_connections=1000, max_per_address=1000).drop_connection(
        clients[1].getsockname()
    )
    assert listener.list_open(clients) == [0, 2]


def test_ipv6_addresses_of_one_host_count_together() -> None:
    with ExitStack() as stack:
        try:
            listener = Listener(stack, "::1")
        except OSError:
            pytest.skip("this machine has no IPv6")
        clients = listener.connect(4, source="::1")
        assert listener.guard(max_connections=1000, max_per_address=3).sweep() > 0
        assert 0 not in listener.list_open(clients)


def test_connections_are_limited_by_the_file_descriptor_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert raise_file_limit(100) == 100
    possible = raise_file_limit(10**9)
    assert possible == 10**9 or "RUNYARD_MAX_CONNECTIONS" in caplog.text


def test_slots_are_counted_by_owner_and_in_total() -> None:
    slots = Slots("requests", 2, 3)
    for owner in ("a", "a", "b"):
        slots.acquire(owner)
    for owner in ("a", "b"):
        with pytest.raises(Refusal) as refused:
            slots.acquire(owner)
        assert (refused.value.code, refused.value.status) == ("TooManyRequests", 429)
    slots.release("a")
    slots.acquire("b")


class Wire:
    """An exchange whose web server is simulated by the test."""

    def __init__(
        self, *, headers: list[tuple[bytes, bytes]] | None = None, **settings: Any
    ) -> None:
        self.capacity = Capacity.from_settings(Settings(**settings))
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.dropped = 0
        self.is_stuck = False
        self.exchange = Exchange(
            self.capacity,
            {HEADERS: dict(headers or [])},
            self.incoming.get,
            self._send,
            drop_connection=self._drop,
        )

    async def _send(self, message: dict[str, Any]) -> None:
        if self.is_stuck:
            await asyncio.Event().wait()
        self.sent.append(message)

    def _drop(self) -> None:
        self.dropped += 1


BODY = [(b"content-length", b"10")]


def body(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def test_after_the_body_waiting_for_a_disconnect_has_no_timeout() -> None:
    """A streamed response listens while it sends.

    The timeout of bodies once ended each after 30 s.
    """

    async def scenario() -> None:
        for headers, messages in ((BODY, [body(b"0123456789", more=False)]), ([], [])):
            wire = Wire(headers=headers, transfer_timeout_s=0.05)
            for message in messages:
                wire.incoming.put_nowait(message)
            assert not (await wire.exchange.receive())["more_body"]
            listening = asyncio.ensure_future(wire.exchange.receive())
            await asyncio.sleep(0.2)
            assert not listening.done()
            wire.incoming.put_nowait({"type": "http.disconnect"})
            assert (await listening)["type"] == "http.disconnect"
            wire.exchange.close()

    asyncio.run(scenario())


def test_a_body_that_stalls_trickles_or_is_cut_off_is_refused() -> None:
    async def scenario() -> None:
        stalled = Wire(headers=BODY, transfer_timeout_s=0.05)
        with pytest.raises(Refusal) as refused:
            await stalled.exchange.receive()
        assert refused.value.code == "BodyTimeout"

        trickling = Wire(headers=BODY, transfer_timeout_s=0.3, min_kib_per_s=1000)

        async def trickle() -> None:
            while True:
                trickling.incoming.put_nowait(body(b" "))
                await asyncio.sleep(0.05)  # each byte comes in time

        task = asyncio.ensure_future(trickle())
        with pytest.raises(Refusal) as refused:
            async with asyncio.timeout(30):
                while True:
                    await trickling.exchange.receive()
        assert refused.value.code == "BodyTimeout"
        task.cancel()

        broken = Wire(headers=BODY)
        broken.incoming.put_nowait(body(b"01234"))
        broken.incoming.put_nowait({"type": "http.disconnect"})
        await broken.exchange.receive()
        for _ in range(2):  # a repeated call returns at once
            with pytest.raises(Refusal) as refused:
                await broken.exchange.receive()
            assert refused.value.code == "BodyIncomplete"

    asyncio.run(scenario())


def test_a_large_response_is_sent_in_chunks_and_aborted_when_it_is_not_read() -> None:
    async def scenario() -> None:
        wire = Wire(transfer_timeout_s=0.05)
        content = bytes(range(256)) * 1000
        await wire.exchange.send({"type": "http.response.start", "status": 200})
        await wire.exchange.send({"type": "http.response.body", "body": content})
        pieces = wire.sent[1:]
        assert b"".join(piece["body"] for piece in pieces) == content
        assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
        assert all(len(piece["body"]) <= CHUNK_BYTES for piece in pieces)
        wire.exchange.close()

        stuck = Wire(transfer_timeout_s=0.05)
        stuck.is_stuck = True
        with pytest.raises(ConnectionResetError):
            await stuck.exchange.send({"type": "http.response.body", "body": content})
        assert (stuck.dropped, stuck.exchange.abandoned is not None) == (1, True)
        stuck.exchange.close()

        left = Wire()
        left.incoming.put_nowait({"type": "http.disconnect"})
        with pytest.raises(ConnectionResetError):
            for _ in range(1000):
                await left.exchange.send(
                    {"type": "http.response.body", "body": b"x", "more_body": True}
                )
                await asyncio.sleep(0)
        assert len(left.sent) < 1000
        left.exchange.close()

    asyncio.run(scenario())


def test_a_waiting_request_gives_up_its_slot() -> None:
    async def scenario() -> None:
        wire = Wire(requests_per_key=1, requests_per_address=1, waits_per_key=1)
        wire.exchange.admit(address="10.0.0.1", key="k")
        with pytest.raises(Refusal):
            wire.capacity.per_key.check("k")
        async with wire.exchange.hold_wait_slot() as gone:
            wire.capacity.per_key.check("k")
            wire.capacity.per_address.check("10.0.0.1")
            with pytest.raises(Refusal):
                wire.capacity.waits.check("k")
            assert not gone.done()
        wire.capacity.waits.check("k")
        wire.exchange.close()

    asyncio.run(scenario())


def test_the_servers_own_delay_between_chunks_does_not_count_against_the_client() -> None:
    async def scenario() -> None:
        pace = Pace(0.2, 1)
        for _ in range(3):
            await pace.wait(asyncio.sleep(0))
            await asyncio.sleep(
                0.1
            )  # the server's own work, in total longer than the client's time
        await pace.wait(asyncio.sleep(0.01))

    asyncio.run(scenario())


def test_waiting_for_a_change_stops_when_the_client_disconnects() -> None:
    async def scenario() -> None:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        changes = Notifier()
        event = changes.watch("topic")
        waiting = asyncio.ensure_future(changes.wait(event, timeout_s=30, gone=gone))
        await asyncio.sleep(0)
        gone.set_result(None)
        assert await waiting is False
        waiting = asyncio.ensure_future(changes.wait(event, timeout_s=30, gone=asyncio.Future()))
        await asyncio.sleep(0)
        changes.notify("topic")
        assert await waiting is True
        assert await changes.wait(asyncio.Event(), timeout_s=0.01) is False

    asyncio.run(scenario())


async def test_a_disconnected_controller_is_given_no_run(server: TestServer) -> None:
    """Otherwise the claim would hold the run until its lease expires."""
    api = await server.api()
    headers = {
        "host": "localhost",
        "authorization": f"Bearer {server.controller_key}",
        "content-length": "84",
    }
    claim = b'{"claim_id": "c1", "machine_id": "m1", "host": "here", "slots": 1, "wait_s": 30.000}'
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": claim, "more_body": False})
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/internal/v1/claims",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "root_path": "",
        "state": {},
    }
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    claiming = asyncio.ensure_future(server.gateway(scope, incoming.get, sent.put))
    while SERVICES not in scope or incoming.qsize():
        await asyncio.sleep(0.01)
    incoming.put_nowait({"type": "http.disconnect"})
    async with asyncio.timeout(10):
        await claiming
    assert (await api.put(server.path("runs/r1"), json={"spec": {}})).status_code == 201
    status = (await api.get(server.path("runs/r1"))).json()["status"]
    assert status["conditions"][-1]["condition"] == "Pending"


@pytest.mark.parametrize(
    ("digits", "value"),
    [
        (b"", 0),
        (b"0", 0),
        (b"007", 7),
        (b"0" * 5000 + b"5", 5),
        (b"9" * 5000, 2**63),
        (b"9" * 19, 2**63),
    ],
)
def test_decimal_numbers_of_any_length(digits: bytes, value: int) -> None:
    assert parse_decimal(digits) == value


CAPS = (
    "max_connections",
    "connections_per_address",
    "requests_per_key",
    "requests_per_address",
    "waits_per_key",
    "max_waits",
    "idle_timeout_s",
    "transfer_timeout_s",
    "min_kib_per_s",
)


@pytest.mark.parametrize("name", CAPS)
def test_a_cap_that_would_refuse_every_request_is_rejected(name: str) -> None:
    for value in ("0", "-1", "inf", "nan"):
        with pytest.raises(SettingError, match=f"{PREFIX}{name.upper()}"):
            read_settings({f"{PREFIX}{name.upper()}": value})
