"""The elements of arrays in one large JSON object, one at a time: a file of annotations may be larger than memory."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
LONGEST_ELEMENT = 64 << 20

_decode = json.JSONDecoder().raw_decode
_SPACE = " \t\r\n"


class Malformed(ValueError):
    """The file is not what it should be; the message says why, ``line`` where, ``code`` what kind of finding it is."""

    def __init__(self, message: str, line: int, code: str = "FileUnreadable"):
        super().__init__(message)
        self.line, self.code = line, code


def elements(file: BinaryIO) -> Iterator[tuple[str, int, Any]]:
    """Every element of every array that is a direct value of the file's object: key, place in the array, element.

    Values that are no arrays are read over. Raises Malformed, also when a single element is larger than 64 MiB.
    """
    text = _Text(file)
    text.expect("{", "the file is no JSON object")
    if text.next_is("}"):
        return
    while True:
        key = text.value()
        if not isinstance(key, str):
            raise text.malformed("a key is no string")
        text.expect(":", f"there is no colon after {key!r}")
        if text.next_is("["):
            yield from _array(text, key)
        else:
            text.value()
        if not text.next_is(","):
            text.expect("}", f"there is no comma after the value of {key!r}")
            return


def items(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Every element of the one array that the file is, with its place in the array. Raises Malformed as above."""
    text = _Text(file)
    text.expect("[", "the file is no JSON array")
    for _, number, value in _array(text, ""):
        yield number, value


def _array(text: "_Text", key: str) -> Iterator[tuple[str, int, Any]]:
    number = 0
    if text.next_is("]"):
        return
    while True:
        yield key, number, text.value()
        number += 1
        if not text.next_is(","):
            text.expect("]", f"there is no comma after {key}[{number - 1}]")
            return


class _Text:
    """A file as text of which a window is held."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._lines = 0  # before the window
        self._is_whole = False

    def next_is(self, character: str) -> bool:
        """Step over blanks, and over this character if it comes next."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                break
            if not self._fill(CHUNK_BYTES):
                return False
        if self._text[self._at] != character:
            return False
        self._at += 1
        return True

    def expect(self, character: str, otherwise: str) -> None:
        if not self.next_is(character):
            raise self.malformed(otherwise)

    def value(self) -> Any:
        """The value that comes next."""
        self.next_is("\0")  # blanks only
        more = CHUNK_BYTES
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._is_whole:
                    raise self.malformed(error.msg, error.pos) from error
            except (RecursionError, ValueError) as error:
                raise self.malformed("it is nested too deeply, or has a number of too many digits") from error
            else:
                # A number at the very end of the window may go on after it.
                if end < len(self._text) or self._is_whole:
                    self._at = end
                    return value
            if len(self._text) - self._at > LONGEST_ELEMENT:
                raise self.malformed("no value ends within 64 MiB")
            self._fill(more)
            more *= 2

    def malformed(self, message: str, at: int | None = None) -> Malformed:
        line = self._lines + self._text.count("\n", 0, self._at if at is None else at) + 1
        return Malformed(message, line)

    def _fill(self, size_bytes: int) -> bool:
        """Read on; False at the end of the file."""
        if self._is_whole:
            return False
        data = self._file.read(size_bytes)
        self._is_whole = not data
        self._lines += self._text.count("\n", 0, self._at)
        try:
            self._text = self._text[self._at :] + self._decoder.decode(data, final=self._is_whole)
        except UnicodeDecodeError as error:
            line = self.malformed("").line
            raise Malformed(f"it is not UTF-8 from about here on: {error.reason}", line, "EncodingWrong") from error
        self._at = 0
        return bool(data)
