"""The form of a table file: where its rows are, and whether they are rows about images."""

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from runyard.datasets.images import is_image_name
from runyard.datasets.readers.columns import (
    ANSWERS,
    CLASSES,
    EXPECTED,
    PAIRS,
    QUESTIONS,
    TEXTS,
    normalize_column,
    normalize_columns,
)
from runyard.datasets.readers.csv import BOX_TEXTS, CENTERS, CORNERS, SIZES
from runyard.datasets.readers.json_rows import read_json_members, read_json_rows
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.sniffing import JsonForm, sniff_json
from runyard.datasets.readers.tables.csv_rows import (
    TableForm,
    lists_images,
    read_csv_rows,
    sniff_table,
)
from runyard.datasets.readers.tables.objects import begins_box, find_objects, has_boxes
from runyard.datasets.readers.tables.row_images import IDENTIFIERS, IMAGES, URLS, names_image
from runyard.datasets.readers.tools.recognized import recognize
from runyard.datasets.readers.turns import LISTS
from runyard.datasets.sources import Source

# By source: two readers ask for the tables.
_TABLES: "WeakKeyDictionary[Source, list[str]]" = WeakKeyDictionary()
_METADATA = ("metadata.jsonl", "metadata.json", "metadata.csv", "metadata.tsv")


class RowForm(NamedTuple):
    """The form of one file, and its first row with plain names of columns.

    ``key`` is that of the list of rows in a JSON object. ``is_mapping`` means that the members of
    the object are the rows. ``text`` is the form of a text table.
    """

    first: dict[str, Any]
    columns: list[str]
    key: str | None = None
    is_mapping: bool = False
    text: TableForm | None = None


def find_form(source: Source, path: str) -> RowForm | None:
    """Return the form of a file of rows; None for another file."""
    json_form = sniff_json(source, path)
    if json_form is not None and (row := _find_member(json_form)) is not None:
        return RowForm(normalize_columns(row), list(row), is_mapping=True)
    if json_form is not None:
        first, key = _find_rows(json_form)
        return RowForm(normalize_columns(first), list(first), key) if first else None
    text = sniff_table(source, path)
    if text is None:
        return None
    first = normalize_columns(text.first)
    return RowForm(first, text.columns, text=text)


def find_tables(source: Source) -> list[str]:
    """List the tables of a source, in order; it is searched once."""
    if source not in _TABLES:
        images = {_get_stem(path) for path in source.paths() if is_image_name(path)}
        _TABLES[source] = [
            path
            for path in source.paths()
            # A text with the name of an image is about this image alone; there may be many.
            if not (path.lower().endswith(".txt") and _get_stem(path) in images)
            and _is_table(source, path)
        ]
    return _TABLES[source]


def _get_stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _is_table(source: Source, path: str) -> bool:
    """Return whether a file has rows that name an image and say something about it.

    Submissions to a competition have made-up labels.
    """
    base = path.rpartition("/")[2].lower()
    form = None if "submission" in base else find_form(source, path)
    if form is None or recognize(source, path) is not None:
        return False
    is_metadata = base in _METADATA
    if not is_metadata and any(isinstance(form.first.get(key), list) for key in LISTS):
        return False
    columns = {normalize_column(column) for column in form.columns}
    if form.text is not None and _has_box_columns(columns):
        return False
    if form.key is not None and "image_id" in columns and columns.isdisjoint(IMAGES):
        return False  # the numbers of images in COCO and VQA
    if is_metadata and "file_name" in columns:
        return True
    return _has_image(source, path, columns, form.first) and _has_contents(columns, form.first)


def _has_box_columns(columns: set[str]) -> bool:
    """Return whether a text table has one box per row, which csv.py reads."""
    is_numbers = any(columns.issuperset(box) for box in (*CORNERS, *SIZES, *CENTERS))
    return is_numbers or not columns.isdisjoint(BOX_TEXTS)


def explain_table(source: Source, path: str) -> str | None:
    """Explain why a file that may be a table of images is not read; None for another file."""
    form = find_form(source, path)
    columns = {normalize_column(column) for column in form.columns} if form is not None else set()
    if "question_id" in columns and columns.isdisjoint(IMAGES):
        return (
            "questions and answers are in separate files, and images have numbers; expected: one "
            "table with the columns file_name, question, answer, joined by question_id"
        )
    if form is not None and not columns.isdisjoint((*IMAGES, *IDENTIFIERS, *QUESTIONS)):
        expected = "; or ".join(dict.fromkeys(EXPECTED.values()))
        return (
            f"no row can be read from its columns ({', '.join(form.columns[:12])}); expected: a "
            f"column with the image's file name, such as file_name or image, and {expected}"
        )
    if url := next((column for column in form.columns if column in URLS), None) if form else None:
        return (
            f"it refers to images by URL ({url}); expected: images as files, and a column such as "
            "file_name with the name of each"
        )
    if lists_images(source, path):
        return "its lines begin with names of images, but no line names the columns"
    return None


def iter_rows(
    source: Source, form: RowForm, location: SourceLocation
) -> Iterator[tuple[SourceLocation, dict[str, Any]]]:
    """Yield the rows of a file, with plain names of columns; report what is not a row."""
    rows: Iterator[tuple[SourceLocation, dict[str, Any]]]
    if form.text is not None:
        rows = iter(read_csv_rows(source, location, form.text))
    elif form.is_mapping:
        rows = read_json_members(source, location.file, location)
    else:
        rows = read_json_rows(source, location.file, location, key=form.key)
    for row_location, row in rows:
        yield row_location, normalize_columns(row)


def _find_rows(form: JsonForm) -> tuple[dict[str, Any], str | None]:
    """Return the first row, and the key of the list that it is in; None if it is in none."""
    lists = [key for key, first in form.first.items() if isinstance(first, Mapping)]
    is_row = form.is_array or form.is_lines or not lists
    if is_row or any(normalize_column(key) in IMAGES for key in form.keys if key not in lists):
        first: dict[str, Any] = dict.fromkeys(form.keys)
        listed = {key: [value] for key, value in form.first.items()}
        return first | listed | form.values, None
    return (dict(form.first[lists[0]]), lists[0]) if len(lists) == 1 else ({}, None)


def _find_member(form: JsonForm) -> dict[str, Any] | None:
    """Return the first row of an object whose members are rows; None for another object."""
    if form.is_array or form.is_lines or not form.values:
        return None
    key, value = next(iter(form.values.items()))
    if is_image_name(key) and isinstance(value, str | list):
        return {"file_name": key, "text": value}
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in form.values.values()):
        return None
    if is_image_name(key):
        return {"file_name": key} | value
    names = set(map(normalize_column, value))
    return None if names.isdisjoint((*IMAGES, "image_id", "imageid")) else {"id": key} | value


def _has_image(source: Source, path: str, columns: set[str], first: Mapping[str, Any]) -> bool:
    for key in (*IMAGES, *IDENTIFIERS):
        if key not in columns:
            continue
        value = first.get(key)
        if names_image(value) or (value is None and key in IMAGES):
            return True
        if isinstance(value, str | int) and source.find_image(str(value), relative_to=path):
            return True
    return False


def _has_contents(columns: set[str], first: Mapping[str, Any]) -> bool:
    if any(first.get(key) is not None for key in ("interactions", "grounded_phrases")):
        return True
    if has_boxes(first):
        found = find_objects(first)
        boxes = found.boxes if found is not None else None
        if found is None or not isinstance(boxes, list):
            return False
        # What is sniffed of a long value is its beginning, also that of a box.
        return begins_box(boxes[0]) if boxes else found.field != "annotations"
    if not columns.isdisjoint(QUESTIONS) and not columns.isdisjoint(ANSWERS):
        return True
    if any(isinstance(first.get(key), list) for key in (*PAIRS, *LISTS)):
        return True
    return any(
        key in columns and isinstance(first.get(key), str | int | list | None)
        for key in (*TEXTS, *CLASSES)
        if key != "prompt"
    )
