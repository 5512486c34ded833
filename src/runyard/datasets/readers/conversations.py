"""Conversations about images, as LLaVA, ShareGPT, LLaMA-Factory, ms-swift and chat APIs write them:
JSON or JSON Lines.

    {"id": "7", "image": "a/b.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                       {"from": "gpt", "value": "A shelf."}]}
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a/b.jpg"},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A shelf."}]}
    {"images": ["a.jpg", "b.jpg"],
     "messages": [{"role": "user", "content": "<image><image>Which is larger?"},
                  {"role": "assistant", "content": "The second."}]}
    {"conversations": [{"from": "user", "value": "Picture 1: <img>a/b.jpg</img>\\nWhat is this?"},
                       {"from": "assistant", "value": "A shelf."}]}

Each row becomes one record. A single question about a single image is a ``Vqa`` or, in a freeform
dataset, a ``Freeform``. Everything else (several questions, a system turn, several images) is a
``Conversation``. In a conversation about a single image that comes first, the mark ``<image>`` is
removed. Otherwise the marks stay, because they say where each image belongs. The text of answers is
never changed, except that the placeholders of ms-swift (``<ref-object>`` and ``<bbox>``, with their
values in ``objects``) are replaced in every turn.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runyard.datasets.findings import ReportFinding
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.json_rows import read_json_rows
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.records import (
    IMAGE_MARK,
    AssetRef,
    Contents,
    Conversation,
    DatasetType,
    Freeform,
    Interaction,
    Record,
    Role,
    Turn,
    Vqa,
    explain_marks,
    find_turn_problem,
)
from runyard.datasets.sources import Source

_TURNS = re.compile(rb'"(?:conversations?|messages)"\s*:\s*\[')
_HEAD_BYTES = 1024
_LONG_HEAD_BYTES = 1 << 20
_MAX_LONG_HEADS = 64  # files of which more than the first KiB is read to detect the format
_JSON_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:\s*\[)?|[\[\]{}]', re.DOTALL)
_LISTS = ("conversations", "conversation", "messages")
_IMAGES = ("image", "images", "image_path", "image_file", "img")
_MEDIA = ("video", "videos", "audio", "audios")
_UNREAD = ("system", "tools")
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bot"), "assistant"),
}

_MARK = re.compile(r"[ \t]*\n?<(?:image|img|image_placeholder)>(?:</(?:image|img)>)?\n?[ \t]*")
# The forms of marks. A row uses one of them: the first that its user turns contain. Group 1 is the
# name of the image, if the mark has one.
_NAMED_MARK = r"<img>([^<>\n]{1,1024})</img>"
_MARK_FORMS = (
    r"<image>()(?:</image>)?",
    _NAMED_MARK,
    r"<img>()(?:</img>)?",
    r"<image_placeholder>()",
    r"<\|vision_start\|><\|image_pad\|><\|vision_end\|>()",
)
_LABEL = r"(?:^(?:Pict|Im)[a-z]{1,4} \d{1,4}: ?)?"  # what Qwen-VL writes before its tags
_PLACEHOLDER = re.compile(r"<ref-object>|<bbox>")
_TEXT_BOX = re.compile(r'<\|?(?:box|quad)(?:_start)?\|?>|<loc\d{4}>|"bbox_2d"')
BOXES_IN_TEXT = "boxes within texts are kept as text; they are not rotated or scaled with the image"


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


class ConversationsReader:
    """The reader of LLaVA and ShareGPT conversations."""

    name = "Conversations"
    types: tuple[DatasetType, ...] = ("vqa", "freeform")

    def detect(self, source: Source) -> list[str]:
        """List the files with turns; of at most 64 files more than the first KiB is read."""
        found, long_heads = [], 0
        for path in source.paths():
            name = path.lower()
            if not name.endswith((".json", ".jsonl")) or name.endswith("metadata.jsonl"):
                continue
            with source.open(path) as file:
                head = file.read(_HEAD_BYTES)
                if _TURNS.search(head) is not None:
                    found.append(path)
                elif len(head) == _HEAD_BYTES and long_heads < _MAX_LONG_HEADS:
                    long_heads += 1
                    if _has_turns(head + file.read(_LONG_HEAD_BYTES - _HEAD_BYTES)):
                        found.append(path)
        return found

    def read(
        self, source: Source, files: list[str], task: DatasetType, report: ReportFinding
    ) -> Iterator[Row]:
        for file in files:
            location = SourceLocation(file, report)
            if not source.size_bytes(file):
                location.report("FileEmpty", "the file has no bytes", action="FileRejected")
                continue
            reported: set[str] = set()
            for number, (row_location, row) in enumerate(
                read_json_rows(source, file, location), start=1
            ):
                _report_unread(row, row_location, reported)
                found = _build_row(source, row_location, row, task, number)
                if found is None:
                    continue
                if has_boxes_in_text(found.record.contents, row) and "boxes" not in reported:
                    reported.add("boxes")
                    row_location.report("BoxesInText", BOXES_IN_TEXT)
                yield found


def _has_turns(head: bytes) -> bool:
    """Return whether a row in the head of the file has a field of turns.

    Only fields of a row itself count: other formats may have the same words deeper down.
    """
    text = head.decode(errors="replace").lstrip("\ufeff \t\r\n")
    if _TURNS.search(head) is None or text[:1] not in ("[", "{"):
        return False
    depth, expected = 0, 2 if text.startswith("[") else 1
    for token in _JSON_TOKEN.finditer(text):
        mark = token.group()
        if mark in ("[", "{"):
            depth += 1
        elif mark in ("]", "}"):
            depth -= 1
        elif depth == expected and token.group(2) and token.group(1) in _LISTS:
            return True
    return False


def _report_unread(row: Mapping[str, Any], location: SourceLocation, reported: set[str]) -> None:
    """Report the fields that are not read, once per file."""
    for key in _UNREAD:
        if row.get(key) and key not in reported:
            reported.add(key)
            location.report(
                "FileIgnored",
                f"the field {key!r} is not read; a flow has its own system prompt",
                field=key,
                fix="to keep it, write it as the first turn, with the role system",
            )


def _build_row(
    source: Source, location: SourceLocation, row: dict[str, Any], task: DatasetType, number: int
) -> Row | None:
    """Build the record of a row; None if it cannot be read, which is reported."""
    for key in _MEDIA:
        if row.get(key):
            location.report("FieldInvalid", "only images are supported", field=key, value=row[key])
            return None
    turns = parse_turns(row, location)
    names = None if turns is None else find_image_names(row, turns, location)
    if turns is None or names is None:
        return None
    contents = build_conversation(turns, task, location, images=names)
    if contents is None:
        return None
    facts = source.find_image(names[0], relative_to=location.file)
    asset = AssetRef(filename=facts.path, width=facts.width, height=facts.height) if facts else None
    identity = row.get("id", row.get("question_id", f"{location.file}:{location.line or number}"))
    record = Record(
        id=str(identity),
        asset=asset or AssetRef(filename=names[0], width=0, height=0),
        contents=contents,
    )
    return Row(record, location.file, location.line, location.field)


# Contents -----------------------------------------------------------------------------------------


def build_contents(pairs: list[tuple[str, str]], task: DatasetType) -> list[Contents]:
    """Build one record's independent questions and answers, or one freeform text per question."""
    if task == "freeform":
        return [Freeform(prompt=asked, text=answered) for asked, answered in pairs]
    return [
        Vqa(
            interactions=[
                Interaction(order=n, question=q, answer=a)
                for n, (q, a) in enumerate(pairs, start=1)
            ]
        )
    ]


def build_conversation(
    turns: Turns, task: DatasetType, location: SourceLocation, *, images: list[str]
) -> Contents | None:
    """Build the contents of a row's turns; None if they are inconsistent, which is reported.

    ``images`` has the name of every image in order; at least one.
    """
    form = _find_mark_form(turns)
    marks = 0
    for turn in turns:
        text, count = _join_parts(turn, form)
        if count and turn.role != "user":
            why = f"an image in a turn of the role {turn.role}; images belong to user turns"
            location.report("ConversationInvalid", why, field=turn.field, value=text)
            return None
        marks += count
    if cause := explain_marks(marks, len(images)):
        location.report(
            "ConversationInvalid",
            cause,
            field=turns[0].field.partition("[")[0],
            fix=f"write one {IMAGE_MARK} for each image, where it belongs",
        )
        return None
    plain = [_join_parts_without_marks(turn, form) for turn in turns]
    if len(turns) == 2 and len(images) == 1:
        return build_contents([(plain[0], plain[1])], task)[0]
    if len(images) == 1 and _starts_with_mark(turns, form):
        texts = plain  # the mark says nothing there
        first = next(number for number, turn in enumerate(turns) if turn.role == "user")
        texts[first] = texts[first] or IMAGE_MARK
    else:
        texts = [_join_parts(turn, form)[0].strip() for turn in turns]
    return Conversation(
        images=images if len(images) > 1 else [],
        turns=[Turn(turn.role, text) for turn, text in zip(turns, texts, strict=True)],
    )


def has_boxes_in_text(contents: Contents, row: Mapping[str, Any]) -> bool:
    """Return whether texts of the contents have boxes in one of the known notations."""
    if isinstance(contents, Vqa):
        texts = [text for one in contents.interactions for text in (one.question, one.answer)]
    elif isinstance(contents, Freeform):
        texts = [contents.prompt, contents.text]
    else:
        texts = [turn.content for turn in getattr(contents, "turns", ())]
    _, boxes = _read_objects(row.get("objects")) or ([], [])
    return any(
        _TEXT_BOX.search(text) is not None or any(box in text for box in boxes) for text in texts
    )


# Turns --------------------------------------------------------------------------------------------


def parse_turns(row: Mapping[str, Any], location: SourceLocation) -> Turns | None:
    """Parse the turns of a row; None if they cannot be used, which is reported.

    An empty system turn is left out. Placeholders are filled in.
    """
    key = next((key for key in _LISTS if row.get(key) is not None), None)
    if key is None:
        location.report("FieldMissing", f"it has none of the fields {', '.join(_LISTS)}")
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
            value=_join_texts(at) if at else None,
        )
        return None
    return _fill_placeholders(turns, row, location)


def _is_empty(turn: ParsedTurn) -> bool:
    return all(isinstance(part, str) and not part.strip() for part in turn.parts)


def _parse_turn(turn: Any, location: SourceLocation, field: str) -> ParsedTurn | None:
    if not isinstance(turn, Mapping):
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
    if not isinstance(part, Mapping):
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
        name = _get_name(named)
        return None if name is None else ImagePart(name)
    return None


def _get_name(value: Any) -> str | None:
    """Return the name of an image, which may be within an object; None if there is none."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("path", "url", "image") if value.get(key)), None)
    return value if isinstance(value, str) and value else None


# Placeholders -------------------------------------------------------------------------------------


def _fill_placeholders(
    turns: Turns, row: Mapping[str, Any], location: SourceLocation
) -> Turns | None:
    """Replace each ``<ref-object>`` by its name and each ``<bbox>`` by its numbers, in order.

    Numbers are written as in the row. Return None if the counts differ, which is reported.
    """
    texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
    found = [mark for text in texts for mark in _PLACEHOLDER.findall(text)]
    if not found:
        return turns
    objects = _read_objects(row.get("objects"))
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


def _read_objects(objects: Any) -> tuple[list[str], list[str]] | None:
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


# Marks and names of images ------------------------------------------------------------------------


def strip_image_marks(text: str) -> str:
    """Remove the marks that stand for the image."""
    return _MARK.sub(" ", text).strip() if "<im" in text else text.strip()


def find_image_names(
    row: Mapping[str, Any], turns: Turns, location: SourceLocation
) -> list[str] | None:
    """Return the names of the row's images in order; None if there are none, which is reported.

    They are in fields of the row or in its turns. If they are in both, they must agree.
    """
    listed: list[tuple[str, list[str]]] = []
    for key in _IMAGES:
        given = row.get(key)
        if given is None or given == []:
            continue
        values = given if isinstance(given, list) else [given]
        names = [name for name in map(_get_name, values) if name is not None]
        if len(names) < len(values):
            location.report("FieldInvalid", "not the name of an image", field=key, value=given)
            return None
        listed.append((key, names))
    form = _find_mark_form(turns)
    within = [name for turn in turns if turn.role == "user" for name in _list_names(turn, form)]
    named = [name for name in within if name is not None]
    if named:
        listed.append((turns[0].field.partition("[")[0], named))
    if not listed:
        cause = "the row does not name an image; no flow trains on texts alone"
        fix = "name the row's image, or leave such rows out"
        location.report("FieldMissing", cause, field="image", fix=fix)
        return None
    first, names = listed[0]
    for other, others in listed[1:]:
        if others != names:
            cause = f"the fields {first} and {other} name different images"
            location.report("FieldInvalid", cause, field=other, value=others)
            return None
    return names


def _find_mark_form(turns: Turns) -> str:
    """Return the pattern of the marks in the row's texts.

    Where images are parts of turns, only ``<image>`` is a mark.
    """
    has_parts = any(isinstance(part, ImagePart) for turn in turns for part in turn.parts)
    if has_parts:
        return _MARK_FORMS[0]
    texts = [part for turn in turns if turn.role == "user" for part in turn.parts]
    return next(
        (
            form
            for form in _MARK_FORMS
            if any(isinstance(text, str) and re.search(form, text) for text in texts)
        ),
        _MARK_FORMS[0],
    )


def _list_names(turn: ParsedTurn, form: str) -> Iterator[str | None]:
    for part in turn.parts:
        if isinstance(part, ImagePart):
            yield part.name
        else:
            yield from (name or None for name in re.findall(form, part))


def _starts_with_mark(turns: Turns, form: str) -> bool:
    first = next(turn for turn in turns if turn.role == "user")
    text, _ = _join_parts(first, form)
    label = _LABEL if form == _NAMED_MARK else ""
    return re.match(rf"{label}{re.escape(IMAGE_MARK)}", text.lstrip()) is not None


def _join_parts(turn: ParsedTurn, form: str) -> tuple[str, int]:
    """Return the text of a turn with its images as ``IMAGE_MARK``, and how many there are.

    Texts of answers are not searched for marks.
    """
    count, texts = 0, []
    for part in turn.parts:
        if isinstance(part, ImagePart):
            count += 1
            texts.append(IMAGE_MARK)
        elif turn.role == "assistant":
            texts.append(part)
        else:
            text, marks = re.subn(form, IMAGE_MARK, part)
            count += marks
            texts.append(text)
    return "\n".join(texts), count


def _join_parts_without_marks(turn: ParsedTurn, form: str) -> str:
    text = _join_texts(turn)
    if turn.role == "user":
        label = _LABEL if form == _NAMED_MARK else ""
        text = re.sub(rf"[ \t]*\n?{label}{form}\n?[ \t]*", " ", text, flags=re.MULTILINE)
    return text.strip()


def _join_texts(turn: ParsedTurn) -> str:
    return "\n".join(part for part in turn.parts if isinstance(part, str))
