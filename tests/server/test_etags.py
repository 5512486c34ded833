"""Entity tags cover what users change: a user's write invalidates them, the platform's does not."""

import json
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

from runyard.server.http.endpoints import bodies
from runyard.server.services.runs import leases
from tests.server.datasets import Data, make_vqa_files
from tests.support import attempts
from tests.support.server import TestServer

# Every way in which the platform changes a training run, in a possible order.
PLATFORM_WRITES: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
    "the attempt starts": lambda server, attempt: attempt.start(),
    "the supervisor renews its lease with a note": lambda server, attempt: attempt.post(
        "renew", phase="Training", note="the disk is slow"
    ),
    "the trainer changes its phase": lambda server, attempt: attempt.event(
        "phase", phase="Training"
    ),
    "the trainer reports a step": lambda server, attempt: attempt.event(
        "step", step=3, epoch=0.5, totalSteps=9, values={"loss": 1.25}
    ),
    "the trainer prints a line": lambda server, attempt: attempt.ship("hello", stream="stdout"),
    "a checkpoint is registered": lambda server, attempt: attempt.checkpoint(),
    "the lease runs out": lambda server, attempt: tick_until_lost(server),
    "the supervisor is heard from again": lambda server, attempt: attempt.post(
        "renew", phase="Training"
    ),
    "processes are still alive": lambda server, attempt: attempt.finish(0, empty=False),
    "the attempt ends": lambda server, attempt: attempt.finish(0, outcome="Succeeded"),
}

USER_WRITES: dict[str, dict[str, Any]] = {
    "an attribute is set": {"metadata": {"attributes": {"owner": "vision"}}},
    "an attribute is changed": {"metadata": {"attributes": {"owner": "robotics"}}},
    "an attribute is removed": {"metadata": {"attributes": {"owner": None}}},
    "the training project is set": {"spec": {"trainingProject": "p1"}},
    "the training project is removed": {"spec": {"trainingProject": None}},
    "the run is killed": {"spec": {"killedAt": 1, "graceSeconds": 3}},
}


async def tick_until_lost(server: TestServer) -> None:
    for _ in range(40):
        await leases.tick(server.services, 2.0)


async def test_no_write_of_the_platform_changes_the_tag_of_a_run(server: TestServer) -> None:
    api = await server.api()
    created = (await api.put(server.path("runs/r1"), json={"spec": {}})).json()
    attempt = await attempts.claim(server)
    seen = [created]
    for name, write in {"the run is claimed": None, **PLATFORM_WRITES}.items():
        if write is not None:
            server.clock.forward(1)
            answer = await write(server, attempt)
            assert answer is None or answer.status_code < 300, f"{name}: {answer.text}"
        run = (await api.get(server.path("runs/r1"))).json()
        assert run["etag"] == created["etag"], f"{name} changed the tag"
        seen.append(run)
    assert seen[-1]["status"]["conditions"][-1]["condition"] == "Succeeded"
    assert len({json.dumps(run) for run in seen}) >= 8, "the platform wrote next to nothing"


async def test_a_tag_read_before_training_guards_a_change_made_during_it(
    server: TestServer,
) -> None:
    api = await server.api()
    etag = (await api.put(server.path("runs/r1"), json={"spec": {}})).headers["etag"]
    attempt = await attempts.claim(server)
    await attempt.start()
    await attempt.event("step", step=3, epoch=0.5, totalSteps=9, values={"loss": 1.25})
    change = {"metadata": {"attributes": {"owner": "vision"}}}
    changed = await api.patch(server.path("runs/r1"), json=change, headers={"if-match": etag})
    assert changed.status_code == 200
    assert (await api.delete(server.path("runs/r1"), headers={"if-match": etag})).status_code == 412


async def test_every_write_of_a_user_changes_the_tag_of_a_run(server: TestServer) -> None:
    api = await server.api()
    await api.put(server.path("trainingProjects/p1"), json={"spec": {}})
    attempt = await attempts.start(server)
    etag = (await api.get(server.path("runs/r1"))).headers["etag"]
    for name, change in USER_WRITES.items():
        before = etag
        answer = await api.patch(server.path("runs/r1"), json=change, headers={"if-match": before})
        assert answer.status_code == 200, f"{name}: {answer.text}"
        etag = answer.headers["etag"]
        assert etag != before, f"{name} kept the tag"
        again = await api.patch(server.path("runs/r1"), json=change)
        assert again.headers["etag"] == etag, f"{name} a second time changed the tag"
        await attempt.post("renew", phase="Training")
        assert (await api.get(server.path("runs/r1"))).headers["etag"] == etag


def test_the_writes_above_set_every_field_that_a_user_may_change() -> None:
    fields = {name for change in USER_WRITES.values() for name in change.get("spec", {})}
    assert fields == set(bodies.ChangedRunSpec.__struct_encode_fields__)


async def test_an_import_leaves_the_tag_of_its_dataset(server: TestServer) -> None:
    api = await server.api()
    data = Data(server, api)
    dataset_id = await data.make()
    url = data.path(dataset_id)
    made = (await api.get(url)).json()
    await data.import_files(dataset_id, make_vqa_files())
    filled = (await api.get(url)).json()
    assert (filled["statistic"]["assetTotal"], filled["etag"]) == (3, made["etag"])
    etag = made["etag"]
    for change in (
        {"name": "Racks"},
        {"description": "of steel"},
        {"metadata": {"attributes": {"a": "1"}}},
    ):
        answer = await api.patch(url, json=change, headers={"if-match": f'"{etag}"'})
        assert answer.status_code == 200, answer.text
        assert answer.json()["etag"] != etag
        etag = answer.json()["etag"]
    assert (await api.delete(url, headers={"if-match": f'"{made["etag"]}"'})).status_code == 412


async def test_a_tag_that_an_older_version_stored_holds_until_the_next_write(
    server: TestServer,
) -> None:
    api = await server.api()
    url = server.path("flows/f1")
    await api.put(url, json={"spec": {"name": "One"}})
    old = "00112233aabbccdd"
    with sqlite3.connect(server.settings.data_dir / "server.db") as database:
        (document,) = database.execute("SELECT document FROM flows").fetchone()
        document = json.dumps(json.loads(document) | {"etag": old}).encode()
        database.execute("UPDATE flows SET document = ?, etag = ?", (document, old))
    assert (await api.get(url)).json()["etag"] == old
    unchanged = await api.patch(
        url, json={"spec": {"name": "One"}}, headers={"if-match": f'"{old}"'}
    )
    assert (unchanged.status_code, unchanged.json()["etag"]) == (200, old)
    assert (
        await api.patch(url, json={"spec": {"name": "Two"}}, headers={"if-match": old})
    ).status_code == 200
    assert (
        await api.patch(url, json={"spec": {"name": "Three"}}, headers={"if-match": old})
    ).status_code == 412
