"""Annotation documents: the annotations of an image, and the sessions that upload annotation files.

A record of a dataset is represented as one annotation, or as several that share
``spec.aggregation.whole.id``: the caption of a phrase grounding and each of its boxes. Questions
with answers, and free texts, are one caption whose text is JSON.
"""

from typing import Literal

import msgspec

from vi.api.resources.datasets.responses import SessionCondition
from vi.api.responses import Document, ResourceMetadata


class Caption(Document, tag_field="kind", tag="Caption"):
    """Text; JSON if the record is not a caption."""

    contents: str | None = None


class BoundingBox(Document, tag_field="kind", tag="PhraseGroundingBoundingBox"):
    """Box of a phrase of the caption.

    ``bound`` is four corners relative to width and height, clockwise from the top left. ``target``
    is the span of the phrase in the caption, in characters from 0, end exclusive.
    """

    bound: list[tuple[float, float]] = []
    target: tuple[int, int] = (0, 0)


class AnnotationWhole(Document):
    """Record that the annotation belongs to; ``id`` is the id of the record."""

    id: str = ""


class AnnotationPart(Document):
    role: str = "Caption"


class Aggregation(Document):
    whole: AnnotationWhole = msgspec.field(default_factory=AnnotationWhole)
    this_part: AnnotationPart = msgspec.field(default_factory=AnnotationPart)


class AnnotationSpec(Document):
    bound_type: str = "Caption"
    tag: int = 0
    aggregation: Aggregation = msgspec.field(default_factory=Aggregation)
    contents: Caption | BoundingBox = msgspec.field(default_factory=Caption)


class Annotation(Document):
    """One annotation of an image."""

    kind: Literal["Annotation"] = "Annotation"
    annotation_id: str = ""
    asset_id: str = ""
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    spec: AnnotationSpec = msgspec.field(default_factory=AnnotationSpec)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class FailurePolicies(Document):
    """Failure policies: each ``Warn``, ``RejectFile`` or ``RejectSession``."""

    on_bad_annotation: str = "RejectSession"
    on_bad_file: str = "RejectSession"
    on_overwritten: str = "RejectSession"


class AnnotationImportSpec(Document):
    """Settings of a session.

    ``upload_before`` is the deadline for all files, in epoch milliseconds.
    """

    upload_before: int = 0
    failure_policies: FailurePolicies = msgspec.field(default_factory=FailurePolicies)
    source: str | None = None


class AnnotationFiles(Document):
    page_count: int = 0
    total_size_bytes: int = 0
    status_count: dict[str, int] = {}


class AnnotationCounts(Document):
    status_count: dict[str, int] = {}


class AnnotationImportStatus(Document):
    """Status of a session; ``reason`` explains why nothing was accepted."""

    conditions: list[SessionCondition] = []
    files: AnnotationFiles = msgspec.field(default_factory=AnnotationFiles)
    annotations: AnnotationCounts = msgspec.field(default_factory=AnnotationCounts)
    reason: str | None = None


class AnnotationImportSession(Document):
    """Upload of annotation files into a dataset."""

    kind: Literal["AnnotationImportSession"] = "AnnotationImportSession"
    user: str = ""
    organization_id: str = msgspec.field(name="workspaceId", default="")
    dataset_id: str = ""
    session_id: str = msgspec.field(name="annotationImportSessionId", default="")
    spec: AnnotationImportSpec = msgspec.field(default_factory=AnnotationImportSpec)
    status: AnnotationImportStatus = msgspec.field(default_factory=AnnotationImportStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""


class FileUpload(Document):
    """Upload link of one file."""

    url: str
    method: str = "PUT"
    headers: dict[str, str] = {}


class FileUploads(Document):
    """Upload links by announced file name."""

    files: dict[str, FileUpload] = {}
