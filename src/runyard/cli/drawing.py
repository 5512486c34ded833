"""Images of a model's answers: a grid of questions with answers, and boxes drawn on an image.

Pillow is imported inside the functions, because only two commands need it.
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
IMAGE_SIZE = 112
HEADER_HEIGHT = 40
MARGIN = 10
PAPER, INK, GREY, RIGHT, WRONG = "#ffffff", "#1b1f24", "#6a737d", "#1a7f37", "#cf222e"
BOX_COLORS = ("#cf222e", "#0969da", "#1a7f37", "#9a6700", "#8250df", "#bf3989")


@dataclass(frozen=True, kw_only=True)
class AnsweredQuestion:
    """Question about an image, with the true answer and the answer of the model."""

    image: "Image"
    question: str
    truth: str
    given: str
    is_right: bool


def select_evenly(items: Sequence[AnsweredQuestion], count: int) -> list[AnsweredQuestion]:
    """Return at most ``count`` items, evenly spaced, so that the selection is not biased."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def draw_answers(items: Sequence[AnsweredQuestion], *, title: str, path: Path) -> None:
    """Write a PNG with one cell per item: enlarged image, question, true answer, model's answer."""
    from PIL import Image, ImageDraw

    rows = max(1, -(-len(items) // COLUMNS))
    sheet = Image.new(
        "RGB",
        (COLUMNS * CELL_WIDTH + 2 * MARGIN, rows * CELL_HEIGHT + HEADER_HEIGHT + MARGIN),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=_font(16))
    for index, item in enumerate(items):
        left = MARGIN + index % COLUMNS * CELL_WIDTH
        top = HEADER_HEIGHT + index // COLUMNS * CELL_HEIGHT
        inset = (CELL_WIDTH - IMAGE_SIZE) // 2
        color = RIGHT if item.is_right else WRONG
        sheet.paste(_enlarge(item.image), (left + inset, top))
        draw.rectangle(
            (left + inset - 2, top - 2, left + inset + IMAGE_SIZE + 1, top + IMAGE_SIZE + 1),
            outline=color,
            width=2,
        )
        middle = left + CELL_WIDTH // 2
        words = top + IMAGE_SIZE + 8
        for line in _wrap(item.question, _font(12), CELL_WIDTH - 8)[:2]:
            draw.text((middle, words), line, fill=GREY, font=_font(12), anchor="ma")
            words += 15
        draw.text(
            (middle, words + 2),
            _truncate(f"truth: {item.truth}"),
            fill=INK,
            font=_font(13),
            anchor="ma",
        )
        verdict = "right" if item.is_right else "wrong"
        draw.text(
            (middle, words + 19),
            _truncate(f"answer: {item.given} ({verdict})"),
            fill=color,
            font=_font(13),
            anchor="ma",
        )
    sheet.save(path, optimize=True)


def draw_boxes(
    image: "Image", boxes: Sequence[tuple[str, tuple[int, int, int, int]]], *, path: Path
) -> None:
    """Write a PNG of the image with a labeled box per phrase; small images are enlarged."""
    from PIL import Image, ImageDraw

    factor = max(1, 512 // max(image.size))
    canvas = image.convert("RGB").resize(
        (image.width * factor, image.height * factor), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(canvas)
    for index, (phrase, box) in enumerate(boxes):
        color = BOX_COLORS[index % len(BOX_COLORS)]
        sides = (canvas.width - 1, canvas.height - 1, canvas.width - 1, canvas.height - 1)
        x1, y1, x2, y2 = (
            side * min(BOX_SCALE, max(0, value)) // BOX_SCALE
            for value, side in zip(box, sides, strict=True)
        )
        left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        draw.rectangle((left, top, right, bottom), outline=color, width=2)
        text_top = max(0, top - 18)
        draw.rectangle(
            (left, text_top, left + _font(12).getlength(phrase) + 7, text_top + 17), fill=color
        )
        draw.text((left + 4, text_top + 2), phrase, fill=PAPER, font=_font(12))
    canvas.save(path, optimize=True)


def _font(size: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _enlarge(image: "Image") -> "Image":
    from PIL import Image

    scale = IMAGE_SIZE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), PAPER)
    enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
    square.paste(enlarged, ((IMAGE_SIZE - width) // 2, (IMAGE_SIZE - height) // 2))
    return square


def _wrap(text: str, font: "FreeTypeFont | ImageFont", width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _truncate(text: str, longest: int = 24) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
