"""Adaptations to the published client ``vi-sdk``. No other module depends on its behavior.

It decodes ``GET /flows/{id}`` as a flow, and when it creates a run from a flow id, as a flow
*spec*. It expects a checkpoint requested by name inside a list. It puts a second question mark into
some queries. It sends the keys of ``update`` as its caller wrote them, in camelCase or snake_case.

For datasets: it cannot fetch the second page of some lists, decodes only two export formats, and
spells one policy in the singular. It sends filters as Python dictionaries, and ends an annotation
session by a condition.
"""

import re
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from runyard import limits
from runyard.server.services.datasets.dict_params import parse_dict_param
from runyard.server.services.errors import Refusal
from runyard.server.services.paging import PageRequest
from runyard.server.services.runs.runs import add_flow_origin
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


def parse_dataset_id(org: str, named: str) -> str:
    """Return a dataset's id; in paths it may follow the organization's id and an underscore."""
    return named.removeprefix(f"{org}_")


# Its user agent names system and release with a slash between them; ours names the system alone.
_PUBLISHED = re.compile(r"vi/\S+ \(Python/[0-9.]+; [^;/)]+/[^)]*\)")


def is_published_client(user_agent: str) -> bool:
    return _PUBLISHED.fullmatch(user_agent) is not None


def cannot_page(user_agent: str) -> bool:
    """Return whether this client cannot fetch the second page of assets or ingestion sessions."""
    return is_published_client(user_agent)


def request_whole_list(page_request: PageRequest, *, max_items: int) -> PageRequest:
    """Return a page request for the whole list, within the limit for such lists."""
    return replace(page_request, size=max_items, token=None, most_bytes=limits.WHOLE_LIST.value)


def choose_export_format(user_agent: str, format: str) -> str:
    """Return the format of an export as this client can decode it."""
    return (
        "ViJsonl"
        if is_published_client(user_agent) and format not in ("ViFull", "ViJsonl")
        else format
    )


def normalize_overwrite_policy(given: str) -> str:
    """Return the policy for annotations of overwritten images as responses spell it."""
    return "KeepLinkedResources" if given.startswith("Keep") else "RemoveLinkedResource"


def parse_name_filter(given: str | None) -> list[str]:
    """Return the texts that file names must contain.

    A filter is a text, or a JSON or Python dictionary.
    """
    if given is None:
        return []
    if not given.lstrip().startswith("{"):
        return [given]
    parsed = parse_dict_param(given)
    named = parsed.get("filename") if parsed is not None else None
    return [named] if isinstance(named, str) and named else []


def parse_session_outcome(body: Any) -> str:
    """Return the outcome that the client reports for its session: ``Inserted``, or why it gives up.

    Raises:
        Refusal: InvalidBody.
    """
    body = body if isinstance(body, dict) else {}
    spec, status = body.get("spec"), body.get("status")
    if isinstance(spec, dict) and spec.get("status") == "Cancelled":
        return "CancelledByUser"
    conditions = status.get("conditions") if isinstance(status, dict) else None
    for condition in conditions if isinstance(conditions, list) else []:
        if isinstance(condition, dict) and condition.get("condition") == "FilesInserted":
            if condition.get("status") == "Reached":
                return "Inserted"
            if condition.get("status") == "FailedReach":
                return str(condition.get("reason") or "UserUploadErrored")
    raise Refusal(
        "InvalidBody",
        "the body does not say whether the files were sent; try: set the condition FilesInserted "
        "to Reached or FailedReach",
    )


def flatten_dataset_spec(body: Any) -> Any:
    """Return a change of a dataset with the keys of its ``spec`` at the top level."""
    if isinstance(body, dict) and isinstance(body.get("spec"), dict):
        return {key: value for key, value in body.items() if key != "spec"} | body["spec"]
    return body


def parse_query(query: bytes) -> list[tuple[str, str]]:
    """Parse a query, split at ``?`` as well as at ``&``: ``intent=sdkLocalDeploy?s=10&p=...``."""
    return parse_qsl(
        query.decode("latin-1").replace("?", "&"), keep_blank_values=True, errors="replace"
    )


def normalize_spec_keys(body: Any) -> Any:
    """Convert the top-level keys of a body's ``spec`` to camelCase."""
    if not isinstance(body, dict) or not isinstance(body.get("spec"), dict):
        return body
    spec = {SNAKE_KEYS.get(key, key): value for key, value in body["spec"].items()}
    if len(spec) < len(body["spec"]):
        twice = next(
            key
            for key in body["spec"]
            if SNAKE_KEYS.get(key, key) != key and SNAKE_KEYS[key] in body["spec"]
        )
        raise Refusal(
            "InvalidBody",
            f"/spec has {twice!r} and {SNAKE_KEYS[twice]!r}, the same field; try: send it once",
        )
    return body | {"spec": spec}


def encode_flow_with_spec(document: bytes) -> bytes:
    """Encode a flow that can also be decoded as its own spec.

    The copy at the top level holds the flow's id and generation in its settings. The published
    client sends that copy back when it creates a run, so the run records which flow it came from.
    """
    flow = msgspec.json.decode(document, type=Flow)
    spec = msgspec.to_builtins(flow.spec)
    return msgspec.json.encode(msgspec.to_builtins(flow) | add_flow_origin(spec, flow))


def encode_model_as_page(model: Model) -> bytes:
    """Encode a checkpoint that can also be decoded as a page with it."""
    plain = msgspec.to_builtins(model)
    return msgspec.json.encode(plain | {"items": [plain], "nextPage": None, "prevPage": None})
