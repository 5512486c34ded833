"""Dataset documents: datasets with their imports, exports and versions.

An import is a session. It has all its conditions from the start, as ``Waiting``, with the newest
*first* (a run has the newest last). It has ended when none of them is waiting any more.
"""

from typing import Any, Literal

import msgspec

from vi.api.resources.models.responses import DownloadUrl
from vi.api.responses import ConditionStatus, Document, ResourceMetadata

DatasetType = Literal["phrase-grounding", "vqa", "freeform"]


class SessionCondition(Document):
    """One stage of a session; lists have the newest first."""

    condition: str
    status: ConditionStatus = ConditionStatus.WAITING
    last_transition_time: int = 0
    reason: str | None = None
    message: str | None = None


class SessionStatus(Document):
    """Status of a session that has only conditions."""

    conditions: list[SessionCondition] = []


class DatasetStatistic(Document):
    """Counts of a dataset: ``asset_annotated`` are the images with at least one record."""

    asset_total: int = 0
    annotation_total: int = 0
    tags_count: dict[str, int] = {}
    asset_annotated: int = 0


class DatasetAccess(Document):
    """Access of other organizations; always none."""

    is_public: bool | None = None
    is_read_only: bool | None = None
    is_hidden: bool | None = None


class DatasetVersion(Document):
    """Immutable content of a dataset; equal content has the same id. Runs are pinned to versions.

    ``assets`` counts the images with at least one record; ``size_bytes`` is their size.
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
    """Images with records of one type. Times are epoch milliseconds.

    ``version`` is the id of the newest version, or None before the first import has ended.
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
    """Deletion of a dataset: effective at once.

    Its bytes are freed when ``Finished`` is reached.
    """

    kind: str = "DeletedDataset"
    user: str = ""
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    status: SessionStatus = msgspec.field(default_factory=SessionStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class ImportSpec(Document):
    """Settings of an import. ``source``, ``files`` and ``size_bytes`` are informative, from the
    sender.

    ``on_error``: ``Warn`` repairs rows if possible, ``RejectRow`` skips invalid rows,
    ``RejectFile`` skips their files, ``RejectAll`` accepts nothing if any row is invalid.
    ``box_unit`` and ``box_form`` are the meaning of the numbers of a box, ``auto`` that of the
    format. ``on_bad_box``: ``reject`` skips the row of an invalid box, ``drop`` only the box.
    ``split``: ``keep`` records the data's own split into train, validation and test, ``ignore``
    merges its parts.
    ``dataset_type`` is ``auto`` if the files of the first import into an empty dataset determine
    its type.
    """

    format: str = "auto"
    on_error: Literal["Warn", "RejectRow", "RejectFile", "RejectAll"] = "RejectRow"
    box_unit: Literal["auto", "pixel", "fraction", "percent", "thousandth"] = "auto"
    box_form: Literal["auto", "corners", "size"] = "auto"
    on_bad_box: Literal["reject", "drop"] = "reject"
    split: Literal["keep", "ignore"] = "keep"
    dataset_type: str | None = None
    source: str | None = None
    files: int | None = None
    size_bytes: int | None = None


class ImportProgress(Document):
    """Progress of an import: ``bytes_done`` are processed bytes, ``rows_kept`` are valid rows."""

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
    """Number of findings, in total and by code."""

    errors: int = 0
    warnings: int = 0
    by_code: dict[str, int] = {}


class ImportUpload(Document):
    """Upload link of packs: ``PUT {url}/{sha256}`` until ``expiry``, epoch milliseconds."""

    url: str
    expiry: int = 0
    max_size_bytes: int = 0


class ImportStatus(Document):
    """Status of an import.

    ``format`` and ``version`` are set once known; ``why`` explains a rejection. ``splits`` are the
    images of each recorded split: ``train``, ``validation``, ``test``, and ``unsplit`` for the
    rest; empty without a split.
    """

    conditions: list[SessionCondition] = []
    progress: ImportProgress = msgspec.field(default_factory=ImportProgress)
    findings: ImportFindings = msgspec.field(default_factory=ImportFindings)
    format: str | None = None
    version: str | None = None
    why: str | None = None
    splits: dict[str, int] = {}
    upload: ImportUpload | None = None


class DatasetImport(Document):
    """Import of files into a dataset."""

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
        """True if the import has ended."""
        statuses = [condition.status for condition in self.status.conditions]
        return ConditionStatus.FAILED_REACH in statuses or ConditionStatus.WAITING not in statuses

    @property
    def has_failed(self) -> bool:
        """True if the import ended without accepting anything; ``status.why`` has the reason."""
        return any(
            condition.status is ConditionStatus.FAILED_REACH for condition in self.status.conditions
        )


class Finding(Document):
    """One defect in the data: code, location, cause, and the fix in ``cure``.

    ``line`` starts at 1. ``rows`` is the number of rows that a finding about several rows leaves
    out.
    """

    file: str
    code: str
    severity: str = "error"
    action: str = ""
    cause: str = ""
    cure: str = ""
    line: int | None = None
    field: str | None = None
    value: str | None = None
    rows: int | None = None


class FindingGroup(Document):
    """Findings of one code: their number, the fix in ``cure``, and the first of them."""

    code: str
    severity: str = "error"
    count: int = 0
    cure: str = ""
    first: list[Finding] = []


class ImportReport(Document):
    """Report on the findings of an import, most frequent code first.

    ``splits`` is as in the import's status.
    """

    import_id: str = msgspec.field(name="datasetImportId", default="")
    dataset_id: str = ""
    format: str | None = None
    why: str | None = None
    version: str | None = None
    images: int = 0
    rows: int = 0
    rows_kept: int = 0
    splits: dict[str, int] = {}
    errors: int = 0
    warnings: int = 0
    groups: list[FindingGroup] = []


class ExportOptions(Document):
    """Options of an export.

    ``split_ratio`` is the share of images in ``training/``; None writes one folder, ``dump/``.
    ``normalized`` writes boxes of the CSV formats relative to the image size instead of in pixels.
    ``pictures`` includes the images; None means yes for ViFull and Parquet, else no.
    """

    normalized: bool = True
    split_ratio: float | None = None
    pictures: bool | None = None


class ExportSpec(Document):
    """Settings of an export; ``format`` is as requested."""

    format: str = "ViFull"
    options: ExportOptions = msgspec.field(default_factory=ExportOptions)


class ExportStatus(Document):
    """Status of an export; ``download_url`` is set once the zip is ready and supports ranges."""

    conditions: list[SessionCondition] = []
    download_url: DownloadUrl | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    version: str | None = None


class DatasetExport(Document):
    """Export of a dataset as one zip."""

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
    """Images to delete: file names that contain ``filter``, or the names and ids it lists."""

    filter: Any = None
    metadata_query: Any = None
    rule_query: Any = None
    strict_query: Any = None


class BulkDeletion(Document):
    """Deletion of many images of a dataset."""

    kind: str = "BulkAssetDeletionSession"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    session_id: str = msgspec.field(name="deleteManyAssetsSessionId", default="")
    spec: BulkDeletionSpec = msgspec.field(default_factory=BulkDeletionSpec)
    status: SessionStatus = msgspec.field(default_factory=SessionStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""
