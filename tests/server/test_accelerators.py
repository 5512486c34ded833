"""Accelerator verdicts over HTTP: machines' reports, earlier runs' predictions, and access."""

import json
from typing import Any

import msgspec
import pytest

from runyard.server.services import documents
from runyard.server.services.context import Actor
from runyard.server.services.errors import Refusal
from runyard.server.services.machines import HEARD_WITHIN_S
from runyard.server.services.runs import accelerators, flows
from runyard.store import organizations
from tests.support import attempts
from tests.support.server import TestServer
from vi.api.resources.flows.responses import FlowSpec

GIB = 1 << 30
LARGE = {"architecture": {"name": "qwen25vl", "size": "7B"}, "training": {"mode": "full"}}


def one(name: str, memory_gib: float | None, count: int = 1) -> dict[str, Any]:
    return {"name": name, "model": f"Maker {name}", "count": count, "memory_gib": memory_gib}


def weights(named: str) -> dict[str, Any]:
    return {"block": "vi-model", "settings": {"architecture": {"weights": named}}}


@pytest.fixture(autouse=True)
def large_model(server: TestServer) -> None:
    """The server's machine has the model of ``LARGE``, so that runs of it can be created."""
    (server.settings.data_dir / "models" / "Qwen/Qwen2.5-VL-7B-Instruct").mkdir(parents=True)


async def report(server: TestServer, machine_id: str, *accelerators: dict[str, Any]) -> None:
    controller = await server.client(server.controller_key)
    labels = {"accelerator": sorted({each["name"] for each in accelerators})}
    document = {"host": machine_id, "labels": labels, "accelerators": accelerators}
    answer = await controller.put(f"/internal/v1/machines/{machine_id}", json=document)
    assert answer.status_code == 200, answer.text


async def make_flow(
    server: TestServer, flow_id: str, model: dict[str, Any] | None = None, **spec: Any
) -> None:
    if model is not None:
        spec["blocks"] = [{"block": "vi-model", "settings": model}]
    answer = await (await server.api()).put(server.path(f"flows/{flow_id}"), json={"spec": spec})
    assert answer.status_code in (200, 201), answer.text


async def ask(server: TestServer, flow_id: str) -> dict[str, Any]:
    answer = await (await server.api()).get(server.path(f"flows/{flow_id}/accelerators"))
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def verdict(server: TestServer, flow_id: str) -> tuple[str, str]:
    """Return the verdict on the only accelerator."""
    (item,) = (await ask(server, flow_id))["items"]
    (configuration,) = item["configurations"]
    assert configuration["count"] == 1
    return configuration["action"], configuration["reason"]


async def train_run(server: TestServer, run_id: str, flow: dict[str, Any], **plan: Any) -> None:
    """Create a run of the flow whose trainer has reported its plan."""
    attempt = await attempts.start(server, run_id, flow)
    explained = {name: {"value": value, "reason": "said"} for name, value in plan.items()}
    answer = await attempt.event("plan", plan=explained)
    assert answer.status_code == 200, answer.text
    await attempt.finish(0, outcome="Succeeded", reason="Completed", message="")


async def test_what_machines_report_is_listed_with_its_verdicts(server: TestServer) -> None:
    await make_flow(server, "f1", LARGE)
    assert (await ask(server, "f1"))["items"] == []
    await report(server, "m1", one("h100", 79.65, 8))
    await report(server, "m2", one("h100", 79.65, 2))
    await report(server, "m3", one("cpu", 4.0))
    found = await ask(server, "f1")
    assert (found["kind"], found["workspaceId"], found["flowId"]) == (
        "FlowAcceleratorList",
        server.org,
        "f1",
    )
    h100, cpu = (item["accelerator"] for item in found["items"])
    assert (h100["kind"], h100["trainingAcceleratorId"]) == ("TrainingAccelerator", "h100-79-65gib")
    assert h100["spec"]["labels"] == {"accelerator": "h100", "model": "Maker h100"}
    assert h100["spec"]["resources"] == {"count": 10, "memoryGiB": 79.65}
    assert (h100["spec"]["enabled"], bool(h100["etag"]), cpu["spec"]["resources"]["count"]) == (
        True,
        True,
        1,
    )
    reasons = [item["configurations"][0]["reason"] for item in found["items"]]
    assert reasons[0].endswith("training.mode lora would fit, with 21.8 GiB")
    assert "no setting keeps it below 70% of that" in reasons[1]
    needed = found["flowRequirements"]["minimumSingleUnitResources"]["memoryGiB"]
    assert f"{needed:.1f} GiB needed" in reasons[1], "the least that is needed anywhere"


async def test_the_empty_flow_is_allowed_on_a_cpu(server: TestServer) -> None:
    await make_flow(server, "f1")
    await report(server, "m1", one("cpu", 7.75))
    assert (await verdict(server, "f1"))[0] == "Allow"
    await make_flow(server, "f2", LARGE)
    await report(server, "m1", one("a10", 24.0))
    action, reason = await verdict(server, "f2")
    assert action == "Deny"
    assert "24.0 GiB available" in reason and "would fit" in reason


async def test_a_silent_machine_disappears_and_comes_back(server: TestServer) -> None:
    await make_flow(server, "f1")
    await report(server, "m1", one("cpu", 16.0))
    server.clock.forward(HEARD_WITHIN_S)
    assert len((await ask(server, "f1"))["items"]) == 1
    server.clock.forward(1)
    assert (await ask(server, "f1"))["items"] == []
    await report(server, "m1", one("cpu", 16.0))
    assert len((await ask(server, "f1"))["items"]) == 1


async def test_a_prediction_by_a_run_of_the_same_flow_outranks_any_estimate(
    server: TestServer,
) -> None:
    api = await server.api()
    await make_flow(server, "f1", LARGE)
    await report(server, "m1", one("h100", 80.0))
    assert "estimated" in (await verdict(server, "f1"))[1]
    got = (await api.get(server.path("flows/f1"))).json()
    copy = {key: got[key] for key in ("name", "schema", "tolerations", "settings", "blocks")}
    plan = {"microBatchSize": 8, "parameters": 8_300_000_000, "device": "cuda"}
    await train_run(server, "r1", copy, memory=60 * GIB, **plan)
    action, reason = await verdict(server, "f1")
    assert (action, reason.startswith("60.0 GiB needed, predicted by run r1")) == ("Allow", True)
    await make_flow(server, "f1", LARGE | {"onOutOfMemory": "fail"})
    assert "estimated" in (await verdict(server, "f1"))[1], "another generation is another flow"


async def test_a_prediction_is_found_among_any_number_of_runs_without_one(
    server: TestServer, monkeypatch: Any
) -> None:
    monkeypatch.setattr(accelerators, "PAGE", 7)  # several pages
    api = await server.api()
    await make_flow(server, "f1", LARGE)
    await report(server, "m1", one("h100", 80.0))
    got = (await api.get(server.path("flows/f1"))).json()
    copy = {key: got[key] for key in ("name", "schema", "tolerations", "settings", "blocks")}
    plan = {"microBatchSize": 8, "parameters": 8_300_000_000, "device": "cuda"}
    await train_run(server, "r1", copy, memory=60 * GIB, **plan)
    for number in range(accelerators.MOST_OF_FLOW + 5):
        server.clock.forward(1)
        await api.put(server.path(f"runs/waits-{number}"), json={"spec": {"flowId": "f1"}})
    assert "predicted by run r1" in (await verdict(server, "f1"))[1]


async def test_a_run_with_the_same_model_and_data_counts_under_any_name(server: TestServer) -> None:
    await report(server, "m1", one("h100", 80.0))
    plan = {"microBatchSize": 8, "parameters": 8_300_000_000, "device": "cuda"}
    alike = {"name": "alike", "blocks": [{"block": "vi-model", "settings": LARGE}]}
    await train_run(server, "r1", alike, memory=70 * GIB, **plan)
    await train_run(server, "r2", alike, memory=None, **plan)
    await train_run(server, "r3", {"name": "other"}, memory=1 * GIB, **plan)
    await make_flow(server, "f1", LARGE, name="mine")
    action, reason = await verdict(server, "f1")
    assert (action, reason.partition(" with")[0]) == (
        "Warn",
        "70.0 GiB needed, predicted by run r1",
    )
    assert "would fit" in reason


async def test_the_size_of_own_weights_is_known_once_a_run_has_opened_them(
    server: TestServer,
) -> None:
    await report(server, "m1", one("a10", 24.0))
    await make_flow(
        server, "f1", {"architecture": {"weights": f"{server.settings.data_dir}/models/shelves"}}
    )
    action, reason = await verdict(server, "f1")
    assert (action, "is not known before a machine has opened it" in reason) == ("Warn", True)
    attempt = await attempts.start(server, "r1", {})
    assert (
        await attempt.event("plan", plan={"parameters": {"value": 2_000_000_000}})
    ).status_code == 200
    await attempt.checkpoint("epoch-1")
    await make_flow(server, "f2", {"architecture": {"weights": "run:r1/epoch-1"}})
    assert "estimated from 2B parameters" in (await verdict(server, "f2"))[1]


async def test_tolerations_that_no_machine_meets_are_denied(server: TestServer) -> None:
    await make_flow(server, "f1", tolerations={"accelerator": ["h100", "h200"]})
    await report(server, "m1", one("cpu", 64.0))
    assert await verdict(server, "f1") == (
        "Deny",
        "the flow's tolerations request accelerator: h100 or h200, which no machine with cpu "
        "offers",
    )


async def test_another_organization_sees_neither_the_flow_nor_its_predictions(
    server: TestServer,
) -> None:
    await make_flow(server, "f1", LARGE)
    await report(server, "m1", one("h100", 80.0))
    plan = {"microBatchSize": 8, "parameters": 8_300_000_000, "device": "cuda"}
    alike = {"blocks": [{"block": "vi-model", "settings": LARGE}]}
    await train_run(server, "r1", alike, memory=60 * GIB, **plan)
    await server.services.store.write(
        lambda connection: organizations.add(
            connection, org="strangers", name="Strangers", time_ms=1
        )
    )
    with pytest.raises(Refusal, match="flow 'f1' was not found"):
        await accelerators.list_for_flow(server.services, org="strangers", flow_id="f1")
    stranger = Actor(org="strangers", name="key", role="admin", address="here")
    for flow_id, spec in (("f1", alike), ("f2", {"blocks": [weights("run:r1/epoch-1")]})):
        await documents.put(
            server.services,
            flows.FLOW,
            stranger,
            flow_id,
            body=b"",
            spec=msgspec.convert(spec, FlowSpec),
            attributes={},
            if_match=None,
        )
    found = await accelerators.list_for_flow(server.services, org="strangers", flow_id="f1")
    assert "estimated from 7B parameters" in str(found.items[0].configurations[0].reason)
    assert found.organization_id == found.items[0].accelerator.organization_id == "strangers"
    found = await accelerators.list_for_flow(server.services, org="strangers", flow_id="f2")
    assert "is not known before a machine has opened it" in str(
        found.items[0].configurations[0].reason
    )
    assert (await verdict(server, "f1"))[1].startswith("60.0 GiB needed, predicted by run r1")


async def test_accelerators_of_a_missing_flow_and_setting_them_are_refused(
    server: TestServer,
) -> None:
    await make_flow(server, "f1")
    await report(server, "m1", one("cpu", 16.0))
    api = await server.api()
    missing = await api.get(server.path("flows/f2/accelerators"))
    assert (missing.status_code, missing.json()["code"]) == (404, "NotFound")
    setting = await api.post(server.path("flows/f1/accelerators"), json={})
    assert (setting.status_code, setting.json()["code"]) == (405, "MethodNotAllowed")


async def test_only_a_controller_reports_machines(server: TestServer) -> None:
    document = {"host": "m1", "labels": {}, "accelerators": []}
    api = await server.api()
    assert (await api.put("/internal/v1/machines/m1", json=document)).status_code == 401
    controller = await server.client(server.controller_key)
    bad = await controller.put(
        "/internal/v1/machines/m1", content=json.dumps(document | {"more": 1})
    )
    assert (bad.status_code, bad.json()["code"]) == (400, "InvalidBody")
