"""``POST flows:check``: the problems that a run would have, or its plan; nothing is written."""

from typing import Any

from tests.server.datasets import Data
from tests.server.test_access import read_rows
from tests.support.server import TestServer


async def check(server: TestServer, spec: Any, **further: Any) -> Any:
    api = await server.api()
    answer = await api.post(server.path("flows:check"), json={"spec": spec, **further})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_empty_flow_has_a_plan(server: TestServer) -> None:
    before = read_rows(server)
    found = await check(server, {})
    assert found["problems"] == []
    plan = found["plan"]
    assert (plan["dataset"]["value"], plan["weights"]["value"]) == ("digits", "tiny")
    assert plan["totalSteps"]["value"] > 100
    assert all(item["reason"] for item in plan.values())
    assert found["memory"]["items"] == []  # no machine is connected
    assert read_rows(server) == before


async def test_a_check_reports_the_problems_of_a_run_with_their_paths(server: TestServer) -> None:
    settings = {
        "hyperparameters": {"epochs": 0, "learningRat": 1},
        "architecture": {"weights": "run:none/latest"},
    }
    spec = {"blocks": [{"block": "vi-model", "settings": settings}], "trainingProject": "none"}
    found = await check(server, spec)
    assert (found["plan"], found["memory"]) == (None, None)
    api = await server.api()
    refused = await api.put(server.path("runs/r1"), json={"spec": {"flow": spec}})
    expected = refused.json()["problems"]
    assert [problem["message"] for problem in found["problems"]] == [
        problem["message"] for problem in expected
    ]
    hyperparameters = "/blocks/0/settings/hyperparameters"
    paths = {problem["path"] for problem in found["problems"]}
    assert {f"{hyperparameters}/epochs", f"{hyperparameters}/learningRat"} <= paths
    assert {"/trainingProject", "/blocks/0/settings/architecture/weights"} <= paths


async def test_a_check_knows_the_organizations_datasets(server: TestServer) -> None:
    data = Data(server, await server.api())
    empty = await data.make()
    found = await check(server, {}, trainingProject=empty)
    [problem] = found["problems"]
    assert (problem["path"], "has no records" in problem["message"]) == (
        "/blocks/0/settings/datasetId",
        True,
    )
    unknown = {"blocks": [{"block": "vi-dataset", "settings": {"datasetId": "nothing"}}]}
    [problem] = (await check(server, unknown))["problems"]
    assert problem["path"] == "/blocks/0/settings/datasetId"


async def test_a_check_of_something_else_is_rejected(server: TestServer) -> None:
    api = await server.api()
    bodies: list[Any] = [{}, {"spec": 1}, {"spec": {}, "more": 1}, []]
    for body in bodies:
        answer = await api.post(server.path("flows:check"), json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBody"), body
