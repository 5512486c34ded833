"""Runs over HTTP: created once, listed in order, changed little, killed, deleted."""

from typing import Any

from runyard.store import tables
from tests.support.server import TestServer

QUICK = {"name": "Quick Training", "schema": "v1", "blocks": [], "settings": {}, "tolerations": {}}


async def test_an_empty_flow_creates_a_pending_run(server: TestServer) -> None:
    api = await server.api()
    answer = await api.put(server.path("runs/r1"), json={"spec": {"flow": QUICK}})
    run = answer.json()
    assert answer.status_code == 201
    assert answer.headers["etag"] == f'"{run["etag"]}"'
    assert run["spec"]["flow"] == QUICK | {"trainingProject": None}
    assert (run["kind"], run["workspaceId"], run["runId"]) == ("Run", server.org, "r1")
    assert run["metadata"] == {
        "timeCreated": server.clock.epoch_ms,
        "lastUpdated": server.clock.epoch_ms,
        "generation": 1,
        "attributes": {},
        "name": "Quick Training",
    }
    assert [entry["condition"] for entry in run["status"]["conditions"]] == ["Pending"]
    assert (await api.get(server.path("runs/r1"))).json() == run


async def test_defaults_of_a_flow_are_filled_in_before_it_is_stored(server: TestServer) -> None:
    api = await server.api()
    for number, spec in enumerate(
        ({}, {"flow": {}}, {"flow": {"blocks": [{"block": "vi-dataset"}]}})
    ):
        answer = await api.put(server.path(f"runs/r{number}"), json={"spec": spec})
        flow = answer.json()["spec"]["flow"]
        assert set(flow) == {
            "name",
            "schema",
            "blocks",
            "settings",
            "tolerations",
            "trainingProject",
        }
        assert all(set(block) == {"block", "settings", "style"} for block in flow["blocks"])


async def test_repeating_a_create_is_the_same_run_and_another_body_is_a_conflict(
    server: TestServer,
) -> None:
    api = await server.api()
    body = b'{"spec": {"flow": {"name": "A"}}, "metadata": {"attributes": {"a": "1"}}}'
    first = await api.put(server.path("runs/r1"), content=body)
    await api.patch(server.path("runs/r1"), json={"metadata": {"attributes": {"a": "2"}}})
    again = await api.put(server.path("runs/r1"), content=body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["metadata"]["attributes"] == {"a": "2"}
    other = await api.put(server.path("runs/r1"), json={"spec": {"flow": {"name": "B"}}})
    assert (other.status_code, other.json()["code"]) == (409, "RunExists")
    assert len((await api.get(server.path("runs"))).json()["items"]) == 1


async def test_a_deleted_id_stays_deleted_although_its_create_is_repeated(
    server: TestServer,
) -> None:
    api = await server.api()
    body = {"spec": {"flow": QUICK}}
    await api.put(server.path("runs/r1"), json=body)
    deleted = await api.delete(server.path("runs/r1"))
    assert (deleted.status_code, deleted.content) == (204, b"")
    late = await api.put(server.path("runs/r1"), json=body)
    assert (late.status_code, late.json()["code"]) == (409, "IdDeleted")
    for answer in (
        await api.get(server.path("runs/r1")),
        await api.patch(server.path("runs/r1"), json={}),
        await api.delete(server.path("runs/r1")),
        await api.get(server.path("runs/r1/logs")),
        await api.get(server.path("runs/r1/metrics")),
        await api.get(server.path("runs/r1/outputs")),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "NotFound")


async def test_runs_are_listed_newest_first_without_gaps_or_repeats(
    server: TestServer,
) -> None:
    api = await server.api()
    for number in range(7):
        await api.put(server.path(f"runs/r{number}"), json={"spec": {}})
        if number % 2:  # pairs share a millisecond
            server.clock.forward(0.001)
    seen: list[str] = []
    page = (await api.get(server.path("runs"), params={"s": 3})).json()
    while True:
        seen += [run["runId"] for run in page["items"]]
        if not page["nextPage"]:
            break
        # Newer ones do not shift the pages.
        await api.put(server.path(f"runs/new{len(seen)}"), json={"spec": {}})
        page = (await api.get(server.path("runs"), params={"s": 3, "p": page["nextPage"]})).json()
    assert seen == ["r6", "r5", "r4", "r3", "r2", "r1", "r0"]


async def test_filters_narrow_the_list(server: TestServer) -> None:
    api = await server.api()
    await api.put(server.path("trainingProjects/p1"), json={"spec": {"name": "P"}})
    await api.put(server.path("flows/f1"), json={"spec": {}})
    await api.put(
        server.path("runs/a"), json={"spec": {}, "metadata": {"attributes": {"k": "v:w", "m": "1"}}}
    )
    server.clock.forward(1)
    middle = server.clock.epoch_ms
    await api.put(server.path("runs/b"), json={"spec": {"flowId": "f1", "trainingProject": "p1"}})
    server.clock.forward(1)
    await api.put(
        server.path("runs/c"), json={"spec": {}, "metadata": {"attributes": {"k": "v:w"}}}
    )
    await api.patch(server.path("runs/c"), json={"spec": {"killedAt": 1}})

    async def listed(**query: Any) -> list[str]:
        return [
            run["runId"]
            for run in (await api.get(server.path("runs"), params=query)).json()["items"]
        ]

    assert await listed() == ["c", "b", "a"]
    assert await listed(condition="Cancelled") == ["c"]
    assert await listed(condition="Pending") == ["b", "a"]
    assert await listed(flow="f1") == ["b"]
    assert await listed(trainingProject="p1") == ["b"]
    assert await listed(attribute="k:v:w") == ["c", "a"]
    assert await listed(attribute=["k:v:w", "m:1"]) == ["a"]
    assert await listed(attribute="k:v") == []
    assert await listed(createdAfter=middle) == ["c"]
    assert await listed(createdBefore=middle) == ["a"]
    assert await listed(condition="Pending", createdAfter=middle - 1) == ["b"]
    await api.patch(server.path("runs/a"), json={"metadata": {"attributes": {"k": "new"}}})
    assert await listed(attribute="k:v:w") == ["c"]
    for name, value in (
        ("condition", "Sleeping"),
        ("attribute", "k"),
        ("createdAfter", "now"),
        ("s", "0"),
    ):
        answer = await api.get(server.path("runs"), params={name: value})
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidQuery")
        assert value in answer.json()["message"]
    assert len(await listed(s=5000)) == 3  # the published client does not check what it sends


async def test_a_page_token_that_is_forged_or_for_another_query_is_refused(
    server: TestServer,
) -> None:
    api = await server.api()
    for number in range(3):
        await api.put(server.path(f"runs/r{number}"), json={"spec": {}})
        await api.put(server.path(f"flows/f{number}"), json={"spec": {}})
    token = (await api.get(server.path("runs"), params={"s": 1})).json()["nextPage"]
    assert (await api.get(server.path("runs"), params={"s": 2, "p": token})).status_code == 200
    wrong: list[tuple[str, str, dict[str, str]]] = [
        ("runs", "abc", {}),
        ("runs", token + "x", {}),
        ("flows", token, {}),
        ("runs", token, {"condition": "Pending"}),
    ]
    for noun, given, further in wrong:
        params: dict[str, str] = {"s": "1", "p": given, **further}
        answer = await api.get(server.path(noun), params=params)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidPageToken")
        assert "page token" in answer.json()["message"]


async def test_attributes_merge_and_null_removes(server: TestServer) -> None:
    api = await server.api()
    await api.put(
        server.path("runs/r1"), json={"spec": {}, "metadata": {"attributes": {"a": "1", "b": "2"}}}
    )
    changed = await api.patch(
        server.path("runs/r1"), json={"metadata": {"attributes": {"b": None, "c": "3", "d": None}}}
    )
    assert changed.json()["metadata"]["attributes"] == {"a": "1", "c": "3"}
    assert changed.json()["metadata"]["generation"] == 1  # attributes are not the spec
    before = (await api.get(server.path("runs/r1"))).json()
    unchanged = await api.patch(server.path("runs/r1"), json={})
    assert (unchanged.status_code, unchanged.json()) == (200, before)


async def test_the_training_project_may_be_spelled_either_way(server: TestServer) -> None:
    api = await server.api()
    await api.put(server.path("trainingProjects/p1"), json={"spec": {"name": "P"}})
    await api.put(server.path("runs/r1"), json={"spec": {}})
    snake = await api.patch(server.path("runs/r1"), json={"spec": {"training_project": "p1"}})
    assert snake.json()["spec"]["trainingProject"] == "p1"
    assert snake.json()["metadata"]["generation"] == 2
    camel = await api.patch(server.path("runs/r1"), json={"spec": {"trainingProject": "digits"}})
    assert camel.json()["spec"]["trainingProject"] == "digits"
    unknown = await api.patch(server.path("runs/r1"), json={"spec": {"trainingProject": "p2"}})
    assert (unknown.status_code, unknown.json()["code"]) == (400, "UnknownTrainingProject")
    assert "'p2'" in unknown.json()["message"]


async def test_only_writable_fields_of_a_response_can_be_sent_back(
    server: TestServer,
) -> None:
    api = await server.api()
    run = (await api.put(server.path("runs/r1"), json={"spec": {}})).json()
    sent = [{key: value} for key, value in run.items() if key not in ("spec", "metadata")]
    sent += [
        {"spec": {"flow": run["spec"]["flow"]}},
        {"spec": {"killedAt": None}},
        {"spec": {"name": "x"}},
    ]
    sent += [
        {"metadata": {key: value}}
        for key, value in run["metadata"].items()
        if key not in ("attributes", "name")
    ]
    for body in sent:
        answer = await api.patch(server.path("runs/r1"), json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBody"), body
    assert (await api.get(server.path("runs/r1"))).json() == run


async def test_killing_a_pending_run_cancels_it_at_once_by_the_servers_clock(
    server: TestServer,
) -> None:
    api = await server.api()
    await api.put(server.path("runs/r1"), json={"spec": {}})
    server.clock.forward(3)
    killed = (await api.patch(server.path("runs/r1"), json={"spec": {"killedAt": 12}})).json()
    assert killed["spec"]["killedAt"] == server.clock.epoch_ms
    assert [entry["condition"] for entry in killed["status"]["conditions"]] == [
        "Pending",
        "Cancelled",
    ]
    assert killed["status"]["conditions"][-1]["reason"] == "KilledByUser"
    assert killed["status"]["observedGeneration"] == killed["metadata"]["generation"] == 2
    again = await api.patch(server.path("runs/r1"), json={"spec": {"killed_at": 99}})
    assert (again.status_code, again.json()) == (200, killed)


async def test_if_match_guards_every_change(server: TestServer) -> None:
    api = await server.api()
    for noun in ("runs/x", "flows/x", "trainingProjects/x"):
        url = server.path(noun)
        etag = (await api.put(url, json={"spec": {}})).headers["etag"]
        change = {"metadata": {"attributes": {"a": "1"}}}
        stale = await api.patch(url, json=change, headers={"if-match": '"0000"'})
        assert (stale.status_code, stale.json()["code"]) == (412, "EtagMismatch")
        good = await api.patch(url, json=change, headers={"if-match": etag})
        assert good.status_code == 200
        assert good.headers["etag"] != etag
        assert (await api.delete(url, headers={"if-match": etag})).status_code == 412
        assert (await api.patch(url, json={}, headers={"if-match": "*"})).status_code == 200
        weak_or_list = f'"zz", W/{good.headers["etag"]}'
        assert (await api.delete(url, headers={"if-match": weak_or_list})).status_code == 204


async def test_a_run_from_a_saved_flow_keeps_the_flow_as_it_was(server: TestServer) -> None:
    api = await server.api()
    await api.put(server.path("flows/f1"), json={"spec": {"name": "One"}})
    run = (await api.put(server.path("runs/r1"), json={"spec": {"flowId": "f1"}})).json()
    assert run["spec"]["flow"]["name"] == "One"
    assert run["spec"]["flow"]["settings"]["flow"] == {"id": "f1", "generation": 1}
    await api.patch(server.path("flows/f1"), json={"spec": {"name": "Two"}})
    assert (await api.get(server.path("runs/r1"))).json() == run
    second = (await api.put(server.path("runs/r2"), json={"spec": {"flowId": "f1"}})).json()
    assert second["spec"]["flow"]["settings"]["flow"]["generation"] == 2
    unknown = await api.put(server.path("runs/r3"), json={"spec": {"flowId": "f9"}})
    assert (unknown.status_code, "f9" in unknown.json()["message"]) == (404, True)


async def test_the_projects_dataset_is_written_into_the_run(server: TestServer) -> None:
    api = await server.api()
    await api.put(
        server.path("trainingProjects/p1"), json={"spec": {"datasetId": "digits-grounding"}}
    )

    async def dataset(run_id: str, spec: dict[str, Any]) -> list[Any]:
        run = (await api.put(server.path(f"runs/{run_id}"), json={"spec": spec})).json()
        return [block["settings"].get("datasetId") for block in run["spec"]["flow"]["blocks"]]

    assert await dataset("r1", {"trainingProject": "p1"}) == ["digits-grounding"]
    assert await dataset("r2", {"flow": {"trainingProject": "p1"}}) == ["digits-grounding"]
    own = {"blocks": [{"block": "vi-dataset", "settings": {"datasetId": "digits"}}]}
    assert await dataset("r3", {"trainingProject": "p1", "flow": own}) == ["digits"]
    assert await dataset("r4", {"trainingProject": "digits-grounding"}) == ["digits-grounding"]
    assert await dataset("r5", {}) == []


async def test_every_mutation_leaves_one_audit_row_and_reads_leave_none(server: TestServer) -> None:
    api = await server.api()
    await api.put(server.path("runs/r1"), json={"spec": {}})
    await api.put(server.path("runs/r1"), json={"spec": {}})  # a repeat
    await api.patch(server.path("runs/r1"), json={"metadata": {"attributes": {"a": "b"}}})
    await api.patch(server.path("runs/r1"), json={"spec": {"killedAt": 1}})
    await api.get(server.path("runs/r1"))
    await api.put(server.path("runs/r2"), json={"spec": {"flowId": "none"}})  # refused
    await api.delete(server.path("runs/r1"))
    await api.put(server.path("flows/f1"), json={"spec": {}})
    await api.patch(server.path("flows/f1"), json={"spec": {"name": "New"}})
    await api.delete(server.path("flows/f1"))
    rows = server.services.store.read(
        lambda connection: connection.execute(tables.audit.select()).all()
    )
    assert [(row.action, row.target) for row in rows] == [
        ("create run", "r1"),
        ("update run", "r1"),
        ("kill run", "r1"),
        ("delete run", "r1"),
        ("create flow", "f1"),
        ("update flow", "f1"),
        ("delete flow", "f1"),
    ]
    assert {(row.org, row.actor) for row in rows} == {(server.org, f"key {server.key[7:23]}")}
