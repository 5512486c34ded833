"""Request bodies: strict structs of everything that a caller may set.

An unknown field is refused, since a silently ignored one is a mistake that nobody notices. In a
run's PATCH ``killedAt`` only says that the run shall be killed; the server sets the time.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from runyard import limits
from runyard.datasets.options import BoxForm, BoxUnit, OnBadBox
from runyard.limits import within

Id = Annotated[str, within(limits.ID)]
Name = Annotated[str, within(limits.NAME)]
Text = Annotated[str, within(limits.TEXT)]
Word = Annotated[str, within(limits.WORD)]
RunName = Annotated[str, within(limits.RUN_NAME, at_least=1)]
FilterText = Annotated[str, within(limits.QUERY_TEXT, at_least=1)]
FormatName = Annotated[str, within(limits.WORD, at_least=1)]
FileName = Annotated[str, within(limits.FILE_NAME, at_least=1)]
AttributeKey = Annotated[str, within(limits.ATTRIBUTE_KEY, at_least=1)]
AttributeValue = Annotated[str, within(limits.ATTRIBUTE_VALUE)]
Count = Annotated[int, Meta(ge=0, le=limits.MAX_INTEGER)]
Crc32c = Annotated[
    str, Meta(max_length=8, description="base64 of the four bytes, the most significant first")
]


class RequestBody(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Base of every request body: camelCase, no unknown fields, texts within their byte limits."""

    def __post_init__(self) -> None:
        limits.check_fields(self)


class NewMetadata(RequestBody):
    attributes: Annotated[dict[AttributeKey, AttributeValue], within(limits.ATTRIBUTES)] = {}

    def __post_init__(self) -> None:
        _check_attributes(self.attributes)


class ChangedMetadata(RequestBody):
    """A given attribute replaces the old value, null removes it."""

    attributes: Annotated[dict[AttributeKey, AttributeValue | None], within(limits.ATTRIBUTES)] = {}

    def __post_init__(self) -> None:
        _check_attributes(self.attributes)


def _check_attributes(attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        if problem := limits.ATTRIBUTE_KEY.find_problem(key):
            raise ValueError(f"`attributes` has a key {key[:40]!r} that {problem}")
        if value is not None and (problem := limits.ATTRIBUTE_VALUE.find_problem(value)):
            raise ValueError(f"`attributes` has a value of {key[:40]!r} that {problem}")
    total = sum(
        len(key.encode()) + len((value or "").encode()) for key, value in attributes.items()
    )
    if total > limits.ATTRIBUTES_TOTAL.value:
        allowed = limits.ATTRIBUTES_TOTAL.value
        raise ValueError(
            f"`attributes` has {total:,} bytes in total; at most {allowed:,} are allowed; try: "
            "send less"
        )


class NewResumeFrom(RequestBody):
    """``checkpoint`` is an id, ``latest`` or ``best``."""

    run_id: Id
    checkpoint: Id = "latest"


class NewRunSpec(RequestBody):
    """``flow`` is a whole flow (see the flow schema), ``flowId`` a saved one.

    Without both, the default flow.
    """

    flow: dict[str, Any] | None = None
    flow_id: Id | None = None
    training_project: Id | None = None
    resume_from: NewResumeFrom | None = None


class NewRunMetadata(NewMetadata):
    """Without a ``name`` a run has that of its flow."""

    name: RunName | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check_fields(self)


class NewRun(RequestBody):
    spec: NewRunSpec = msgspec.field(default_factory=NewRunSpec)
    metadata: NewRunMetadata | None = None


class ChangedRunSpec(RequestBody):
    training_project: Id | UnsetType | None = UNSET
    killed_at: int | UnsetType = UNSET
    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | UnsetType | None = UNSET


class ChangedRunMetadata(ChangedMetadata):
    """Null as a ``name`` is that of the flow."""

    name: RunName | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check_fields(self)


class ChangedRun(RequestBody):
    spec: ChangedRunSpec | None = None
    metadata: ChangedRunMetadata | None = None


class RunsFilter(RequestBody):
    """The filters of the list of runs.

    ``all`` means every run, so that an empty filter is never that.
    """

    condition: Word | None = None
    flow: Id | None = None
    training_project: Id | None = None
    attributes: Annotated[dict[AttributeKey, AttributeValue], within(limits.ATTRIBUTE_FILTERS)] = {}
    created_after: Count | None = None
    created_before: Count | None = None
    all: Literal[True] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_attributes(self.attributes)


class DeletedRuns(RequestBody):
    """Either ``ids`` or ``filter``, a text or single filters.

    ``dryRun`` only reports what would be done.
    """

    ids: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=1000)] | None = None
    filter: RunsFilter | FilterText | None = None
    dry_run: bool = False


class KilledRuns(DeletedRuns):
    """``graceSeconds`` is the time that each run has to save and stop."""

    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None


class TaggedRuns(DeletedRuns, kw_only=True):
    """A given attribute replaces the old value, null removes it."""

    set: Annotated[
        dict[AttributeKey, AttributeValue | None],
        msgspec.Meta(min_length=1, max_length=limits.ATTRIBUTES.value),
    ]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_attributes(self.set)


class NewFlow(RequestBody):
    """``spec`` is validated by ``runyard.flows``, which reports every problem in it."""

    spec: dict[str, Any]
    metadata: NewMetadata | None = None


class CheckedFlow(RequestBody):
    """A flow to check; ``trainingProject`` is the one that a run would name outside the flow."""

    spec: dict[str, Any]
    training_project: str | None = None


class ChangedFlow(RequestBody):
    """Given fields of the spec replace those of the flow."""

    spec: dict[str, Any] | None = None
    metadata: ChangedMetadata | None = None


class NewProjectSpec(RequestBody):
    name: Name = "Untitled"
    description: Text | None = None
    type: Word | None = None
    dataset_id: Id | None = None


class NewProject(RequestBody):
    spec: NewProjectSpec = msgspec.field(default_factory=NewProjectSpec)
    metadata: NewMetadata | None = None


class ChangedProjectSpec(RequestBody):
    name: Name | UnsetType = UNSET
    description: Text | UnsetType | None = UNSET
    type: Word | UnsetType | None = UNSET
    dataset_id: Id | UnsetType | None = UNSET


class ChangedProject(RequestBody):
    spec: ChangedProjectSpec | None = None
    metadata: ChangedMetadata | None = None


ColumnName = Annotated[str, within(limits.METRIC_NAME, at_least=1)]


class NewViewSpec(RequestBody):
    """``filter`` and ``orderBy`` are those of the list of runs."""

    name: Annotated[str, within(limits.NAME, at_least=1)] = "Untitled"
    filter: Annotated[str, within(limits.QUERY_TEXT)] = ""
    order_by: Annotated[str, within(limits.METRIC_NAME)] = ""
    columns: Annotated[list[ColumnName], msgspec.Meta(max_length=50)] = []


class NewView(RequestBody):
    spec: NewViewSpec = msgspec.field(default_factory=NewViewSpec)
    metadata: NewMetadata | None = None


class NewDataset(RequestBody):
    """``owner``, ``status``, ``tags`` and others are accepted from other clients and ignored."""

    name: Annotated[str, within(limits.NAME, at_least=1)]
    type: Literal["phrase-grounding", "vqa", "freeform"] = "phrase-grounding"
    content: Literal["Image"] = "Image"
    description: Text | None = None
    owner: Text | None = None
    localization: Text | None = None
    data_localization: Text | None = None
    status: int = 0
    tags: dict[str, Any] | None = None
    metadata: NewMetadata | None = None


class ChangedDataset(RequestBody):
    """``type`` is missing: it cannot change, since the records depend on it."""

    name: Annotated[str, within(limits.NAME, at_least=1)] | UnsetType = UNSET
    description: Text | UnsetType | None = UNSET
    metadata: ChangedMetadata | None = None


class NewImportSpec(RequestBody):
    """``source``, ``files`` and ``sizeBytes`` are only displayed.

    With ``datasetType`` ``auto`` the first import into an empty dataset sets its type.
    """

    format: FormatName = "auto"
    on_error: Literal["Warn", "RejectRow", "RejectFile", "RejectAll"] = "RejectRow"
    box_unit: BoxUnit = "auto"
    box_form: BoxForm = "auto"
    on_bad_box: OnBadBox = "reject"
    split: Literal["keep", "ignore"] = "keep"
    dataset_type: Literal["auto"] | None = None
    source: Text | None = None
    files: Count | None = None
    size_bytes: Count | None = None


class NewImport(RequestBody):
    spec: NewImportSpec = msgspec.field(default_factory=NewImportSpec)
    metadata: NewMetadata | None = None


class FinishedImport(RequestBody):
    """``packs``: hashes of everything that was sent, so that a lost pack is noticed."""

    packs: list[Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]]


class NewName(RequestBody):
    filename: FileName


class NewBulkDeletionSpec(RequestBody):
    """``filter``: a text that file names contain, or a dictionary.

    The other fields are not supported.
    """

    filter: Any = None
    metadata_query: Any = None
    rule_query: Any = None
    strict_query: Any = None


class NewBulkDeletion(RequestBody):
    spec: NewBulkDeletionSpec
    metadata: NewMetadata | None = None


class NewAsset(RequestBody):
    """An announced file. ``crc32c`` is a signed 32-bit integer.

    ``kind`` Video is refused on upload.
    """

    filename: FileName
    size: Annotated[int, msgspec.Meta(ge=0, le=64 << 30)]
    mime: Annotated[str, Meta(max_length=limits.MEDIA_TYPE.value, pattern=r"\A[ -~]*\Z")] = ""
    kind: Word = "Image"
    crc32c: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**32)] | None = None
    custom_metadata: dict[str, bool | int | float | str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            self.custom_metadata
            and len(msgspec.json.encode(self.custom_metadata)) > limits.CUSTOM_METADATA.value
        ):
            raise ValueError(
                f"`customMetadata` has more than {limits.CUSTOM_METADATA.value:,} bytes; try: send "
                "less"
            )


class NewIngestionSpec(RequestBody):
    assets: Annotated[list[NewAsset], Meta(min_length=1, max_length=limits.FILES.value)]
    kind: Word = "Upload"
    failure_mode: Literal["FailAfterOne", "FailAfterAll"] = "FailAfterOne"
    on_asset_overwritten: Literal[
        "RemoveLinkedResource", "KeepLinkedResource", "KeepLinkedResources"
    ] = "RemoveLinkedResource"


class NewIngestion(RequestBody):
    spec: NewIngestionSpec
    metadata: NewMetadata | None = None


class NewMultipartSpec(RequestBody):
    ingestion_id: Id
    filename: FileName
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=64 << 30)]
    content_type: Annotated[str, within(limits.MEDIA_TYPE)] | None = None


class NewMultipart(RequestBody):
    spec: NewMultipartSpec
    metadata: NewMetadata | None = None


Policy = Literal["Warn", "RejectFile", "RejectSession"]


class NewFailurePolicies(RequestBody):
    on_bad_annotation: Policy = "RejectSession"
    on_bad_file: Policy = "RejectSession"
    on_overwritten: Policy = "RejectSession"


class NewAnnotationImportSpec(RequestBody):
    upload_before: Count
    failure_policies: NewFailurePolicies = msgspec.field(default_factory=NewFailurePolicies)
    source: Text | None = None


class NewAnnotationImport(RequestBody):
    spec: NewAnnotationImportSpec
    metadata: NewMetadata | None = None


class NewAnnotationFile(RequestBody):
    """``crc32c`` is base64 of four bytes, the most significant first."""

    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=64 << 30)]
    crc32c: Crc32c | None = None
    kind: Word | None = None


class NewFiles(RequestBody):
    files: Annotated[
        dict[FileName, NewAnnotationFile],
        Meta(min_length=1, max_length=limits.ANNOTATION_FILES.value),
    ]


class NewExportOptions(RequestBody):
    normalized: bool | None = True
    split_ratio: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    pictures: bool | None = None


class NewExportSpec(RequestBody):
    format: FormatName = "ViFull"
    options: NewExportOptions | None = None


class NewExport(RequestBody):
    spec: NewExportSpec = msgspec.field(default_factory=NewExportSpec)
    metadata: NewMetadata | None = None


# Up to the year 9999, the last that most date types hold.
Moment = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]


# A name or a value of a machine's label.
Label = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")]


class NewKeySpec(RequestBody):
    """``expires`` in epoch milliseconds; None means never."""

    name: Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,255}\Z")]
    role: Literal["viewer", "member", "admin"] = "member"
    expires: Moment | None = None


class NewKey(RequestBody):
    spec: NewKeySpec


class NewRotationSpec(RequestBody):
    """``overlapSeconds``: how long the old key stays valid.

    Without ``expires`` the new key expires with it.
    """

    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=30 * 86_400)] = 0
    expires: Moment | None = None


class NewRotation(RequestBody):
    spec: NewRotationSpec = msgspec.field(default_factory=NewRotationSpec)


class NewInvitationSpec(RequestBody):
    """``labels`` of the machines that join, how many may, and for how long."""

    labels: Annotated[dict[Label, list[Label]], msgspec.Meta(max_length=64)] = {}
    uses: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    lifetime_seconds: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400)] = 3600


class NewInvitation(RequestBody):
    spec: NewInvitationSpec = msgspec.field(default_factory=NewInvitationSpec)


class ChangedMachineSpec(RequestBody):
    """``withinSeconds``: when the runs of a draining machine are stopped; null lets them end."""

    state: Literal["joined", "draining", "excluded"]
    within_seconds: Annotated[int, msgspec.Meta(ge=0, le=30 * 86_400)] | None = None
    note: Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]{0,1000}\Z")] = ""


class ChangedMachine(RequestBody):
    spec: ChangedMachineSpec


def get_attributes(metadata: Any) -> dict[str, Any]:
    """Return the attributes of a body, none if it has no metadata."""
    return {} if metadata is None else dict(metadata.attributes)
