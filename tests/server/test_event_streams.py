"""Streams of events from a real server process: how long they last, and what ends them."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Connection

from runyard.server.http.capacity import STREAMS_PER_KEY
from runyard.store import Store
from runyard.store import events as rows
from tests.server.processes import ServerProcess, crowd, exchange, running_server

PATIENCE_S = 30.0
TRANSFER_TIMEOUT_S = 0.5
ACCEPT = {"accept": "text/event-stream"}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that gives up early on clients that do not read, and takes few requests at once."""
    data_dir = tmp_path_factory.mktemp("streams") / "data"
    settings = {
        "transfer_timeout_s": TRANSFER_TIMEOUT_S,
        "idle_timeout_s": TRANSFER_TIMEOUT_S,
        "requests_per_key": 2,
    }
    with running_server(data_dir, **settings) as server:
        yield server


@contextlib.asynccontextmanager
async def connect(server: ServerProcess, key: str | None = None) -> AsyncIterator[Any]:
    base = f"http://{server.host}:{server.port}"
    headers = {"authorization": f"Bearer {key or server.key}"}
    async with httpx2.AsyncClient(base_url=base, headers=headers, timeout=PATIENCE_S) as client:
        yield client


@contextlib.asynccontextmanager
async def open_stream(
    client: Any, server: ServerProcess, **query: Any
) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    request = client.stream("GET", server.path("events"), params=query, headers=ACCEPT)
    async with request as answer:
        assert answer.status_code == 200, await answer.aread()
        yield iter_events(answer)


async def iter_events(answer: Any) -> AsyncIterator[tuple[str, Any]]:
    """Yield (name, data) of each server-sent event; the first line is the retry delay."""
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def create_run(client: Any, server: ServerProcess, run_id: str) -> None:
    answer = await client.put(server.path(f"runs/{run_id}"), json={"spec": {}})
    assert answer.status_code == 201, answer.text


async def read_event_of(stream: AsyncIterator[tuple[str, Any]], run_id: str) -> dict[str, Any]:
    """Return the next event of a run; hints and events of others are skipped."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            name, data = await anext(stream)
            if name == "change" and data["target"] == run_id:
                found: dict[str, Any] = data
                return found


async def read_to_end(stream: AsyncIterator[tuple[str, Any]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async for _ in stream:
            pass


async def test_a_stream_outlives_every_timeout_of_a_request(process: ServerProcess) -> None:
    async with connect(process) as client, open_stream(client, process, after="latest") as stream:
        await asyncio.sleep(5 * TRANSFER_TIMEOUT_S)
        await create_run(client, process, "late")
        assert (await read_event_of(stream, "late"))["what"] == "created"


async def test_streams_use_no_slots_of_requests_and_one_too_many_ends_the_oldest(
    process: ServerProcess,
) -> None:
    async with connect(process) as client, contextlib.AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(open_stream(client, process, after="latest"))
            for _ in range(STREAMS_PER_KEY)
        ]
        await create_run(client, process, "with-streams")
        for stream in streams:
            await read_event_of(stream, "with-streams")
        newest = await stack.enter_async_context(open_stream(client, process, after="latest"))
        await read_to_end(streams[0])
        await create_run(client, process, "with-another")
        for stream in (*streams[1:], newest):
            await read_event_of(stream, "with-another")


async def test_a_revoked_key_ends_its_streams(process: ServerProcess) -> None:
    async with connect(process) as client:
        new = (await client.post(process.path("keys"), json={"spec": {"name": "x"}})).json()
        secret = next(value for value in _list_texts(new) if value.startswith("dtvi_"))
        async with connect(process, secret) as other, open_stream(other, process) as stream:
            await anext(stream)
            revoked = await client.delete(process.path(f"keys/{new['keyId']}"))
            assert revoked.status_code == 200
            with contextlib.suppress(httpx2.RemoteProtocolError):  # cut off, or ended
                await read_to_end(stream)
        async with connect(process, secret) as other:
            assert (await other.get(process.path("events"))).status_code == 401


def _list_texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _list_texts(inner)]
    return [value] if isinstance(value, str) else []


async def test_a_client_that_stops_reading_is_dropped(process: ServerProcess) -> None:
    await add_events(process, 20_000)  # more than the buffers of a connection hold
    async with crowd(process) as gathered:
        head = process.head("GET", process.path("events"), accept="text/event-stream")
        connected = await gathered.connect(head, receive_buffer=4096)
        assert connected is not None
        receive = partial(asyncio.get_running_loop().sock_recv, connected, 4096)
        received = 0
        async with asyncio.timeout(PATIENCE_S):
            await receive()
            while "the client does not read the response" not in process.log():
                await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionResetError):
                while chunk := await receive():
                    received += len(chunk)
        assert received < 20_000 * 500, "the rest was sent nevertheless"


async def add_events(server: ServerProcess, count: int) -> None:
    """Write events as another server on the same database does."""
    event = {
        "org": server.org,
        "time": 1,
        "kind": "run",
        "target": "r",
        "what": "warning",
        "actor": "",
        "details": json.dumps({"message": "x" * 500}).encode(),
    }

    def record(tx: Connection) -> None:
        for _ in range(count):
            rows.record(tx, event)

    store = Store(server.log_file.parent / "server.db")
    await store.write(record)
    store.close()


def test_a_stop_of_the_server_ends_streams_at_once(tmp_path: Path) -> None:
    async def stop_while_reading(server: ServerProcess) -> bytes:
        head = server.head("GET", server.path("events"), accept="text/event-stream")
        reading = asyncio.create_task(exchange(server, head))
        async with connect(server) as client, open_stream(client, server, after="latest"):
            server.process.send_signal(signal.SIGTERM)
            return await reading

    with running_server(tmp_path / "data") as server:
        received = asyncio.run(stop_while_reading(server))
        assert b" 200 OK" in received
        assert received.endswith(b"0\r\n\r\n"), "the stream was cut off, not ended"
        assert server.process.wait(PATIENCE_S) == 0
