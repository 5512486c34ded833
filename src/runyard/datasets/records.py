"""One image and its annotations: the form that every format is read into and written from.

The form is Vi JSONL: one JSON object per line, with an asset and contents of one of three types.
Each type belongs to the dataset type of the same name. An image may have several records. Boxes are
``[xmin, ymin, xmax, ymax]`` as fractions of the displayed image's width and height, after its EXIF
orientation is applied.
"""

import re
from typing import Literal

import msgspec

from runyard.datasets.splits import Split

DatasetType = Literal["phrase-grounding", "vqa", "freeform"]
Box = tuple[float, float, float, float]

_WORD = re.compile(r"\S+")


class _Shape(msgspec.Struct, rename="camel", omit_defaults=True):
    """Base of every part of a record: camelCase in JSON, snake_case here."""


class AssetRef(_Shape, kw_only=True):
    """The image a record describes, and its displayed size in pixels."""

    type: str = "Image"
    filename: str
    width: int
    height: int


class GroundedPhrase(_Shape):
    """A phrase of the caption and its boxes.

    Token indexes count the caption's words from 0; the end is exclusive.
    """

    phrase: str
    start_token_index: int
    end_token_index: int
    bounds: list[Box]


class PhraseGrounding(_Shape, tag_field="type", tag="PhraseGrounding"):
    """A caption with boxes for some of its phrases."""

    caption: str
    grounded_phrases: list[GroundedPhrase]


class Interaction(_Shape):
    """One question about the image and its answer; ``order`` counts from 1."""

    order: int
    question: str
    answer: str


class Vqa(_Shape, tag_field="type", tag="Vqa"):
    """Questions and answers, in the order in which they are asked."""

    interactions: list[Interaction]


class Freeform(_Shape, tag_field="type", tag="Freeform"):
    """A text about the image. An empty prompt means the question of the flow."""

    text: str
    prompt: str = ""


Contents = PhraseGrounding | Vqa | Freeform
TYPE_OF: dict[type, DatasetType] = {
    PhraseGrounding: "phrase-grounding",
    Vqa: "vqa",
    Freeform: "freeform",
}


class Record(_Shape):
    """One annotation of one image. ``id`` is unique within a dataset.

    ``split`` is the part of the data that the image is in, if the row says so.
    """

    id: str
    asset: AssetRef
    contents: Contents
    category: str | None = None
    split: Split | None = None

    @property
    def dataset_type(self) -> DatasetType:
        return TYPE_OF[type(self.contents)]


def encode(record: Record) -> bytes:
    """Encode a record as one line of Vi JSONL, without the line end."""
    return msgspec.json.encode(record)


def word_span(caption: str, phrase: str, *, near: int = 0) -> tuple[int, int] | None:
    """Return the words of the caption that the phrase covers, as ``(start, end)`` with ``end``
    exclusive.

    Of several occurrences, prefer whole words over parts of words (``per`` over the start of
    ``person``), then the one that begins nearest to word ``near``. Return None if the caption does
    not contain the phrase.
    """
    starts = _find_starts(caption, phrase)
    words = [word.span() for word in _WORD.finditer(caption)]
    covered = (_find_covered_words(words, start, start + len(phrase)) for start in starts)
    spans = [span for span in covered if span is not None]
    return min(spans, key=lambda span: (abs(span[0] - near), span), default=None)


def char_span(caption: str, phrase: str, *, near: int = 0) -> tuple[int, int] | None:
    """Return the characters of the caption that the phrase covers; otherwise as ``word_span``."""
    starts = _find_starts(caption, phrase)
    words = [word.start() for word in _WORD.finditer(caption)]
    expected_start = words[min(max(near, 0), len(words) - 1)] if words else 0
    spans = ((start, start + len(phrase)) for start in starts)
    return min(spans, key=lambda span: abs(span[0] - expected_start), default=None)


def make_caption(phrases: list[str]) -> str:
    """Build a caption for formats without captions: each name once, in order, joined by commas and
    ``and``.
    """
    names = list(dict.fromkeys(phrases))
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def make_grounding(boxes: list[tuple[str, Box]]) -> PhraseGrounding:
    """Build contents for formats that have only names and boxes.

    Boxes of one name belong to one phrase.
    """
    by_name: dict[str, list[Box]] = {}
    for name, box in boxes:
        by_name.setdefault(name, []).append(box)
    caption, phrases, near = make_caption(list(by_name)), [], 0
    for name, bounds in by_name.items():
        start, end = word_span(caption, name, near=near) or (near, near + 1)
        phrases.append(
            GroundedPhrase(phrase=name, start_token_index=start, end_token_index=end, bounds=bounds)
        )
        near = end
    return PhraseGrounding(caption=caption, grounded_phrases=phrases)


def _find_starts(caption: str, phrase: str) -> list[int]:
    """List where the phrase begins: as whole words if there are any, else wherever its letters
    occur.
    """
    if not phrase:
        return []
    starts = [found.start() for found in re.finditer(re.escape(phrase), caption)]
    whole = [start for start in starts if _is_whole_words(caption, start, start + len(phrase))]
    return whole or starts


def _is_whole_words(caption: str, start: int, end: int) -> bool:
    before, after = caption[start - 1 : start], caption[end : end + 1]
    return not (before.isalnum() and caption[start].isalnum()) and not (
        after.isalnum() and caption[end - 1].isalnum()
    )


def _find_covered_words(
    words: list[tuple[int, int]], start: int, end: int
) -> tuple[int, int] | None:
    touched = [
        number for number, (begins, ends) in enumerate(words) if begins < end and ends > start
    ]
    return (touched[0], touched[-1] + 1) if touched else None
