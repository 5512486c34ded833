"""The images of a row with turns: their names, and the marks at their positions.

Names are in fields of the row, in parts of its turns, or within texts, as Qwen-VL writes them:
``<img>a.jpg</img>``. Marks are ``<image>`` and some others, but only in user turns: in an answer
they are text.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.turns import (
    ImagePart,
    ParsedTurn,
    Turns,
    get_image_name,
    join_texts,
)
from runyard.datasets.records import IMAGE_MARK

_IMAGES = ("image", "images", "image_path", "image_file", "img")
_MARK = re.compile(r"[ \t]*\n?<(?:image|img|image_placeholder)>(?:</(?:image|img)>)?\n?[ \t]*")
# What Qwen-VL writes before its tags.
_LABEL = r"(?:^(?:Pict|Im)[a-z]{1,4} \d{1,4}: ?)?"


class MarkForm:
    """A form of marks; group 1 of the pattern is the name of the image, if the mark has one."""

    def __init__(self, pattern: str, *, label: str = "") -> None:
        self.mark = re.compile(pattern)
        self.with_space = re.compile(rf"[ \t]*\n?{label}{pattern}\n?[ \t]*", re.MULTILINE)
        self.start = re.compile(rf"\s*{label}{re.escape(IMAGE_MARK)}")


# A row uses one of these: the first that its user turns contain.
_MARK_FORMS = (
    MarkForm(r"<image>()(?:</image>)?"),
    MarkForm(r"<img>([^<>\n]{1,1024})</img>", label=_LABEL),
    MarkForm(r"<img>()(?:</img>)?"),
    MarkForm(r"<image_placeholder>()"),
    MarkForm(r"<\|vision_start\|><\|image_pad\|><\|vision_end\|>()"),
)


def strip_image_marks(text: str) -> str:
    """Remove the marks that stand for the image."""
    return _MARK.sub(" ", text).strip() if "<im" in text else text.strip()


def find_image_names(
    row: Mapping[str, Any], turns: Turns, location: SourceLocation
) -> list[str] | None:
    """Return the names of the row's images in order; None if it names none, which is reported.

    They are in fields of the row or in its turns. If they are in both, they must agree. A row of
    text only says so by an empty list of images.
    """
    listed: list[tuple[str, list[str]]] = []
    for key in _IMAGES:
        given = row.get(key)
        if given is None or given == []:
            continue
        values = given if isinstance(given, list) else [given]
        names = [name for name in map(get_image_name, values) if name is not None]
        if len(names) < len(values):
            location.report("FieldInvalid", "not the name of an image", field=key, value=given)
            return None
        listed.append((key, names))
    form = find_mark_form(turns)
    within = [name for turn in turns if turn.role == "user" for name in _list_names(turn, form)]
    named = [name for name in within if name is not None]
    if named:
        listed.append((turns[0].field.partition("[")[0], named))
    if not listed and row.get("images") == []:
        return []
    if not listed:
        cause = "the row does not name an image"
        fix = 'name the row\'s image, or write "images": [] if it is text only'
        location.report("FieldMissing", cause, field="image", fix=fix)
        return None
    first, names = listed[0]
    for other, others in listed[1:]:
        if others != names:
            cause = f"the fields {first} and {other} name different images"
            location.report("FieldInvalid", cause, field=other, value=others)
            return None
    return names


def find_mark_form(turns: Turns) -> MarkForm:
    """Return the form of the marks in the row's texts.

    Where images are parts of turns, only ``<image>`` is a mark.
    """
    texts = []
    for turn in turns:
        for part in turn.parts:
            if isinstance(part, ImagePart):
                return _MARK_FORMS[0]
            if turn.role == "user" and "<" in part:
                texts.append(part)
    for form in _MARK_FORMS:
        if any(form.mark.search(text) for text in texts):
            return form
    return _MARK_FORMS[0]


def _list_names(turn: ParsedTurn, form: MarkForm) -> Iterator[str | None]:
    for part in turn.parts:
        if isinstance(part, ImagePart):
            yield part.name
        elif "<" in part:
            yield from (name or None for name in form.mark.findall(part))


def join_parts(turn: ParsedTurn, form: MarkForm) -> tuple[str, int]:
    """Return the text of a turn with its images as ``IMAGE_MARK``, and how many there are.

    Texts of answers are not searched for marks.
    """
    count, texts = 0, []
    for part in turn.parts:
        if isinstance(part, ImagePart):
            count += 1
            texts.append(IMAGE_MARK)
        elif turn.role == "assistant" or "<" not in part:
            texts.append(part)
        else:
            text, marks = form.mark.subn(IMAGE_MARK, part)
            count += marks
            texts.append(text)
    return "\n".join(texts), count


def join_parts_without_marks(turn: ParsedTurn, form: MarkForm) -> str:
    """Return the text of a turn without its images."""
    text = join_texts(turn)
    if turn.role == "user" and "<" in text:
        text = form.with_space.sub(" ", text)
    return text.strip()
