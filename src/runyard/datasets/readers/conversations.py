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
    {"images": [], "messages": [{"role": "user", "content": "What is a shelf?"},
                                {"role": "assistant", "content": "A board for things."}]}
    {"conversations": [{"from": "user", "value": "Picture 1: <img>a/b.jpg</img>\\nWhat is this?"},
                       {"from": "assistant", "value": "A shelf."}]}

Each row becomes one record. A single question about a single image is a ``Vqa`` or, in a freeform
dataset, a ``Freeform``. Everything else (several questions, a system turn, several images) is a
``Conversation``. In a conversation about a single image that comes first, the mark ``<image>`` is
removed. Otherwise the marks stay, because they say where each image belongs. A row of text only,
whose list of images is empty, gets an image that stands for it. The text of answers is
never changed, except that the placeholders of ms-swift (``<ref-object>`` and ``<bbox>``, with their
values in ``objects``) are replaced in every turn.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from runyard.datasets.findings import ReportFinding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.image_marks import (
    find_image_names,
    find_mark_form,
    join_parts,
    join_parts_without_marks,
)
from runyard.datasets.readers.json_rows import read_json_rows
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.sniffing import JsonForm, sniff_json
from runyard.datasets.readers.stand_ins import make_stand_in, name_stand_in
from runyard.datasets.readers.turns import LISTS, Turns, parse_turns, read_objects
from runyard.datasets.records import (
    IMAGE_MARK,
    AssetRef,
    Contents,
    Conversation,
    DatasetType,
    Freeform,
    Interaction,
    Record,
    Turn,
    Vqa,
    explain_marks,
)
from runyard.datasets.sources import Source
from runyard.datasets.splits import find_row_split

_MEDIA = ("video", "videos", "audio", "audios")
_UNREAD = {
    "system": "a flow has its own system prompt; write it as the first turn to keep it",
    "tools": "the use of tools is not supported",
}
TEXT_BOX = re.compile(r'<\|?(?:box|quad)(?:_start)?\|?>|<loc\d{4}>|"bbox_2d"')
BOXES_IN_TEXT = "boxes within texts are kept as text; they are not rotated or scaled with the image"


class ConversationsReader:
    """The reader of LLaVA and ShareGPT conversations."""

    name = "Conversations"
    types: tuple[DatasetType, ...] = ("vqa", "freeform")

    def detect(self, source: Source) -> list[str]:
        return [
            path
            for path in source.paths()
            if not path.lower().endswith("metadata.jsonl") and _has_turns(sniff_json(source, path))
        ]

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
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
                if "boxes" not in reported and has_boxes_in_text(found.record.contents, row):
                    reported.add("boxes")
                    row_location.report("BoxesInText", BOXES_IN_TEXT)
                yield found


def _has_turns(form: JsonForm | None) -> bool:
    """Return whether the first row of the file has a field of turns."""
    return form is not None and any(
        key in form.keys and isinstance(form.values.get(key, []), list) for key in LISTS
    )


def _report_unread(row: Mapping[str, Any], location: SourceLocation, reported: set[str]) -> None:
    """Report the fields that are not read, once per file."""
    for key, why in _UNREAD.items():
        if row.get(key) and key not in reported:
            reported.add(key)
            fix = "none needed if the field is not needed"
            location.report(
                "FileIgnored", f"the field {key!r} is not read: {why}", field=key, fix=fix
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
    if not names:
        path = name_stand_in(location.file, number)
        source.add_image(path, make_stand_in(), found_in=location.file, line=location.line)
        names = [path]
    identity = row.get("id", row.get("question_id", f"{location.file}:{location.line or number}"))
    record = Record(
        id=str(identity),
        asset=AssetRef(filename=names[0], width=0, height=0),
        contents=contents,
        split=find_row_split(row),
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

    ``images`` has the name of every image in order; it is empty for a row of text only.
    """
    form = find_mark_form(turns)
    marked, marks = [], 0
    for turn in turns:
        text, count = join_parts(turn, form)
        if count and turn.role != "user":
            why = f"an image in a turn of the role {turn.role}; images belong to user turns"
            location.report("ConversationInvalid", why, field=turn.field, value=text)
            return None
        marked.append(text)
        marks += count
    if cause := explain_marks(marks, len(images)):
        location.report(
            "ConversationInvalid",
            cause,
            field=turns[0].field.partition("[")[0],
            fix=f"write one {IMAGE_MARK} for each image, where it belongs",
        )
        return None
    if not images:
        return Conversation(turns=_make_turns(turns, marked), is_text_only=True)
    if len(images) > 1:
        return _make_conversation(turns, marked, images)
    plain = [join_parts_without_marks(turn, form) for turn in turns]
    if len(turns) == 2:
        return build_contents([(plain[0], plain[1])], task)[0]
    first = 1 if turns[0].role == "system" else 0
    if form.start.match(marked[first]) is None:
        return _make_conversation(turns, marked, [])
    plain[first] = plain[first] or IMAGE_MARK  # else the mark says nothing there
    return _make_conversation(turns, plain, [])


def _make_conversation(turns: Turns, texts: list[str], images: list[str]) -> Conversation:
    return Conversation(images=images, turns=_make_turns(turns, texts))


def _make_turns(turns: Turns, texts: list[str]) -> list[Turn]:
    return [Turn(turn.role, text.strip()) for turn, text in zip(turns, texts, strict=True)]


def has_boxes_in_text(contents: Contents, row: Mapping[str, Any]) -> bool:
    """Return whether texts of the contents have boxes in one of the known notations."""
    if isinstance(contents, Vqa):
        texts = [text for one in contents.interactions for text in (one.question, one.answer)]
    elif isinstance(contents, Freeform):
        texts = [contents.prompt, contents.text]
    else:
        texts = [turn.content for turn in getattr(contents, "turns", ())]
    text = "\n".join(texts)
    if TEXT_BOX.search(text) is not None:
        return True
    _, boxes = read_objects(row["objects"]) or ([], []) if "objects" in row else ([], [])
    return any(box in text for box in boxes)
