"""What other clients need, in one place. Nothing outside this module knows that they exist.

The published client ``vi-sdk`` decodes ``GET /flows/{id}`` as a flow when one asks for a flow, and as a flow *spec*
when one creates a run from a flow id; it wants a checkpoint asked for by name inside a list; it puts a second question
mark into some queries; and it sends the keys of ``update`` as its caller wrote them, camelCase or snake_case.

Of datasets: it cannot fetch the second page of some lists; it decodes two formats of exports and says a third policy in
the singular; it sends filters as Python writes dictionaries; and it ends a session of annotations by a condition.
"""

import re
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from runyard import limits
from runyard.server.services.dictionaries import dictionary
from runyard.server.services.errors import Refusal
from runyard.server.services.pages import PageRequest
from runyard.server.services.runs.runs import with_origin
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


# Its user agent names system and release with a slash between them; ours names the system alone.
_PUBLISHED = re.compile(r"vi/\S+ \(Python/[0-9.]+; [^;/)]+/[^)]*\)")


def is_published(user_agent: str) -> bool:
    return _PUBLISHED.fullmatch(user_agent) is not None


def cannot_page(user_agent: str) -> bool:
    """Whether this client fails at the second page of lists of assets and of ingestion sessions."""
    return is_published(user_agent)


def one_page(wanted: PageRequest, *, most: int) -> PageRequest:
    """Return a request for everything at once, within the limit for such lists."""
    return replace(wanted, size=most, token=None, most_bytes=limits.WHOLE_LIST.value)


def export_format(user_agent: str, format: str) -> str:
    """The format of an export as this client can decode it."""
    return "ViJsonl" if is_published(user_agent) and format not in ("ViFull", "ViJsonl") else format


def overwritten_policy(given: str) -> str:
    """What becomes of annotations whose picture is overwritten, as it is answered."""
    return "KeepLinkedResources" if given.startswith("Keep") else "RemoveLinkedResource"


def name_filter(given: str | None) -> list[str]:
    """Texts that file names must have; a filter is a text, or a dictionary as JSON or as Python writes it."""
    if given is None:
        return []
    if not given.lstrip().startswith("{"):
        return [given]
    read = dictionary(given)
    named = read.get("filename") if isinstance(read, dict) else None
    return [named] if isinstance(named, str) and named else []


def session_outcome(body: Any) -> str:
    """What the client says of its session: ``Inserted``, or why it gives up.

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
        "the body says neither that the files are there nor that they will not come; set the condition "
        "FilesInserted to Reached or FailedReach",
    )


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
    spec = {SNAKE_KEYS.get(key, key): value for key, value in body["spec"].items()}
    if len(spec) < len(body["spec"]):
        twice = next(key for key in body["spec"] if SNAKE_KEYS.get(key, key) != key and SNAKE_KEYS[key] in body["spec"])
        raise Refusal("InvalidBody", f"/spec has {twice!r} and {SNAKE_KEYS[twice]!r}, the same field; send it once")
    return body | {"spec": spec}


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
