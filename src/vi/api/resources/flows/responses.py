"""Flows on the wire: saved training recipes."""

from typing import Any, Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata


class FlowBlock(Document):
    """One typed element of a flow: which block, its settings, and how an editor draws it."""

    block: str
    settings: dict[str, Any] = {}
    style: dict[str, Any] = {}


class FlowSpec(Document):
    """A recipe: an ordered list of blocks and settings. Every field has a default; no blocks is a good recipe."""

    name: str = "Untitled"
    schema: str = "v1"
    blocks: list[FlowBlock] = []
    settings: dict[str, Any] = {}
    tolerations: dict[str, list[str]] = {}
    training_project: str | None = None


class Flow(Document):
    """A saved recipe."""

    kind: Literal["Flow"] = "Flow"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    flow_id: str = ""
    spec: FlowSpec = msgspec.field(default_factory=FlowSpec)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""
