"""``client.flows`` and ``client.training_projects``: the requests of each call."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import vi
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.training_projects.responses import TrainingProjectSpec

pytestmark = pytest.mark.anyio

FLOW = {
    "kind": "Flow",
    "workspaceId": "lab",
    "flowId": "f-1",
    "spec": {"name": "shelf", "schema": "v1"},
}
PROJECT = {
    "kind": "TrainingProject",
    "workspaceId": "lab",
    "trainingProjectId": "p-1",
    "spec": {"name": "Shelves"},
}


@pytest.fixture
async def client(server: Any, key: str) -> AsyncIterator[vi.AsyncClient]:
    async with vi.AsyncClient(key, "lab", transport=server.transport) as client:
        yield client


async def test_a_flow_is_created_read_changed_and_deleted(
    client: vi.AsyncClient, server: Any
) -> None:
    for _ in range(3):
        server.answers(FLOW)
    server.answers()
    created = await client.flows.create(FlowSpec(name="shelf"), metadata={"a": "b"}, flow_id="f-1")
    read = await client.flows.get("f-1")
    await client.flows.update(
        "f-1", spec={"name": "other", "training_project": "p-1"}, if_match="e1"
    )
    deleted = await client.flows.delete("f-1")
    assert created == read
    assert (read.flow_id, read.spec.name, deleted.id) == ("f-1", "shelf", "f-1")
    assert server.asked == [
        f"{verb} /workspaces/lab/flows/f-1" for verb in ("PUT", "GET", "PATCH", "DELETE")
    ]
    assert server.body(0)["spec"]["name"] == "shelf"
    assert server.body(2) == {"spec": {"name": "other", "trainingProject": "p-1"}}
    assert server.requests[2].headers["if-match"] == "e1"


async def test_a_doubled_flow_answer_is_a_flow(client: vi.AsyncClient, server: Any) -> None:
    server.answers(
        {**FLOW, "name": "shelf", "schema": "v1", "tolerations": {}, "settings": {}, "blocks": []}
    )
    assert (await client.flows.get("f-1")).spec.name == "shelf"


async def test_the_verdict_on_each_accelerator_is_read(client: vi.AsyncClient, server: Any) -> None:
    accelerator = {
        "kind": "TrainingAccelerator",
        "trainingAcceleratorId": "h100-79-65gib",
        "spec": {
            "enabled": True,
            "labels": {"accelerator": "h100"},
            "resources": {"count": 8, "memoryGiB": 79.65},
        },
    }
    verdict = {"count": 1, "action": "Deny", "reason": "110.0 GiB needed"}
    items = [{"accelerator": accelerator, "configurations": [verdict]}]
    server.answers(
        {"kind": "FlowAcceleratorList", "flowId": "f-1", "flowRequirements": {}, "items": items}
    )
    found = await client.flows.get_accelerators("f-1")
    assert server.asked == ["GET /workspaces/lab/flows/f-1/accelerators"]
    assert found.items[0].accelerator.spec.resources == {"count": 8, "memoryGiB": 79.65}
    assert msgspec.to_builtins(found.items[0].configurations) == [verdict]


async def test_flows_are_listed_over_all_pages(client: vi.AsyncClient, server: Any) -> None:
    for _ in range(2):
        server.answers({"items": [FLOW], "nextPage": "t"})
        server.answers({"items": [FLOW]})
    assert len([flow async for flow in client.flows]) == 2
    assert len([flow async for flow in client.flows()]) == 2


async def test_a_training_project_is_created_read_changed_and_deleted(
    client: vi.AsyncClient, server: Any
) -> None:
    for _ in range(3):
        server.answers(PROJECT)
    server.answers()
    spec = TrainingProjectSpec(name="Shelves", type="vqa", dataset_id="digits")
    await client.training_projects.create(spec, training_project_id="p-1")
    project = await client.training_projects.get("p-1")
    await client.training_projects.update(
        "p-1", spec={"dataset_id": "shelves"}, metadata={"a": None}
    )
    deleted = await client.training_projects.delete("p-1")
    assert (project.spec.name, deleted.id) == ("Shelves", "p-1")
    assert server.asked == [
        f"{verb} /workspaces/lab/trainingProjects/p-1" for verb in ("PUT", "GET", "PATCH", "DELETE")
    ]
    assert server.body(0) == {"spec": {"name": "Shelves", "type": "vqa", "datasetId": "digits"}}
    assert server.body(2) == {
        "spec": {"datasetId": "shelves"},
        "metadata": {"attributes": {"a": None}},
    }


async def test_training_projects_are_listed_over_all_pages(
    client: vi.AsyncClient, server: Any
) -> None:
    for _ in range(2):
        server.answers({"items": [PROJECT], "nextPage": "t"})
        server.answers({"items": [PROJECT]})
    assert len([project async for project in client.training_projects]) == 2
    assert len([project async for project in client.training_projects()]) == 2


async def test_a_rejected_flow_lists_every_problem(client: vi.AsyncClient, server: Any) -> None:
    problems = [
        {
            "path": "/blocks/0/block",
            "given": "x",
            "allowed": "dataset",
            "message": "unknown block 'x'",
        }
    ]
    server.answers(
        {"message": "the flow has 1 problem", "code": "InvalidFlow", "problems": problems},
        status=400,
    )
    with pytest.raises(vi.ViValidationError, match="/blocks/0/block: unknown block 'x'") as raised:
        await client.flows.create({"blocks": [{"block": "x"}]})
    assert raised.value.details["problems"] == problems
