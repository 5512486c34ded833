"""Rows of a table that say something of one picture: which columns they have is guessed by name.

For each dataset type, the first of these that a row has:

    vqa               interactions (our own export), a conversation, question with answer, a class
    freeform          a conversation, question with answer, text or caption (a list makes a record each), a class
    phrase-grounding  caption with grounded_phrases (our own export), objects with bbox and category

Boxes in ``objects`` are ``[x, y, width, height]`` in pixels, as in COCO and in Hugging Face's detection datasets.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from runyard.datasets.readers import Row
from runyard.datasets.readers.conversations import contents_of, turns_of, without_marks
from runyard.datasets.readers.places import Place
from runyard.datasets.records import (
    AssetRef,
    Box,
    Contents,
    DatasetType,
    Freeform,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Record,
    Vqa,
    grounding_of,
)
from runyard.datasets.sources import ImageFacts

TALKS = ("conversations", "conversation", "messages")
PAIRS = ("texts", "qa", "qas")  # lists of {user, assistant} or {question, answer}
QUESTIONS = ("question", "questions", "query", "prompt", "instruction", "problem")
ANSWERS = ("answer", "multiple_choice_answer", "answers", "response", "output", "solution")
TEXTS = ("text", "texts", "caption", "captions", "sentence", "sentences", "description", "txt")
OBJECTS = ("objects", "annotations", "boxes")
CLASSES = ("label", "class", "class_name", "category", "cls", "fine_label")
IDS = ("id", "question_id", "questionId", "uid")
BOXES = ("bbox", "bboxes", "boxes", "box")
NAMES = ("category", "categories", "label", "labels", "class", "classes", "name", "names", "category_id", "phrase")
CLASS_QUESTION = "What is this?"


@dataclass
class Table:
    """What is known of a file's columns beside their names. ``names`` are those of class numbers, by column."""

    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_unfit: bool = False  # some row had no column for the type of the dataset
    is_told: set[str] = field(default_factory=set)  # what is told once a file

    def say_once(self, place: Place, code: str, cause: str, **more: Any) -> None:
        if cause not in self.is_told:
            self.is_told.add(cause)
            place.say(code, cause, **more)


def rows_of(
    row: Mapping[str, Any],
    place: Place,
    task: DatasetType,
    table: Table,
    *,
    name: str,
    picture: ImageFacts | None,
    identity: str,
) -> Iterator[Row]:
    """The records of a row about the picture ``name``; ``picture`` is None if that was not taken."""
    if picture is None:
        asset = AssetRef(filename=name, width=0, height=0)
    else:
        asset = AssetRef(filename=picture.path, width=picture.width, height=picture.height)
    given = next((row[key] for key in IDS if row.get(key) not in (None, "")), None)
    base = identity if given is None else str(given)
    category = row.get("category")
    for part, contents in enumerate(contents_in(row, place, task, table, picture=picture), start=1):
        record = Record(
            id=base if part == 1 else f"{base}-{part}",
            asset=asset,
            contents=contents,
            category=category if isinstance(category, str) and "type" in row else None,
        )
        unit: Literal["share", "pixel"] = "share" if row.get("grounded_phrases") is not None else "pixel"
        yield Row(record, place.file, place.line, place.field, frame=_frame(row), unit=unit)


def contents_in(
    row: Mapping[str, Any], place: Place, task: DatasetType, table: Table, *, picture: ImageFacts | None
) -> list[Contents]:
    """What the row says; empty when it says nothing that fits, which has been told."""
    if task == "vqa":
        found = _vqa(row, place, table)
    elif task == "freeform":
        found = _freeform(row, place, table)
    else:
        found = _grounding(row, place, table, picture)
    if found is None:
        columns = ", ".join(list(row)[:12]) or "none"
        cause = f"no column fits a dataset of type {task}; there are: {columns}"
        table.is_unfit = True
        table.say_once(place, "ContentsUnfit", cause)
    return found or []


def _frame(row: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = row.get("width"), row.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def _first(row: Mapping[str, Any], keys: Iterable[str]) -> tuple[str, Any] | None:
    return next(((key, row[key]) for key in keys if row.get(key) is not None), None)


def _vqa(row: Mapping[str, Any], place: Place, table: Table) -> list[Contents] | None:
    if row.get("interactions") is not None:
        return _ours(
            row["interactions"], list[Interaction], "interactions", place, lambda those: Vqa(interactions=those)
        )
    pairs = _pairs(row, place)
    if pairs is not None:
        return contents_of(pairs, "vqa") if pairs else []
    named = _class_name(row, place, table)
    if named is None:
        return None
    cause = f"classes have no question; {CLASS_QUESTION!r} is asked"
    table.say_once(place, "QuestionAssumed", cause)
    return contents_of([(CLASS_QUESTION, named)], "vqa") if named else []


def _freeform(row: Mapping[str, Any], place: Place, table: Table) -> list[Contents] | None:
    prompt, text = row.get("prompt"), row.get("text")
    if isinstance(text, str) and isinstance(prompt, str | None):
        return [Freeform(prompt=prompt or "", text=text)]
    pairs = _pairs(row, place)
    if pairs is not None:
        return contents_of(pairs, "freeform")
    found = _first(row, TEXTS)
    if found is not None:
        return _texts(*found, place)
    named = _class_name(row, place, table)
    return None if named is None else [Freeform(text=named)] if named else []


def _texts(key: str, value: Any, place: Place) -> list[Contents]:
    texts = value if isinstance(value, list) else [value]
    good: list[Contents] = []
    for number, text in enumerate(texts):
        if isinstance(text, str):
            good.append(Freeform(text=text))
        else:
            field = f"{key}[{number}]" if isinstance(value, list) else key
            place.say("FieldInvalid", "this is no text", field=field, value=text)
    return good


def _pairs(row: Mapping[str, Any], place: Place) -> list[tuple[str, str]] | None:
    """Questions with answers; None when no column could hold them, empty when they cannot be read."""
    if any(isinstance(row.get(key), list) for key in TALKS):
        return turns_of(dict(row), place) or []
    for key in PAIRS:
        value = row.get(key)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            return _turn_pairs(key, value, place)
    question, answer = _first(row, QUESTIONS), _first(row, ANSWERS)
    if question is None or answer is None:
        return None
    if isinstance(question[1], list):
        return _zipped(question, answer, place)
    said = _one_answer(answer[1])
    if not isinstance(question[1], str) or said is None:
        wrong = question if not isinstance(question[1], str) else answer
        place.say("FieldInvalid", "this is no text", field=wrong[0], value=wrong[1])
        return []
    return [(without_marks(question[1]), said)]


def _turn_pairs(key: str, turns: list[Any], place: Place) -> list[tuple[str, str]]:
    pairs = []
    for number, turn in enumerate(turns):
        turn = turn if isinstance(turn, Mapping) else {}
        asked, said = turn.get("user", turn.get("question")), turn.get("assistant", turn.get("answer"))
        if not isinstance(asked, str) or not isinstance(said, str):
            place.say(
                "FieldInvalid", "this is no question with an answer", field=f"{key}[{number}]", value=turns[number]
            )
            return []
        pairs.append((without_marks(asked), said))
    return pairs


def _zipped(question: tuple[str, Any], answer: tuple[str, Any], place: Place) -> list[tuple[str, str]]:
    asked, said = question[1], answer[1]
    if not isinstance(said, list) or len(asked) != len(said) or not all(isinstance(q, str) for q in asked):
        place.say("FieldInvalid", f"there is not one text in it for each of {question[0]}", field=answer[0], value=said)
        return []
    answers = [_one_answer(item) for item in said]
    return [(without_marks(q), a or "") for q, a in zip(asked, answers, strict=True)]


def _one_answer(value: Any) -> str | None:
    """One answer as text; of several people's answers the one most of them gave."""
    if isinstance(value, Mapping):
        value = value.get("answer", value.get("text"))
    if isinstance(value, list):
        several = [said for item in value if (said := _one_answer(item)) is not None]
        return Counter(several).most_common(1)[0][0] if several else None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str | int | float) else None


def _class_name(row: Mapping[str, Any], place: Place, table: Table) -> str | None:
    """The name of the row's class; None when it has none, empty when that is not known, which has been told."""
    found = _first(row, CLASSES)
    return None if found is None else _name_of(found[1], table.names.get(found[0]), found[0], place) or ""


def _name_of(value: Any, names: Sequence[str] | None, field: str, place: Place) -> str | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str) and not (value.isdecimal() and names):
        return value
    number = int(value) if isinstance(value, str | int) and not isinstance(value, bool) and len(str(value)) < 10 else -1
    if names is not None and 0 <= number < len(names):
        return names[number]
    known = f"; {len(names)} names are known" if names else " and the file names no classes"
    place.say("ClassUnknown", f"class {value!r} has no name{known}", field=field, value=value)
    return None


def _grounding(row: Mapping[str, Any], place: Place, table: Table, picture: ImageFacts | None) -> list[Contents] | None:
    caption = row.get("caption")
    if row.get("grounded_phrases") is not None and isinstance(caption, str):
        phrases = row["grounded_phrases"]
        return _ours(
            phrases,
            list[GroundedPhrase],
            "grounded_phrases",
            place,
            lambda those: PhraseGrounding(caption=caption, grounded_phrases=those),
        )
    found = next(((key, row[key]) for key in OBJECTS if isinstance(row.get(key), Mapping | list)), None)
    if found is None:
        return None
    boxes = _boxes(found[0], found[1], place, table, picture)
    return [grounding_of(boxes)] if boxes else []


def _boxes(key: str, objects: Any, place: Place, table: Table, picture: ImageFacts | None) -> list[tuple[str, Box]]:
    """Named boxes of a struct of lists, or of a list of structs. Any that is wrong leaves the row out."""
    boxes, names, box_key, name_key = _box_lists(objects)
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        place.say("FieldInvalid", "there is not one category for each bbox", field=key, value=objects)
        return []
    if not boxes:
        place.say("FieldMissing", "the picture has no boxes", field=key)
        return []
    good: list[tuple[str, Box]] = []
    for number, (numbers, name) in enumerate(zip(boxes, names, strict=True)):
        at = f"{key}.{box_key}[{number}]"
        if not (isinstance(numbers, list) and len(numbers) == 4 and all(_is_number(n) for n in numbers)):
            place.say("FieldInvalid", "a box is [x, y, width, height]", field=at, value=numbers)
            return []
        word = _name_of(name, table.names.get(f"{key}.{name_key}"), f"{key}.{name_key}[{number}]", place)
        if word is None:
            return []
        width, height = (picture.width, picture.height) if picture else (1, 1)
        x, y, w, h = (float(n) for n in numbers)
        good.append((word, (x / width, y / height, (x + w) / width, (y + h) / height)))
    return good


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 10**15)


def _box_lists(objects: Any) -> tuple[Any, Any, str, str]:
    if isinstance(objects, list):
        first = objects[0] if objects and isinstance(objects[0], Mapping) else {}
        box_key = next((key for key in BOXES if key in first), "bbox")
        name_key = next((key for key in NAMES if key in first), "category")
        items = [item if isinstance(item, Mapping) else {} for item in objects]
        return [item.get(box_key) for item in items], [item.get(name_key) for item in items], box_key, name_key
    box_key = next((key for key in BOXES if key in objects), "bbox")
    name_key = next((key for key in NAMES if key in objects), "category")
    return objects.get(box_key), objects.get(name_key), box_key, name_key


def _ours(value: Any, shape: Any, field: str, place: Place, make: Any) -> list[Contents]:
    """A column of our own export."""
    try:
        return [make(msgspec.convert(_camel(value), shape, strict=False))]
    except (msgspec.ValidationError, RecursionError) as error:
        place.say("FieldInvalid", str(error), field=field, value=value)
        return []


def _camel(value: Any) -> Any:
    """Keys of structs in a Parquet column, as the record's own names."""
    if isinstance(value, list):
        return [_camel(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        head + "".join(word.title() for word in rest): item
        for key, item in value.items()
        for head, *rest in [key.split("_")]
    }
