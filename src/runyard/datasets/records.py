"""One image and its annotations: the form that every format is read into and written from.

The form is Vi JSONL: one JSON object per line, with an asset and contents of one of four types.
``TYPES_OF`` lists the dataset types that each belongs to. An image may have several records. Boxes
are ``[xmin, ymin, xmax, ymax]`` as fractions of the displayed image's width and height, after its
EXIF orientation is applied.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import msgspec

from runyard.datasets.splits import Split

DatasetType = Literal["phrase-grounding", "vqa", "freeform"]
Role = Literal["system", "user", "assistant"]
Box = tuple[float, float, float, float]

IMAGE_MARK = "<image>"

_WORD = re.compile(r"\S+")
_MAX_CACHED_CHARACTERS = 500


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


class Turn(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Role
    content: str


class Conversation(_Shape, kw_only=True, tag_field="type", tag="Conversation"):
    """A conversation, whose later turns refer to the earlier ones.

    An optional system turn comes first, then user and assistant in turn, the assistant last.

    ``images`` names all images in their order if there are several; the first is the record's
    asset. Each ``IMAGE_MARK`` in a user turn is the position of one image. A conversation about a
    single image may have no mark: then the image comes before the text of the first user turn.

    A conversation that ``is_text_only`` shows no image: its asset only stands for the row, and
    ``IMAGE_MARK`` has no meaning.
    """

    # First in the JSON, so that its first bytes show whether there are several images.
    images: list[str] = []
    turns: list[Turn]
    is_text_only: bool = False

    @property
    def is_single_question(self) -> bool:
        """Whether it is one question about one image that comes first, and its answer."""
        return not (
            self.images
            or self.is_text_only
            or len(self.turns) != 2
            or self.turns[0].content.strip().rfind(IMAGE_MARK) > 0
        )

    @property
    def mark_count(self) -> int:
        return sum(turn.content.count(IMAGE_MARK) for turn in self.turns if turn.role == "user")


Contents = PhraseGrounding | Vqa | Freeform | Conversation
TYPES_OF: dict[type, tuple[DatasetType, ...]] = {
    PhraseGrounding: ("phrase-grounding",),
    Vqa: ("vqa",),
    Freeform: ("freeform",),
    Conversation: ("vqa", "freeform"),
}
# The first bytes of the JSON of every conversation about several images, and of nothing else.
SEVERAL_IMAGES = b'{"type":"Conversation","images":['


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
    def dataset_types(self) -> tuple[DatasetType, ...]:
        """The dataset types that the record belongs to."""
        return TYPES_OF[type(self.contents)]

    @property
    def further_images(self) -> list[str]:
        """The file names of the images that it is about besides its asset."""
        return list_further_images(self.contents)


def encode(record: Record) -> bytes:
    """Encode a record as one line of Vi JSONL, without the line end."""
    return msgspec.json.encode(record)


def list_further_images(contents: Contents) -> list[str]:
    """Return the file names of the images after the first."""
    return contents.images[1:] if isinstance(contents, Conversation) else []


def is_text_only(contents: Contents) -> bool:
    """Return whether a record is a conversation that shows no image."""
    return isinstance(contents, Conversation) and contents.is_text_only


def rename_images(contents: Contents, names: Mapping[str, str]) -> Contents:
    """Return the contents with the images that ``names`` has under their new names."""
    if not isinstance(contents, Conversation) or not contents.images:
        return contents
    return msgspec.structs.replace(
        contents, images=[names.get(name, name) for name in contents.images]
    )


def find_turn_problem(contents: Conversation) -> tuple[str, int] | None:
    """Return the cause and index of the first turn that breaks the order of turns.

    Return None if the order is right.
    """
    has_system = bool(contents.turns) and contents.turns[0].role == "system"
    spoken = contents.turns[1:] if has_system else contents.turns
    for number, turn in enumerate(spoken):
        if turn.role == "system":
            return "a system turn comes first, and there is at most one", number + has_system
        if turn.role != ("assistant" if number % 2 else "user"):
            cause = (
                "an answer without a question before it"
                if turn.role == "assistant"
                else "two questions without an answer between them"
            )
            return cause, number + has_system
    if not spoken:
        return "the conversation has no question", max(len(contents.turns) - 1, 0)
    if len(spoken) % 2:
        return "the last question has no answer", len(contents.turns) - 1
    return None


def find_mark_problem(contents: Conversation) -> str | None:
    """Return why the image marks do not fit the images; None if they fit."""
    if contents.is_text_only:
        return "a conversation of text only names images" if contents.images else None
    return explain_marks(contents.mark_count, max(len(contents.images), 1))


def explain_marks(marks: int, images: int) -> str | None:
    """Return why so many image marks do not fit so many images; None if they fit."""
    if marks == images or (marks == 0 and images == 1):
        return None
    return f"the numbers of image marks in user turns ({marks}) and of images ({images}) differ"


def word_span(caption: str, phrase: str, *, near: int = 0) -> tuple[int, int] | None:
    """Return the words of the caption that the phrase covers, as ``(start, end)`` with ``end``
    exclusive.

    Of several occurrences, prefer whole words over parts of words (``per`` over the start of
    ``person``), then the one that begins nearest to word ``near``. Return None if the caption does
    not contain the phrase.
    """
    find = _find_span_again if len(caption) <= _MAX_CACHED_CHARACTERS else _find_span
    return find(caption, phrase, near)


def _find_span(caption: str, phrase: str, near: int) -> tuple[int, int] | None:
    starts = _find_starts(caption, phrase)
    words = [word.span() for word in _WORD.finditer(caption)]
    covered = (_find_covered_words(words, start, start + len(phrase)) for start in starts)
    spans = [span for span in covered if span is not None]
    return min(spans, key=lambda span: (abs(span[0] - near), span), default=None)


# Captions made of class names repeat from image to image.
_find_span_again = lru_cache(maxsize=4096)(_find_span)


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
