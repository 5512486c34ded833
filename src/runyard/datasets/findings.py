"""What can be wrong with data, each told with file, line, field, cause and cure.

Nothing is dropped silently: whatever an import changes, leaves out or refuses is a finding, and so is what it takes
although something about it is odd. ``KINDS`` is the whole list.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Severity = Literal["error", "warning"]
# What became of it: taken as it is; taken after a change the cause names; this row left out; this file left out.
Action = Literal["Kept", "Mended", "RowRejected", "FileRejected"]
LONGEST_VALUE = 80


class Finding(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True, frozen=True):
    """One defect, or one oddity. ``line`` counts from 1; None where a file has no lines (a picture, a binary file,
    one JSON document, where ``field`` says the place, such as ``annotations[3].bbox``)."""

    file: str
    code: str
    severity: Severity
    action: Action
    cause: str
    cure: str
    line: int | None = None
    field: str | None = None
    value: str | None = None


Say = Callable[[Finding], None]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: how bad it is, and what people do about it."""

    severity: Severity
    cure: str


# An ``error`` makes a row or file unusable as it is; a ``warning`` is told and the data taken.
KINDS: dict[str, Kind] = {
    # pictures
    "ImageBroken": Kind("error", "save the picture again from its source, or remove it"),
    "ImageTruncated": Kind("error", "copy the picture again; its end is missing"),
    "ImageTooLarge": Kind("error", "make the picture smaller than 50 megapixels"),
    "ImageEmpty": Kind("error", "remove the file, or copy it again"),
    "ImageTypeUnsupported": Kind("error", "convert it to JPEG, PNG, WebP, BMP, GIF or TIFF"),
    "ImageTypeMismatch": Kind("warning", "rename the file so that its ending says what it is"),
    "ImageRotated": Kind("warning", "nothing, if boxes were drawn on the picture as it is shown"),
    "ImageAnimated": Kind("warning", "only the first frame is used; save the frames you need as pictures"),
    "ImageDeep": Kind("warning", "16-bit values are scaled to 8 bits; convert the picture if their range is narrow"),
    "ImageCmyk": Kind("warning", "converted to RGB without its colour profile; convert it yourself if colours matter"),
    "ImageDuplicate": Kind("warning", "remove one of the two, or keep both if that is meant"),
    "ImageTiny": Kind("warning", "check that this is a picture and not a placeholder"),
    # rows
    "RowInvalid": Kind("error", "write the row as the format asks for"),
    "FieldMissing": Kind("error", "add the field"),
    "FieldInvalid": Kind("error", "give the field a value of the right type"),
    "ImageMissing": Kind("error", "add the picture, or correct its name in the row"),
    "ImageAmbiguous": Kind("error", "name the picture with its folder"),
    "SizeMismatch": Kind("error", "the boxes may be in another pixel frame: correct width and height, or the boxes"),
    "SizeTurned": Kind("warning", "width and height are those before the EXIF rotation; the boxes were turned, too"),
    "BoxOutside": Kind("error", "correct the box; it lies outside of the picture"),
    "BoxClipped": Kind("warning", "nothing, if the box may reach over the picture's edge; it is cut at the edge"),
    "BoxOtherFrame": Kind("error", "the numbers fit another frame (pixels, 0-1, 0-1000): convert them"),
    "BoxCornersSwapped": Kind("error", "write the smaller corner first"),
    "BoxEmpty": Kind("error", "remove the box, or give it a width and a height"),
    "BoxNotFinite": Kind("error", "write finite numbers"),
    "PhraseNotInCaption": Kind("error", "use words of the caption, letter by letter"),
    "PhraseEmpty": Kind("error", "name what the box shows"),
    "CaptionEmpty": Kind("error", "write a caption, or remove the row"),
    "QuestionEmpty": Kind("error", "write the question"),
    "AnswerEmpty": Kind("error", "write the answer, or remove the row"),
    "TextEmpty": Kind("error", "write the text, or remove the row"),
    "OrderInvalid": Kind("warning", "number the interactions 1, 2, 3; their order in the list is taken"),
    "ClassUnknown": Kind("error", "add the class to the list of names, or correct its number"),
    "RowDuplicate": Kind("warning", "remove one of the two; both are kept"),
    "SpanWrong": Kind("warning", "nothing, if the phrase is right; its words are counted anew in the caption"),
    "IdDuplicate": Kind("warning", "give each row an id of its own; a new one is given"),
    "ContentsUnfit": Kind("error", "import these rows into a dataset of their own type"),
    "QuestionAssumed": Kind("warning", "nothing, if that may be asked; else write the question to each row"),
    "ConversationInvalid": Kind("error", "let human and assistant speak by turns, the human first"),
    # files
    "FileUnreadable": Kind("error", "write the file again"),
    "FileEmpty": Kind("error", "remove the file, or fill it"),
    "EncodingWrong": Kind("error", "save the file as UTF-8"),
    "FormatUnknown": Kind("error", "name the format, or arrange the files as one of the known formats"),
    "FileIgnored": Kind("warning", "nothing, if this file is no data"),
    "NameUnsafe": Kind("error", "give the file a plain relative name"),
    "ArchiveUnsafe": Kind("error", "pack it again with plain files and folders only"),
    "ArchiveTooLarge": Kind("error", "unpack it yourself and import the folder; it grows beyond all bounds"),
    "AnnotationsAbsent": Kind("warning", "nothing, if they need none; pictures without rows are not trained on"),
}  # fmt: skip


def finding(
    code: str,
    *,
    file: str,
    cause: str,
    line: int | None = None,
    field: str | None = None,
    value: object = None,
    action: Action | None = None,
    cure: str | None = None,
) -> Finding:
    """A finding of a known kind. Without ``action`` an error leaves its row out, and a warning changes nothing."""
    kind = KINDS[code]
    return Finding(
        file=file,
        code=code,
        severity=kind.severity,
        action=action or ("RowRejected" if kind.severity == "error" else "Kept"),
        cause=_writable(cause),
        cure=cure or kind.cure,
        line=line,
        field=None if field is None else _writable(field),
        value=None if value is None else shown(value),
    )


def _writable(text: str) -> str:
    """The text with half characters, which a strange row may hold, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: object) -> str:
    """A value as people may look at it: short, on one line."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape", "backslashreplace").decode() if not text.isprintable() else text
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


@dataclass
class Tally:
    """Counts over findings, kept while they stream by."""

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
        return {"errors": self.errors, "warnings": self.warnings, "byCode": dict(self.by_code.most_common())}
