"""Training projects on the wire: what belongs together over many runs."""

from typing import Any, Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata


class TrainingProjectSpec(Document):
    """``type`` is the task: ``phrase-grounding``, ``vqa`` or ``freeform``; ``dataset_id`` names its runs' data."""

    name: str = "Untitled"
    description: str | None = None
    type: str | None = None
    dataset_id: str | None = None


class TrainingProject(Document):
    """A named place for flows and runs over the same data."""

    kind: Literal["TrainingProject"] = "TrainingProject"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    training_project_id: str = ""
    spec: TrainingProjectSpec = msgspec.field(default_factory=TrainingProjectSpec)
    status: dict[str, Any] = {}
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""
