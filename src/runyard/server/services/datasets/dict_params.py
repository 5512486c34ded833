"""Dictionaries in query parameters and filters.

The published client sends some of them as Python literals, others as JSON.
"""

import re
from typing import Any

import msgspec

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z]+)|(?P<other>-?[\d.]+(?:[eE][-+]?\d+)?|[][{}:,]))\s*""",
    re.DOTALL,
)
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def parse_dict_param(text: str) -> dict[str, Any] | None:
    """Return a dictionary from JSON or a Python literal; None when it is neither. Nothing is evaluated."""
    for convert in (str, _convert_python_literal):
        try:
            return msgspec.json.decode(convert(text), type=dict[str, Any])
        except (ValueError, RecursionError):  # UnicodeEncodeError, for lone surrogates, is a ValueError
            continue
    return None


def _convert_python_literal(text: str) -> str:
    """Return a Python literal as JSON; the empty string when JSON has no such token."""
    parts, position = [], 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or (token["word"] and token["word"] not in _WORDS):
            return ""
        if token["text"]:
            parts.append(msgspec.json.encode(_ESCAPE.sub(_decode_escape, token["text"][1:-1])).decode())
        else:
            parts.append(_WORDS[token["word"]] if token["word"] else token["other"])
        position = token.end()
    return "".join(parts)


def _decode_escape(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2] or escape[3]
    if code is None:
        return _ESCAPED.get(escape[4], escape[4])
    number = int(code, 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"
