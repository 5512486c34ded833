"""Asset documents: the images of a dataset, and the sessions that upload single image files."""

from typing import Any, Literal

import msgspec

from vi.api.resources.datasets.responses import SessionCondition, SessionStatus
from vi.api.responses import Document, ResourceMetadata

Scalar = bool | int | float | str


class AssetLink(Document):
    """Signed link that needs no key; valid until ``expiry``, epoch milliseconds."""

    url: str
    expiry: int = 0
    headers: dict[str, str] = {}
    method: str = "GET"


class AssetContents(Document):
    """Links to the bytes of an image; set only if requested."""

    asset: AssetLink | None = None
    thumbnail: AssetLink | None = None


class AssetGenerations(Document):
    asset: str = "1"
    thumbnail: str = "1"


class AssetAnnotations(Document):
    """Number of records of an image."""

    with_tag: dict[str, int] = {}
    total: int = 0


class AssetDimensions(Document):
    """Size in pixels, after applying the image's orientation."""

    height: int = 0
    width: int = 0


class AssetHash(Document):
    """Checksum; ``contents`` is base64 of four bytes, most significant first."""

    algorithm: str = "crc32c"
    contents: str = ""


class AssetMetadata(Document):
    """Metadata of an image.

    Width and height are in pixels as displayed; times are epoch milliseconds.
    """

    generations: AssetGenerations = msgspec.field(default_factory=AssetGenerations)
    inserted_by: str = ""
    annotations: AssetAnnotations = msgspec.field(default_factory=AssetAnnotations)
    frames: int = 1
    cohorts: list[str] = []
    file_size: int = 0
    height: int = 0
    width: int = 0
    mime_type: str = ""
    source: str = "managed"
    status: str = "None"
    upload_status: str = "Uploaded"
    visibility: str = "Visible"
    user_defined: dict[str, Any] = {}
    custom_metadata: dict[str, Scalar] = {}
    dimensions: AssetDimensions = msgspec.field(default_factory=AssetDimensions)
    pixel_ratio: AssetDimensions = msgspec.field(
        default_factory=lambda: AssetDimensions(height=1, width=1)
    )
    comments: int = 0
    custom_metadata_count: int = 0
    hash: AssetHash = msgspec.field(default_factory=AssetHash)
    sha256: str = ""
    contents_from: str = "upload"
    frames_change: dict[str, int] = {}
    time_created: int = 0
    last_updated: int = 0
    contents_last_updated: int = 0


class Asset(Document):
    """One image. ``filename`` is its relative path, unique within the dataset."""

    kind: str = "Image"
    asset_id: str = ""
    dataset_id: str = ""
    organization_id: str = msgspec.field(name="workspaceId", default="")
    filename: str = ""
    owner: str = ""
    metadata: AssetMetadata = msgspec.field(default_factory=AssetMetadata)
    contents: AssetContents | None = None
    self_link: str = ""
    etag: str = ""


class AssetCount(Document):
    count: int = 0


class AnnouncedAsset(Document):
    """File to be uploaded.

    ``crc32c`` is a signed 32-bit integer, or None if it was not computed.
    """

    filename: str
    kind: str = "Image"
    mime: str = ""
    size: int = 0
    crc32c: int | None = None
    custom_metadata: dict[str, Scalar] | None = None


class AssetUpload(Document):
    """File to be uploaded, with its upload link."""

    metadata: AnnouncedAsset
    upload: AssetLink


class IngestionProgress(Document):
    total: int = 0
    succeeded: int = 0
    errored: int = 0


class IngestionError(Document, tag_field="kind", tag="Error"):
    """Rejected files by name, each with an error code."""

    files: dict[str, str] = {}
    corrections: dict[str, Any] = {}
    time: int = 0


class IngestionTasks(Document, tag_field="kind", tag="Progress"):
    """Progress of the files, by task."""

    tasks: dict[str, dict[str, int]] = {}


class IngestionSpec(Document):
    kind: str = "Upload"
    failure_mode: Literal["FailAfterOne", "FailAfterAll"] = "FailAfterOne"
    on_asset_overwritten: str = "RemoveLinkedResource"


class IngestionStatus(Document):
    """Status of a session.

    ``assets`` has the upload links, only in the response to the creation.
    """

    conditions: list[SessionCondition] = []
    events: list[IngestionError | IngestionTasks] = []
    progress_count: IngestionProgress = msgspec.field(default_factory=IngestionProgress)
    assets: list[AssetUpload] | None = None


class AssetIngestionSession(Document):
    """Upload of single files into a dataset."""

    kind: Literal["AssetIngestionSession"] = "AssetIngestionSession"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    asset_source_class: str = "managed"
    asset_source_provider: str = "datature"
    asset_source_id: str = "default"
    session_id: str = msgspec.field(name="assetIngestionSessionId", default="")
    ingestion_id: str = ""
    spec: IngestionSpec = msgspec.field(default_factory=IngestionSpec)
    status: IngestionStatus = msgspec.field(default_factory=IngestionStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class MultipartSpec(Document):
    ingestion_id: str = ""
    filename: str = ""
    content_type: str = ""
    size_bytes: int = 0


class MultipartStatus(SessionStatus):
    """Status of a multipart upload in ``part_count`` equal parts; the last may be shorter."""

    part_count: int = 1


class MultipartUpload(Document):
    """Upload of one large file in parts."""

    kind: Literal["MultipartUpload"] = "MultipartUpload"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    asset_source_class: str = "managed"
    asset_source_provider: str = "datature"
    asset_source_id: str = "default"
    multipart_upload_id: str = ""
    spec: MultipartSpec = msgspec.field(default_factory=MultipartSpec)
    status: MultipartStatus = msgspec.field(default_factory=MultipartStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class PartUpload(Document):
    """Upload link of one part, and the response headers that its completion must contain."""

    url: str
    method: str = "PUT"
    expiry: int = 0
    response_headers: list[str] = []
    response_body: bool = False
