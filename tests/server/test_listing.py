"""Lists, counts, names and tags of runs through the API."""

import json
from typing import Any

import pytest

from runyard.server.services.runs import bulk_runs, listing
from runyard.store.lists import run_list
from tests.support import attempts
from tests.support.server import TestServer


async def create(server: TestServer, run_id: str, **body: Any) -> Any:
    api = await server.api()
    server.clock.forward(1)
    answer = await api.put(server.path(f"runs/{run_id}"), json={"spec": {}, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def list_ids(server: TestServer, **query: Any) -> list[str]:
    api = await server.api()
    found: list[str] = []
    token = None
    while token is not None or not found:
        given = {**query, "s": 2, **({"p": token} if token else {})}
        answer = await api.get(server.path("runs"), params=given)
        assert answer.status_code == 200, answer.text
        found += [run["runId"] for run in answer.json()["items"]]
        token = answer.json()["nextPage"]
        if token is None:
            return found
    return found


async def test_runs_are_named_found_sorted_and_counted(server: TestServer) -> None:
    api = await server.api()
    for run_id, name in (("r1", "Gamma"), ("r2", "alpha two"), ("r3", "beta")):
        made = await create(server, run_id, metadata={"name": name, "attributes": {"n": run_id}})
        assert made["metadata"]["name"] == name
    plain = await create(server, "r4", spec={"flow": {"name": "Quick"}})
    assert plain["metadata"]["name"] == "Quick"
    killed = await api.patch(server.path("runs/r3"), json={"spec": {"killedAt": 1}})
    assert killed.json()["metadata"]["name"] == "beta"
    assert await list_ids(server) == ["r4", "r3", "r2", "r1"]
    assert await list_ids(server, orderBy="name") == ["r2", "r3", "r1", "r4"]
    assert await list_ids(server, orderBy="-name") == ["r4", "r1", "r3", "r2"]
    assert await list_ids(server, filter="name:alpha") == ["r2"]
    assert await list_ids(server, filter="-condition:Cancelled", n="x") == ["r4", "r2", "r1"]
    assert await list_ids(server, filter="quick", condition="Pending") == ["r4"]
    assert await list_ids(server, filter="n=r1", attribute="n:r1") == ["r1"]

    async def count(**query: Any) -> Any:
        return (await api.get(server.path("runs:count"), params=query)).json()

    nothing = dict.fromkeys(["Running", "Succeeded", "Failed", "Error"], 0)
    everything = {"Pending": 3, "Cancelled": 1, **nothing}
    assert await count() == {"total": 4, "conditions": everything, "more": False}
    assert (await count(filter="condition:Pending"))["total"] == 3
    assert (await count(filter="a"))["total"] == 1  # at the beginning of a word
    await api.delete(server.path("runs/r4"))
    assert (await count())["conditions"]["Pending"] == 2


async def test_a_new_name_is_found_and_an_empty_one_is_the_flows(server: TestServer) -> None:
    api, path = await server.api(), server.path("runs/r1")
    run = await create(server, "r1", spec={"flow": {"name": "Quick"}})
    renamed = (await api.patch(path, json={"metadata": {"name": "Slow"}})).json()
    assert (renamed["metadata"]["name"], renamed["etag"] != run["etag"]) == ("Slow", True)
    assert await list_ids(server, filter="name:slow") == ["r1"]
    again = await api.patch(path, json={"metadata": {"name": "Slow"}})
    assert again.json() == renamed
    cleared = (await api.patch(path, json={"metadata": {"name": None}})).json()
    assert cleared["metadata"]["name"] == "Quick"
    for name in ("", "x" * 256, "a\0"):
        refused = await api.patch(path, json={"metadata": {"name": name}})
        assert (refused.status_code, refused.json()["code"]) == (400, "InvalidBody")
    audited = (await api.get(server.path("audit"))).json()["items"]
    assert [row["action"] for row in audited][:3] == ["update run", "update run", "create run"]


async def test_errors_name_the_parameter_and_a_token_belongs_to_filter_and_order(
    server: TestServer,
) -> None:
    api = await server.api()
    for run_id in ("r1", "r2", "r3"):
        await create(server, run_id)

    async def refuse(path: str = "runs", **query: Any) -> tuple[int, str]:
        answer = await api.get(server.path(path), params=query)
        return answer.status_code, answer.json()["code"]

    assert await refuse(filter="conditon:Failed") == (400, "InvalidFilter")
    assert await refuse("runs:count", filter='"x') == (400, "InvalidFilter")
    assert await refuse(orderBy="size") == (400, "InvalidQuery")
    assert await refuse(orderBy="metric.") == (400, "InvalidQuery")
    first = (await api.get(server.path("runs"), params={"s": 1, "filter": "r"})).json()
    token = first["nextPage"]
    assert await refuse(s=1, p=token) == (400, "InvalidPageToken")
    assert await refuse(s=1, p=token, filter="r", orderBy="name") == (400, "InvalidPageToken")
    second = await api.get(server.path("runs"), params={"s": 1, "filter": "r", "p": token})
    assert second.json()["items"][0]["runId"] == "r2"


async def test_metrics_and_durations_of_real_attempts_are_filtered_and_sorted(
    server: TestServer,
) -> None:
    for run_id, value in (("r1", 0.4), ("r2", 0.8)):
        attempt = await attempts.start(server, run_id)
        events = [
            # Of the base model, so the run is not compared by it.
            {"ev": "evaluation", "step": 0, "values": {"validation/iou": 0.9}},
            {"ev": "step", "step": 1, "values": {"loss": value}},
            {"ev": "evaluation", "step": 1, "values": {"validation/iou": value}},
        ]
        shipped = await attempt.ship(*map(json.dumps, events), stream="events")
        assert shipped.status_code == 200
        server.clock.forward(3600)
        await attempt.finish(64)
    await create(server, "waiting")
    assert await list_ids(server, orderBy="-metric.iou") == ["r2", "r1"]
    assert await list_ids(server, orderBy="metric.loss") == ["r1", "r2"]
    assert await list_ids(server, filter="metric.iou>0.5") == ["r2"]
    assert await list_ids(server, filter="-metric.iou>0.5") == ["waiting", "r1"]
    assert await list_ids(server, filter="duration>=1h") == ["r2", "r1"]
    assert await list_ids(server, orderBy="duration") == ["waiting", "r1", "r2"]


async def test_many_runs_are_tagged_by_a_filter_text(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await server.api()
    for run_id in ("r1", "r2", "r3", "other"):
        await create(server, run_id, metadata={"attributes": {"old": run_id}})
    monkeypatch.setattr(bulk_runs, "MOST", 2)

    async def tag(**body: Any) -> Any:
        return (await api.post(server.path("runs:tag"), json=body)).json()

    change = {"set": {"owner": "kim", "old": None}, "filter": "-id:other"}
    tried = await tag(**change, dryRun=True)
    assert [item["outcome"] for item in tried["items"]] == ["WouldTag"] * 2
    first = await tag(**change)
    assert ([item["runId"] for item in first["items"]], first["more"]) == (["r3", "r2"], True)
    second = await tag(**change)
    assert ([item["runId"] for item in second["items"]], second["more"]) == (["r1"], False)
    assert (await tag(**change))["items"] == []
    assert await list_ids(server, filter="owner=kim -tag:old") == ["r3", "r2", "r1"]
    assert await list_ids(server, filter="tag:old") == ["other"]
    by_id = await tag(ids=["other", "unknown"], set={"owner": "lee"})
    assert [item["outcome"] for item in by_id["items"]] == ["Tagged", "Refused"]
    for body in ({"set": {}, "ids": ["r1"]}, {"set": {"a": "b"}}, {"ids": ["r1"]}):
        assert (await tag(**body))["code"] == "InvalidBody"
    for text in ("", " "):
        assert (await tag(filter=text, set={"a": "b"}))["code"] == "InvalidBody"
    assert (await tag(filter="a:b", set={"a": "b"}))["code"] == "InvalidFilter"
    killed = (await api.post(server.path("runs:kill"), json={"filter": "owner=kim"})).json()
    assert [item["outcome"] for item in killed["items"]] == ["Killed", "Killed"]
    audited = (await api.get(server.path("audit"), params={"action": "update run"})).json()
    assert len(audited["items"]) == 4


async def test_texts_are_indexed_once_there_are_many(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MOST_UNINDEXED", 3)
    monkeypatch.setattr(listing, "INDEXED_AT_ONCE", 2)
    services = server.services

    def count() -> int:
        return services.store.read(lambda tx: run_list.count_unindexed(tx, limit=10))

    for number in range(5):
        await create(server, f"r{number}", metadata={"name": f"run {number}"})
        await listing.index_texts(services)
        assert await list_ids(server, filter="name:run") == [
            f"r{each}" for each in reversed(range(number + 1))
        ]
    assert count() == 2
    api = await server.api()
    await api.patch(server.path("runs/r0"), json={"metadata": {"name": "other"}})
    assert await list_ids(server, filter="name:other") == ["r0"]
    assert await list_ids(server, filter="name:run") == ["r4", "r3", "r2", "r1"]


async def test_lists_and_counts_are_rebuilt_by_a_restore(server: TestServer) -> None:
    api = await server.api()
    attempt = await attempts.start(server, "r1")
    for step, value in ((0, 0.9), (1, 0.7)):
        event = {"ev": "evaluation", "step": step, "values": {"validation/iou": value}}
        await attempt.ship(json.dumps(event), stream="events")
    await create(server, "r2", metadata={"name": "kept", "attributes": {"owner": "kim"}})
    saved = await api.post(server.path("storage/backups"))
    await create(server, "r3")
    await api.delete(server.path("runs/r2"))
    restored = await api.post(server.path("storage/restores"), content=saved.content)
    assert restored.status_code == 200, restored.text
    assert await list_ids(server) == ["r2", "r1"]
    for filter, run_id in (("kept", "r2"), ("owner=kim", "r2"), ("metric.iou=0.7", "r1")):
        assert await list_ids(server, filter=filter) == [run_id]
    counted = (await api.get(server.path("runs:count"))).json()
    assert (counted["total"], counted["conditions"]["Pending"]) == (2, 1)
    await api.patch(server.path("runs/r2"), json={"spec": {"killedAt": 1}})
    counted = (await api.get(server.path("runs:count"))).json()
    assert (counted["conditions"]["Pending"], counted["conditions"]["Cancelled"]) == (0, 1)
