"""Checkpoints of a run are kept as its flow requires, over all attempts.

Store and disk agree after every failure.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.blobs import FolderBlobs
from runyard.server.services.runs import deletion
from runyard.store import StoreUnavailable
from tests.support import attempts
from tests.support.server import TestServer, open_server


def keeping(count: int, *, best: bool = True) -> dict[str, Any]:
    return {
        "blocks": [
            {"block": "vi-model", "settings": {"checkpoint": {"keep": count, "keepBest": best}}}
        ]
    }


async def save(
    attempt: Any, number: int, *, best: bool = False, content: bytes | None = None
) -> None:
    await attempt.checkpoint(f"epoch-{number}", content=content or b"%d" % number, best=best)


async def listed(server: TestServer, run_id: str = "r1") -> list[str]:
    found = (await (await server.api()).get(server.path(f"runs/{run_id}/outputs"))).json()["items"]
    return [model["runOutputId"] for model in found]


async def agrees(server: TestServer) -> bool:
    found = (await (await server.api()).get(server.path("storage"))).json()
    return bool(found["agrees"])


def contents(server: TestServer) -> set[bytes]:
    blobs = server.services.blobs(server.org)
    found = set()
    for sha256 in blobs.hashes():
        with blobs.open(sha256) as file:
            found.add(file.read())
    return found


@pytest.mark.parametrize(
    ("flow", "kept"),
    [
        (keeping(1), [2, 5]),
        (keeping(2), [2, 4, 5]),
        (keeping(1, best=False), [5]),
        (keeping(9), [1, 2, 3, 4, 5]),
        ({}, [2, 3, 4, 5]),
    ],
)
async def test_the_newest_and_the_best_are_kept_with_their_bytes_and_no_others(
    server: TestServer, flow: dict[str, Any], kept: list[int]
) -> None:
    attempt = await attempts.start(server, flow=flow)
    for number in range(1, 6):
        await save(attempt, number, best=number == 2)
    assert await listed(server) == [f"epoch-{number}" for number in kept]
    assert contents(server) == {b"%d" % number for number in kept}
    await attempt.finish(75)
    assert await agrees(server)


async def test_retention_applies_to_the_run_and_not_to_each_attempt(server: TestServer) -> None:
    first = await attempts.start(server, flow=keeping(2))
    await save(first, 1, best=True)
    await save(first, 2)
    await first.finish(75)
    second = await attempts.claim(server, "again")
    await second.start()
    await save(second, 3)
    assert await listed(server) == ["epoch-1", "epoch-2", "epoch-3"]
    await save(second, 4, best=True)
    assert await listed(server) == ["epoch-3", "epoch-4"]


async def test_the_supervisor_receives_the_listed_checkpoints(server: TestServer) -> None:
    first = await attempts.start(server, flow=keeping(1))
    await save(first, 1, best=True)
    await first.finish(75)
    second = await attempts.claim(server, "again")
    await second.start()
    digest = await second.upload(b"2")
    report = {
        "checkpoint_id": "epoch-2",
        "step": 2,
        "epoch": 2,
        "metrics": {},
        "is_best": False,
        "time": 1,
        "files": [{"path": "model_full/model.safetensors", "size_bytes": 1, "sha256": digest}],
    }
    answer = await second.post("checkpoints", **report)
    kept = [{"attempt": 1, "checkpoint_id": "epoch-1"}, {"attempt": 2, "checkpoint_id": "epoch-2"}]
    assert (answer.status_code, answer.json()) == (201, {"kept": kept})


async def test_bytes_that_other_runs_need_are_kept(server: TestServer) -> None:
    """Another run's checkpoint of the same content, and a run that resumes from the removed one."""
    api = await server.api()
    other = await attempts.start(server, "other")
    await save(other, 1, content=b"shared")
    await other.finish(0, outcome="Succeeded", reason="Completed", message="")
    attempt = await attempts.start(server, flow=keeping(1, best=False))
    await save(attempt, 1, content=b"shared")
    await save(attempt, 2, content=b"continued")
    body = {"spec": {"flow": {}, "resumeFrom": {"runId": "r1", "checkpoint": "epoch-2"}}}
    assert (await api.put(server.path("runs/new"), json=body)).status_code == 201
    await save(attempt, 3)
    assert await listed(server) == ["epoch-3"]
    assert contents(server) == {b"shared", b"continued", b"3"}
    await attempt.finish(75)
    assert await agrees(server)


async def test_a_checkpoint_that_was_listed_and_removed_does_not_come_back(
    server: TestServer,
) -> None:
    """A supervisor that starts after a crash sends all contents of the folder again."""
    attempt = await attempts.start(server, flow=keeping(1))
    await save(attempt, 1, best=True)
    await save(attempt, 2, best=True)
    await save(attempt, 3)
    assert await listed(server) == ["epoch-2", "epoch-3"]
    for number, best in ((1, True), (2, True), (3, False)):
        await save(attempt, number, best=best)
    assert await listed(server) == ["epoch-2", "epoch-3"]
    best = (await (await server.api()).get(server.path("runs/r1/outputs/best"))).json()
    assert best["runOutputId"] == "epoch-2"
    assert contents(server) == {b"2", b"3"}


async def test_a_download_stops_when_its_checkpoint_is_removed(
    server: TestServer,
) -> None:
    """Fewer bytes than were promised, never others."""
    attempt = await attempts.start(server, flow=keeping(1, best=False))
    await save(attempt, 1, content=b"1" * 3_000_000)
    document = (
        await (await server.api()).get(server.path("runs/r1/outputs/epoch-1?contents=y"))
    ).json()
    path = document["status"]["contents"]["downloadUrl"]["url"].removeprefix(
        "http://127.0.0.1:7878"
    )
    promised, sent, is_ended = 0, 0, False

    async def send(message: Any) -> None:
        nonlocal promised, sent, is_ended
        if message["type"] == "http.response.start":
            promised = int(dict(message["headers"])[b"content-length"])
            await save(attempt, 2)  # the client is slow, and a newer checkpoint comes
        else:
            sent += len(message["body"])
            is_ended = not message.get("more_body")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"host", b"127.0.0.1:7878")]
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": headers,
        "client": None,
    }
    await server.gateway(scope, receive, send)
    assert await listed(server) == ["epoch-2"]
    assert sent < promised and not is_ended


async def test_a_replaced_checkpoint_leaves_no_bytes(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await save(attempt, 1, content=b"before")
    await save(attempt, 1, content=b"after")
    assert contents(server) == {b"after"}


@pytest.mark.parametrize("broken", ["bytes", "rows"])
async def test_a_removal_that_fails_between_rows_and_bytes_is_finished_by_the_sweep(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    attempt = await attempts.start(server, flow=keeping(1, best=False))
    await save(attempt, 1)
    with monkeypatch.context() as patch:
        if broken == "bytes":
            patch.setattr(FolderBlobs, "delete", fail(OSError("no")))
        else:
            patch.setattr(
                "runyard.server.services.retention.blobs.clear_unneeded",
                fail(StoreUnavailable("no")),
            )
        await save(attempt, 2)  # stored nevertheless
    assert await listed(server) == ["epoch-2"]
    await attempt.finish(75)
    assert await agrees(server) is (broken == "rows")
    await deletion.sweep(server.services)
    assert contents(server) == {b"2"}
    assert await agrees(server)


async def test_bytes_uploaded_again_before_the_sweep_are_not_removed(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await attempts.start(server, flow=keeping(1, best=False))
    await save(attempt, 1, content=b"again")
    with monkeypatch.context() as patch:
        patch.setattr(FolderBlobs, "delete", fail(OSError("no")))
        await save(attempt, 2)
        await save(attempt, 3, content=b"again")
    await deletion.sweep(server.services)
    assert contents(server) == {b"again"}
    assert await agrees(server)


def test_a_server_that_died_during_a_removal_finishes_it_at_startup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with open_server(tmp_path) as server:
            attempt = await attempts.start(server, flow=keeping(1, best=False))
            await save(attempt, 1)
            with monkeypatch.context() as patch:
                patch.setattr(FolderBlobs, "delete", fail(OSError("killed")))
                await save(attempt, 2)
            assert contents(server) == {b"1", b"2"}
        async with open_server(tmp_path) as server:
            assert contents(server) == {b"2"}

    asyncio.run(scenario())


def fail(error: Exception) -> Callable[..., None]:
    def failing(*_args: Any, **_named: Any) -> None:
        raise error

    return failing
