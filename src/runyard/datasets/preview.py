"""A contact sheet: sample images of a dataset with their annotations as one PNG, to check them at a
glance.

A seed selects the images. Boxes are drawn with their phrases; captions, questions and answers are
printed below. The sheet has at most ``MAX_IMAGES`` images, so its size is bounded. An image that
cannot be decoded is shown as a gray field with a message. Text uses Pillow's built-in font;
characters it lacks appear as empty boxes.
"""

import io
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from random import Random

from PIL import Image, ImageDraw, ImageFont, ImageOps

from runyard.datasets.pixels import decode_image
from runyard.datasets.records import (
    IMAGE_MARK,
    Box,
    Conversation,
    Freeform,
    PhraseGrounding,
    Record,
    Vqa,
)
from runyard.datasets.writers.base import ExportedImage

MAX_IMAGES = 48
CELL, GAP, COLUMNS = 320, 12, 4
LINES, LINE_HEIGHT, FONT_PIXELS, LINE_CHARACTERS = 7, 17, 13, 46
_MAX_TEXT = 2000
_INK, _QUIET, _PAPER, _EMPTY = "#1d1f21", "#6b7075", "#ffffff", "#d5d8dc"
_COLORS = ("#e6194b", "#0a7d33", "#2f55d4", "#b35900", "#911eb4", "#00747d", "#b8005c", "#5f6b00")
_TURN_LABELS = {"system": "System", "user": "Q", "assistant": "A"}
_TEXT_HEIGHT = (LINES + 1) * LINE_HEIGHT


def choose_items(items: Sequence[ExportedImage], *, count: int, seed: int) -> list[ExportedImage]:
    """Choose ``count`` of the items by seed, preferring items with records; keep their order."""
    # Which images to show is no secret.
    order = Random(seed).sample(range(len(items)), len(items))  # noqa: S311
    order.sort(key=lambda number: not items[number].records)
    return [items[number] for number in sorted(order[: max(0, min(count, MAX_IMAGES))])]


def render_contact_sheet(items: Iterable[ExportedImage]) -> bytes:
    """Render these items as a PNG, at most ``MAX_IMAGES``; the same items give the same bytes."""
    shown = [item for item, _ in zip(items, range(MAX_IMAGES), strict=False)]
    columns = max(1, min(COLUMNS, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    width, height = GAP + columns * (CELL + GAP), GAP + rows * (CELL + _TEXT_HEIGHT + GAP)
    sheet = Image.new("RGB", (width, height), _PAPER)
    font = ImageFont.load_default(FONT_PIXELS)
    for number, item in enumerate(shown):
        row, column = divmod(number, columns)
        left, top = GAP + column * (CELL + GAP), GAP + row * (CELL + _TEXT_HEIGHT + GAP)
        _draw_item(sheet, item, left, top, font)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _draw_item(sheet: Image.Image, item: ExportedImage, left: int, top: int, font: "_Font") -> None:
    draw = ImageDraw.Draw(sheet)
    image = _load_image(item)
    if image is None:
        draw.rectangle((left, top, left + CELL, top + CELL), fill=_EMPTY)
        _draw_text(draw, (left + 8, top + 8), "cannot read this image", font, _INK)
        width, height, x, y = CELL, CELL, left, top
    else:
        (width, height), x, y = (
            image.size,
            left + (CELL - image.width) // 2,
            top + (CELL - image.height) // 2,
        )
        sheet.paste(image, (x, y))
    for number, (phrase, box) in enumerate(_list_boxes(item.records)):
        _draw_box(draw, phrase, box, (x, y, width, height), _COLORS[number % len(_COLORS)], font)
    below = top + CELL + 3
    _draw_text(draw, (left, below), _truncate(item.asset.filename, LINE_CHARACTERS), font, _QUIET)
    for number, line in enumerate(wrap_texts(item.records)):
        _draw_text(draw, (left, below + (number + 1) * LINE_HEIGHT), line, font, _INK)


def _load_image(item: ExportedImage) -> Image.Image | None:
    """Decode the image as displayed, scaled to a cell; None if it cannot be decoded."""
    try:
        image = decode_image(item.read(), at_least=(2 * CELL, 2 * CELL))
    # Storage may fail in its own ways; one bad cell must not fail the sheet.
    except Exception:
        return None
    return ImageOps.contain(image, (CELL, CELL))


def _list_boxes(records: list[Record]) -> list[tuple[str, Box]]:
    return [
        (phrase.phrase, box)
        for record in records
        if isinstance(record.contents, PhraseGrounding)
        for phrase in record.contents.grounded_phrases
        for box in phrase.bounds
    ]


def _draw_box(
    draw: ImageDraw.ImageDraw,
    phrase: str,
    box: Box,
    frame: tuple[int, int, int, int],
    color: str,
    font: "_Font",
) -> None:
    x, y, width, height = frame
    shares = [min(1.0, max(0.0, share)) if share == share else 0.0 for share in box]
    left, right = sorted((x + shares[0] * width, x + shares[2] * width))
    top, bottom = sorted((y + shares[1] * height, y + shares[3] * height))
    draw.rectangle((left, top, right, bottom), outline=color, width=2)
    label = _truncate(to_printable(phrase), 24)
    at = (min(left, x + max(0, width - 7 * len(label))), max(y, top - LINE_HEIGHT))
    draw.rectangle(draw.textbbox(at, label, font=font), fill=color)
    _draw_text(draw, at, label, font, _PAPER)


def wrap_texts(records: list[Record]) -> list[str]:
    """Wrap the texts of the records, cut after ``LINES`` lines."""
    lines: list[str] = []
    for text in _texts(records):
        wrapped = textwrap.wrap(
            to_printable(text[:_MAX_TEXT]), LINE_CHARACTERS, break_long_words=True
        )
        lines += wrapped
        if len(lines) > LINES:
            return [*lines[: LINES - 1], _truncate(lines[LINES - 1] + " …", LINE_CHARACTERS)]
    return lines


def _texts(records: list[Record]) -> Iterable[str]:
    if not records:
        yield "(no annotations)"
    for record in records:
        match record.contents:
            case PhraseGrounding(caption=caption):
                yield caption
            case Vqa(interactions=interactions):
                for one in interactions:
                    yield f"Q: {one.question}"
                    yield f"A: {one.answer}"
            case Freeform(text=text, prompt=prompt):
                yield f"{prompt} → {text}" if prompt else text
            case Conversation() as conversation:
                yield from _turn_texts(conversation)


def _turn_texts(contents: Conversation) -> Iterator[str]:
    """Yield the turns, with each image's number and name at its position."""
    names = iter(contents.images)
    number = 0

    def describe_image(_: "re.Match[str]") -> str:
        nonlocal number
        number += 1
        name = next(names, "")
        return f"[image {number}: {name}] " if name else "[image] "

    for turn in contents.turns:
        text = turn.content
        if turn.role == "user":
            text = re.sub(re.escape(IMAGE_MARK), describe_image, text)
        yield f"{_TURN_LABELS[turn.role]}: {text}"


def to_printable(text: str) -> str:
    """Replace what no font can draw by spaces: control characters, surrogates, direction marks,
    line ends.
    """
    return "".join(
        " " if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else sign
        for sign in text
    )


def _truncate(text: str, length: int) -> str:
    text = to_printable(text[:_MAX_TEXT])
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _draw_text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, font: "_Font", color: str
) -> None:
    draw.text(at, text, font=font, fill=color)


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
