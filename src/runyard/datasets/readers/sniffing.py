"""The form of a JSON file, from its beginning: enough to recognize the tool that wrote it."""

import json
import re
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from runyard.datasets.readers.lines import BOM, read_head
from runyard.datasets.sources import Source

SNIFFED_BYTES = 1 << 20
WHOLE_CHARACTERS = 500  # of a value that is kept as it is
MAX_KEYS, MAX_DEPTH = 50, 5  # of a value that is shortened
ENDINGS = (".json", ".jsonl", ".ndjson")

_decode = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.S)
# By source, then by path: every reader asks about the same files.
_FORMS: "WeakKeyDictionary[Source, dict[str, JsonForm | None]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class JsonForm:
    """What the first MiB of a JSON file shows.

    ``is_array`` is True for one array, ``is_lines`` for JSON Lines. ``keys`` are the keys of the
    file's object, or of the first element or line. ``values`` has the values of these keys that end
    within the first MiB; ``first`` has the first element of each of them that is a list. Long
    values are shortened: forms of all files are kept, and a value may be an embedded image.
    """

    is_array: bool = False
    is_lines: bool = False
    keys: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)


def sniff_json(source: Source, path: str) -> JsonForm | None:
    """Return the form of a JSON file; None for another file, or if it holds no object."""
    if not path.lower().endswith(ENDINGS):
        return None
    known = _FORMS.setdefault(source, {})
    if path not in known:
        text = read_head(source, path, SNIFFED_BYTES).removeprefix(BOM).decode(errors="replace")
        known[path] = _sniff(text)
    return known[path]


def _sniff(text: str) -> JsonForm | None:
    at = _skip_space(text, 0)
    is_array = text.startswith("[", at)
    if is_array:
        at = _skip_space(text, at + 1)
    if not text.startswith("{", at):
        return None
    values: dict[str, Any] = {}
    first: dict[str, Any] = {}
    keys: list[str] = []
    end = _scan_object(text, at, keys, values, first)
    is_lines = not is_array and end is not None and text.startswith("{", _skip_space(text, end))
    return JsonForm(is_array, is_lines, tuple(keys), values, first)


def _scan_object(
    text: str, at: int, keys: list[str], values: dict[str, Any], first: dict[str, Any]
) -> int | None:
    """Collect what is known of the object at ``at``; return its end, or None if it is cut off."""
    at = _skip_space(text, at + 1)
    while not text.startswith("}", at):
        try:
            key, at = _decode(text, at)
        except (ValueError, RecursionError):
            return None
        at = _skip_space(text, at)
        if not isinstance(key, str) or not text.startswith(":", at):
            return None
        keys.append(key)
        at = _skip_space(text, at + 1)
        end = _scan_value(text, at, key, values, first)
        if end is None:
            return None
        at = _skip_space(text, end)
        if text.startswith(",", at):
            at = _skip_space(text, at + 1)
    return at + 1


def _scan_value(
    text: str, at: int, key: str, values: dict[str, Any], first: dict[str, Any]
) -> int | None:
    try:
        value, end = _decode(text, at)
    except (ValueError, RecursionError):
        if text.startswith("[", at):
            try:
                element, _ = _decode(text, _skip_space(text, at + 1))
                first[key] = _shorten(element)
            except (ValueError, RecursionError):
                return None
        return _skip_brackets(text, at)
    value = value if end - at <= WHOLE_CHARACTERS else _shorten(value)
    values[key] = value
    if isinstance(value, list) and value:
        first[key] = value[0]
    return end


def _shorten(value: Any, depth: int = 0) -> Any:
    """Return a value of the same type, with the beginning of its texts and containers."""
    if isinstance(value, str):
        return value[:WHOLE_CHARACTERS]
    if isinstance(value, list):
        return [_shorten(one, depth + 1) for one in value[:2]] if depth < MAX_DEPTH else value[:0]
    if isinstance(value, dict):
        items = list(value.items())[:MAX_KEYS] if depth < MAX_DEPTH else []
        return {key: _shorten(one, depth + 1) for key, one in items}
    return value


def _skip_brackets(text: str, at: int) -> int | None:
    depth = 0
    for token in _TOKEN.finditer(text, at):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth <= 0:
            return token.end()
    return None


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
