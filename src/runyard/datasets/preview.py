"""A contact sheet: some pictures of a dataset with what is said of them, as one PNG, to see at a glance if it is right.

Which pictures is decided by a seed. Boxes are drawn with their phrases, questions and answers stand below. The sheet
has at most ``MOST_PICTURES`` pictures and so a bounded size, whatever the dataset holds. A picture that cannot be
decoded shows as a grey field that says so. The letters are those of the font that Pillow brings; what it has no letter
for shows as an empty box.
"""

import io
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from random import Random

from PIL import Image, ImageDraw, ImageFont, ImageOps

from runyard.datasets.records import Box, Freeform, PhraseGrounding, Record, Vqa
from runyard.datasets.writers import Item

MOST_PICTURES = 48
CELL, GAP, COLUMNS = 320, 12, 4
LINES, LINE_HEIGHT, FONT_PIXELS, LINE_CHARACTERS = 7, 17, 13, 46
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_MOST_PIXELS = 50_000_000
_LONGEST_TEXT = 2000
_INK, _QUIET, _PAPER, _EMPTY = "#1d1f21", "#6b7075", "#ffffff", "#d5d8dc"
_COLOURS = ("#e6194b", "#0a7d33", "#2f55d4", "#b35900", "#911eb4", "#00747d", "#b8005c", "#5f6b00")
_TEXT_HEIGHT = (LINES + 1) * LINE_HEIGHT


def chosen(items: Sequence[Item], *, count: int, seed: int) -> list[Item]:
    """``count`` of the items, by seed, in their order; those with records come before those without."""
    order = Random(seed).sample(range(len(items)), len(items))  # noqa: S311 - which pictures to show is no secret
    order.sort(key=lambda number: not items[number].records)
    return [items[number] for number in sorted(order[: max(0, min(count, MOST_PICTURES))])]


def contact_sheet(items: Iterable[Item]) -> bytes:
    """The PNG of these items, at most ``MOST_PICTURES``; the same bytes for the same items."""
    shown = [item for item, _ in zip(items, range(MOST_PICTURES), strict=False)]
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


def _draw_item(sheet: Image.Image, item: Item, left: int, top: int, font: "_Font") -> None:
    draw = ImageDraw.Draw(sheet)
    picture = _picture(item)
    if picture is None:
        draw.rectangle((left, top, left + CELL, top + CELL), fill=_EMPTY)
        _write(draw, (left + 8, top + 8), "this picture cannot be read", font, _INK)
        width, height, x, y = CELL, CELL, left, top
    else:
        (width, height), x, y = picture.size, left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2
        sheet.paste(picture, (x, y))
    for number, (phrase, box) in enumerate(_boxes(item.records)):
        _draw_box(draw, phrase, box, (x, y, width, height), _COLOURS[number % len(_COLOURS)], font)
    below = top + CELL + 3
    _write(draw, (left, below), _cut(item.asset.filename, LINE_CHARACTERS), font, _QUIET)
    for number, line in enumerate(lines_of(item.records)):
        _write(draw, (left, below + (number + 1) * LINE_HEIGHT), line, font, _INK)


def _picture(item: Item) -> Image.Image | None:
    """As it is shown, in the size of a cell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about pictures was told on import
            with Image.open(io.BytesIO(item.read()), formats=_FORMATS) as opened:
                if opened.width * opened.height > _MOST_PIXELS:
                    return None
                opened.draft("RGB", (2 * CELL, 2 * CELL))
                upright = ImageOps.exif_transpose(opened)
                return ImageOps.contain(upright.convert("RGB"), (CELL, CELL))
    except Exception:  # Pillow's decoders raise almost anything on bytes that are broken, and one cell is not the sheet
        return None


def _boxes(records: list[Record]) -> list[tuple[str, Box]]:
    return [
        (phrase.phrase, box)
        for record in records
        if isinstance(record.contents, PhraseGrounding)
        for phrase in record.contents.grounded_phrases
        for box in phrase.bounds
    ]


def _draw_box(
    draw: ImageDraw.ImageDraw, phrase: str, box: Box, frame: tuple[int, int, int, int], colour: str, font: "_Font"
) -> None:
    x, y, width, height = frame
    shares = [min(1.0, max(0.0, share)) if share == share else 0.0 for share in box]
    left, right = sorted((x + shares[0] * width, x + shares[2] * width))
    top, bottom = sorted((y + shares[1] * height, y + shares[3] * height))
    draw.rectangle((left, top, right, bottom), outline=colour, width=2)
    label = _cut(readable(phrase), 24)
    at = (min(left, x + max(0, width - 7 * len(label))), max(y, top - LINE_HEIGHT))
    draw.rectangle(draw.textbbox(at, label, font=font), fill=colour)
    _write(draw, at, label, font, _PAPER)


def lines_of(records: list[Record]) -> list[str]:
    """What is said, wrapped, and cut after ``LINES`` lines."""
    lines: list[str] = []
    for text in _texts(records):
        wrapped = textwrap.wrap(readable(text[:_LONGEST_TEXT]), LINE_CHARACTERS, break_long_words=True)
        lines += wrapped
        if len(lines) > LINES:
            return [*lines[: LINES - 1], _cut(lines[LINES - 1] + " …", LINE_CHARACTERS)]
    return lines


def _texts(records: list[Record]) -> Iterable[str]:
    if not records:
        yield "(nothing is said of it)"
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


def readable(text: str) -> str:
    """On one line, without what no font draws: control characters, halves of surrogate pairs, marks of direction."""
    return "".join(" " if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else sign for sign in text)


def _cut(text: str, length: int) -> str:
    text = readable(text[:_LONGEST_TEXT])
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, font: "_Font", colour: str) -> None:
    draw.text(at, text, font=font, fill=colour)


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
