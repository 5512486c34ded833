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


class FlowRequirements(Document):
    """What a flow asks of an accelerator; ``minimum_single_unit_resources`` has ``memoryGiB`` where that is known."""

    accelerator_labels: dict[str, str] | None = None
    minimum_single_unit_resources: dict[str, float] | None = None
    minimum_total_resources: dict[str, float] | None = None
    equally_unit_shardable_quantities: dict[str, float] | None = None


class TrainingAcceleratorSpec(Document):
    """What a kind of accelerator is. ``resources`` has ``count``, how many all machines have together, and
    ``memoryGiB`` of one, absent where the machine could not find out."""

    enabled: bool = True
    labels: dict[str, str] = {}
    resources: dict[str, float] = {}
    multi_unit_configuration: dict[str, Any] | None = None


class TrainingAccelerator(Document):
    """A kind of accelerator that machines have reported."""

    kind: Literal["TrainingAccelerator"] = "TrainingAccelerator"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    training_accelerator_id: str = ""
    spec: TrainingAcceleratorSpec = msgspec.field(default_factory=TrainingAcceleratorSpec)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class AcceleratorConfiguration(Document):
    """Whether a run of the flow fits on so many accelerators, and why: ``Allow``, ``Warn`` or ``Deny``."""

    count: int = 1
    action: str = "Allow"
    reason: str | None = None


class FlowAccelerator(Document):
    """An accelerator, and the verdict on it."""

    accelerator: TrainingAccelerator = msgspec.field(default_factory=TrainingAccelerator)
    configurations: list[AcceleratorConfiguration] = []


class FlowAcceleratorList(Document):
    """Every accelerator there is now, each with the verdict on whether a run of the flow fits into its memory."""

    kind: Literal["FlowAcceleratorList"] = "FlowAcceleratorList"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    flow_id: str = ""
    flow_requirements: FlowRequirements = msgspec.field(default_factory=FlowRequirements)
    items: list[FlowAccelerator] = []


class Flow(Document):
    """A saved recipe."""

    kind: Literal["Flow"] = "Flow"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    flow_id: str = ""
    spec: FlowSpec = msgspec.field(default_factory=FlowSpec)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""
