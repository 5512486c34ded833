"""Findings of a run: on its creation, in the check of its flow, and from its trainer."""

import json
from typing import Any

import pytest

from tests.server.datasets import Data, grounding_row, jsonl, make_image_bytes, make_vqa_files
from tests.support import attempts
from tests.support.server import TestServer


async def create(server: TestServer, dataset_id: str, run_id: str, **model: Any) -> Any:
    """Create a run on a dataset; return its findings and those of a check of its flow."""
    api = await server.api()
    blocks = [{"block": "vi-dataset", "settings": {"datasetId": dataset_id}}]
    if model:
        blocks.append({"block": "vi-model", "settings": model})
    made = await api.put(server.path(f"runs/{run_id}"), json={"spec": {"flow": {"blocks": blocks}}})
    assert made.status_code == 201, made.text
    check = (await api.post(server.path("flows:check"), json={"spec": {"blocks": blocks}})).json()
    findings = made.json()["status"]["findings"]
    assert check["findings"] == findings
    return findings, check["plan"]


@pytest.mark.parametrize(("kind", "size"), [("vqa", "32 x 32"), ("phrase-grounding", "48 x 48")])
async def test_a_run_of_the_tiny_model_on_own_images_says_what_the_model_sees(
    server: TestServer, kind: str, size: str
) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make(kind)
    files = make_vqa_files(3)
    if kind != "vqa":
        row = grounding_row(1, "a.png")
        files = {"a.png": make_image_bytes(1), "labels.jsonl": jsonl(row)}
    await data.import_files(dataset_id, files)
    [finding], plan = await create(server, dataset_id, "r1")
    assert finding["code"] == "TinyImages"
    assert finding["message"].startswith(f"tiny: images become {size} pixels")
    [suggestion] = finding["suggestions"]
    assert suggestion["setting"] == "vi-model.architecture.weights"
    assert "runyard models add" in suggestion["text"]
    assert plan["images"] == {"value": size, "reason": f"tiny: images become {size}"}


async def test_a_real_model_and_the_built_in_images_have_no_such_finding(
    server: TestServer,
) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make()
    await data.import_files(dataset_id, make_vqa_files(3))
    weights = {"weights": "HuggingFaceTB/SmolVLM-256M-Instruct"}
    (server.settings.data_dir / "models" / weights["weights"]).mkdir(parents=True)
    found, plan = await create(server, dataset_id, "r1", architecture=weights)
    assert (found, "images" in plan) == ([], False)
    assert (await create(server, "digits", "r2"))[0] == []


async def test_a_finding_of_the_trainer_is_kept_once_and_logged_as_a_warning(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    suggestion = {"text": "train longer", "setting": "vi-model.hyperparameters.epochs", "value": 9}
    finding = {"code": "NothingLearned", "message": "nothing was learned", "suggestions": []}
    for suggestions in ([], [suggestion]):
        await attempt.event("finding", **finding | {"suggestions": suggestions})
    api = await server.api()
    run = (await api.get(server.path("runs/r1"))).json()
    assert run["status"]["findings"] == [finding | {"suggestions": [suggestion]}]
    lines = (await api.get(server.path("runs/r1/logs"))).json()["items"]
    assert [(line["level"], line["text"]) for line in lines] == [
        ("warning", "warning: nothing was learned"),
        (
            "warning",
            "warning: nothing was learned; try: train longer "
            "(--set vi-model.hyperparameters.epochs=9)",
        ),
    ]


async def test_a_malformed_finding_is_stored_as_text(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.event("finding", code=1, message="a")
    await attempt.event("finding", code="a", message="b" * 9000)
    api = await server.api()
    assert (await api.get(server.path("runs/r1"))).json()["status"]["findings"] == []
    lines = (await api.get(server.path("runs/r1/logs"))).json()["items"]
    assert [json.loads(line["text"])["code"] for line in lines] == [1, "a"]
