"""The documents of the published contract, word for word, decode into the SDK's types."""

from typing import Any

import msgspec
import pytest

from vi.api.pagination import Page
from vi.api.resources.flows.responses import Flow
from vi.api.resources.models.responses import Model
from vi.api.resources.runs.responses import Run
from vi.api.resources.training_projects.responses import TrainingProject
from vi.api.responses import ConditionKind, ResourceCondition

METADATA = (
    b'{"timeCreated": 1767225600000, "lastUpdated": 1767229200000, "generation": 1, "attributes": '
    b"{}}"
)
FLOW_SPEC = b"""{
  "name": "shelf-count", "schema": "v1", "tolerations": {}, "settings": {},
  "blocks": [{"block": "dataset", "settings": {}, "style": {}}]
}"""
FLOW = (
    b'{"kind": "Flow", "workspaceId": "lab-nine", "flowId": "fl-04", "spec": '
    + FLOW_SPEC
    + b', "metadata": '
    + METADATA
    + b', "selfLink": "/workspaces/lab-nine/flows/fl-04", "etag": "a1"'
)
DOUBLED = FLOW + b", " + FLOW_SPEC.strip()[1:]
RUN = (
    b'{"kind": "Run", "workspaceId": "lab-nine", "runId": "8d0f7c1e-3f0b-4c57-9d1c-5f2f0b8a6e10", '
    b'"spec": {"flow": '
    + FLOW_SPEC
    + b""", "trainingProject": "tp-3"},
  "status": {
    "log": "/workspaces/lab-nine/runs/8d0f7c1e-3f0b-4c57-9d1c-5f2f0b8a6e10/logs",
    "observedGeneration": 1,
    "conditions": [
      {"condition": "Pending", "status": "Reached", "lastTransitionTime": 1767225600000},
      {
        "condition": "Running", "status": "Reached", "lastTransitionTime": 1767229200000,
        "message": "step 12 of 400"
      }
    ]
  },
  "metadata": """
    + METADATA
    + b', "selfLink": "/workspaces/lab-nine/runs/8d0f7c1e", "etag": "b7"}'
)
KILLED = RUN.replace(b'"trainingProject": "tp-3"', b'"killedAt": 1767229200000').replace(
    b'"condition": "Running", "status": "Reached"',
    b'"condition": "Cancelled", "reason": "KilledByUser", "status": "Reached"',
)
OUTPUT = (
    b"""{
  "kind": "RunOutput", "workspaceId": "lab-nine", "runId": "r-17", "runOutputId": "ckpt-0400",
  "metadata": """
    + METADATA
    + b""",
  "spec": {"kind": "Checkpoint", "epoch": 4, "evaluationMetrics": {"evalLoss": 0.41}},
  "status": {
    "observedGeneration": 1, "conditions": [], "storageObject": "r-17/ckpt-0400.tar",
    "contents": {
      "downloadUrl": {
        "url": "http://127.0.0.1:8080/blobs/r-17/ckpt-0400.tar?sig=abc", "expiresAt": 1767229200000
      }
    }
  },
  "selfLink": "/workspaces/lab-nine/runs/r-17/outputs/ckpt-0400", "etag": "c2"
}"""
)
PROJECT = (
    b"""{
  "kind": "TrainingProject", "workspaceId": "lab-nine", "trainingProjectId": "tp-3",
  "spec": {"name": "Shelves", "type": "vqa"}, "status": {}, "metadata": """
    + METADATA
    + b', "selfLink": "/workspaces/lab-nine/trainingProjects/tp-3", "etag": "d1"}'
)


def test_a_run_decodes_under_its_python_names() -> None:
    run = msgspec.json.decode(RUN, type=Run)
    assert (run.organization_id, run.run_id) == ("lab-nine", "8d0f7c1e-3f0b-4c57-9d1c-5f2f0b8a6e10")
    assert (run.spec.flow.name, run.spec.flow.blocks[0].block, run.spec.training_project) == (
        "shelf-count",
        "dataset",
        "tp-3",
    )
    assert [item.condition for item in run.status.conditions] == [
        ConditionKind.PENDING,
        ConditionKind.RUNNING,
    ]
    assert run.status.conditions[-1].message == "step 12 of 400"
    assert (run.metadata.time_created, run.metadata.last_updated, run.etag) == (
        1767225600000,
        1767229200000,
        "b7",
    )


def test_a_killed_run_decodes() -> None:
    run = msgspec.json.decode(KILLED, type=Run)
    assert (run.spec.killed_at, run.condition) == (1767229200000, ConditionKind.CANCELLED)
    assert run.status.conditions[-1].reason == "KilledByUser"


def test_two_decodings_of_one_answer_are_equal() -> None:
    assert msgspec.json.decode(RUN, type=Run) == msgspec.json.decode(RUN, type=Run)


def test_an_unknown_condition_keeps_its_name() -> None:
    document = b'{"condition": "Hibernating", "status": "Waiting"}'
    first, second = (msgspec.json.decode(document, type=ResourceCondition) for _ in range(2))
    assert first == second
    assert (first.condition.value, first.condition.is_final) == ("Hibernating", False)


@pytest.mark.parametrize("document", [FLOW + b"}", DOUBLED], ids=["plain", "doubled"])
def test_a_flow_decodes_plain_and_doubled(document: bytes) -> None:
    flow = msgspec.json.decode(document, type=Flow)
    assert (flow.flow_id, flow.spec.name, flow.spec.blocks[0].block) == (
        "fl-04",
        "shelf-count",
        "dataset",
    )


def test_a_run_output_decodes() -> None:
    model = msgspec.json.decode(OUTPUT, type=Model)
    assert (model.model_id, model.spec.epoch, model.spec.evaluation_metrics) == (
        "ckpt-0400",
        4,
        {"evalLoss": 0.41},
    )
    assert model.status.contents is not None
    assert model.status.contents.download_url.expires_at == 1767229200000
    assert model.status.contents.sha256 is None


def test_a_training_project_decodes() -> None:
    project = msgspec.json.decode(PROJECT, type=TrainingProject)
    assert (project.training_project_id, project.spec.name, project.spec.type) == (
        "tp-3",
        "Shelves",
        "vqa",
    )


@pytest.mark.parametrize("kind", [Run, Flow, Model, TrainingProject])
def test_an_empty_page_decodes(kind: Any) -> None:
    page = msgspec.json.decode(
        b'{"items": [], "nextPage": null, "prevPage": null}', type=Page[kind]
    )
    assert (page.items, page.next_page) == ([], None)
