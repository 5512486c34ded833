"""Table rows about one image, whose columns are recognized by name.

For each dataset type, the first of these that a row has is used:

    vqa               turns (our own export), a conversation, interactions (our own export),
                      question with answer, a class
    freeform          turns (our own export), a conversation, question with answer, text or caption
                      (a list gives one record per text), a class
    phrase-grounding  caption with grounded_phrases (our own export), boxes as in objects.py

Case, spaces and hyphens in the names of columns are ignored. If two columns could be the same part
of a row, such as two questions, and differ, the row is reported and not read, unless one of them
has the plain name: ``question``, ``answer``.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from runyard.datasets.findings import KINDS, Finding, ReportFinding
from runyard.datasets.naming.image_names import ImageFacts
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.boxes import parse_size
from runyard.datasets.readers.conversations import (
    BOXES_IN_TEXT,
    TEXT_BOX,
    build_contents,
    build_conversation,
    has_boxes_in_text,
)
from runyard.datasets.readers.frames import Frame
from runyard.datasets.readers.image_marks import strip_image_marks
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.tables.objects import Objects, find_objects, has_boxes, is_box
from runyard.datasets.readers.turns import LISTS, parse_turns
from runyard.datasets.records import (
    AssetRef,
    Box,
    Contents,
    Conversation,
    DatasetType,
    Freeform,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Record,
    Turn,
    Vqa,
    make_grounding,
)
from runyard.datasets.splits import find_row_split

PAIRS = ("texts", "qa", "qas")  # lists of {user, assistant} or {question, answer}
QUESTIONS = (
    *("question", "questions", "query", "prompt", "instruction", "problem", "prefix", "input"),
)
ANSWERS = (
    *("answer", "multiple_choice_answer", "answers", "response", "output", "solution", "suffix"),
    *("completion",),
)
TEXTS = (
    *("text", "texts", "caption", "captions", "sentence", "sentences", "description", "txt"),
    *("comment", "prompt"),
)
CLASSES = (
    *("label_name", "class_name", "category_name", "fine_label"),
    *("label", "class", "category", "cls", "target", "label_id", "class_id", "category_id"),
)
IDS = ("id", "question_id", "questionid", "uid")
# Parts of a row: the columns that can be it, and those that are the same part in several forms.
_SAME = (
    ("answer", "multiple_choice_answer", "answers"),
    ("question", "questions"),
    ("text", "texts", "txt"),
    ("caption", "captions"),
    ("sentence", "sentences"),
)
EXPECTED = {
    "vqa": "question with answer, prefix with suffix, prompt with response, or a class (label)",
    "freeform": "text, caption, description, question with answer, or a class (label)",
    "phrase-grounding": "objects with bbox and category, or caption with grounded_phrases",
}
CLASS_QUESTION = "What is this?"
CONVERSATION = "conversation"  # the value of ``type`` in our own export
NAMES_FIX = (
    "write the names, one per line from class 0, in classes.txt next to the file, or write names "
    "in place of the numbers"
)
_MAX_CAUSES = 100
_NO_COLUMN = "no column fits"


class _AmbiguousColumns(Exception):
    """Two columns could be the same part of the row."""

    def __init__(self, role: str, columns: Sequence[str]) -> None:
        super().__init__(f"the columns {' and '.join(columns)} could both be the {role}")


class _Collected(NamedTuple):
    location: SourceLocation
    code: str
    cause: str
    more: dict[str, Any]


@dataclass
class Table:
    """The state of one table while it is read.

    ``names`` maps a column to the names of its class numbers; ``class_names`` are those of any
    other column. ``frame`` is that of the boxes.
    """

    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    frame: Frame = Frame("pixel", "size")
    has_text_cells: bool = False  # numbers are written as text
    mismatches: int = 0  # rows without a column for the dataset type
    report_finding: ReportFinding = lambda _: None  # for what is collected
    _collected: dict[str, _Collected] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)

    def collect(
        self, key: str, location: SourceLocation, code: str, cause: str, **more: Any
    ) -> None:
        """Collect what is reported once per file; ``key`` identifies the same cause."""
        if key not in self._collected and len(self._collected) == _MAX_CAUSES:
            key = code
        self._collected.setdefault(key, _Collected(location, code, cause, more))
        self._counts[key] += 1

    def report_collected(self) -> None:
        """Report what was collected, each with the number of rows, at the end of the file."""
        for key, (location, code, cause, more) in self._collected.items():
            location = replace(location, report_finding=self.report_finding)
            rows = self.mismatches if key == _NO_COLUMN else self._counts[key]
            if KINDS[code].severity == "error":
                location.report(code, cause, rows=rows, **more)
            else:
                location.report(code, f"{cause} ({rows} rows)" if rows > 1 else cause, **more)
        self._collected.clear()
        self._counts.clear()

    def find_names(self, column: str) -> Sequence[str] | None:
        return self.names.get(column) or self.class_names or None


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
    """Build the records of a row about the image ``name``; its columns have plain names.

    ``image`` is None if it was not accepted.
    """
    # The checker finds the image by the name as written, which may contradict another row's.
    asset = AssetRef(filename=name, width=0, height=0)
    given = next((row[key] for key in IDS if row.get(key) not in (None, "")), None)
    base = identity if given is None else str(given)
    category = row.get("category")
    table.report_finding = location.report_finding
    findings: list[Finding] = []
    parts = _extract_contents(
        row, replace(location, report_finding=findings.append), task, table, image=image
    )
    if not parts:
        for found in findings:
            location.report_finding(found)
    for part, contents in enumerate(parts, start=1):
        record = Record(
            id=base if part == 1 else f"{base}-{part}",
            asset=asset,
            contents=contents,
            category=category if isinstance(category, str) and "type" in row else None,
            split=find_row_split(row),
        )
        yield Row(
            record,
            location.file,
            location.line,
            location.field,
            frame=_get_frame(row),
            unit="fraction" if row.get("grounded_phrases") is not None else table.frame.row_unit,
            findings=findings if part == 1 else (),
            is_unit_chosen=True,
        )


def normalize_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with plain names of columns: lower case, with underscores.

    Of columns with the same plain name, the one written so is kept.
    """
    plain = {normalize_column(key): value for key, value in row.items()}
    return plain | {key: value for key, value in row.items() if key in plain}


@lru_cache(maxsize=4096)
def normalize_column(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _extract_contents(
    row: Mapping[str, Any],
    location: SourceLocation,
    task: DatasetType,
    table: Table,
    *,
    image: ImageFacts | None,
) -> list[Contents]:
    """Extract the contents of a row; empty if it has none that fit, which is reported."""
    try:
        if task != "phrase-grounding" and _has_turns(row):
            found = _extract_turns(row, location, task, table)
        elif task == "vqa":
            found = _extract_vqa(row, location, table)
        elif task == "freeform":
            found = _extract_freeform(row, location, table)
        else:
            found = _extract_grounding(row, location, table, image)
    except _AmbiguousColumns as error:
        columns = _list_columns(row)
        table.collect(
            str(error),
            location,
            "FieldInvalid",
            f"{error}; the columns are: {columns}",
            fix="remove or rename one of the two columns",
        )
        return []
    if found is None:
        cause = (
            f"no column fits a dataset of type {task}; the columns are: {_list_columns(row)}; "
            f"expected: {EXPECTED[task]}"
        )
        table.mismatches += 1
        table.collect(_NO_COLUMN, location, "ContentsUnfit", cause)
    return found or []


def _list_columns(row: Mapping[str, Any]) -> str:
    return ", ".join(list(row)[:12]) or "none"


def _get_frame(row: Mapping[str, Any]) -> tuple[int, int] | None:
    return parse_size(row.get("width"), row.get("height"))


def _find_column(row: Mapping[str, Any], keys: Iterable[str], role: str) -> tuple[str, Any] | None:
    """Return the column that is this part of the row, with its value; None if there is none.

    Raises _AmbiguousColumns if several could be and their values differ.
    """
    present = [key for key in keys if row.get(key) is not None]
    filled = [key for key in present if row[key] not in ("", [])] or present
    if not filled:
        return None
    first = filled[0]
    same = next((names for names in _SAME if first in names), (first,))
    others = [key for key in filled if key not in same and row[key] != row[first]]
    if others and first != role:
        raise _AmbiguousColumns(role, (first, others[0]))
    return first, row[first]


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
    pairs = _find_pairs(row, location, table)
    if pairs is not None:
        return build_contents(pairs, "vqa") if pairs else []
    named = _find_class_name(row, location, table)
    if named is None:
        return None
    cause = f"classes have no question; {CLASS_QUESTION!r} is used"
    if named:
        table.collect("no question", location, "QuestionAssumed", cause)
    return build_contents([(CLASS_QUESTION, named)], "vqa") if named else []


def _extract_freeform(
    row: Mapping[str, Any], location: SourceLocation, table: Table
) -> list[Contents] | None:
    prompt, text = row.get("prompt"), row.get("text")
    if isinstance(text, str) and isinstance(prompt, str) and not _has_answer(row):
        return [Freeform(prompt=prompt, text=text)]
    pairs = _find_pairs(row, location, table)
    if pairs is not None:
        return build_contents(pairs, "freeform")
    found = _find_column(row, TEXTS, "text")
    if found is not None:
        _warn_of_boxes(found[0], found[1], location, table)
        return _parse_texts(*found, location)
    named = _find_class_name(row, location, table)
    return None if named is None else [Freeform(text=named)] if named else []


def _parse_texts(key: str, value: Any, location: SourceLocation) -> list[Contents]:
    texts = value if isinstance(value, list) else [value]
    good: list[Contents] = []
    for number, text in enumerate(texts):
        if isinstance(text, Mapping):
            text = text.get("raw", text.get("caption", text.get("text")))
        if isinstance(text, str):
            good.append(Freeform(text=text))
        else:
            field = f"{key}[{number}]" if isinstance(value, list) else key
            location.report("FieldInvalid", "not a string", field=field, value=texts[number])
    return good


def _is_own_conversation(row: Mapping[str, Any]) -> bool:
    return row.get("type") == CONVERSATION and row.get("turns") is not None


def _has_turns(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a conversation, or a question with earlier ones."""
    has_list = any(isinstance(row.get(key), list) for key in LISTS)
    return _is_own_conversation(row) or has_list or bool(row.get("history"))


def _extract_turns(
    row: Mapping[str, Any], location: SourceLocation, task: DatasetType, table: Table
) -> list[Contents] | None:
    if _is_own_conversation(row):
        return _convert_conversation(row, location)
    if any(isinstance(row.get(key), list) for key in LISTS):
        return _extract_conversation(row, location, task, table)
    return _extract_history(row, location, task, table)


def _extract_history(
    row: Mapping[str, Any], location: SourceLocation, task: DatasetType, table: Table
) -> list[Contents] | None:
    """Extract a question with an answer, after the earlier ones in ``history``.

    Return None if there is no question with an answer.
    """
    question = _find_column(row, QUESTIONS, "question")
    answer = _find_column(row, ANSWERS, "answer")
    if question is None or answer is None:
        return None
    history = row["history"]
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        cause = "not a list of questions with answers"
        location.report("FieldInvalid", cause, field="history", value=history)
        return []
    pairs = [*history, [question[1], answer[1]]]
    roles = ("user", "assistant")
    turns = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(roles, pair, strict=True)
    ]
    return _extract_conversation({**row, "messages": turns}, location, task, table)


def _extract_conversation(
    row: Mapping[str, Any], location: SourceLocation, task: DatasetType, table: Table
) -> list[Contents]:
    """Extract the turns about the row's one image; empty if they are unusable."""
    turns = parse_turns(row, location)
    contents = None if turns is None else build_conversation(turns, task, location, images=[""])
    if contents is None:
        return []
    if has_boxes_in_text(contents, row):
        table.collect("boxes", location, "BoxesInText", BOXES_IN_TEXT)
    return [contents]


def _convert_conversation(row: Mapping[str, Any], location: SourceLocation) -> list[Contents]:
    """Convert the turns and image names of our own export."""
    names = row.get("images") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        location.report("FieldInvalid", "not a list of names", field="images", value=names)
        return []
    return _convert_own(
        row.get("turns"),
        list[Turn],
        "turns",
        location,
        lambda those: Conversation(
            images=names, turns=those, is_text_only=row.get("is_text_only") is True
        ),
    )


def _has_answer(row: Mapping[str, Any]) -> bool:
    return any(row.get(key) is not None for key in ANSWERS)


def _warn_of_boxes(field: str, text: Any, location: SourceLocation, table: Table) -> None:
    """Report texts with boxes once per file, such as the tokens ``<loc0102>`` of PaliGemma."""
    if isinstance(text, str) and TEXT_BOX.search(text):
        table.collect("boxes", location, "BoxesInText", BOXES_IN_TEXT, field=field, value=text)


def _find_pairs(
    row: Mapping[str, Any], location: SourceLocation, table: Table
) -> list[tuple[str, str]] | None:
    """Find questions with answers; None if no column has them, empty if they cannot be read."""
    for key in PAIRS:
        value = row.get(key)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            return _parse_pairs(key, value, location)
    answer = _find_column(row, ANSWERS, "answer")
    question = None if answer is None else _find_column(row, QUESTIONS, "question")
    if question is None or answer is None:
        return None
    _warn_of_boxes(answer[0], answer[1], location, table)
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
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, str | int | float) else None


def _find_class_name(row: Mapping[str, Any], location: SourceLocation, table: Table) -> str | None:
    """Return the row's class name.

    Return None if it has no class, empty if the name is unknown, which is reported.
    """
    if has_boxes(row) or any(row.get(key) is not None for key in (*QUESTIONS, *ANSWERS)):
        return None  # the class is of a box, or an answer
    keys = [key for key in CLASSES if row.get(key) is not None]
    named = [key for key in keys if not _is_number(row[key])]
    found = _find_column(row, named or keys, "class")
    if found is None:
        return None
    return _find_name(found[1], table.find_names(found[0]), found[0], location, table) or ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and value.strip().isdecimal())


def _find_name(
    value: Any, names: Sequence[str] | None, field: str, location: SourceLocation, table: Table
) -> str | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str) and not (value.isdecimal() and (names or table.has_text_cells)):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = (
        int(value)
        if isinstance(value, str | int) and not isinstance(value, bool) and len(str(value)) < 10
        else -1
    )
    if names is not None and 0 <= number < len(names):
        return names[number]
    known = f"; {len(names)} names are known" if names else "; no file names the classes"
    location.report(
        "ClassUnknown",
        f"class {value!r} has no name{known}",
        field=field,
        value=value,
        fix=None if names else NAMES_FIX,
    )
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
    found = find_objects(row)
    if found is None:
        return None
    boxes = _parse_boxes(found, location, table, image)
    return [make_grounding(boxes)] if boxes else []


def _parse_boxes(
    found: Objects, location: SourceLocation, table: Table, image: ImageFacts | None
) -> list[tuple[str, Box]]:
    """Parse the named boxes of a row; report those that cannot be read."""
    boxes, names = found.boxes, found.names
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        cause = "it does not have one category for each bbox"
        location.report("FieldInvalid", cause, field=found.field, value=boxes)
        return []
    if not boxes:
        location.report("FieldMissing", "the image has no boxes", field=found.field)
        return []
    good: list[tuple[str, Box]] = []
    size = (image.width, image.height) if image else (1, 1)
    for number, (numbers, name) in enumerate(zip(boxes, names, strict=True)):
        if not is_box(numbers):
            at = f"{found.box_path}[{number}]"
            cause = "a box is a list of four numbers: [x, y, width, height]"
            location.report("FieldInvalid", cause, field=at, value=numbers)
            continue
        word = _find_name(
            name,
            table.find_names(found.name_path),
            f"{found.name_path}[{number}]",
            location,
            table,
        )
        if word is not None:
            good.append((word, table.frame.to_fractions(map(float, numbers), size)))
    return good


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
