"""Conversations about images, as LLaVA, ShareGPT and chat APIs write them: JSON or JSON Lines.

    {"id": "7", "image": "a/b.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                       {"from": "gpt", "value": "A shelf."}]}
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a/b.jpg"},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A shelf."}]}

A row names one image. Each question with its answer becomes an interaction of one record or, for a
freeform dataset, its own record. The mark ``<image>`` is removed from the texts. System turns are
ignored, which is reported once per file.
"""

import re
from collections.abc import Iterator
from typing import Any

from runyard.datasets.findings import ReportFinding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.json_rows import read_json_rows
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.records import (
    AssetRef,
    Contents,
    DatasetType,
    Freeform,
    Interaction,
    Record,
    Vqa,
)
from runyard.datasets.sources import Source
from runyard.datasets.splits import find_row_split

_TURNS = re.compile(rb'"(?:conversations?|messages)"\s*:\s*\[')
_MARK = re.compile(r"[ \t]*\n?<(?:image|img|image_placeholder)>(?:</(?:image|img)>)?\n?[ \t]*")
_QUESTION_ROLES = frozenset(("human", "user"))
_ANSWER_ROLES = frozenset(("gpt", "assistant", "model", "chatgpt", "bot"))
_LISTS = ("conversations", "conversation", "messages")
_IMAGES = ("image", "images", "image_path", "image_file", "img")

Turns = list[tuple[str, str]]


class ConversationsReader:
    """The reader of LLaVA and ShareGPT conversations."""

    name = "Conversations"
    types: tuple[DatasetType, ...] = ("vqa", "freeform")

    def detect(self, source: Source) -> list[str]:
        return [path for path in source.paths() if _is_conversation(source, path)]

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        for file in files:
            if not source.size_bytes(file):
                SourceLocation(file, report).report(
                    "FileEmpty", "the file has no bytes", action="FileRejected"
                )
                continue
            has_reported_system = False
            for number, (location, row) in enumerate(
                read_json_rows(source, file, SourceLocation(file, report)), start=1
            ):
                if not has_reported_system and _has_system(row):
                    has_reported_system = True
                    cause = "system turns are ignored; a flow has its own system prompt"
                    location.report(
                        "FileIgnored",
                        cause,
                        fix="copy it into the flow's system prompt if it matters",
                    )
                yield from _build_rows(source, location, row, task, number)


def _is_conversation(source: Source, path: str) -> bool:
    if not path.lower().endswith((".json", ".jsonl")) or path.lower().endswith("metadata.jsonl"):
        return False
    with source.open(path) as file:
        return _TURNS.search(file.read(1024)) is not None


def _has_system(row: dict[str, Any]) -> bool:
    turns: list[Any] = next((row[key] for key in _LISTS if isinstance(row.get(key), list)), [])
    return any(
        isinstance(turn, dict) and turn.get("role", turn.get("from")) == "system" for turn in turns
    )


def _build_rows(
    source: Source, location: SourceLocation, row: dict[str, Any], task: DatasetType, number: int
) -> Iterator[Row]:
    name = find_image_name(row, location)
    turns = parse_turns(row, location) if name is not None else None
    if name is None or turns is None:
        return
    facts = source.find_image(name, relative_to=location.file)
    asset = AssetRef(filename=facts.path, width=facts.width, height=facts.height) if facts else None
    identity = row.get("id", row.get("question_id", f"{location.file}:{location.line or number}"))
    for part, contents in enumerate(build_contents(turns, task), start=1):
        record = Record(
            id=str(identity) if part == 1 else f"{identity}-{part}",
            asset=asset or AssetRef(filename=name, width=0, height=0),
            contents=contents,
            split=find_row_split(row),
        )
        yield Row(record, location.file, location.line, location.field)


def build_contents(turns: Turns, task: DatasetType) -> list[Contents]:
    """Build one record's questions and answers, or one freeform text per question."""
    if task == "freeform":
        return [Freeform(prompt=asked, text=answered) for asked, answered in turns]
    return [
        Vqa(
            interactions=[
                Interaction(order=n, question=q, answer=a)
                for n, (q, a) in enumerate(turns, start=1)
            ]
        )
    ]


def parse_turns(row: dict[str, Any], location: SourceLocation) -> Turns | None:
    """Parse the questions with their answers; None if the row has none, which is reported."""
    key = next((key for key in _LISTS if key in row), None)
    if key is None:
        location.report("FieldMissing", f"it has none of the fields {', '.join(_LISTS)}")
        return None
    listed = row[key]
    if not isinstance(listed, list) or not listed:
        location.report("FieldInvalid", "not a list of turns", field=key, value=listed)
        return None
    turns: Turns = []
    asked: str | None = None
    for number, turn in enumerate(listed):
        parsed = _parse_turn(turn, location, f"{key}[{number}]")
        if parsed is None:
            return None
        speaker, text = parsed
        if speaker == "system":
            continue
        if (speaker == "asks") != (asked is None):
            location.report(
                "ConversationInvalid", _explain_order(asked), field=f"{key}[{number}]", value=text
            )
            return None
        if asked is None:
            asked = text
        else:
            turns.append((asked, text))
            asked = None
    if asked is not None or not turns:
        location.report(
            "ConversationInvalid", "the last question has no answer", field=key, value=asked
        )
        return None
    return turns


def _explain_order(asked: str | None) -> str:
    return (
        "an answer without a question before it"
        if asked is None
        else "two questions without an answer between them"
    )


def _parse_turn(turn: Any, location: SourceLocation, field: str) -> tuple[str, str] | None:
    if not isinstance(turn, dict):
        location.report(
            "FieldInvalid",
            "a turn is an object with from and value, or role and content",
            field=field,
            value=turn,
        )
        return None
    role = turn.get("from", turn.get("role"))
    text = _extract_text(turn.get("value", turn.get("content")))
    if text is None:
        location.report(
            "FieldInvalid",
            "the turn has no text",
            field=field,
            value=turn.get("value", turn.get("content")),
        )
        return None
    speaker = str(role).lower()
    if speaker == "system":
        return "system", text
    if speaker not in _QUESTION_ROLES | _ANSWER_ROLES:
        location.report(
            "ConversationInvalid",
            "the speaker is neither human nor assistant",
            field=field,
            value=role,
        )
        return None
    return "asks" if speaker in _QUESTION_ROLES else "answers", strip_image_marks(text)


def _extract_text(content: Any) -> str | None:
    """Return the text of a turn, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [
        part if isinstance(part, str) else part.get("text")
        for part in content
        if isinstance(part, str | dict)
    ]
    return "\n".join(part for part in parts if isinstance(part, str))


def strip_image_marks(text: str) -> str:
    """Remove the marks that stand for the image."""
    return _MARK.sub(" ", text).strip() if "<im" in text else text.strip()


def find_image_name(row: dict[str, Any], location: SourceLocation) -> str | None:
    """Return the name of the row's image; None if it has none or several, which is reported."""
    named = [(key, name) for key in _IMAGES for name in _as_list(row.get(key))]
    named = named or [(key, name) for key in _LISTS for name in _iter_image_parts(row.get(key))]
    names = list(dict.fromkeys(name for _, name in named if isinstance(name, str) and name))
    if not named:
        location.report("FieldMissing", "the row does not name an image", field="image")
    elif not names:
        location.report(
            "FieldInvalid", "not the name of an image", field=named[0][0], value=named[0][1]
        )
    elif len(names) > 1:
        cause = f"the row names {len(names)} images; one is expected"
        location.report(
            "FieldInvalid", cause, field=named[0][0], value=names, fix="write one row per image"
        )
    elif ":" in names[0].split("/")[0]:
        cause = "images are referred to by file name, not by URL"
        location.report(
            "FieldInvalid",
            cause,
            field=named[0][0],
            value=names[0],
            fix="send the image and name its file",
        )
    else:
        return names[0]
    return None


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _iter_image_parts(turns: Any) -> Iterator[Any]:
    for turn in turns if isinstance(turns, list) else []:
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and str(part.get("type", "")).startswith("image"):
                value = part.get("image", part.get("path", part.get("url", part.get("image_url"))))
                yield value.get("url") if isinstance(value, dict) else value
