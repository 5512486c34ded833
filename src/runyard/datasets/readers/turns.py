"""The turns of a row, as LLaVA, ShareGPT, LLaMA-Factory, ms-swift and chat APIs write them.

A turn has ``from`` and ``value``, or ``role`` and ``content``. Its content is a text, or a list of
texts and images. The placeholders of ms-swift, ``<ref-object>`` and ``<bbox>``, are replaced by
their values, which are in the field ``objects`` of the row.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.records import Conversation, Role, Turn, find_turn_problem

LISTS = ("conversations", "conversation", "messages")
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bot"), "assistant"),
}

_PLACEHOLDER = re.compile(r"<ref-object>|<bbox>")


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image among the parts of a turn; ``name`` is None if only its position is given."""

    name: str | None


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """A turn of a row: texts and images in their order."""

    role: Role
    parts: list[str | ImagePart]
    field: str


Turns = list[ParsedTurn]


def parse_turns(row: Mapping[str, Any], location: SourceLocation) -> Turns | None:
    """Parse the turns of a row; None if they cannot be used, which is reported.

    An empty system turn is left out. Placeholders are filled in.
    """
    key = next((key for key in LISTS if row.get(key) is not None), None)
    if key is None:
        location.report("FieldMissing", f"it has none of the fields {', '.join(LISTS)}")
        return None
    listed = row[key]
    if not isinstance(listed, list) or not listed:
        location.report("FieldInvalid", "not a list of turns", field=key, value=listed)
        return None
    turns: Turns = []
    for number, turn in enumerate(listed):
        parsed = _parse_turn(turn, location, f"{key}[{number}]")
        if parsed is None:
            return None
        if parsed.role != "system" or not _is_empty(parsed):
            turns.append(parsed)
    problem = find_turn_problem(Conversation(turns=[Turn(turn.role, "") for turn in turns]))
    if problem is not None:
        cause, index = problem
        at = turns[index] if turns else None
        location.report(
            "ConversationInvalid",
            cause,
            field=at.field if at else key,
            value=join_texts(at) if at else None,
        )
        return None
    return _fill_placeholders(turns, row, location)


def _is_empty(turn: ParsedTurn) -> bool:
    return all(isinstance(part, str) and not part.strip() for part in turn.parts)


def _parse_turn(turn: Any, location: SourceLocation, field: str) -> ParsedTurn | None:
    if not isinstance(turn, dict):
        location.report(
            "FieldInvalid",
            "a turn is an object with from and value, or role and content",
            field=field,
            value=turn,
        )
        return None
    name = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    parts = _parse_parts(content, location, field)
    if parts is None:
        return None
    role = _ROLES.get(str(name).lower())
    if role is None:
        location.report(
            "ConversationInvalid",
            "the speaker is neither human nor assistant",
            field=field,
            value=name,
        )
        return None
    return ParsedTurn(role, parts, field)


def _parse_parts(
    content: Any, location: SourceLocation, field: str
) -> list[str | ImagePart] | None:
    """Parse the content of a turn, which is a string or a list of parts."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        location.report("FieldInvalid", "the turn has no text", field=field, value=content)
        return None
    parts: list[str | ImagePart] = []
    for number, part in enumerate(content):
        parsed = _parse_part(part)
        if parsed is None:
            cause = "a part of a turn is a text or an image"
            location.report("FieldInvalid", cause, field=f"{field}.content[{number}]", value=part)
            return None
        parts.append(parsed)
    return parts


def _parse_part(part: Any) -> str | ImagePart | None:
    """Parse one part; None if it is neither a text nor an image."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return None
    kind = part.get("type")
    if kind is None:
        kind = next((key for key in ("text", "image", "image_url") if part.get(key)), "")
    kind = str(kind).removeprefix("input_").removeprefix("output_")
    if kind == "text":
        text = part.get("text", part.get("value"))
        return text if isinstance(text, str) else None
    if kind.startswith("image"):
        keys = ("image", "path", "url", "image_url", "value")
        named = next((part[key] for key in keys if part.get(key)), None)
        if named is None:
            return ImagePart(None)
        name = get_image_name(named)
        return None if name is None else ImagePart(name)
    return None


def get_image_name(value: Any) -> str | None:
    """Return the name of an image, which may be within an object; None if there is none."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("path", "url", "image") if value.get(key)), None)
    return value if isinstance(value, str) and value else None


def join_texts(turn: ParsedTurn) -> str:
    return "\n".join(part for part in turn.parts if isinstance(part, str))


# Placeholders -------------------------------------------------------------------------------------


def _fill_placeholders(
    turns: Turns, row: Mapping[str, Any], location: SourceLocation
) -> Turns | None:
    """Replace each ``<ref-object>`` by its name and each ``<bbox>`` by its numbers, in order.

    Numbers are written as in the row. Return None if the counts differ, which is reported.
    """
    found = [
        mark
        for turn in turns
        for part in turn.parts
        if isinstance(part, str) and "<" in part
        for mark in _PLACEHOLDER.findall(part)
    ]
    if not found:
        return turns
    objects = read_objects(row.get("objects"))
    if objects is None:
        cause = (
            "the turns have placeholders, which need objects with ref (names) and bbox (lists of 2 "
            "or 4 numbers)"
        )
        location.report("FieldInvalid", cause, field="objects", value=row.get("objects"))
        return None
    for mark, values, name in (
        ("<ref-object>", objects[0], "ref"),
        ("<bbox>", objects[1], "bbox"),
    ):
        if found.count(mark) != len(values):
            location.report(
                "ConversationInvalid",
                f"the turns have {found.count(mark)} {mark}, but objects has {len(values)} {name}",
                field="objects",
                fix=f"write one {mark} for each {name}",
            )
            return None
    left = {"<ref-object>": iter(objects[0]), "<bbox>": iter(objects[1])}

    def fill(text: str) -> str:
        return _PLACEHOLDER.sub(lambda mark: next(left[mark.group()]), text)

    return [
        ParsedTurn(
            turn.role,
            [fill(part) if isinstance(part, str) else part for part in turn.parts],
            turn.field,
        )
        for turn in turns
    ]


def read_objects(objects: Any) -> tuple[list[str], list[str]] | None:
    """Return the names and the boxes of ``objects`` as texts; None if it is malformed.

    ``objects`` is a struct of lists, a list of structs, or either as a JSON text.
    """
    if isinstance(objects, str):
        try:
            objects = json.loads(objects)
        except (ValueError, RecursionError):
            return None
    if isinstance(objects, list) and all(isinstance(item, Mapping) for item in objects):
        objects = {
            "ref": [item[key] for item in objects for key in ("ref", "caption") if key in item],
            "bbox": [item["bbox"] for item in objects if "bbox" in item],
        }
    if not isinstance(objects, Mapping):
        return None
    refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
    if not isinstance(refs, list) or not all(isinstance(name, str) for name in refs):
        return None
    if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
        return None
    return refs, [json.dumps(box) for box in boxes]


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (2, 4)
        and all(type(number) in (int, float) for number in value)
    )
