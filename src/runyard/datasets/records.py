"""One picture and what is said of it: the form that every format is read into and written from.

It is Vi JSONL, one JSON object a line: an asset, and contents of one of three types, each for the dataset type of the
same name. A picture may have several records. Boxes are ``[xmin, ymin, xmax, ymax]`` as shares of the picture's width
and height, 0 to 1, in the frame in which the picture is shown (turned as its EXIF orientation says).
"""

import re
from typing import Literal

import msgspec

DatasetType = Literal["phrase-grounding", "vqa", "freeform"]
Box = tuple[float, float, float, float]

_WORD = re.compile(r"\S+")


class _Shape(msgspec.Struct, rename="camel", omit_defaults=True):
    """camelCase on the line, snake_case here."""


class AssetRef(_Shape, kw_only=True):
    """Which picture a record is about, and its size in pixels as shown."""

    type: str = "Image"
    filename: str
    width: int
    height: int


class GroundedPhrase(_Shape):
    """A phrase of the caption and where it is seen. Words of the caption are counted from 0, the end is exclusive."""

    phrase: str
    start_token_index: int
    end_token_index: int
    bounds: list[Box]


class PhraseGrounding(_Shape, tag_field="type", tag="PhraseGrounding"):
    """A caption, with boxes for phrases of it."""

    caption: str
    grounded_phrases: list[GroundedPhrase]


class Interaction(_Shape):
    """One question about the picture and its answer; ``order`` counts from 1."""

    order: int
    question: str
    answer: str


class Vqa(_Shape, tag_field="type", tag="Vqa"):
    """Questions and answers, in the order in which they are asked."""

    interactions: list[Interaction]


class Freeform(_Shape, tag_field="type", tag="Freeform"):
    """A text about the picture. An empty prompt stands for the question that the recipe asks."""

    text: str
    prompt: str = ""


Contents = PhraseGrounding | Vqa | Freeform
TYPE_OF: dict[type, DatasetType] = {PhraseGrounding: "phrase-grounding", Vqa: "vqa", Freeform: "freeform"}


class Record(_Shape):
    """What is said of one picture, once. ``id`` is unique within a dataset."""

    id: str
    asset: AssetRef
    contents: Contents
    category: str | None = None

    @property
    def dataset_type(self) -> DatasetType:
        return TYPE_OF[type(self.contents)]


def encode(record: Record) -> bytes:
    """One line of Vi JSONL, without its end."""
    return msgspec.json.encode(record)


def word_span(caption: str, phrase: str, *, near: int = 0) -> tuple[int, int] | None:
    """Which words of the caption the phrase covers, as ``(start, end)`` with ``end`` exclusive.

    Of several places the one that begins nearest to word ``near``, and whole words before parts of words (``per`` is
    not the start of ``person`` where both are there). None when the caption does not hold the phrase.
    """
    starts = _places(caption, phrase)
    words = [word.span() for word in _WORD.finditer(caption)]
    spans = [covered for start in starts if (covered := _covered(words, start, start + len(phrase))) is not None]
    return min(spans, key=lambda span: (abs(span[0] - near), span), default=None)


def char_span(caption: str, phrase: str, *, near: int = 0) -> tuple[int, int] | None:
    """The same as characters: where the phrase begins and ends in the caption."""
    starts = _places(caption, phrase)
    words = [word.start() for word in _WORD.finditer(caption)]
    place = words[min(max(near, 0), len(words) - 1)] if words else 0
    return min(((start, start + len(phrase)) for start in starts), key=lambda s: abs(s[0] - place), default=None)


def caption_of(phrases: list[str]) -> str:
    """The caption of formats that have none: each name once, in order, joined by commas and ``and``."""
    names = list(dict.fromkeys(phrases))
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def grounding_of(boxes: list[tuple[str, Box]]) -> PhraseGrounding:
    """Contents of formats that know only names and boxes; boxes of one name belong to one phrase."""
    by_name: dict[str, list[Box]] = {}
    for name, box in boxes:
        by_name.setdefault(name, []).append(box)
    caption, phrases, near = caption_of(list(by_name)), [], 0
    for name, bounds in by_name.items():
        start, end = word_span(caption, name, near=near) or (near, near + 1)
        phrases.append(GroundedPhrase(phrase=name, start_token_index=start, end_token_index=end, bounds=bounds))
        near = end
    return PhraseGrounding(caption=caption, grounded_phrases=phrases)


def _places(caption: str, phrase: str) -> list[int]:
    """Where the phrase begins: as whole words if it does so anywhere, else wherever its letters are."""
    if not phrase:
        return []
    starts = [found.start() for found in re.finditer(re.escape(phrase), caption)]
    whole = [start for start in starts if _is_whole(caption, start, start + len(phrase))]
    return whole or starts


def _is_whole(caption: str, start: int, end: int) -> bool:
    before, after = caption[start - 1 : start], caption[end : end + 1]
    return not (before.isalnum() and caption[start].isalnum()) and not (after.isalnum() and caption[end - 1].isalnum())


def _covered(words: list[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    touched = [number for number, (begins, ends) in enumerate(words) if begins < end and ends > start]
    return (touched[0], touched[-1] + 1) if touched else None
