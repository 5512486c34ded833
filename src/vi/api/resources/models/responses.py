"""Model documents: the saved checkpoints of a run (run outputs on the wire)."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata


class DownloadUrl(Document):
    """Signed link that needs no key; valid until ``expires_at``, epoch milliseconds."""

    url: str
    expires_at: int = 0


class ModelContents(Document):
    """Download link of the archive, and its SHA-256 and size."""

    download_url: DownloadUrl
    sha256: str | None = None
    size_bytes: int | None = None


class ModelSpec(Document):
    """Epoch and step of the checkpoint, and its metrics on held-out data."""

    kind: Literal["Checkpoint"] = "Checkpoint"
    epoch: int | None = None
    step: int | None = None
    evaluation_metrics: dict[str, Any] | None = None
    is_best: bool = False


class ModelStatus(Document):
    """Status of a checkpoint; ``contents`` is set only if requested."""

    observed_generation: int = 1
    conditions: list[dict[str, Any]] = []
    storage_object: str = ""
    contents: ModelContents | None = None


class Model(Document):
    """One verified checkpoint of a run."""

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
    """Paths of a downloaded checkpoint; ``model_path`` has weights, processor and configuration."""

    run_id: str
    model_id: str
    model_path: Path
    adapter_path: Path | None
    run_config_path: Path
