"""Models on the wire: the checkpoints a run has handed over (the wire calls them run outputs)."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata


class DownloadUrl(Document):
    """A signed link that needs no key until ``expires_at``."""

    url: str
    expires_at: int = 0


class ModelContents(Document):
    """How to fetch the archive. ``sha256`` and ``size_bytes`` are of the whole archive."""

    download_url: DownloadUrl
    sha256: str | None = None
    size_bytes: int | None = None


class ModelSpec(Document):
    """Where in training the checkpoint was taken, and how it scored on held-out data."""

    kind: Literal["Checkpoint"] = "Checkpoint"
    epoch: int | None = None
    step: int | None = None
    evaluation_metrics: dict[str, Any] | None = None
    is_best: bool = False


class ModelStatus(Document):
    """``contents`` is filled in only when asked for."""

    observed_generation: int = 1
    conditions: list[dict[str, Any]] = []
    storage_object: str = ""
    contents: ModelContents | None = None


class Model(Document):
    """One proven checkpoint of a run."""

    kind: str = "RunOutput"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    run_id: str = ""
    model_id: str = msgspec.field(name="runOutputId", default="")
    spec: ModelSpec = msgspec.field(default_factory=ModelSpec)
    status: ModelStatus = msgspec.field(default_factory=ModelStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class DownloadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """Where a downloaded checkpoint lies: ``model_path`` holds weights, processor and configuration."""

    run_id: str
    model_id: str
    model_path: Path
    adapter_path: Path | None
    run_config_path: Path
