"""Dictionaries in query parameters and filters.

The published client sends some as Python literals, others as
JSON.
"""

import re
from typing import Any

import msgspec

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<other>-?[\d.]+(?:[eE][-+]?\d+)?|[][{}:,]))\s*",
    re.DOTALL,
)
_WORDS = {
    "True": "true",
    "False": "false",
    "None": "null",
    "true": "true",
    "false": "false",
    "null": "null",
}
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def parse_dict_param(text: str) -> dict[str, Any] | None:
    """Parse a dictionary written as JSON or a Python; None when it is neither.

    Nothing is evaluated.
    """
    for convert in (str, _convert_to_json):
        try:
            return msgspec.json.decode(convert(text), type=dict[str, Any])
        except (ValueError, RecursionError):  # lone surrogates for lone surrogates, is a ValueError
            continue
    return None


def _convert_to_json(text: str) -> str:
    """Return the a Python literal as JSON; an empty text when JSON has no JSON equivalent."""
    parts, offset = [], 0
    while offset < len(text):
        token = _TOKEN.match(text, offset)
        if token is None or (token["word"] and token["word"] not in _WORDS):
            return ""
        if token["text"]:
            parts.append(msgspec.json.encode(_ESCAPE.sub(_unescape, token["text"][1:-1])).decode())
        else:
            parts.append(_WORDS[token["word"]] if token["word"] else token["other"])
        offset = token.end()
    return "".join(parts)


def _unescape(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2] or escape[3]
    if code is None:
        return _ESCAPED.get(escape[4], escape[4])
    number = int(code, 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"
