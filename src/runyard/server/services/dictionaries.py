"""Dictionaries in query parameters: the published client writes some of them as Python would, others as JSON."""

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


def dictionary(text: str) -> dict[str, Any] | None:
    """A dictionary as JSON or as Python writes it; None when it is neither. Nothing in it is evaluated."""
    for read in (str, _as_json):
        try:
            return msgspec.json.decode(read(text), type=dict[str, Any])
        except (ValueError, RecursionError):  # half characters cannot be encoded, which is a ValueError, too
            continue
    return None


def _as_json(text: str) -> str:
    """The same tokens as JSON writes them; empty when one is none of JSON's kinds."""
    parts, place = [], 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None or (token["word"] and token["word"] not in _WORDS):
            return ""
        if token["text"]:
            parts.append(msgspec.json.encode(_ESCAPE.sub(_unescaped, token["text"][1:-1])).decode())
        else:
            parts.append(_WORDS[token["word"]] if token["word"] else token["other"])
        place = token.end()
    return "".join(parts)


def _unescaped(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2] or escape[3]
    if code is None:
        return _ESCAPED.get(escape[4], escape[4])
    number = int(code, 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"
