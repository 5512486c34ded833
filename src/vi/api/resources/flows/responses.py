"""Flow documents: a flow is a saved training configuration."""

from typing import Any, Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata, RunFinding


class FlowBlock(Document):
    """One typed element of a flow: its type, its settings, and its style in an editor."""

    block: str
    settings: dict[str, Any] = {}
    style: dict[str, Any] = {}


class FlowSpec(Document):
    """Content of a flow: an ordered list of blocks, and settings. Every field has a default."""

    name: str = "Untitled"
    schema: str = "v1"
    blocks: list[FlowBlock] = []
    settings: dict[str, Any] = {}
    tolerations: dict[str, list[str]] = {}
    training_project: str | None = None


class FlowRequirements(Document):
    """Requirements of a flow.

    ``minimum_single_unit_resources`` has ``memoryGiB`` if it is known.
    """

    accelerator_labels: dict[str, str] | None = None
    minimum_single_unit_resources: dict[str, float] | None = None
    minimum_total_resources: dict[str, float] | None = None
    equally_unit_shardable_quantities: dict[str, float] | None = None


class TrainingAcceleratorSpec(Document):
    """Properties of a kind of accelerator.

    ``resources`` has ``count``, the total over all machines, and ``memoryGiB`` of one accelerator,
    which is absent if the machine could not determine it.
    """

    enabled: bool = True
    labels: dict[str, str] = {}
    resources: dict[str, float] = {}
    multi_unit_configuration: dict[str, Any] | None = None


class TrainingAccelerator(Document):
    """Kind of accelerator that machines have reported."""

    kind: Literal["TrainingAccelerator"] = "TrainingAccelerator"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    training_accelerator_id: str = ""
    spec: TrainingAcceleratorSpec = msgspec.field(default_factory=TrainingAcceleratorSpec)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class AcceleratorConfiguration(Document):
    """Verdict (``Allow``, ``Warn`` or ``Deny``) on a run with ``count`` accelerators."""

    count: int = 1
    action: str = "Allow"
    reason: str | None = None


class FlowAccelerator(Document):
    """Accelerator with the verdict for each count."""

    accelerator: TrainingAccelerator = msgspec.field(default_factory=TrainingAccelerator)
    configurations: list[AcceleratorConfiguration] = []


class FlowAcceleratorList(Document):
    """Available accelerators, each with the verdict on whether a run of the flow fits."""

    kind: Literal["FlowAcceleratorList"] = "FlowAcceleratorList"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    flow_id: str = ""
    flow_requirements: FlowRequirements = msgspec.field(default_factory=FlowRequirements)
    items: list[FlowAccelerator] = []


class FlowProblem(Document):
    """Problem of a flow: where it is (a JSON pointer), what was given, and what is allowed."""

    path: str = ""
    given: Any = None
    allowed: str = ""
    message: str = ""


class FlowCheck(Document):
    """What a run of a flow would do, or what is wrong with it.

    ``plan`` maps names such as ``totalSteps`` to ``value`` and ``reason``, as far as the server
    knows them before a machine has opened data and model. ``memory`` has the verdict for each
    accelerator that is connected now. Both are None if there are ``problems``. ``findings`` are
    those that a run has from its creation on.
    """

    kind: Literal["FlowCheck"] = "FlowCheck"
    problems: list[FlowProblem] = []
    plan: dict[str, Any] | None = None
    memory: FlowAcceleratorList | None = None
    findings: list[RunFinding] = []


class Flow(Document):
    """Saved training configuration."""

    kind: Literal["Flow"] = "Flow"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    flow_id: str = ""
    spec: FlowSpec = msgspec.field(default_factory=FlowSpec)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""
