"""Runs that resume from another run's checkpoint: fixed at creation, passed to the supervisor."""

import hashlib
from typing import Any

import pytest

from runyard.server.services.runs import deletion
from tests.support import attempts
from tests.support.server import TestServer


async def train_run(server: TestServer, run_id: str = "source") -> Any:
    """A run with two checkpoints of which the first is the best, over."""
    attempt = await attempts.start(server, run_id)
    await attempt.checkpoint("epoch-1", content=b"first " + run_id.encode(), best=True)
    await attempt.checkpoint("epoch-2", content=b"second " + run_id.encode(), best=False)
    await attempt.finish(
        0, outcome="Succeeded", reason="Completed", message="done", checkpoint="epoch-2"
    )
    return attempt


async def create(server: TestServer, run_id: str = "new", **resume_from: str) -> Any:
    api = await server.api()
    return await api.put(
        server.path(f"runs/{run_id}"), json={"spec": {"flow": {}, "resumeFrom": resume_from}}
    )


async def started(server: TestServer, claim_id: str = "c") -> Any:
    attempt = await attempts.claim(server, claim_id)
    await attempt.start()
    return attempt


async def resumable(attempt: Any) -> list[dict[str, Any]]:
    answer = await attempt.client.get("/internal/v1/attempt/resume")
    assert answer.status_code == 200, answer.text
    return list(answer.json()["checkpoints"])


async def read(attempt: Any, sha256: str) -> Any:
    return await attempt.client.get(f"/internal/v1/attempt/blobs/{sha256}")


async def agrees(server: TestServer) -> bool:
    return bool((await (await server.api()).get(server.path("storage"))).json()["agrees"])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, "epoch-2"),
        ({"checkpoint": "latest"}, "epoch-2"),
        ({"checkpoint": "best"}, "epoch-1"),
        ({"checkpoint": "epoch-1"}, "epoch-1"),
    ],
)
async def test_the_checkpoint_is_resolved_when_the_run_is_accepted(
    server: TestServer, asked: dict[str, str], found: str
) -> None:
    await train_run(server)
    made = await create(server, runId="source", **asked)
    assert made.status_code == 201, made.text
    step = int(found[-1])
    assert made.json()["spec"]["resumeFrom"] == {
        "runId": "source",
        "checkpoint": found,
        "step": step,
        "epoch": step,
    }
    listed = made.json()["status"]["conditions"][-1]["message"]
    assert (
        listed
        == f"waiting for a free slot, to resume from run source, checkpoint {found}, step {step}"
    )


async def test_a_repeated_create_is_the_same_run_even_when_the_other_run_is_deleted(
    server: TestServer,
) -> None:
    await train_run(server)
    first = await create(server, runId="source")
    await (await server.api()).delete(server.path("runs/source"))
    again = await create(server, runId="source")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert (await create(server, runId="source", checkpoint="best")).json()["code"] == "RunExists"


async def test_a_missing_checkpoint_is_reported_with_its_field_and_nothing_is_created(
    server: TestServer,
) -> None:
    await train_run(server)
    await attempts.start(server, "empty")
    for asked, field in (
        ({"runId": "nobody"}, "runId"),
        ({"runId": "source", "checkpoint": "epoch-9"}, "checkpoint"),
        ({"runId": "empty"}, "checkpoint"),
        ({"runId": "new"}, "runId"),
    ):
        refused = await create(server, **asked)
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (404, "NotFound")
        assert problem["problems"][0]["path"] == f"/spec/resumeFrom/{field}"
        assert problem["problems"][0]["given"] == asked.get(field, "latest")
        assert "omit resumeFrom" in problem["problems"][0]["message"]
    assert (await (await server.api()).get(server.path("runs/new"))).status_code == 404


async def test_a_run_of_another_organization_is_not_found(server: TestServer) -> None:
    from runyard.server.services.context import Actor
    from runyard.server.services.errors import Refusal
    from runyard.server.services.runs import references, runs
    from runyard.store import organizations

    await train_run(server)
    await server.services.store.write(
        lambda connection: organizations.add(
            connection, org="strangers", name="Strangers", time_ms=1
        )
    )
    stranger = Actor(org="strangers", name="key", role="admin", address="here")
    with pytest.raises(Refusal, match="run 'source' was not found"):
        await runs.create(
            server.services,
            stranger,
            "new",
            body=b"",
            resume_from=("source", references.LATEST),
            attributes={},
        )
    with pytest.raises(Refusal, match="run 'new' was not found"):
        runs.get(server.services, org="strangers", run_id="new")


async def test_deleting_the_other_run_removes_no_bytes_and_deleting_the_new_one_all(
    server: TestServer,
) -> None:
    api, blobs = await server.api(), server.services.blobs(server.org)
    await train_run(server)
    await create(server, runId="source", checkpoint="epoch-1")
    assert len(list(blobs.hashes())) == 2
    await api.delete(server.path("runs/source"))
    assert list(blobs.hashes()) == [hashlib.sha256(b"first source").hexdigest()]
    assert await agrees(server)
    attempt = await started(server)
    (listed,) = await resumable(attempt)
    assert (listed["run_id"], listed["checkpoint_id"], listed["step"]) == ("source", "epoch-1", 1)
    assert {file["path"] for file in listed["files"]} == {
        "model_full/model.safetensors",
        "training_state/state.json",
    }
    assert (await read(attempt, listed["files"][0]["sha256"])).content == b"first source"
    await attempt.finish(75)
    await api.delete(server.path("runs/new"))
    assert list(blobs.hashes()) == []
    assert await agrees(server)


async def test_the_runs_own_checkpoints_come_before_the_one_it_resumed_from(
    server: TestServer,
) -> None:
    await train_run(server)
    await create(server, runId="source")
    attempt = await started(server)
    await attempt.checkpoint("epoch-3", content=b"third")
    await attempt.checkpoint("epoch-4", content=b"fourth")
    listed = [(item["run_id"], item["checkpoint_id"]) for item in await resumable(attempt)]
    assert listed == [("new", "epoch-4"), ("new", "epoch-3"), ("source", "epoch-2")]


async def test_a_token_gives_access_only_to_bytes_of_its_run(server: TestServer) -> None:
    await train_run(server)
    await train_run(server, "unrelated")
    await create(server, runId="source", checkpoint="best")
    attempt = await started(server)
    for content in (b"second source", b"first unrelated", b"no such thing"):
        answer = await read(attempt, hashlib.sha256(content).hexdigest())
        assert (answer.status_code, answer.json()["code"]) == (404, "NotFound")
    assert (await read(attempt, "../server.db")).status_code in (400, 404)
    mine = hashlib.sha256(b"first source").hexdigest()
    answer = await read(attempt, mine)
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (
        200,
        "12",
        b"first source",
    )
    assert (await (await server.api()).get(f"/internal/v1/attempt/blobs/{mine}")).status_code in (
        401,
        403,
        404,
    )
    await attempt.finish(64)
    assert (await read(attempt, mine)).json()["code"] == "LeaseLost"
    assert (await attempt.client.get("/internal/v1/attempt/resume")).json()["code"] == "LeaseLost"


async def test_damaged_bytes_are_reported_and_not_sent(server: TestServer) -> None:
    await train_run(server)
    await create(server, runId="source")
    attempt = await started(server)
    sha256 = hashlib.sha256(b"second source").hexdigest()
    (server.settings.blobs_dir / server.org / sha256[:2] / sha256).write_bytes(b"sekond source")
    answer = await read(attempt, sha256)
    assert (answer.status_code, answer.json()["code"]) == (409, "BlobMissing")
    server.services.blobs(server.org).delete(sha256)
    assert (await read(attempt, sha256)).json()["code"] == "BlobMissing"
    lost = (await (await server.api()).get(server.path("storage"))).json()["rowsWithoutBlobs"]
    assert ("new", "what it resumes from") in {(file["runId"], file["modelId"]) for file in lost}


async def test_an_uncommitted_create_retains_no_bytes(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run and files are one transaction: what fails between them leaves neither."""
    api = await server.api()
    await train_run(server)
    with monkeypatch.context() as patch:

        def fail(*_: Any, **__: Any) -> None:
            raise OSError("killed")

        patch.setattr("runyard.server.services.runs.runs.rows.add", fail)
        assert (await create(server, runId="source")).status_code >= 500
    await api.delete(server.path("runs/source"))
    assert list(server.services.blobs(server.org).hashes()) == []
    await deletion.sweep(server.services)
    assert await agrees(server)
