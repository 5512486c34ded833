"""Talks about pictures, as LLaVA, ShareGPT and chat APIs write them, in one JSON array or in JSON Lines.

    {"id": "7", "image": "a/b.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                      {"from": "gpt", "value": "A shelf."}]}
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a/b.jpg"},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A shelf."}]}

A row names one picture. Each question with its answer becomes an interaction of one record, or, for a freeform dataset,
a record of its own. The mark ``<image>`` is taken out of the texts; what a system turn says is not taken, and told once
a file.
"""

import re
from collections.abc import Iterator
from typing import Any

from runyard.datasets.findings import Say
from runyard.datasets.readers import Row
from runyard.datasets.readers.json_rows import json_rows
from runyard.datasets.readers.places import Place
from runyard.datasets.records import AssetRef, Contents, DatasetType, Freeform, Interaction, Record, Vqa
from runyard.datasets.sources import Source

_TURNS = re.compile(rb'"(?:conversations?|messages)"\s*:\s*\[')
_MARK = re.compile(r"[ \t]*\n?<(?:image|img|image_placeholder)>(?:</(?:image|img)>)?\n?[ \t]*")
_ASKS = frozenset(("human", "user"))
_ANSWERS = frozenset(("gpt", "assistant", "model", "chatgpt", "bot"))
_LISTS = ("conversations", "conversation", "messages")
_IMAGES = ("image", "images", "image_path", "image_file", "img")

Talk = list[tuple[str, str]]


class Conversations:
    """LLaVA and ShareGPT conversations."""

    name = "Conversations"
    types: tuple[DatasetType, ...] = ("vqa", "freeform")

    def claims(self, source: Source) -> list[str]:
        return [path for path in source.paths() if _is_talk(source, path)]

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        for file in files:
            if not source.size_bytes(file):
                Place(file, say).say("FileEmpty", "the file has no bytes", action="FileRejected")
                continue
            has_told_system = False
            for number, (place, row) in enumerate(json_rows(source, file, Place(file, say)), start=1):
                if not has_told_system and _has_system(row):
                    has_told_system = True
                    cause = "what system turns say is not taken; a recipe has a system prompt of its own"
                    place.say("FileIgnored", cause, cure="write it into the recipe's prompt if it matters")
                yield from _rows(source, place, row, task, number)


def _is_talk(source: Source, path: str) -> bool:
    if not path.lower().endswith((".json", ".jsonl")) or path.lower().endswith("metadata.jsonl"):
        return False
    with source.open(path) as file:
        return _TURNS.search(file.read(1024)) is not None


def _has_system(row: dict[str, Any]) -> bool:
    turns: list[Any] = next((row[key] for key in _LISTS if isinstance(row.get(key), list)), [])
    return any(isinstance(turn, dict) and turn.get("role", turn.get("from")) == "system" for turn in turns)


def _rows(source: Source, place: Place, row: dict[str, Any], task: DatasetType, number: int) -> Iterator[Row]:
    name = picture_of(row, place)
    talk = turns_of(row, place) if name is not None else None
    if name is None or talk is None:
        return
    facts = source.image(name, beside=place.file)
    asset = AssetRef(filename=facts.path, width=facts.width, height=facts.height) if facts else None
    identity = row.get("id", row.get("question_id", f"{place.file}:{place.line or number}"))
    for part, contents in enumerate(contents_of(talk, task), start=1):
        record = Record(
            id=str(identity) if part == 1 else f"{identity}-{part}",
            asset=asset or AssetRef(filename=name, width=0, height=0),
            contents=contents,
        )
        yield Row(record, place.file, place.line, place.field)


def contents_of(talk: Talk, task: DatasetType) -> list[Contents]:
    """One record's questions and answers, or one freeform text a turn."""
    if task == "freeform":
        return [Freeform(prompt=asked, text=answered) for asked, answered in talk]
    return [Vqa(interactions=[Interaction(order=n, question=q, answer=a) for n, (q, a) in enumerate(talk, start=1)])]


def turns_of(row: dict[str, Any], place: Place) -> Talk | None:
    """Questions with their answers; None when the row has no such thing, which has been told."""
    key = next((key for key in _LISTS if key in row), None)
    if key is None:
        place.say("FieldMissing", f"there is none of {', '.join(_LISTS)}")
        return None
    turns = row[key]
    if not isinstance(turns, list) or not turns:
        place.say("FieldInvalid", "this is not a list of turns", field=key, value=turns)
        return None
    talk: Talk = []
    asked: str | None = None
    for number, turn in enumerate(turns):
        spoken = _spoken(turn, place, f"{key}[{number}]")
        if spoken is None:
            return None
        speaker, text = spoken
        if speaker == "system":
            continue
        if (speaker == "asks") != (asked is None):
            place.say("ConversationInvalid", _out_of_turn(asked), field=f"{key}[{number}]", value=text)
            return None
        if asked is None:
            asked = text
        else:
            talk.append((asked, text))
            asked = None
    if asked is not None or not talk:
        place.say("ConversationInvalid", "the last question has no answer", field=key, value=asked)
        return None
    return talk


def _out_of_turn(asked: str | None) -> str:
    return "an answer without a question before it" if asked is None else "two questions without an answer between them"


def _spoken(turn: Any, place: Place, field: str) -> tuple[str, str] | None:
    if not isinstance(turn, dict):
        place.say(
            "FieldInvalid", "a turn is an object with from and value, or role and content", field=field, value=turn
        )
        return None
    role = turn.get("from", turn.get("role"))
    text = _text(turn.get("value", turn.get("content")))
    if text is None:
        place.say("FieldInvalid", "this turn says no text", field=field, value=turn.get("value", turn.get("content")))
        return None
    speaker = str(role).lower()
    if speaker == "system":
        return "system", text
    if speaker not in _ASKS | _ANSWERS:
        place.say("ConversationInvalid", "the speaker is neither human nor assistant", field=field, value=role)
        return None
    return "asks" if speaker in _ASKS else "answers", without_marks(text)


def _text(content: Any) -> str | None:
    """What a turn says: a text, or a list of parts of which some are texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | dict)]
    return "\n".join(part for part in parts if isinstance(part, str))


def without_marks(text: str) -> str:
    """The text without the marks that stand for the picture."""
    return _MARK.sub(" ", text).strip() if "<im" in text else text.strip()


def picture_of(row: dict[str, Any], place: Place) -> str | None:
    """The name of the one picture of the row; None when it has none or several, which has been told."""
    named = [(key, name) for key in _IMAGES for name in _listed(row.get(key))]
    named = named or [(key, name) for key in _LISTS for name in _in_parts(row.get(key))]
    names = list(dict.fromkeys(name for _, name in named if isinstance(name, str) and name))
    if not named:
        place.say("FieldMissing", "the row names no picture", field="image")
    elif not names:
        place.say("FieldInvalid", "this is no name of a picture", field=named[0][0], value=named[0][1])
    elif len(names) > 1:
        cause = f"the row names {len(names)} pictures, and a row is about one"
        place.say("FieldInvalid", cause, field=named[0][0], value=names, cure="make one row a picture")
    elif ":" in names[0].split("/")[0]:
        cause = "pictures are taken by file name, not by address"
        place.say("FieldInvalid", cause, field=named[0][0], value=names[0], cure="send the picture and name its file")
    else:
        return names[0]
    return None


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _in_parts(turns: Any) -> Iterator[Any]:
    for turn in turns if isinstance(turns, list) else []:
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and str(part.get("type", "")).startswith("image"):
                value = part.get("image", part.get("path", part.get("url", part.get("image_url"))))
                yield value.get("url") if isinstance(value, dict) else value
