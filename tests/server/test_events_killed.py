"""A server killed while it writes: the events replay exactly what was committed."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runyard.store import Store
from runyard.store import events as rows
from runyard.store.tables import runs
from tests.server.processes import ServerProcess, running_server

KILLS, WRITERS, AT_LEAST = 2, 8, 40
PATIENCE_S = 30.0

pytestmark = pytest.mark.e2e


async def write_until_killed(server: ServerProcess, after: int, turn: int) -> Any:
    """Create runs and follow events; kill the server in the middle; return what was received."""
    created, seen = set[str](), list[dict[str, Any]]()
    base = f"http://{server.host}:{server.port}"
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx2.AsyncClient(base_url=base, headers=headers, timeout=30.0) as client:

        async def create(writer: int) -> None:
            number = 0
            with contextlib.suppress(httpx2.RequestError):
                while True:
                    run_id, number = f"t{turn}-w{writer}-{number}", number + 1
                    answer = await client.put(server.path(f"runs/{run_id}"), json={"spec": {}})
                    assert answer.status_code == 201, answer.text
                    created.add(run_id)

        async def follow() -> None:
            accept = {"accept": "text/event-stream", "last-event-id": str(after)}
            with contextlib.suppress(httpx2.RequestError):
                async with client.stream("GET", server.path("events"), headers=accept) as answer:
                    is_event = False
                    async for line in answer.aiter_lines():
                        if line.startswith("event: "):
                            is_event = line == "event: change"
                        elif is_event and line.startswith("data: "):
                            seen.append(json.loads(line.removeprefix("data: ")))

        tasks = [asyncio.create_task(create(writer)) for writer in range(WRITERS)]
        tasks.append(asyncio.create_task(follow()))
        async with asyncio.timeout(PATIENCE_S):
            while len(created) < AT_LEAST or not seen:
                await asyncio.sleep(0.01)
        server.process.kill()
        await asyncio.gather(*tasks)
    return created, seen


def read_store(data_dir: Path, org: str) -> tuple[list[tuple[int, str, str]], set[str]]:
    """Return the events and the runs that are on disk."""
    store = Store(data_dir / "server.db")
    try:
        found = store.read(lambda tx: rows.page(tx, org=org, after=0, limit=1_000_000))
        ids = store.read(lambda tx: list(tx.execute(runs.select()).all()))
        return [(row.number, row.target, row.what) for row in found], {row.id for row in ids}
    finally:
        store.close()


def test_after_kills_of_the_server_events_are_exactly_what_was_committed(tmp_path: Path) -> None:
    data_dir, created, seen = tmp_path / "data", set[str](), list[dict[str, Any]]()
    org = ""
    for turn in range(KILLS):
        (data_dir / "server.json").unlink(missing_ok=True)  # of the server that was killed
        with running_server(data_dir) as server:
            last, org = seen[-1]["number"] if seen else 0, server.org
            of_turn = asyncio.run(write_until_killed(server, last, turn))
        created |= of_turn[0]
        seen += of_turn[1]
    stored, stored_runs = read_store(data_dir, org)
    assert [number for number, _, _ in stored] == list(range(1, len(stored) + 1))
    creations = [target for _, target, what in stored if what == "created"]
    assert sorted(creations) == sorted(stored_runs), "each committed run has one event, no other"
    assert stored_runs >= created, "an acknowledged run is lost"
    received = [(event["number"], event["target"], event["what"]) for event in seen]
    assert received == stored[: len(received)], "a reader saw what was not committed, or a gap"
