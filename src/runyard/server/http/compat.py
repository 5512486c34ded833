"""What other clients need, in one place. Nothing outside this module knows that they exist.

The published client ``vi-sdk`` decodes ``GET /flows/{id}`` as a flow when one asks for a flow, and as a flow *spec*
when one creates a run from a flow id; it wants a checkpoint asked for by name inside a list; it puts a second question
mark into some queries; and it sends the keys of ``update`` as its caller wrote them, camelCase or snake_case.
"""

from typing import Any
from urllib.parse import parse_qsl

import msgspec

from runyard.server.services.runs import with_origin
from vi.api.resources.flows.responses import Flow
from vi.api.resources.models.responses import Model

SNAKE_KEYS = {
    "training_project": "trainingProject",
    "killed_at": "killedAt",
    "grace_seconds": "graceSeconds",
    "flow_id": "flowId",
    "resume_from": "resumeFrom",
    "dataset_id": "datasetId",
}


def dataset_id(org: str, named: str) -> str:
    """A dataset's own id: in paths it may stand behind the organisation's and an underscore."""
    return named.removeprefix(f"{org}_")


def flat_dataset(body: Any) -> Any:
    """The change of a dataset with the keys of its spec at the top, wherever its sender put them."""
    if isinstance(body, dict) and isinstance(body.get("spec"), dict):
        return {key: value for key, value in body.items() if key != "spec"} | body["spec"]
    return body


def query_pairs(query: bytes) -> list[tuple[str, str]]:
    """The parameters of a query, split at ``?`` as well as at ``&``: ``intent=sdkLocalDeploy?s=10&p=...``."""
    return parse_qsl(query.decode("latin-1").replace("?", "&"), keep_blank_values=True, errors="replace")


def camel_spec(body: Any) -> Any:
    """A body whose ``spec`` has camelCase keys at its top level, whichever way its caller spelled them."""
    if not isinstance(body, dict) or not isinstance(body.get("spec"), dict):
        return body
    return body | {"spec": {SNAKE_KEYS.get(key, key): value for key, value in body["spec"].items()}}


def doubled_flow(document: bytes) -> bytes:
    """A flow that also reads as its own spec.

    The copy at the top carries the flow's id and generation in its settings: the published client sends exactly that
    copy back when it creates a run, so the run knows where its recipe came from.
    """
    flow = msgspec.json.decode(document, type=Flow)
    spec = msgspec.to_builtins(flow.spec)
    return msgspec.json.encode(msgspec.to_builtins(flow) | with_origin(spec, flow))


def wrapped_model(model: Model) -> bytes:
    """A checkpoint that also reads as a page holding it."""
    plain = msgspec.to_builtins(model)
    return msgspec.json.encode(plain | {"items": [plain], "nextPage": None, "prevPage": None})
