"""A deletion is a job: it kills the run first and leaves nothing, even after failures."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from runyard.blobs import FolderBlobs
from runyard.server.services.runs import deletion, leases
from runyard.store import StoreUnavailable, runs, tombstones
from tests.support import attempts
from tests.support.server import TestServer, open_server

DAY_S = 24 * 3600


async def train_run(server: TestServer, run_id: str, content: bytes) -> None:
    attempt = await attempts.start(server, run_id)
    await attempt.ship("a line", stream="stdout")
    await attempt.checkpoint(content=content)
    await attempt.finish(
        0, outcome="Succeeded", reason="Completed", message="done", checkpoint="epoch-1"
    )
    folder = server.settings.runs_dir / server.org / run_id / "attempts" / "1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")


def left(server: TestServer, run_id: str) -> dict[str, int]:
    """Return the number of rows of a run in each table, and its folder.

    Tables without rows are left out.
    """

    def count(connection: Connection) -> dict[str, int]:
        return runs.count_rows(connection, org=server.org, run_id=run_id)

    found = server.services.store.read(count)
    if (server.settings.runs_dir / server.org / run_id).exists():
        found["folder"] = 1
    return dict(found)


async def test_a_deleted_run_leaves_nothing_but_what_it_shared(server: TestServer) -> None:
    api = await server.api()
    await train_run(server, "r1", b"shared")
    await train_run(server, "r2", b"shared")
    await train_run(server, "r3", b"alone")
    assert {"runs", "log_lines", "outputs", "folder"} <= set(left(server, "r3"))
    blobs = server.services.blobs(server.org)
    assert len(list(blobs.hashes())) == 2
    for run_id in ("r1", "r3"):
        assert (await api.delete(server.path(f"runs/{run_id}"))).status_code == 204
        assert left(server, run_id) == {}
    assert len(list(blobs.hashes())) == 1
    assert (await api.get(server.path("runs/r2/outputs/latest"))).status_code == 200


@pytest.mark.parametrize("broken", ["blobs", "rows", "folder"])
async def test_a_deletion_that_fails_halfway_hides_the_run_and_is_finished_by_the_sweep(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    api = await server.api()
    await train_run(server, "r1", b"alone")
    with monkeypatch.context() as patch:
        if broken == "blobs":
            patch.setattr(FolderBlobs, "delete", fail(OSError("no")))
        elif broken == "rows":
            patch.setattr(
                "runyard.server.services.runs.deletion.rows.remove", fail(StoreUnavailable("no"))
            )
        else:
            patch.setattr("runyard.removal.shutil.rmtree", fail(OSError("no")))
        assert (await api.delete(server.path("runs/r1"))).status_code == 204
        assert left(server, "r1")["runs"] == 1
        assert (await api.get(server.path("runs/r1"))).status_code == 404
        assert (
            await api.put(server.path("runs/r1"), json={"spec": {"flow": {}}})
        ).status_code == 409
    await deletion.sweep(server.services)
    assert left(server, "r1") == {}
    assert list(server.services.blobs(server.org).hashes()) == []


async def test_a_running_run_is_killed_first_and_removed_when_its_attempt_is_closed(
    server: TestServer,
) -> None:
    api = await server.api()
    attempt = await attempts.start(server, "r1")
    assert (await api.delete(server.path("runs/r1"))).status_code == 204
    await deletion.sweep(server.services)
    assert left(server, "r1")["runs"] == 1
    assert (await attempt.post("renew", phase="Training")).json()["action"] == "kill"
    await attempt.finish(75)
    assert left(server, "r1") == {}


async def test_a_run_deleted_during_an_unsettled_attempt_is_removed_once_it_is_settled(
    server: TestServer,
) -> None:
    api = await server.api()
    silent = await attempts.start(server, "r1")
    for _ in range(round((15 + 4 + leases.RETRY_AFTER_S) / 2)):
        await leases.tick(server.services, 2.0)
    second = await attempts.claim(server, "c2", machine_id="m2")
    await second.start()
    assert (await api.delete(server.path("runs/r1"))).status_code == 204
    await second.finish(75)
    assert left(server, "r1")["runs"] == 1
    assert (await silent.post("renew", phase="Training")).json()["action"] == "kill"
    await silent.finish(75)
    assert left(server, "r1") == {}


async def test_a_deleted_id_stays_deleted_for_thirty_days(server: TestServer) -> None:
    api = await server.api()
    body: dict[str, Any] = {"spec": {"flow": {}}}
    await api.put(server.path("runs/r1"), json=body)
    await api.delete(server.path("runs/r1"))
    server.clock.forward(29 * DAY_S)
    await deletion.sweep(server.services)
    assert (await api.put(server.path("runs/r1"), json=body)).status_code == 409
    server.clock.forward(2 * DAY_S)
    await deletion.sweep(server.services)
    is_known = server.services.store.read(
        lambda connection: tombstones.exists(connection, org=server.org, kind="run", id="r1")
    )
    assert not is_known
    assert (await api.put(server.path("runs/r1"), json=body)).status_code == 201


def test_a_start_removes_the_remains_of_interrupted_uploads(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_server(tmp_path) as server:
            incoming = server.settings.blobs_dir / server.org / "incoming"
            incoming.mkdir(parents=True)
            (incoming / "cut-off").write_bytes(b"half")
        async with open_server(tmp_path):
            assert not (incoming / "cut-off").exists()

    asyncio.run(scenario())


def fail(error: Exception) -> Callable[..., None]:
    def failing(*_args: Any, **_named: Any) -> None:
        raise error

    return failing
