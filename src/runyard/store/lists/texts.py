"""Texts of runs as a search compares them, and the patterns that it looks for.

Case does not count. The index of SQLite finds parts of at least three characters, so each word is
stored with two marks before it: a shorter text is found at the beginning of a word.
"""

import re
from collections.abc import Mapping

from runyard import limits
from runyard.limits import clean_text

_MARKS = "\u0002\u0002"
_WORD_START = re.compile(r"(?<![^\W_])(?=[^\W_])")
_MIN_LENGTH = 3
_MOST_OF_SORT_KEY = limits.RUN_NAME.value // 2
# Added to a text, it is after every sort key that begins with the text.
AFTER_TEXTS = "\U0010ffff" * limits.RUN_NAME.value


def build_texts(
    *, name: str, flow_name: str, attributes: Mapping[str, str], run_id: str
) -> tuple[str, str]:
    """Return the searched text of a run's name, and that of everything else."""
    others = [flow_name, run_id, *(f"{key}={value}" for key, value in attributes.items())]
    return _mark_words(name), _mark_words("\n".join(others))


def build_sort_key(name: str) -> str:
    """Return what a name is sorted by: case does not count, nor what follows the limit."""
    return clean_text(fold(name), limits.RUN_NAME)


def fold(text: str) -> str:
    """Return a text without differences of case and blanks, as it is sorted and searched."""
    return " ".join(text.casefold().split())


def build_pattern(term: str) -> str:
    """Return the text that the searched text of a matching run contains."""
    folded = fold(term)
    marked = _mark_words(folded)
    # A longer text may begin inside a word.
    return marked if len(folded) < _MIN_LENGTH else marked.removeprefix(_MARKS)


def quote_like(pattern: str) -> str:
    """Return the operand of LIKE, with the escape character ``\\``, for texts that contain it."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", pattern) + "%"


def quote_match(pattern: str, *, column: str | None = None) -> str | None:
    """Return the query for the index of SQLite; None for a pattern that it cannot find."""
    if len(pattern) < _MIN_LENGTH:
        return None
    phrase = '"' + pattern.replace('"', '""') + '"'
    return phrase if column is None else f"{column} : {phrase}"


def quote_others(match: str, folded: str) -> str | None:
    """Return the query for matches whose name does not begin with the folded text.

    None if sort keys might be cut within the text.
    """
    if len(folded.encode()) > _MOST_OF_SORT_KEY:
        return None
    beginning = _mark_words(folded).replace('"', '""')
    return f'({match}) NOT (name_text : ^ "{beginning}")'


def _mark_words(text: str) -> str:
    return _WORD_START.sub(_MARKS, fold(text))
