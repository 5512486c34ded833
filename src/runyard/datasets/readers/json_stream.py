"""Stream the arrays of a large JSON file, since an annotation file may exceed memory."""

import codecs
import json
from collections.abc import Container, Iterator
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
MAX_ELEMENT = 64 << 20

_decode = json.JSONDecoder().raw_decode
_SPACE = " \t\r\n"


class MalformedJson(ValueError):
    """The file is not valid JSON of the expected form.

    ``line`` locates the error, and ``code`` is that of the finding.
    """

    def __init__(self, message: str, line: int, code: str = "FileUnreadable"):
        super().__init__(message)
        self.line, self.code = line, code


def iter_elements(file: BinaryIO) -> Iterator[tuple[str, int, Any]]:
    """Yield every element of every array that is a direct value of the file's object: key, index,
    element.

    Other values are skipped. Raises MalformedJson, also if a single element is larger than 64 MiB.
    """
    text = _Window(file)
    text.expect("{", "the file is not a JSON object")
    for key in _iter_keys(text):
        if text.consume("["):
            yield from _iter_array(text, key)
        else:
            text.read_value()
    text.expect_end()


def iter_items(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Yield every element of the file's one array with its index; raise MalformedJson as above."""
    text = _Window(file)
    text.expect("[", "the file is not a JSON array")
    for _, number, value in _iter_array(text, ""):
        yield number, value
    text.expect_end()


def iter_members(
    file: BinaryIO, containers: Container[str] = ()
) -> Iterator[tuple[str, int | str | None, Any]]:
    """Yield every member of the file's object: key, None, value.

    A value that is an array or an object, and whose key is in ``containers``, is streamed: each of
    its elements is yielded with its index or key. Raises MalformedJson as above.
    """
    text = _Window(file)
    text.expect("{", "the file is not a JSON object")
    for key in _iter_keys(text):
        if key in containers and text.consume("["):
            yield from _iter_array(text, key)
        elif key in containers and text.consume("{"):
            for name in _iter_keys(text):
                yield key, name, text.read_value()
        else:
            yield key, None, text.read_value()
    text.expect_end()


def _iter_keys(text: "_Window") -> Iterator[str]:
    """Yield the keys of an object; the caller reads the value of each before the next."""
    if text.consume("}"):
        return
    while True:
        key = text.read_value()
        if not isinstance(key, str):
            raise text.malformed("a key is not a string")
        text.expect(":", f"there is no colon after {key!r}")
        yield key
        if not text.consume(","):
            text.expect("}", f"there is no comma after the value of {key!r}")
            return


def _iter_array(text: "_Window", key: str) -> Iterator[tuple[str, int, Any]]:
    number = 0
    if text.consume("]"):
        return
    while True:
        yield key, number, text.read_value()
        number += 1
        if not text.consume(","):
            text.expect("]", f"there is no comma after {key}[{number - 1}]")
            return


class _Window:
    """A file decoded as text, of which only a window is held."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._lines = 0  # before the window
        self._is_whole = False

    def consume(self, character: str) -> bool:
        """Skip blanks, and this character if it comes next; return whether it did."""
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

    def expect_end(self) -> None:
        """Raise MalformedJson unless only blanks follow."""
        if self.consume("\0") or self._at < len(self._text):
            raise self.malformed("there is more after the end of the JSON value")

    def expect(self, character: str, otherwise: str) -> None:
        if not self.consume(character):
            raise self.malformed(otherwise)

    def read_value(self) -> Any:
        """Read the next value."""
        self.consume("\0")  # blanks only
        more = CHUNK_BYTES
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._is_whole:
                    raise self.malformed(error.msg, error.pos) from error
            except (RecursionError, ValueError) as error:
                raise self.malformed(
                    "it is nested too deeply, or has a number with too many digits"
                ) from error
            else:
                # A number at the very end of the window may continue after it.
                if end < len(self._text) or self._is_whole:
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_ELEMENT:
                raise self.malformed("no value ends within 64 MiB")
            self._fill(more)
            more *= 2

    def malformed(self, message: str, at: int | None = None) -> MalformedJson:
        line = self._lines + self._text.count("\n", 0, self._at if at is None else at) + 1
        return MalformedJson(message, line)

    def _fill(self, size_bytes: int) -> bool:
        """Read more of the file; return False at its end."""
        if self._is_whole:
            return False
        data = self._file.read(size_bytes)
        self._is_whole = not data
        self._lines += self._text.count("\n", 0, self._at)
        try:
            self._text = self._text[self._at :] + self._decoder.decode(data, final=self._is_whole)
        except UnicodeDecodeError as error:
            line = self.malformed("").line
            raise MalformedJson(
                f"not UTF-8 at or soon after this line: {error.reason}", line, "EncodingWrong"
            ) from error
        self._at = 0
        return bool(data)
