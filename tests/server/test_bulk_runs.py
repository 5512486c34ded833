"""Many runs in one request: each has the same outcome as in a separate request."""

import asyncio
from functools import partial
from typing import Any

import pytest

from runyard.server.services.runs import bulk_runs
from runyard.store import runs as run_rows
from runyard.store import tables
from tests.support import attempts
from tests.support.server import TestServer


async def create(server: TestServer, *run_ids: str, **spec: Any) -> None:
    api = await server.api()
    for run_id in run_ids:
        server.clock.forward(0.001)
        answer = await api.put(
            server.path(f"runs/{run_id}"),
            json={"spec": spec, "metadata": {"attributes": {"n": run_id}}},
        )
        assert answer.status_code == 201, answer.text


async def act(server: TestServer, verb: str, **body: Any) -> dict[str, Any]:
    answer = await (await server.api()).post(server.path(f"runs:{verb}"), json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def outcomes(answer: dict[str, Any]) -> dict[str, str]:
    return {item["runId"]: item["code"] or item["outcome"] for item in answer["items"]}


async def condition(server: TestServer, run_id: str) -> str:
    run = (await (await server.api()).get(server.path(f"runs/{run_id}"))).json()
    return str(run["status"]["conditions"][-1]["condition"])


async def test_each_run_has_the_same_outcome_as_in_a_single_request(server: TestServer) -> None:
    api = await server.api()
    finished = await attempts.start(server, "finished")
    await finished.finish(0, outcome="Succeeded")
    await attempts.start(server, "training")
    await create(server, "waiting", "gone")
    await api.delete(server.path("runs/gone"))
    named = ["waiting", "finished", "unknown", "training", "gone", "waiting"]
    dry = await act(server, "kill", ids=named, dryRun=True)
    assert outcomes(dry) == {
        "waiting": "WouldKill",
        "finished": "RunFinished",
        "unknown": "NotFound",
        "training": "WouldKill",
        "gone": "NotFound",
    }
    assert await condition(server, "waiting") == "Pending"
    killed = await act(server, "kill", ids=named, graceSeconds=3)
    assert [item["runId"] for item in killed["items"]] == [
        "waiting",
        "finished",
        "unknown",
        "training",
        "gone",
    ]
    assert outcomes(killed) == outcomes(dry) | {"waiting": "Killed", "training": "Killed"}
    assert [item["condition"] for item in killed["items"]] == [
        "Cancelled",
        None,
        None,
        "Running",
        None,
    ]
    run = (await api.get(server.path("runs/training"))).json()
    assert (run["spec"]["graceSeconds"], run["status"]["conditions"][-1]["reason"]) == (
        3,
        "Stopping",
    )
    alone = (await api.patch(server.path("runs/finished"), json={"spec": {"killedAt": 1}})).json()
    refused = next(item for item in killed["items"] if item["runId"] == "finished")
    assert (refused["code"], refused["message"]) == (alone["code"], alone["message"])
    assert outcomes(await act(server, "kill", ids=named)) == outcomes(killed)


async def test_deleted_runs_are_gone_at_once_and_a_repeat_says_so(server: TestServer) -> None:
    api = await server.api()
    attempt = await attempts.start(server, "done")
    await attempt.checkpoint()
    await attempt.finish(0, outcome="Succeeded")
    await create(server, "a", "b", "kept")
    dry = await act(server, "delete", ids=["a", "b", "done", "unknown"], dryRun=True)
    assert set(outcomes(dry).values()) == {"WouldDelete", "NotFound"}
    assert (await api.get(server.path("runs/a"))).status_code == 200
    deleted = await act(server, "delete", ids=["a", "b", "done", "unknown"])
    expected = {"a": "Deleted", "b": "Deleted", "done": "Deleted", "unknown": "NotFound"}
    assert outcomes(deleted) == expected
    listed = (await api.get(server.path("runs"))).json()["items"]
    assert [run["runId"] for run in listed] == ["kept"]
    again = await act(server, "delete", ids=["a", "unknown"])
    assert outcomes(again) == {"a": "AlreadyDeleted", "unknown": "NotFound"}
    await server.services.jobs.wait_until_idle()
    for run_id in ("a", "b", "done"):
        count = partial(run_rows.count_rows, org=server.org, run_id=run_id)
        assert server.services.store.read(count) == {}
    assert not [path for path in server.settings.blobs_dir.rglob("*") if path.is_file()]


FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"condition": "Pending"}, {"r1", "r2", "r3"}),
    ({"flow": "f1"}, {"r2"}),
    ({"trainingProject": "p1"}, {"r3"}),
    ({"attributes": {"n": "r1"}}, {"r1"}),
    ({"attributes": {"n": "r1"}, "flow": "f1"}, set()),
    ({"createdAfter": 1_700_000_000_001}, {"r2", "r3"}),
    ({"createdBefore": 1_700_000_000_002}, {"r1", "ended"}),
    ({"all": True}, {"r1", "r2", "r3", "ended"}),
    ({"condition": "Cancelled"}, {"ended"}),
]


async def four_runs(server: TestServer) -> None:
    api = await server.api()
    await api.put(server.path("flows/f1"), json={"spec": {}})
    await api.put(server.path("trainingProjects/p1"), json={"spec": {}})
    specs = {"ended": {}, "r1": {}, "r2": {"flowId": "f1"}, "r3": {"trainingProject": "p1"}}
    server.clock.epoch_ms = 1_700_000_000_000 - 1
    for run_id, spec in specs.items():
        await create(server, run_id, **spec)  # a millisecond later than the one before
    await api.patch(server.path("runs/ended"), json={"spec": {"killedAt": 1}})


async def test_a_filter_finds_what_the_list_finds(server: TestServer) -> None:
    await four_runs(server)
    for filter, expected in FILTERS:
        assert set(outcomes(await act(server, "delete", filter=filter, dryRun=True))) == expected, (
            filter
        )
        found = set(outcomes(await act(server, "kill", filter=filter, dryRun=True)))
        assert found == expected - {"ended"}, filter
    assert outcomes(await act(server, "kill", filter={"flow": "f1"})) == {"r2": "Killed"}
    assert outcomes(await act(server, "kill", filter={"flow": "f1"})) == {}
    deleted = await act(server, "delete", filter={"condition": "Cancelled"})
    assert outcomes(deleted) == {"r2": "Deleted", "ended": "Deleted"}


async def test_a_filter_matches_a_bounded_number_and_reports_that_there_are_more(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_runs, "MOST", 3)
    monkeypatch.setattr(bulk_runs, "AT_ONCE", 2)
    await create(server, *(f"r{number}" for number in range(8)))
    for verb in ("kill", "delete"):
        sizes = []
        while True:
            answer = await act(server, verb, filter={"all": True})
            sizes.append(len(answer["items"]))
            if not answer["more"]:
                break
        assert sizes == [3, 3, 2], verb
    assert (await (await server.api()).get(server.path("runs"))).json()["items"] == []


async def test_each_run_has_its_own_audit_row(server: TestServer) -> None:
    await create(server, "a", "b")
    await act(server, "kill", ids=["a", "b", "unknown"])
    await act(server, "kill", ids=["a", "b"])
    await act(server, "delete", ids=["b", "a"])
    await act(server, "delete", ids=["b", "a"])
    rows = server.services.store.read(
        lambda connection: connection.execute(tables.audit.select()).all()
    )
    audited = [(row.action, row.target) for row in rows if not row.action.startswith("create")]
    assert audited == [
        ("kill run", "a"),
        ("kill run", "b"),
        ("delete run", "b"),
        ("delete run", "a"),
    ]


async def test_a_body_that_names_no_runs_changes_none(server: TestServer) -> None:
    await create(server, "a")
    api = await server.api()
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, "InvalidBody"),
        ({"ids": []}, "InvalidBody"),
        ({"filter": {}}, "InvalidBody"),
        ({"filter": {"attributes": {}}}, "InvalidBody"),
        ({"filter": {"all": True, "condition": "Failed"}}, "InvalidBody"),
        ({"filter": {"all": False}}, "InvalidBody"),
        ({"filter": {"condition": "Fialed"}}, "InvalidBody"),
        ({"filter": {"flows": "f"}}, "InvalidBody"),
        ({"ids": ["a"], "filter": {"all": True}}, "InvalidBody"),
        ({"ids": ["a", "../b"]}, "InvalidId"),
        ({"ids": ["a", ""]}, "InvalidId"),
        ({"ids": ["a"] * 1001}, "InvalidBody"),
        ({"ids": ["a"], "extra": 1}, "InvalidBody"),
    ]
    for verb in ("kill", "delete"):
        for body, code in bad:
            answer = await api.post(server.path(f"runs:{verb}"), json=body)
            assert (answer.status_code, answer.json()["code"]) == (400, code), (verb, body)
    assert (
        await api.post(server.path("runs:delete"), json={"ids": ["a"], "graceSeconds": 1})
    ).status_code == 400
    assert (
        await api.post(server.path("runs:kill"), json={"ids": ["a"], "graceSeconds": -1})
    ).status_code == 400
    assert await condition(server, "a") == "Pending"


async def test_many_runs_and_a_create_at_the_same_time_all_succeed(server: TestServer) -> None:
    names = [f"r{number}" for number in range(120)]
    await create(server, *names)
    killed, _ = await asyncio.gather(act(server, "kill", ids=names), create(server, "meanwhile"))
    assert set(outcomes(killed).values()) == {"Killed"}
    assert len(killed["items"]) == 120
    assert await condition(server, "meanwhile") == "Pending"
