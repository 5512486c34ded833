"""Rows of JSON, one at a time: the lines of JSON Lines, or the elements of one array that is never held as a whole."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from runyard.datasets.readers.json_stream import Malformed, items
from runyard.datasets.readers.places import Place
from runyard.datasets.sources import Source

LONGEST_ROW = 16 << 20


def json_rows(source: Source, file: str, place: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Each object of the file with its place. What is no object is told and left out.

    A file that begins with ``[`` is one array; another that ends in ``.json`` is one object; all else is lines.
    """
    if not source.size_bytes(file):
        place.say("FileEmpty", "the file has no bytes", action="FileRejected")
        return
    with source.open(file) as opened:
        head = opened.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()
        opened.seek(0)
        if head.startswith(b"["):
            yield from _elements(opened, place)
        elif file.lower().endswith(".json") and (one := _whole(opened)) is not None:
            yield place, one
        else:
            opened.seek(0)
            yield from _lines(opened, place)


def _whole(opened: BinaryIO) -> dict[str, Any] | None:
    """The object that the file is; None when it is none, or too long for one row."""
    data = opened.read(LONGEST_ROW + 1)
    if len(data) > LONGEST_ROW:
        return None
    try:
        value = json.loads(data.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _lines(opened: BinaryIO, place: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
    number = 0
    while line := opened.readline(LONGEST_ROW + 1):
        number += 1
        here = place.at(line=number)
        if len(line) > LONGEST_ROW:
            here.say("RowInvalid", f"the line is longer than {LONGEST_ROW:,} bytes")
            while line and not line.endswith(b"\n"):
                line = opened.readline(LONGEST_ROW)
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            value = _parsed(line, here)
            if value is not None:
                yield here, value


def _parsed(line: bytes, here: Place) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        here.say("EncodingWrong", f"byte {error.start + 1} of the line is not UTF-8", action="RowRejected")
    except json.JSONDecodeError as error:
        here.say("RowInvalid", f"the line is not JSON: {error.msg} at character {error.colno}", value=_near(error))
    except (ValueError, RecursionError):
        here.say("RowInvalid", "the line is nested too deeply, or has a number that is too long")
    else:
        if isinstance(value, dict):
            return value
        here.say("RowInvalid", "the row is not a JSON object", value=value)
    return None


def _near(error: json.JSONDecodeError) -> str:
    return error.doc[max(0, error.pos - 20) : error.pos + 20]


def _elements(opened: BinaryIO, place: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
    try:
        for number, value in items(opened):
            here = place.at(field=f"[{number}]")
            if isinstance(value, dict):
                yield here, value
            else:
                here.say("RowInvalid", "the row is not a JSON object", value=value)
    except Malformed as error:
        place.at(line=error.line).say(error.code, f"{error}; rows from here on are not read", action="RowRejected")
