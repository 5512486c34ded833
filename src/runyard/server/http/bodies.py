"""Request bodies: strict, since a field that is silently ignored is a mistake nobody notices.

Everything a caller may set stands here; what is absent cannot be set. A run's PATCH takes its training project, its
attributes, and ``killedAt`` as a wish whose time the server stamps itself.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class Body(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Base of every request body: camelCase, nothing unknown."""


class NewMetadata(Body):
    attributes: dict[str, str] = {}


class ChangedMetadata(Body):
    """Given attributes replace, null removes one."""

    attributes: dict[str, str | None] = {}


class NewResumeFrom(Body):
    """``checkpoint`` is an id, ``latest`` or ``best``."""

    run_id: str
    checkpoint: str = "latest"


class NewRunSpec(Body):
    """``flow`` is a recipe (see the flow schema), ``flowId`` a saved one; neither is the default recipe."""

    flow: dict[str, Any] | None = None
    flow_id: str | None = None
    training_project: str | None = None
    resume_from: NewResumeFrom | None = None


class NewRun(Body):
    spec: NewRunSpec = msgspec.field(default_factory=NewRunSpec)
    metadata: NewMetadata | None = None


class ChangedRunSpec(Body):
    training_project: str | UnsetType | None = UNSET
    killed_at: int | UnsetType = UNSET
    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | UnsetType | None = UNSET


class ChangedRun(Body):
    spec: ChangedRunSpec | None = None
    metadata: ChangedMetadata | None = None


class RunsFilter(Body):
    """The filters of the list of runs; ``all`` stands for every run, so that an empty filter means none by mistake."""

    condition: str | None = None
    flow: str | None = None
    training_project: str | None = None
    attributes: dict[str, str] = {}
    created_after: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None
    created_before: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None
    all: Literal[True] | None = None


class DeletedRuns(Body):
    """Either ``ids`` or ``filter``. ``dryRun`` says what would be done, and does nothing."""

    ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=1000)] | None = None
    filter: RunsFilter | None = None
    dry_run: bool = False


class KilledRuns(DeletedRuns):
    """``graceSeconds`` is what each run gets to save and stop."""

    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None


class NewFlow(Body):
    """``spec`` is checked by the recipe language, which names every problem in it."""

    spec: dict[str, Any]
    metadata: NewMetadata | None = None


class ChangedFlow(Body):
    """Given fields of the spec replace those of the flow."""

    spec: dict[str, Any] | None = None
    metadata: ChangedMetadata | None = None


class NewProjectSpec(Body):
    name: str = "Untitled"
    description: str | None = None
    type: str | None = None
    dataset_id: str | None = None


class NewProject(Body):
    spec: NewProjectSpec = msgspec.field(default_factory=NewProjectSpec)
    metadata: NewMetadata | None = None


class ChangedProjectSpec(Body):
    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    type: str | UnsetType | None = UNSET
    dataset_id: str | UnsetType | None = UNSET


class ChangedProject(Body):
    spec: ChangedProjectSpec | None = None
    metadata: ChangedMetadata | None = None


class NewDataset(Body):
    """What other clients send besides (``owner``, ``status``, ``tags`` ...) is taken and means nothing here."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    type: Literal["phrase-grounding", "vqa", "freeform"] = "phrase-grounding"
    content: Literal["Image"] = "Image"
    description: str | None = None
    owner: str | None = None
    localization: str | None = None
    data_localization: str | None = None
    status: int = 0
    tags: dict[str, Any] | None = None
    metadata: NewMetadata | None = None


class ChangedDataset(Body):
    """``type`` cannot change: records are of it."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    metadata: ChangedMetadata | None = None


class NewImportSpec(Body):
    """``source``, ``files`` and ``sizeBytes`` are told to people alone. With ``datasetType`` ``auto`` the first import
    into an empty dataset decides its type."""

    format: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "auto"
    on_error: Literal["Warn", "RejectRow", "RejectFile", "RejectAll"] = "RejectRow"
    dataset_type: Literal["auto"] | None = None
    source: Annotated[str, msgspec.Meta(max_length=1024)] | None = None
    files: Annotated[int, msgspec.Meta(ge=0)] | None = None
    size_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None


class NewImport(Body):
    spec: NewImportSpec = msgspec.field(default_factory=NewImportSpec)
    metadata: NewMetadata | None = None


class FinishedImport(Body):
    """``packs``: hashes of all that was sent, so that nothing that got lost goes unnoticed."""

    packs: list[Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]]


class NewName(Body):
    filename: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class NewBulkDeletionSpec(Body):
    """``filter``: a text that file names contain, or a dictionary; the others are not understood here."""

    filter: Any = None
    metadata_query: Any = None
    rule_query: Any = None
    strict_query: Any = None


class NewBulkDeletion(Body):
    spec: NewBulkDeletionSpec
    metadata: NewMetadata | None = None


class NewAsset(Body):
    """A file that is to come. ``crc32c`` is a signed 32-bit integer; ``kind`` Video is refused when it comes."""

    filename: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    size: Annotated[int, msgspec.Meta(ge=0, le=64 << 30)]
    mime: Annotated[str, msgspec.Meta(max_length=255, pattern=r"\A[ -~]*\Z")] = ""
    kind: str = "Image"
    crc32c: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**32)] | None = None
    custom_metadata: dict[str, bool | int | float | str] | None = None


class NewIngestionSpec(Body):
    assets: list[NewAsset]
    kind: str = "Upload"
    failure_mode: Literal["FailAfterOne", "FailAfterAll"] = "FailAfterOne"
    on_asset_overwritten: Literal["RemoveLinkedResource", "KeepLinkedResource", "KeepLinkedResources"] = (
        "RemoveLinkedResource"
    )


class NewIngestion(Body):
    spec: NewIngestionSpec
    metadata: NewMetadata | None = None


class NewMultipartSpec(Body):
    ingestion_id: str
    filename: str
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=64 << 30)]
    content_type: str | None = None


class NewMultipart(Body):
    spec: NewMultipartSpec
    metadata: NewMetadata | None = None


Policy = Literal["Warn", "RejectFile", "RejectSession"]


class NewFailurePolicies(Body):
    on_bad_annotation: Policy = "RejectSession"
    on_bad_file: Policy = "RejectSession"
    on_overwritten: Policy = "RejectSession"


class NewAnnotationImportSpec(Body):
    upload_before: int
    failure_policies: NewFailurePolicies = msgspec.field(default_factory=NewFailurePolicies)
    source: str | None = None


class NewAnnotationImport(Body):
    spec: NewAnnotationImportSpec
    metadata: NewMetadata | None = None


class NewAnnotationFile(Body):
    """``crc32c`` is base64 of four bytes, the most significant first."""

    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=64 << 30)]
    crc32c: str | None = None
    kind: str | None = None


class NewFiles(Body):
    files: dict[str, NewAnnotationFile]


class NewExportOptions(Body):
    normalized: bool | None = True
    split_ratio: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    pictures: bool | None = None


class NewExportSpec(Body):
    format: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "ViFull"
    options: NewExportOptions | None = None


class NewExport(Body):
    spec: NewExportSpec = msgspec.field(default_factory=NewExportSpec)
    metadata: NewMetadata | None = None


def attributes_of(metadata: Any) -> dict[str, Any]:
    """The attributes in a body, none if it has no metadata."""
    return {} if metadata is None else dict(metadata.attributes)
