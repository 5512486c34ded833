"""Rows of JSON, one at a time: the lines of JSON Lines, or the elements of one array that is never held as a whole."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from runyard.datasets.readers.places import Place
from runyard.datasets.sources import Source

LONGEST_ROW = 16 << 20
_PIECE = 1 << 20
_SPACE = " \t\r\n"


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


class _Stop(Exception):
    """Nothing more of this array can be read; why has been told."""


def _elements(opened: BinaryIO, place: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
    text = _Text(opened, place)
    try:
        text.skip("[")
        number = 0
        while text.peek() != "]":
            here = place.at(field=f"[{number}]")
            value = text.value(here)
            if isinstance(value, dict):
                yield here, value
            else:
                here.say("RowInvalid", "the row is not a JSON object", value=value)
            number += 1
            if text.peek() != "]":
                text.skip(",")
    except _Stop:
        return


class _Text:
    """The characters of a file, as many at a time as one element needs."""

    def __init__(self, opened: BinaryIO, place: Place) -> None:
        self._opened, self._place = opened, place
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._buffer, self._at, self._line, self._is_done = "", 0, 1, False

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def skip(self, sign: str) -> None:
        if (found := self.peek()) != sign:
            what = repr(found) if found else "the end of the file"
            raise self._stop(f"expected {sign!r} and found {what}")
        self._at += 1

    def value(self, here: Place) -> Any:
        """The JSON value that begins here."""
        self.peek()
        while True:
            try:
                value, self._at = self._json.raw_decode(self._buffer, self._at)
                return value
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self._buffer) - 16 or error.msg.startswith(("Unterminated", "Invalid \\u"))
                if len(self._buffer) - self._at > LONGEST_ROW:
                    raise self._stop(f"{here.field} is longer than {LONGEST_ROW:,} characters") from None
                if not is_cut or not self._more():
                    raise self._stop(f"it is not JSON: {error.msg}", near=_near(error)) from None
            except (ValueError, RecursionError):
                raise self._stop(f"{here.field} is nested too deeply, or has a number that is too long") from None

    def _more(self) -> bool:
        if self._is_done:
            return False
        piece = self._opened.read(_PIECE)
        self._is_done = not piece
        self._line += self._buffer.count("\n", 0, self._at)
        try:
            self._buffer = self._buffer[self._at :] + self._decode.decode(piece, final=not piece)
        except UnicodeDecodeError:
            self._place.at(line=self._line).say("EncodingWrong", "not UTF-8 somewhere after this line")
            raise _Stop from None
        self._at = 0
        return True

    def _stop(self, cause: str, near: str | None = None) -> _Stop:
        line = self._line + self._buffer.count("\n", 0, self._at)
        cause = f"{cause}; rows from here on are not read"
        self._place.at(line=line).say("FileUnreadable", cause, value=near)
        return _Stop()
