"""Watchers that lose their connection again and again see every event once, in order.

``make reconnects`` (RUNYARD_RECONNECTS=1000) is the form of the requirement.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from runyard.server.services import events
from runyard.store import events as rows
from tests.support import attempts
from tests.support.server import BASE_URL, TestServer
from vi import AsyncClient
from vi.api.resources.runs.responses import RunChange

RECONNECTS = int(os.environ.get("RUNYARD_RECONNECTS", "100"))
PATIENCE_S = 60.0 + RECONNECTS / 10


@contextlib.asynccontextmanager
async def changing_runs(server: TestServer) -> AsyncIterator[None]:
    """Create, change, kill and delete runs while the block runs, with several requests at once."""
    api, is_over = await server.api(), False

    async def change(worker: int) -> None:
        for number in itertools.count():
            if is_over:
                return
            path = server.path(f"runs/w{worker}-{number}")
            for method, body in (
                ("PUT", {"spec": {}}),
                ("PATCH", {"metadata": {"attributes": {"number": str(number)}}}),
                ("PATCH", {"spec": {"killedAt": 1}}),
                ("DELETE", None),
            ):
                answer = await api.request(method, path, json=body)
                assert answer.is_success, answer.text
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as tasks:
        for worker in range(2):
            tasks.create_task(change(worker))
        try:
            yield
        finally:
            is_over = True


def list_stored(server: TestServer) -> list[tuple[int, str, str]]:
    def read(tx: Any) -> list[tuple[int, str, str]]:
        found = rows.page(tx, org=server.org, after=0, limit=1_000_000)
        return [(row.number, row.target, row.what) for row in found]

    return server.services.store.read(read)


class Stream:
    """One connection to the stream, cut after some events, as a browser sees it."""

    def __init__(self, server: TestServer, last_event_id: int) -> None:
        self._server, self._last_event_id = server, last_event_id
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._is_gone = asyncio.Event()

    async def read(self, count: int) -> list[dict[str, Any]]:
        """Return the next events, and disconnect in the middle of what follows."""
        serving = asyncio.create_task(self._serve())
        found: list[dict[str, Any]] = []
        while len(found) < count:
            chunk = await self._chunks.get()
            assert chunk is not None, "the stream has ended"
            for part in chunk.decode().split("\n\n"):
                lines = dict(line.split(": ", 1) for line in part.split("\n") if ": " in line)
                if lines.get("event") == "change":
                    event = json.loads(lines["data"])
                    assert lines["id"] == str(event["number"])
                    found.append(event)
        self._is_gone.set()
        await serving
        return found[:count]

    async def _serve(self) -> None:
        path = self._server.path("events")
        headers = {
            "host": BASE_URL.removeprefix("http://"),
            "authorization": f"Bearer {self._server.key}",
            "accept": "text/event-stream",
            "last-event-id": str(self._last_event_id),
        }
        scope = {
            "type": "http",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 7878),
        }
        await self._server.gateway(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        await self._is_gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
        elif message.get("body"):
            self._chunks.put_nowait(message["body"])


async def test_a_stream_that_is_cut_again_and_again_has_every_event_once_in_order(
    server: TestServer,
) -> None:
    chance, seen = random.Random(1), list[dict[str, Any]]()  # noqa: S311
    async with asyncio.timeout(PATIENCE_S), changing_runs(server):
        for _ in range(RECONNECTS):
            last = seen[-1]["number"] if seen else 0
            seen += await Stream(server, last).read(chance.randrange(1, 4))
    assert [event["number"] for event in seen] == list(range(1, len(seen) + 1))
    outline = [(event["number"], event["target"], event["what"]) for event in seen]
    assert outline == list_stored(server)[: len(seen)]
    assert not server.services.notifier._listeners, "a stream that has ended still listens"


def connect(server: TestServer, transport: httpx2.AsyncBaseTransport) -> AsyncClient:
    return AsyncClient(server.key, server.org, endpoint=BASE_URL, transport=transport)


class Unreliable(httpx2.AsyncBaseTransport):
    """A connection that loses requests, and responses to requests that the server has answered."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner, self._chance, self.losses = inner, random.Random(2), 0  # noqa: S311

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        fate = self._chance.random()
        if fate < 0.25:
            self.losses += 1
            raise httpx2.ConnectError("the server is gone", request=request)
        response = await self._inner.handle_async_request(request)
        if fate < 0.5:
            self.losses += 1
            raise httpx2.ReadError("the connection was lost", request=request)
        return response


async def test_a_watcher_of_the_sdk_survives_lost_requests_and_responses(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pause(_seconds: float) -> None:
        await asyncio.sleep(0)

    transport = Unreliable(httpx2.ASGITransport(app=server.gateway))
    client = connect(server, transport)
    monkeypatch.setattr(client._http, "sleep", pause)
    seen: list[RunChange] = []
    first = events.read_newest_number(server.services, org=server.org)
    async with asyncio.timeout(PATIENCE_S), changing_runs(server):
        while transport.losses < RECONNECTS:
            # Also the watcher itself ends, and another one continues after its last change.
            changes = client.runs.watch(after=seen[-1].number if seen else first)
            async for change in changes:
                seen.append(change)
                if len(seen) % 50 == 0:
                    break
            await changes.aclose()  # type: ignore[attr-defined]
    assert all(change.event is not None for change in seen)
    assert [change.number for change in seen] == list(range(1, len(seen) + 1))
    stored = list_stored(server)
    for change, (number, target, what) in zip(seen, stored, strict=False):
        assert change.event is not None
        assert (change.number, change.event.target, change.event.what) == (number, target, what)
        assert change.run is None or change.run.run_id == target


async def test_a_watch_of_one_run_begins_with_its_state_and_ends_with_it(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    client, seen = connect(server, httpx2.ASGITransport(app=server.gateway)), list[RunChange]()

    async def watch() -> None:
        async for change in client.runs.watch("r1"):
            seen.append(change)

    watching = asyncio.create_task(watch())
    while not seen:
        await asyncio.sleep(0.01)
    await attempt.event("phase", phase="Training")
    await attempt.checkpoint()
    await attempt.finish(0, outcome="Succeeded", reason="Completed")
    async with asyncio.timeout(PATIENCE_S):
        await watching
    assert seen[0].event is None
    assert [change.event.what for change in seen if change.event] == [
        "reason", "checkpoint", "attempt-ended", "condition",
    ]  # fmt: skip
    assert [run.condition for run in (seen[0].run, seen[-1].run) if run] == ["Running", "Succeeded"]
    # A watch that continues there yields nothing twice.
    assert [change async for change in client.runs.watch("r1", after=seen[-1].number)] == []


async def test_a_watch_with_a_filter_has_the_last_change_of_a_run_that_leaves_it(
    server: TestServer,
) -> None:
    api = await server.api()
    for run_id, owner in (("r1", "kim"), ("r2", "lee")):
        body = {"spec": {}, "metadata": {"attributes": {"owner": owner}}}
        await api.put(server.path(f"runs/{run_id}"), json=body)
    client, seen = connect(server, httpx2.ASGITransport(app=server.gateway)), list[RunChange]()
    changes = client.runs.watch(filter="owner=kim")
    next_change = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.1)
    for run_id, owner in (("r2", "max"), ("r1", "kim"), ("r1", "lee"), ("r1", "max")):
        changed = {"metadata": {"attributes": {"owner": owner, "seen": owner}}}
        await api.patch(server.path(f"runs/{run_id}"), json=changed)
        if run_id == "r1" and owner != "max":
            async with asyncio.timeout(PATIENCE_S):
                seen.append(await next_change)
            next_change = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.05)
    assert not next_change.done(), "a run that was not matched before is of no interest"
    next_change.cancel()
    assert [change.run and change.run.run_id for change in seen] == ["r1", None]
