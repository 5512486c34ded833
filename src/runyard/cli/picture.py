"""Pictures of what a model said: a grid of questions with true and given answers, and boxes drawn on an image.

Pillow is imported inside the functions: only the two commands that draw need it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

BOX_SCALE = 1024  # boxes are whole numbers from 0 to this, over the width and the height
COLUMNS = 6
CELL_WIDTH, CELL_HEIGHT = 150, 196
PICTURE_SIZE = 112
HEADER_HEIGHT = 40
MARGIN = 10
PAPER, INK, GREY, RIGHT, WRONG = "#ffffff", "#1b1f24", "#6a737d", "#1a7f37", "#cf222e"
BOX_COLOURS = ("#cf222e", "#0969da", "#1a7f37", "#9a6700", "#8250df", "#bf3989")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question about one image, with the true answer and the one the model gave."""

    image: "Image"
    question: str
    truth: str
    given: str
    is_right: bool


def evenly_spaced(items: Sequence[Asked], count: int) -> list[Asked]:
    """At most ``count`` items spread over all of them: a choice that cannot flatter."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def draw_answers(items: Sequence[Asked], *, title: str, path: Path) -> None:
    """Write a PNG with one cell an item: the image enlarged, the question, the truth, and what the model said."""
    from PIL import Image, ImageDraw

    rows = max(1, -(-len(items) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * CELL_WIDTH + 2 * MARGIN, rows * CELL_HEIGHT + HEADER_HEIGHT + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=_font(16))
    for index, item in enumerate(items):
        left = MARGIN + index % COLUMNS * CELL_WIDTH
        top = HEADER_HEIGHT + index // COLUMNS * CELL_HEIGHT
        inset = (CELL_WIDTH - PICTURE_SIZE) // 2
        colour = RIGHT if item.is_right else WRONG
        sheet.paste(_enlarged(item.image), (left + inset, top))
        draw.rectangle(
            (left + inset - 2, top - 2, left + inset + PICTURE_SIZE + 1, top + PICTURE_SIZE + 1),
            outline=colour,
            width=2,
        )
        middle = left + CELL_WIDTH // 2
        words = top + PICTURE_SIZE + 8
        for line in _wrapped(item.question, _font(12), CELL_WIDTH - 8)[:2]:
            draw.text((middle, words), line, fill=GREY, font=_font(12), anchor="ma")
            words += 15
        draw.text((middle, words + 2), _cut(f"truth: {item.truth}"), fill=INK, font=_font(13), anchor="ma")
        verdict = "right" if item.is_right else "wrong"
        draw.text(
            (middle, words + 19), _cut(f"answer: {item.given} ({verdict})"), fill=colour, font=_font(13), anchor="ma"
        )
    sheet.save(path, optimize=True)


def draw_boxes(image: "Image", boxes: Sequence[tuple[str, tuple[int, int, int, int]]], *, path: Path) -> None:
    """Write a PNG of the image with a named box for each phrase; small images are enlarged so that names fit."""
    from PIL import Image, ImageDraw

    factor = max(1, 512 // max(image.size))
    canvas = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for index, (phrase, box) in enumerate(boxes):
        colour = BOX_COLOURS[index % len(BOX_COLOURS)]
        sides = (canvas.width - 1, canvas.height - 1, canvas.width - 1, canvas.height - 1)
        x1, y1, x2, y2 = (
            side * min(BOX_SCALE, max(0, value)) // BOX_SCALE for value, side in zip(box, sides, strict=True)
        )
        left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        text_top = max(0, top - 18)
        draw.rectangle((left, text_top, left + _font(12).getlength(phrase) + 7, text_top + 17), fill=colour)
        draw.text((left + 4, text_top + 2), phrase, fill=PAPER, font=_font(12))
    canvas.save(path, optimize=True)


def _font(size: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _enlarged(image: "Image") -> "Image":
    from PIL import Image

    scale = PICTURE_SIZE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), PAPER)
    enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
    square.paste(enlarged, ((PICTURE_SIZE - width) // 2, (PICTURE_SIZE - height) // 2))
    return square


def _wrapped(text: str, font: "FreeTypeFont | ImageFont", width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _cut(text: str, longest: int = 24) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
