"""Table rows about one image, whose columns are recognized by name.

For each dataset type, the first of these that a row has is used:

    vqa               interactions (our own export), a conversation, question with answer, a class
    freeform          a conversation, question with answer, text or caption (a list gives one record
                      per text), a class
    phrase-grounding  caption with grounded_phrases (our own export), objects with bbox and category

Boxes in ``objects`` are ``[x, y, width, height]`` in pixels, as in COCO and in Hugging Face's
detection datasets.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from runyard.datasets.image_names import ImageFacts
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.boxes import parse_size
from runyard.datasets.readers.conversations import build_contents, parse_turns, strip_image_marks
from runyard.datasets.readers.locations import SourceLocation
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
    make_grounding,
)
from runyard.datasets.splits import find_row_split

TURNS = ("conversations", "conversation", "messages")
PAIRS = ("texts", "qa", "qas")  # lists of {user, assistant} or {question, answer}
QUESTIONS = ("question", "questions", "query", "prompt", "instruction", "problem")
ANSWERS = ("answer", "multiple_choice_answer", "answers", "response", "output", "solution")
TEXTS = ("text", "texts", "caption", "captions", "sentence", "sentences", "description", "txt")
OBJECTS = ("objects", "annotations", "boxes")
CLASSES = ("label", "class", "class_name", "category", "cls", "fine_label")
IDS = ("id", "question_id", "questionId", "uid")
BOXES = ("bbox", "bboxes", "boxes", "box")
NAMES = (
    "category",
    "categories",
    "label",
    "labels",
    "class",
    "classes",
    "name",
    "names",
    "category_id",
    "phrase",
)
CLASS_QUESTION = "What is this?"


@dataclass
class Table:
    """The state of one table while it is read.

    ``names`` maps a column to the names of its class numbers.
    """

    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    has_mismatch: bool = False  # some row had no column for the dataset type
    reported: set[str] = field(default_factory=set)  # causes that are reported once per file

    def report_once(self, location: SourceLocation, code: str, cause: str, **more: Any) -> None:
        if cause not in self.reported:
            self.reported.add(cause)
            location.report(code, cause, **more)


def build_rows(
    row: Mapping[str, Any],
    location: SourceLocation,
    task: DatasetType,
    table: Table,
    *,
    name: str,
    image: ImageFacts | None,
    identity: str,
) -> Iterator[Row]:
    """Build the records of a row about the image ``name``.

    ``image`` is None if it was not accepted.
    """
    if image is None:
        asset = AssetRef(filename=name, width=0, height=0)
    else:
        asset = AssetRef(filename=image.path, width=image.width, height=image.height)
    given = next((row[key] for key in IDS if row.get(key) not in (None, "")), None)
    base = identity if given is None else str(given)
    category = row.get("category")
    for part, contents in enumerate(
        extract_contents(row, location, task, table, image=image), start=1
    ):
        record = Record(
            id=base if part == 1 else f"{base}-{part}",
            asset=asset,
            contents=contents,
            category=category if isinstance(category, str) and "type" in row else None,
            split=find_row_split(row),
        )
        unit: Literal["fraction", "pixel"] = (
            "fraction" if row.get("grounded_phrases") is not None else "pixel"
        )
        yield Row(
            record, location.file, location.line, location.field, frame=_get_frame(row), unit=unit
        )


def extract_contents(
    row: Mapping[str, Any],
    location: SourceLocation,
    task: DatasetType,
    table: Table,
    *,
    image: ImageFacts | None,
) -> list[Contents]:
    """Extract the contents of a row; empty if it has none that fit, which is reported."""
    if task == "vqa":
        found = _extract_vqa(row, location, table)
    elif task == "freeform":
        found = _extract_freeform(row, location, table)
    else:
        found = _extract_grounding(row, location, table, image)
    if found is None:
        columns = ", ".join(list(row)[:12]) or "none"
        cause = f"no column fits a dataset of type {task}; the columns are: {columns}"
        table.has_mismatch = True
        table.report_once(location, "ContentsUnfit", cause)
    return found or []


def _get_frame(row: Mapping[str, Any]) -> tuple[int, int] | None:
    return parse_size(row.get("width"), row.get("height"))


def _find_first(row: Mapping[str, Any], keys: Iterable[str]) -> tuple[str, Any] | None:
    return next(((key, row[key]) for key in keys if row.get(key) is not None), None)


def _extract_vqa(
    row: Mapping[str, Any], location: SourceLocation, table: Table
) -> list[Contents] | None:
    if row.get("interactions") is not None:
        return _convert_own(
            row["interactions"],
            list[Interaction],
            "interactions",
            location,
            lambda those: Vqa(interactions=those),
        )
    pairs = _find_pairs(row, location)
    if pairs is not None:
        return build_contents(pairs, "vqa") if pairs else []
    named = _find_class_name(row, location, table)
    if named is None:
        return None
    cause = f"classes have no question; {CLASS_QUESTION!r} is used"
    table.report_once(location, "QuestionAssumed", cause)
    return build_contents([(CLASS_QUESTION, named)], "vqa") if named else []


def _extract_freeform(
    row: Mapping[str, Any], location: SourceLocation, table: Table
) -> list[Contents] | None:
    prompt, text = row.get("prompt"), row.get("text")
    if isinstance(text, str) and isinstance(prompt, str | None):
        return [Freeform(prompt=prompt or "", text=text)]
    pairs = _find_pairs(row, location)
    if pairs is not None:
        return build_contents(pairs, "freeform")
    found = _find_first(row, TEXTS)
    if found is not None:
        return _parse_texts(*found, location)
    named = _find_class_name(row, location, table)
    return None if named is None else [Freeform(text=named)] if named else []


def _parse_texts(key: str, value: Any, location: SourceLocation) -> list[Contents]:
    texts = value if isinstance(value, list) else [value]
    good: list[Contents] = []
    for number, text in enumerate(texts):
        if isinstance(text, str):
            good.append(Freeform(text=text))
        else:
            field = f"{key}[{number}]" if isinstance(value, list) else key
            location.report("FieldInvalid", "not a string", field=field, value=text)
    return good


def _find_pairs(row: Mapping[str, Any], location: SourceLocation) -> list[tuple[str, str]] | None:
    """Find questions with answers; None if no column has them, empty if they cannot be read."""
    if any(isinstance(row.get(key), list) for key in TURNS):
        return parse_turns(dict(row), location) or []
    for key in PAIRS:
        value = row.get(key)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            return _parse_pairs(key, value, location)
    question, answer = _find_first(row, QUESTIONS), _find_first(row, ANSWERS)
    if question is None or answer is None:
        return None
    if isinstance(question[1], list):
        return _pair_lists(question, answer, location)
    answered = _pick_answer(answer[1])
    if not isinstance(question[1], str) or answered is None:
        wrong = question if not isinstance(question[1], str) else answer
        location.report("FieldInvalid", "not a string", field=wrong[0], value=wrong[1])
        return []
    return [(strip_image_marks(question[1]), answered)]


def _parse_pairs(key: str, turns: list[Any], location: SourceLocation) -> list[tuple[str, str]]:
    pairs = []
    for number, turn in enumerate(turns):
        turn = turn if isinstance(turn, Mapping) else {}
        asked, answered = (
            turn.get("user", turn.get("question")),
            turn.get("assistant", turn.get("answer")),
        )
        if not isinstance(asked, str) or not isinstance(answered, str):
            location.report(
                "FieldInvalid",
                "not a question with an answer",
                field=f"{key}[{number}]",
                value=turns[number],
            )
            return []
        pairs.append((strip_image_marks(asked), answered))
    return pairs


def _pair_lists(
    question: tuple[str, Any], answer: tuple[str, Any], location: SourceLocation
) -> list[tuple[str, str]]:
    asked, answered = question[1], answer[1]
    if (
        not isinstance(answered, list)
        or len(asked) != len(answered)
        or not all(isinstance(q, str) for q in asked)
    ):
        location.report(
            "FieldInvalid",
            f"it does not have one string for each of {question[0]}",
            field=answer[0],
            value=answered,
        )
        return []
    answers = [_pick_answer(item) for item in answered]
    return [(strip_image_marks(q), a or "") for q, a in zip(asked, answers, strict=True)]


def _pick_answer(value: Any) -> str | None:
    """Return one answer as text; of several annotators' answers the most frequent."""
    if isinstance(value, Mapping):
        value = value.get("answer", value.get("text"))
    if isinstance(value, list):
        several = [answered for item in value if (answered := _pick_answer(item)) is not None]
        return Counter(several).most_common(1)[0][0] if several else None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str | int | float) else None


def _find_class_name(row: Mapping[str, Any], location: SourceLocation, table: Table) -> str | None:
    """Return the row's class name.

    Return None if it has no class, empty if the name is unknown, which is reported.
    """
    found = _find_first(row, CLASSES)
    return (
        None
        if found is None
        else _find_name(found[1], table.names.get(found[0]), found[0], location) or ""
    )


def _find_name(
    value: Any, names: Sequence[str] | None, field: str, location: SourceLocation
) -> str | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str) and not (value.isdecimal() and names):
        return value
    number = (
        int(value)
        if isinstance(value, str | int) and not isinstance(value, bool) and len(str(value)) < 10
        else -1
    )
    if names is not None and 0 <= number < len(names):
        return names[number]
    known = f"; {len(names)} names are known" if names else "; the file names no classes"
    location.report("ClassUnknown", f"class {value!r} has no name{known}", field=field, value=value)
    return None


def _extract_grounding(
    row: Mapping[str, Any], location: SourceLocation, table: Table, image: ImageFacts | None
) -> list[Contents] | None:
    caption = row.get("caption")
    if row.get("grounded_phrases") is not None and isinstance(caption, str):
        phrases = row["grounded_phrases"]
        return _convert_own(
            phrases,
            list[GroundedPhrase],
            "grounded_phrases",
            location,
            lambda those: PhraseGrounding(caption=caption, grounded_phrases=those),
        )
    found = next(
        ((key, row[key]) for key in OBJECTS if isinstance(row.get(key), Mapping | list)), None
    )
    if found is None:
        return None
    boxes = _parse_boxes(found[0], found[1], location, table, image)
    return [make_grounding(boxes)] if boxes else []


def _parse_boxes(
    key: str, objects: Any, location: SourceLocation, table: Table, image: ImageFacts | None
) -> list[tuple[str, Box]]:
    """Parse the named boxes of a struct of lists, or a list of structs.

    One invalid box leaves the row out.
    """
    boxes, names, box_key, name_key = _split_objects(objects)
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        location.report(
            "FieldInvalid", "it does not have one category for each bbox", field=key, value=objects
        )
        return []
    if not boxes:
        location.report("FieldMissing", "the image has no boxes", field=key)
        return []
    good: list[tuple[str, Box]] = []
    for number, (numbers, name) in enumerate(zip(boxes, names, strict=True)):
        at = f"{key}.{box_key}[{number}]"
        if not (
            isinstance(numbers, list) and len(numbers) == 4 and all(_is_number(n) for n in numbers)
        ):
            location.report(
                "FieldInvalid", "a box is [x, y, width, height]", field=at, value=numbers
            )
            return []
        word = _find_name(
            name, table.names.get(f"{key}.{name_key}"), f"{key}.{name_key}[{number}]", location
        )
        if word is None:
            return []
        width, height = (image.width, image.height) if image else (1, 1)
        x, y, w, h = (float(n) for n in numbers)
        good.append((word, (x / width, y / height, (x + w) / width, (y + h) / height)))
    return good


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 10**15)


def _split_objects(objects: Any) -> tuple[Any, Any, str, str]:
    if isinstance(objects, list):
        first = objects[0] if objects and isinstance(objects[0], Mapping) else {}
        box_key = next((key for key in BOXES if key in first), "bbox")
        name_key = next((key for key in NAMES if key in first), "category")
        items = [item if isinstance(item, Mapping) else {} for item in objects]
        return (
            [item.get(box_key) for item in items],
            [item.get(name_key) for item in items],
            box_key,
            name_key,
        )
    box_key = next((key for key in BOXES if key in objects), "bbox")
    name_key = next((key for key in NAMES if key in objects), "category")
    return objects.get(box_key), objects.get(name_key), box_key, name_key


def _convert_own(
    value: Any, shape: Any, field: str, location: SourceLocation, make: Any
) -> list[Contents]:
    """Convert a column of our own export."""
    try:
        return [make(msgspec.convert(_to_camel_case(value), shape, strict=False))]
    except (msgspec.ValidationError, RecursionError) as error:
        location.report("FieldInvalid", str(error), field=field, value=value)
        return []


def _to_camel_case(value: Any) -> Any:
    """Convert the keys of structs in a Parquet column to the record's camelCase names."""
    if isinstance(value, list):
        return [_to_camel_case(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        head + "".join(word.title() for word in rest): item
        for key, item in value.items()
        for head, *rest in [key.split("_")]
    }
