"""Flows: saved training configurations. A stored flow has been validated, references included."""

from typing import Any

import msgspec

from runyard.server.services import documents
from runyard.server.services.context import Actor, Services
from runyard.server.services.documents import DocumentKind
from runyard.server.services.runs.references import check_flow
from runyard.server.services.validation import check_id
from runyard.store.tables import flows
from vi.api.resources.flows.responses import Flow

FLOW = DocumentKind(
    "flow",
    "flow",
    "flows",
    flows,
    Flow,
    lambda org, id: Flow(
        organization_id=org, flow_id=id, self_link=f"/workspaces/{org}/flows/{id}"
    ),
)


def get(services: Services, *, org: str, flow_id: str) -> tuple[bytes, str]:
    """Return the stored JSON and its etag.

    Raises:
        Refusal: NotFound.
    """
    return documents.get(services, FLOW, org=org, id=flow_id)


async def put(
    services: Services,
    actor: Actor,
    flow_id: str,
    *,
    body: bytes,
    spec: object,
    attributes: dict[str, str],
    if_match: str | None,
) -> tuple[bytes, str, bool]:
    """Save a flow.

    Raises:
        Refusal: InvalidId; InvalidFlow with all problems; IdDeleted; EtagMismatch.
    """
    check_id(FLOW.name, flow_id)
    checked = check_flow(services, actor.org, spec)
    return await documents.put(
        services,
        FLOW,
        actor,
        flow_id,
        body=body,
        spec=checked,
        attributes=attributes,
        if_match=if_match,
    )


async def patch(
    services: Services,
    actor: Actor,
    flow_id: str,
    *,
    changes: dict[str, Any],
    attributes: dict[str, str | None],
    if_match: str | None,
) -> tuple[bytes, str]:
    """Replace the given fields of a flow's spec; the result is validated as a whole."""

    def new_spec(old: Any) -> Any:
        return (
            check_flow(services, actor.org, msgspec.to_builtins(old) | changes) if changes else old
        )

    return await documents.patch(
        services, FLOW, actor, flow_id, new_spec=new_spec, attributes=attributes, if_match=if_match
    )
