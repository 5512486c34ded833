"""Training project documents: a project groups flows and runs."""

from typing import Any, Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata


class TrainingProjectSpec(Document):
    """Content of a project.

    ``type`` is ``phrase-grounding``, ``vqa`` or ``freeform``; ``dataset_id`` is the dataset of its
    runs.
    """

    name: str = "Untitled"
    description: str | None = None
    type: str | None = None
    dataset_id: str | None = None


class TrainingProject(Document):
    """Named group of flows and runs over the same data."""

    kind: Literal["TrainingProject"] = "TrainingProject"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    training_project_id: str = ""
    spec: TrainingProjectSpec = msgspec.field(default_factory=TrainingProjectSpec)
    status: dict[str, Any] = {}
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""
