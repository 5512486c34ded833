"""Assets on the wire: the pictures of a dataset, and the sessions in which single files of them arrive."""

from typing import Any, Literal

import msgspec

from vi.api.resources.datasets.responses import SessionCondition, SessionStatus
from vi.api.responses import Document, ResourceMetadata

Scalar = bool | int | float | str


class AssetLink(Document):
    """A signed link that needs no key until ``expiry``, epoch milliseconds."""

    url: str
    expiry: int = 0
    headers: dict[str, str] = {}
    method: str = "GET"


class AssetContents(Document):
    """Where the bytes are to be had; filled in only when asked for."""

    asset: AssetLink | None = None
    thumbnail: AssetLink | None = None


class AssetGenerations(Document):
    asset: str = "1"
    thumbnail: str = "1"


class AssetAnnotations(Document):
    """How many records a picture has."""

    with_tag: dict[str, int] = {}
    total: int = 0


class AssetDimensions(Document):
    """In pixels, as the picture is shown."""

    height: int = 0
    width: int = 0


class AssetHash(Document):
    """``contents`` is base64 of four bytes, the most significant first."""

    algorithm: str = "crc32c"
    contents: str = ""


class AssetMetadata(Document):
    """What is known of a picture. Width and height are as shown, in pixels; times are epoch milliseconds."""

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
    pixel_ratio: AssetDimensions = msgspec.field(default_factory=lambda: AssetDimensions(height=1, width=1))
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
    """One picture. ``filename`` is its relative path, unique within the dataset."""

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
    """A file that is to come. ``crc32c`` is a signed 32-bit integer, None where the sender has not computed it."""

    filename: str
    kind: str = "Image"
    mime: str = ""
    size: int = 0
    crc32c: int | None = None
    custom_metadata: dict[str, Scalar] | None = None


class AssetUpload(Document):
    """A file that is to come, and where to put it."""

    metadata: AnnouncedAsset
    upload: AssetLink


class IngestionProgress(Document):
    total: int = 0
    succeeded: int = 0
    errored: int = 0


class IngestionError(Document, tag_field="kind", tag="Error"):
    """Files that were not taken, by name, with the code of what is wrong."""

    files: dict[str, str] = {}
    corrections: dict[str, Any] = {}
    time: int = 0


class IngestionTasks(Document, tag_field="kind", tag="Progress"):
    """How far files have got, by task."""

    tasks: dict[str, dict[str, int]] = {}


class IngestionSpec(Document):
    kind: str = "Upload"
    failure_mode: Literal["FailAfterOne", "FailAfterAll"] = "FailAfterOne"
    on_asset_overwritten: str = "RemoveLinkedResource"


class IngestionStatus(Document):
    """``assets`` names an upload for each announced file, in the answer to the creation alone."""

    conditions: list[SessionCondition] = []
    events: list[IngestionError | IngestionTasks] = []
    progress_count: IngestionProgress = msgspec.field(default_factory=IngestionProgress)
    assets: list[AssetUpload] | None = None


class AssetIngestionSession(Document):
    """Single files on their way into a dataset."""

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
    """The file is sent in ``part_count`` parts of equal length; the last one takes what is left over."""

    part_count: int = 1


class MultipartUpload(Document):
    """One large file that arrives in parts."""

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
    """Where one part goes, and which headers of the answer come with its completion."""

    url: str
    method: str = "PUT"
    expiry: int = 0
    response_headers: list[str] = []
    response_body: bool = False
