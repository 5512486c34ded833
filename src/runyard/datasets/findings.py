"""Findings: what can be wrong with data, each with a code, a location, a cause and a fix.

Nothing is dropped silently: an import reports whatever it changes, leaves out, rejects, or accepts
with a doubt. ``KINDS`` lists every code.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Severity = Literal["error", "warning"]
# Accepted unchanged; accepted after the change that the cause names; the row left out; the file
# left out.
Action = Literal["Kept", "Mended", "RowRejected", "FileRejected"]
MAX_VALUE_CHARACTERS = 80


class Finding(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True, frozen=True):
    """One error or warning about the data, and where it is.

    ``line`` counts from 1. It is None in files without lines: an image, a binary file, or one JSON
    document, where ``field`` locates the finding, such as ``annotations[3].bbox``. ``rows`` is the
    number of rows that a finding about several rows leaves out.
    """

    file: str
    code: str
    severity: Severity
    action: Action
    cause: str
    fix: str = msgspec.field(name="cure")  # the name on the wire
    line: int | None = None
    field: str | None = None
    value: str | None = None
    rows: int | None = None


ReportFinding = Callable[[Finding], None]


@dataclass(frozen=True)
class FindingKind:
    """A kind of finding: its severity, and how to fix it."""

    severity: Severity
    fix: str


# An ``error`` makes a row or file unusable as it is; with a ``warning`` the data is accepted.
KINDS: dict[str, FindingKind] = {
    # images
    "ImageBroken": FindingKind("error", "save the image again from its source, or remove it"),
    "ImageTruncated": FindingKind("error", "copy the image again; its end is missing"),
    "ImageTooLarge": FindingKind(
        "error", "make the image smaller than 50 megapixels and 128 MiB, with fewer frames"
    ),
    "ImageEmpty": FindingKind("error", "remove the file, or copy it again"),
    "ImageTypeUnsupported": FindingKind("error", "convert it to JPEG, PNG, WebP, BMP, GIF or TIFF"),
    "ImageTypeMismatch": FindingKind(
        "warning", "rename the file so that its extension matches its content"
    ),
    "ImageRotated": FindingKind(
        "warning", "none needed if boxes were drawn on the displayed (rotated) image"
    ),
    "ImageAnimated": FindingKind(
        "warning", "only the first frame is used; save the frames you need as separate images"
    ),
    "ImageDeep": FindingKind(
        "warning", "its values are scaled to 8 bits; convert the image if their range is narrow"
    ),
    "ImageAlpha": FindingKind(
        "warning",
        "transparent parts become white; save the image without transparency for another result",
    ),
    "ImageCmyk": FindingKind(
        "warning",
        "converted to RGB without its color profile; convert it yourself if colors matter",
    ),
    "ImageDuplicate": FindingKind(
        "warning", "remove one of the two, or keep both if this is intended"
    ),
    "ImageTiny": FindingKind("warning", "check that this is an image and not a placeholder"),
    # rows
    "RowInvalid": FindingKind("error", "write the row as the format requires"),
    "FieldMissing": FindingKind("error", "add the field"),
    "FieldInvalid": FindingKind("error", "give the field a value of the right type"),
    "ImageMissing": FindingKind("error", "add the image, or correct its name in the row"),
    "ImageAmbiguous": FindingKind("error", "name the image with its folder"),
    "SizeMismatch": FindingKind(
        "error", "the boxes may be in another pixel frame: correct width and height, or the boxes"
    ),
    "SizeTurned": FindingKind(
        "warning", "none needed: the size is that before the EXIF rotation; boxes were rotated"
    ),
    "BoxOutside": FindingKind(
        "error", "correct the box; if most boxes are outside, name their unit with --box-unit"
    ),
    "BoxClipped": FindingKind(
        "warning", "none needed if the box may extend past the image's edge; it is clipped there"
    ),
    "BoxOtherFrame": FindingKind(
        "error", "the numbers fit another unit: convert them, or name their unit with --box-unit"
    ),
    "BoxCornersSwapped": FindingKind("error", "write the smaller corner first"),
    "BoxEmpty": FindingKind(
        "error", "remove the box, or give it a width and a height of at least one pixel"
    ),
    "BoxCrowd": FindingKind(
        "warning", "none needed; to keep a box around a group of objects, remove its mark"
    ),
    "BoxDuplicate": FindingKind("warning", "none needed; remove the repeated boxes"),
    "BoxNotFinite": FindingKind("error", "write finite numbers"),
    "PhraseNotInCaption": FindingKind(
        "error",
        "use words of the caption, spelled exactly as there; --on-error Warn drops the phrase",
    ),
    "PhraseEmpty": FindingKind(
        "error", "name what the box shows; --on-error Warn drops the phrase"
    ),
    "CaptionEmpty": FindingKind("error", "write a caption, or remove the row"),
    "QuestionEmpty": FindingKind(
        "error", "write the question; --on-error Warn keeps the other questions of the row"
    ),
    "AnswerEmpty": FindingKind(
        "error",
        "write the answer, or remove the row; --on-error Warn keeps its other questions",
    ),
    "TextEmpty": FindingKind("error", "write the text, or remove the row"),
    "OrderInvalid": FindingKind(
        "warning", "number the interactions 1, 2, 3; their order in the list is used"
    ),
    "ClassUnknown": FindingKind(
        "error", "add the class to the list of names, or correct its number"
    ),
    "ClassListsDiffer": FindingKind(
        "error", "keep one list of class names in this folder, or make them equal"
    ),
    "ClassListDoubtful": FindingKind(
        "warning", "none needed if the names of the classes are right; else correct the list"
    ),
    "ConfidenceIgnored": FindingKind(
        "warning", "none needed; remove the boxes that a model is unsure of, if there are any"
    ),
    "RegionIgnored": FindingKind(
        "warning", "none needed; a region without labels is not an object"
    ),
    "RowDuplicate": FindingKind("warning", "remove one of the two; both are kept"),
    "SpanWrong": FindingKind(
        "warning", "none needed if the phrase is right; its word indexes are recomputed"
    ),
    "IdDuplicate": FindingKind("warning", "give each row its own id; a new id is assigned"),
    "ContentsUnfit": FindingKind(
        "error", "import these rows into a dataset of their own type, which --type names"
    ),
    "QuestionAssumed": FindingKind(
        "warning", "none needed if this question is right; else write the question in each row"
    ),
    "ConversationInvalid": FindingKind(
        "error", "alternate human and assistant turns, the human first"
    ),
    "BoxesInText": FindingKind(
        "warning",
        "none needed if the boxes were drawn on the displayed image, in the numbers the model uses",
    ),
    "AnnotationsIgnored": FindingKind(
        "warning", "none needed if they are not wanted; else export them as boxes or polygons"
    ),
    "SplitConflict": FindingKind(
        "warning", "remove the image from one of the two splits; it is used for training only"
    ),
    # files
    "FileUnreadable": FindingKind("error", "write the file again, readable and complete"),
    "FileEmpty": FindingKind("error", "remove the file, or fill it"),
    "EncodingWrong": FindingKind("error", "save the file as UTF-8"),
    "FormatUnknown": FindingKind(
        "error", "name the format with --format, or arrange the files as one of the known formats"
    ),
    "FileIgnored": FindingKind("warning", "none needed if this file is not data"),
    "NameUnsafe": FindingKind("error", "give the file a plain relative name"),
    "NameEncodingUnknown": FindingKind(
        "warning", "none needed if all rows find their images; else pack again with UTF-8 names"
    ),
    "ArchiveUnsafe": FindingKind("error", "pack it again with plain files and folders only"),
    "ArchiveTooLarge": FindingKind(
        "error", "unpack it yourself and import the folder; it expands beyond the limits"
    ),
    "AnnotationsAbsent": FindingKind(
        "warning", "none needed if this is intended; images without rows are not trained on"
    ),
}


def make_finding(
    code: str,
    *,
    file: str,
    cause: str,
    line: int | None = None,
    field: str | None = None,
    value: object = None,
    action: Action | None = None,
    fix: str | None = None,
    rows: int | None = None,
) -> Finding:
    """Build a finding of a known kind.

    By default an error leaves its row out, and a warning changes nothing.
    """
    kind = KINDS[code]
    return Finding(
        file=file,
        code=code,
        severity=kind.severity,
        action=action or ("RowRejected" if kind.severity == "error" else "Kept"),
        cause=_escape_surrogates(cause),
        fix=fix or kind.fix,
        line=line,
        field=None if field is None else _escape_surrogates(field),
        value=None if value is None else format_value(value),
        rows=rows,
    )


def _escape_surrogates(text: str) -> str:
    """Escape lone surrogates, which a malformed row may contain and UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


def format_value(value: object) -> str:
    """Format a value for a finding: short, on one line."""
    text = value if isinstance(value, str) else repr(value)
    text = (
        text.encode("unicode_escape", "backslashreplace").decode()
        if not text.isprintable()
        else text
    )
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 1]}…"


@dataclass
class Tally:
    """Counts of findings, updated as they stream by."""

    by_code: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    warnings: int = 0

    def add(self, found: Finding) -> None:
        self.by_code[found.code] += 1
        if found.severity == "error":
            self.errors += 1
        else:
            self.warnings += 1

    def document(self) -> dict[str, Any]:
        return {
            "errors": self.errors,
            "warnings": self.warnings,
            "byCode": dict(self.by_code.most_common()),
        }
