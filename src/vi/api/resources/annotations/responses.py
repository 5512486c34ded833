"""Annotations on the wire: what is said of a picture, part by part, and the sessions in which files of them arrive.

A record of a dataset is told as one annotation, or as several that share ``spec.aggregation.whole.id``: the caption of
a phrase grounding and each of its boxes. Questions and answers, and free texts, are one caption whose text is JSON.
"""

from typing import Literal

import msgspec

from vi.api.resources.datasets.responses import SessionCondition
from vi.api.responses import Document, ResourceMetadata


class Caption(Document, tag_field="kind", tag="Caption"):
    """A text; JSON where the record is no caption."""

    contents: str | None = None


class BoundingBox(Document, tag_field="kind", tag="PhraseGroundingBoundingBox"):
    """Where a phrase of the caption is seen: four corners as shares of width and height, clockwise from the top left.

    ``target`` is where the phrase begins and ends in the caption, in characters counted from 0, the end exclusive.
    """

    bound: list[tuple[float, float]] = []
    target: tuple[int, int] = (0, 0)


class AnnotationWhole(Document):
    """What the part belongs to: ``id`` is the record's."""

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
    """One thing that is said of a picture."""

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
    """Each ``Warn``, ``RejectFile`` or ``RejectSession``."""

    on_bad_annotation: str = "RejectSession"
    on_bad_file: str = "RejectSession"
    on_overwritten: str = "RejectSession"


class AnnotationImportSpec(Document):
    """``upload_before``: epoch milliseconds by which all files must have come."""

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
    """``reason`` says in words why nothing was taken."""

    conditions: list[SessionCondition] = []
    files: AnnotationFiles = msgspec.field(default_factory=AnnotationFiles)
    annotations: AnnotationCounts = msgspec.field(default_factory=AnnotationCounts)
    reason: str | None = None


class AnnotationImportSession(Document):
    """Annotation files on their way into a dataset."""

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
    """Where one file goes."""

    url: str
    method: str = "PUT"
    headers: dict[str, str] = {}


class FileUploads(Document):
    """By the name that the file was announced under."""

    files: dict[str, FileUpload] = {}
