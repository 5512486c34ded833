"""Runs that go on from another run's checkpoint: frozen when accepted, and handed to the supervisor alone."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from runyard.server.services.runs import deletion

InHouse = Callable[..., None]


async def trained(house: Any, acts: Any, run_id: str = "source") -> Any:
    """A run with two checkpoints of which the first is the best, over."""
    attempt = await acts.running(house, run_id)
    await attempt.checkpoint("epoch-1", content=b"first " + run_id.encode(), best=True)
    await attempt.checkpoint("epoch-2", content=b"second " + run_id.encode(), best=False)
    await attempt.finish(0, outcome="Succeeded", reason="Completed", message="done", checkpoint="epoch-2")
    return attempt


async def create(house: Any, run_id: str = "new", **resume_from: str) -> Any:
    api = await house.api()
    return await api.put(house.path(f"runs/{run_id}"), json={"spec": {"flow": {}, "resumeFrom": resume_from}})


async def started(house: Any, acts: Any, claim_id: str = "c") -> Any:
    attempt = await acts.claim(house, claim_id)
    await attempt.start()
    return attempt


async def resumable(attempt: Any) -> list[dict[str, Any]]:
    answer = await attempt.client.get("/internal/v1/attempt/resume")
    assert answer.status_code == 200, answer.text
    return list(answer.json()["checkpoints"])


async def read(attempt: Any, sha256: str) -> Any:
    return await attempt.client.get(f"/internal/v1/attempt/blobs/{sha256}")


async def agrees(house: Any) -> bool:
    return bool((await (await house.api()).get(house.path("storage"))).json()["agrees"])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, "epoch-2"),
        ({"checkpoint": "latest"}, "epoch-2"),
        ({"checkpoint": "best"}, "epoch-1"),
        ({"checkpoint": "epoch-1"}, "epoch-1"),
    ],
)
def test_the_checkpoint_is_resolved_when_the_run_is_accepted(
    in_house: InHouse, acts: Any, asked: dict[str, str], found: str
) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        made = await create(house, runId="source", **asked)
        assert made.status_code == 201, made.text
        step = int(found[-1])
        assert made.json()["spec"]["resumeFrom"] == {
            "runId": "source",
            "checkpoint": found,
            "step": step,
            "epoch": step,
        }
        told = made.json()["status"]["conditions"][-1]["message"]
        assert told == f"waiting for a free slot, to resume from run source, checkpoint {found}, step {step}"

    in_house(story)


def test_a_repeat_of_the_same_body_is_the_same_run_even_when_the_other_is_gone(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        first = await create(house, runId="source")
        await (await house.api()).delete(house.path("runs/source"))
        again = await create(house, runId="source")
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json() == first.json()
        assert (await create(house, runId="source", checkpoint="best")).json()["code"] == "RunExists"

    in_house(story)


def test_what_is_not_there_is_told_with_its_field_and_nothing_is_made(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        await acts.running(house, "empty")
        for asked, field in (
            ({"runId": "nobody"}, "runId"),
            ({"runId": "source", "checkpoint": "epoch-9"}, "checkpoint"),
            ({"runId": "empty"}, "checkpoint"),
            ({"runId": "new"}, "runId"),
        ):
            refused = await create(house, **asked)
            problem = refused.json()
            assert (refused.status_code, problem["code"]) == (404, "NotFound")
            assert problem["problems"][0]["path"] == f"/spec/resumeFrom/{field}"
            assert problem["problems"][0]["given"] == asked.get(field, "latest")
            assert "omit resumeFrom" in problem["problems"][0]["message"]
        assert (await (await house.api()).get(house.path("runs/new"))).status_code == 404

    in_house(story)


def test_another_organisations_run_is_as_if_it_were_not_there(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        from runyard.server.services.context import Actor
        from runyard.server.services.errors import Refusal
        from runyard.server.services.runs import references, runs
        from runyard.store import organizations

        await trained(house, acts)
        await house.services.store.write(
            lambda connection: organizations.add(connection, org="strangers", name="Strangers", time_ms=1)
        )
        stranger = Actor(org="strangers", name="key", role="admin", address="here")
        with pytest.raises(Refusal, match="run 'source' was not found"):
            await runs.create(
                house.services, stranger, "new", body=b"", resume_from=("source", references.LATEST), attributes={}
            )
        with pytest.raises(Refusal, match="run 'new' was not found"):
            runs.get(house.services, org="strangers", run_id="new")

    in_house(story)


def test_deleting_the_other_run_takes_no_byte_away_and_deleting_the_new_one_the_rest(
    in_house: InHouse, acts: Any
) -> None:
    async def story(house: Any) -> None:
        api, blobs = await house.api(), house.services.blobs(house.org)
        await trained(house, acts)
        await create(house, runId="source", checkpoint="epoch-1")
        assert len(list(blobs.hashes())) == 2
        await api.delete(house.path("runs/source"))
        assert list(blobs.hashes()) == [hashlib.sha256(b"first source").hexdigest()]
        assert await agrees(house)
        attempt = await started(house, acts)
        (told,) = await resumable(attempt)
        assert (told["run_id"], told["checkpoint_id"], told["step"]) == ("source", "epoch-1", 1)
        assert {file["path"] for file in told["files"]} == {"model_full/model.safetensors", "training_state/state.json"}
        assert (await read(attempt, told["files"][0]["sha256"])).content == b"first source"
        await attempt.finish(75)
        await api.delete(house.path("runs/new"))
        assert list(blobs.hashes()) == []
        assert await agrees(house)

    in_house(story)


def test_the_runs_own_checkpoints_come_before_what_it_was_made_from(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        await create(house, runId="source")
        attempt = await started(house, acts)
        await attempt.checkpoint("epoch-3", content=b"third")
        await attempt.checkpoint("epoch-4", content=b"fourth")
        told = [(item["run_id"], item["checkpoint_id"]) for item in await resumable(attempt)]
        assert told == [("new", "epoch-4"), ("new", "epoch-3"), ("source", "epoch-2")]

    in_house(story)


def test_a_token_opens_no_bytes_but_those_of_its_run(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        await trained(house, acts, "unrelated")
        await create(house, runId="source", checkpoint="best")
        attempt = await started(house, acts)
        for content in (b"second source", b"first unrelated", b"no such thing"):
            answer = await read(attempt, hashlib.sha256(content).hexdigest())
            assert (answer.status_code, answer.json()["code"]) == (404, "NotFound")
        assert (await read(attempt, "../server.db")).status_code in (400, 404)
        mine = hashlib.sha256(b"first source").hexdigest()
        answer = await read(attempt, mine)
        assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "12", b"first source")
        assert (await (await house.api()).get(f"/internal/v1/attempt/blobs/{mine}")).status_code in (401, 403, 404)
        await attempt.finish(64)
        assert (await read(attempt, mine)).json()["code"] == "LeaseLost"
        assert (await attempt.client.get("/internal/v1/attempt/resume")).json()["code"] == "LeaseLost"

    in_house(story)


def test_bytes_that_changed_at_rest_are_told_and_not_sent(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        await create(house, runId="source")
        attempt = await started(house, acts)
        sha256 = hashlib.sha256(b"second source").hexdigest()
        (house.settings.blobs_dir / house.org / sha256[:2] / sha256).write_bytes(b"sekond source")
        answer = await read(attempt, sha256)
        assert (answer.status_code, answer.json()["code"]) == (409, "BlobMissing")
        house.services.blobs(house.org).delete(sha256)
        assert (await read(attempt, sha256)).json()["code"] == "BlobMissing"
        lost = (await (await house.api()).get(house.path("storage"))).json()["rowsWithoutBlobs"]
        assert ("new", "what it goes on from") in {(file["runId"], file["modelId"]) for file in lost}

    in_house(story)


def test_a_create_that_is_not_committed_holds_no_bytes(
    in_house: InHouse, acts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run and files are one transaction: what fails between them leaves neither."""

    async def story(house: Any) -> None:
        api = await house.api()
        await trained(house, acts)
        with monkeypatch.context() as patch:

            def fail(*_: Any, **__: Any) -> None:
                raise OSError("killed")

            patch.setattr("runyard.server.services.runs.runs.rows.add", fail)
            assert (await create(house, runId="source")).status_code >= 500
        await api.delete(house.path("runs/source"))
        assert list(house.services.blobs(house.org).hashes()) == []
        await deletion.sweep(house.services)
        assert await agrees(house)

    in_house(story)
