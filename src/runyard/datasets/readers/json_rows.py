"""JSON rows, one at a time: the lines of JSON Lines, or the elements of an array that is never held
as a whole.
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from runyard.datasets.images import is_image_name
from runyard.datasets.readers.json_stream import (
    MalformedJson,
    iter_elements,
    iter_items,
    iter_members,
)
from runyard.datasets.readers.lines import open_text
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.sources import Source

MAX_ROW = 16 << 20


def read_json_rows(
    source: Source, file: str, location: SourceLocation, *, key: str | None = None
) -> Iterator[tuple[SourceLocation, dict[str, Any]]]:
    """Yield each object of the file with its location; report and skip anything else.

    ``key`` is that of the list of rows, if the file is one object that holds it. Otherwise a file
    that begins with ``[`` is one array; another that ends in ``.json`` is one object; all others
    are lines.
    """
    if not source.size_bytes(file):
        location.report("FileEmpty", "the file has no bytes", action="FileRejected")
        return
    with open_text(source, file) as opened:
        head = opened.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()
        opened.seek(0)
        if head.startswith(b"["):
            items = ((f"[{number}]", value) for number, value in iter_items(opened))
            yield from _read_elements(items, location)
        elif key is not None:
            items = (
                (f"{name}[{number}]", value)
                for name, number, value in iter_elements(opened)
                if name == key
            )
            yield from _read_elements(items, location)
        elif file.lower().endswith(".json") and (one := _read_object(opened)) is not None:
            yield location, one
        else:
            opened.seek(0)
            yield from _read_lines(opened, location)


def read_json_members(
    source: Source, file: str, location: SourceLocation
) -> Iterator[tuple[SourceLocation, dict[str, Any]]]:
    """Yield each member of the file's one object as a row; report and skip anything else.

    The key is the name of an image, or the id of a row: a row that names no image gets it as
    ``file_name`` if it looks like one, and else as ``id``. A text is a row with this text.
    """
    try:
        with open_text(source, file) as opened:
            for key, _, value in iter_members(opened):
                row_location = location.at(field=key)
                name = {"file_name" if is_image_name(key) else "id": key}
                if isinstance(value, dict):
                    yield row_location, name | value
                elif isinstance(value, str | list):
                    yield row_location, name | {"text": value}
                else:
                    row_location.report("RowInvalid", "the row is no text or object", value=value)
    except MalformedJson as error:
        location.at(line=error.line).report(
            error.code, f"{error}; the remaining rows are not read", action="RowRejected"
        )


def _read_object(opened: BinaryIO) -> dict[str, Any] | None:
    """Read the file as one object; None if it is not one, or too long for one row."""
    data = opened.read(MAX_ROW + 1)
    if len(data) > MAX_ROW:
        return None
    try:
        value = json.loads(data.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read_lines(
    opened: BinaryIO, location: SourceLocation
) -> Iterator[tuple[SourceLocation, dict[str, Any]]]:
    number = 0
    while line := opened.readline(MAX_ROW + 1):
        number += 1
        row_location = location.at(line=number)
        if len(line) > MAX_ROW:
            row_location.report("RowInvalid", f"the line is longer than {MAX_ROW:,} bytes")
            while line and not line.endswith(b"\n"):
                line = opened.readline(MAX_ROW)
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            value = _parse_line(line, row_location)
            if value is not None:
                yield row_location, value


def _parse_line(line: bytes, row_location: SourceLocation) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        row_location.report(
            "EncodingWrong",
            f"byte {error.start + 1} of the line is not UTF-8",
            action="RowRejected",
        )
    except json.JSONDecodeError as error:
        row_location.report(
            "RowInvalid",
            f"the line is not JSON: {error.msg} at character {error.colno}",
            value=_excerpt(error),
        )
    except (ValueError, RecursionError):
        row_location.report(
            "RowInvalid", "the line is nested too deeply, or has a number with too many digits"
        )
    else:
        if isinstance(value, dict):
            return value
        row_location.report("RowInvalid", "the row is not a JSON object", value=value)
    return None


def _excerpt(error: json.JSONDecodeError) -> str:
    return error.doc[max(0, error.pos - 20) : error.pos + 20]


def _read_elements(
    items: Iterator[tuple[str, Any]], location: SourceLocation
) -> Iterator[tuple[SourceLocation, dict[str, Any]]]:
    try:
        for path, value in items:
            row_location = location.at(field=path)
            if isinstance(value, dict):
                yield row_location, value
            else:
                row_location.report("RowInvalid", "the row is not a JSON object", value=value)
    except MalformedJson as error:
        location.at(line=error.line).report(
            error.code, f"{error}; the remaining rows are not read", action="RowRejected"
        )
