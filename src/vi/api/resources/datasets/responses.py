"""Datasets on the wire: what is in one, how files come in and go out, and the versions that runs are pinned to.

An import is a session: its conditions are known from the start, ``Waiting`` at first, and the newest stands *first*
(those of a run stand last). It is over when none of them waits any more.
"""

from typing import Any, Literal

import msgspec

from vi.api.resources.models.responses import DownloadUrl
from vi.api.responses import ConditionStatus, Document, ResourceMetadata

DatasetType = Literal["phrase-grounding", "vqa", "freeform"]


class SessionCondition(Document):
    """One thing that a session waits for; lists of them have the newest first."""

    condition: str
    status: ConditionStatus = ConditionStatus.WAITING
    last_transition_time: int = 0
    reason: str | None = None
    message: str | None = None


class SessionStatus(Document):
    """What has become of a session that has nothing more to tell."""

    conditions: list[SessionCondition] = []


class DatasetStatistic(Document):
    """``asset_total`` pictures, ``annotation_total`` records, ``asset_annotated`` pictures with at least one record."""

    asset_total: int = 0
    annotation_total: int = 0
    tags_count: dict[str, int] = {}
    asset_annotated: int = 0


class DatasetAccess(Document):
    """Who else may look at it; nobody but its organisation may."""

    is_public: bool | None = None
    is_read_only: bool | None = None
    is_hidden: bool | None = None


class DatasetVersion(Document):
    """What a dataset held at one moment, and always will: same content, same id. Runs are pinned to versions.

    ``assets`` counts pictures with at least one record, ``size_bytes`` is theirs.
    """

    kind: Literal["DatasetVersion"] = "DatasetVersion"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    version_id: str = msgspec.field(name="datasetVersionId", default="")
    number: int = 0
    type: str = ""
    assets: int = 0
    records: int = 0
    size_bytes: int = 0
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class Dataset(Document):
    """Pictures with records of one type. Times are epoch milliseconds.

    ``version`` is the id of the newest version, None before the first import has ended.
    """

    kind: Literal["Dataset"] = "Dataset"
    dataset_id: str = ""
    name: str = ""
    owner: str = ""
    organization_id: str = msgspec.field(name="workspaceId", default="")
    type: DatasetType = "phrase-grounding"
    content: Literal["Image"] = "Image"
    description: str = ""
    create_date: int = 0
    last_accessed: int = 0
    statistic: DatasetStatistic = msgspec.field(default_factory=DatasetStatistic)
    size_bytes: int = 0
    version: str | None = None
    users: dict[str, str] = {}
    tags: dict[str, int] = {}
    cohorts: list[str] = []
    status: int = 0
    is_locked: bool = False
    access: DatasetAccess = msgspec.field(default_factory=DatasetAccess)
    preference: dict[str, bool | str] = {}
    asset_statuses: dict[str, Any] = {}
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class DeletedDataset(Document):
    """The deletion of a dataset: gone at once, its bytes when the condition ``Finished`` is reached."""

    kind: str = "DeletedDataset"
    user: str = ""
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    status: SessionStatus = msgspec.field(default_factory=SessionStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class ImportSpec(Document):
    """What was asked for. ``source``, ``files`` and ``size_bytes`` are what the sender says of itself, for people.

    ``on_error``: ``Warn`` takes what can be mended, ``RejectRow`` leaves bad rows out, ``RejectFile`` the files that
    hold them, ``RejectAll`` takes nothing if anything is bad. ``dataset_type`` is ``auto`` where the files of the first
    import into an empty dataset decide its type.
    """

    format: str = "auto"
    on_error: Literal["Warn", "RejectRow", "RejectFile", "RejectAll"] = "RejectRow"
    dataset_type: str | None = None
    source: str | None = None
    files: int | None = None
    size_bytes: int | None = None


class ImportProgress(Document):
    """Where an import stands. ``bytes_done`` counts what has been looked at, ``rows_kept`` what passed the checks."""

    phase: str = "Receiving"
    files: int = 0
    files_done: int = 0
    bytes_done: int = 0
    images: int = 0
    rows: int = 0
    rows_kept: int = 0
    per_second: float = 0.0
    seconds_left: float | None = None


class ImportFindings(Document):
    """How much was found, by code; the findings themselves come in pages of their own."""

    errors: int = 0
    warnings: int = 0
    by_code: dict[str, int] = {}


class ImportUpload(Document):
    """Where packs go: ``PUT {url}/{sha256}``, without a key, until ``expiry``."""

    url: str
    expiry: int = 0
    max_size_bytes: int = 0


class ImportStatus(Document):
    """What has been seen. ``format`` and ``version`` are there once they are known; ``why`` says why it was refused."""

    conditions: list[SessionCondition] = []
    progress: ImportProgress = msgspec.field(default_factory=ImportProgress)
    findings: ImportFindings = msgspec.field(default_factory=ImportFindings)
    format: str | None = None
    version: str | None = None
    why: str | None = None
    upload: ImportUpload | None = None


class DatasetImport(Document):
    """Files on their way into a dataset."""

    kind: Literal["DatasetImport"] = "DatasetImport"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    import_id: str = msgspec.field(name="datasetImportId", default="")
    spec: ImportSpec = msgspec.field(default_factory=ImportSpec)
    status: ImportStatus = msgspec.field(default_factory=ImportStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing of it waits any more."""
        statuses = [condition.status for condition in self.status.conditions]
        return ConditionStatus.FAILED_REACH in statuses or ConditionStatus.WAITING not in statuses

    @property
    def has_failed(self) -> bool:
        """Whether it ended without taking anything over; ``status.why`` says why."""
        return any(condition.status is ConditionStatus.FAILED_REACH for condition in self.status.conditions)


class Finding(Document):
    """One defect, or one oddity, with place, cause and cure. ``line`` counts from 1."""

    file: str
    code: str
    severity: str = "error"
    action: str = ""
    cause: str = ""
    cure: str = ""
    line: int | None = None
    field: str | None = None
    value: str | None = None


class FindingGroup(Document):
    """All findings of one code: how many, and the first of them."""

    code: str
    severity: str = "error"
    count: int = 0
    cure: str = ""
    first: list[Finding] = []


class ImportReport(Document):
    """What an import found, the most frequent code first."""

    import_id: str = msgspec.field(name="datasetImportId", default="")
    dataset_id: str = ""
    format: str | None = None
    why: str | None = None
    version: str | None = None
    images: int = 0
    rows: int = 0
    rows_kept: int = 0
    errors: int = 0
    warnings: int = 0
    groups: list[FindingGroup] = []


class ExportOptions(Document):
    """``split_ratio`` is the share of pictures that go into ``training/``; None writes one folder, ``dump/``.

    ``normalized`` writes the boxes of the CSV formats as shares of the picture, not in pixels. ``pictures`` says
    whether the pictures come along; None leaves it to the format: with ViFull and Parquet they do.
    """

    normalized: bool = True
    split_ratio: float | None = None
    pictures: bool | None = None


class ExportSpec(Document):
    """``format`` is as it was asked for; other clients may be told a narrower one."""

    format: str = "ViFull"
    options: ExportOptions = msgspec.field(default_factory=ExportOptions)


class ExportStatus(Document):
    """``download_url`` is there when the file is: a zip, fetched with or without ranges."""

    conditions: list[SessionCondition] = []
    download_url: DownloadUrl | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    version: str | None = None


class DatasetExport(Document):
    """A dataset on its way out, as one zip."""

    kind: Literal["DatasetExport"] = "DatasetExport"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    export_id: str = msgspec.field(name="datasetExportId", default="")
    spec: ExportSpec = msgspec.field(default_factory=ExportSpec)
    status: ExportStatus = msgspec.field(default_factory=ExportStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class BulkDeletionSpec(Document):
    """Which pictures to delete: those whose file name has ``filter`` in it, or the names and ids it lists."""

    filter: Any = None
    metadata_query: Any = None
    rule_query: Any = None
    strict_query: Any = None


class BulkDeletion(Document):
    """Many pictures on their way out of a dataset."""

    kind: str = "BulkAssetDeletionSession"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    session_id: str = msgspec.field(name="deleteManyAssetsSessionId", default="")
    spec: BulkDeletionSpec = msgspec.field(default_factory=BulkDeletionSpec)
    status: SessionStatus = msgspec.field(default_factory=SessionStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""
