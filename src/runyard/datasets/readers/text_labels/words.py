"""The words of a line in a label file: numbers and names, however they are separated."""

import re

from runyard.datasets.readers.boxes import parse_number

MAX_CLASS_NUMBER = 999_999_999
_SEPARATORS = re.compile(r"[\s,;]+")
_SPACES = re.compile(r"[\s;]+")
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")


def split_words(line: str) -> list[str]:
    """Split a line at spaces, tabs, commas and semicolons; a comment has no words.

    In a line with decimal commas, such as ``0 0,3 0,35 0,4 0,5``, the commas are kept.
    """
    line = line.strip()
    if not line or line.startswith("#"):
        return []
    if "," in line and "." not in line:
        words = _SPACES.split(line)
        if len(words) > 3 and sum(map(has_decimal_comma, words)) >= len(words) - 2:
            return [word for word in words if word]
    words = [word for word in _SEPARATORS.split(line) if word]
    return words[: _find_comment(words)]


def has_decimal_comma(word: str) -> bool:
    """Return whether a word is a number with a decimal comma, such as ``0,35``."""
    return _DECIMAL_COMMA.fullmatch(word) is not None


def parse_whole(word: str) -> int | None:
    """Parse a whole number, which may be written as a float, such as ``1.000000``."""
    number = parse_number(word)
    if number is None or not 0 <= number <= MAX_CLASS_NUMBER or number != int(number):
        return None
    return int(number)


def is_fraction(word: str, number: float | None) -> bool:
    """Return whether a word is a coordinate as a fraction: about 0 to 1, with decimals."""
    return number is not None and -0.5 <= number <= 1.5 and not word.lstrip("+-").isdigit()


def _find_comment(words: list[str]) -> int:
    """Return where a comment begins after a row of numbers; the count of words if nowhere."""
    for index, word in enumerate(words):
        if index >= 5 and word.startswith("#"):
            return index
        if parse_number(word) is None:
            break
    return len(words)
