"""Checks for what the JSON decoder accepts silently: duplicate keys and large integers.

The decoder keeps the last of two equal keys, and accepts integers of any length. A cheap count
finds both; only a body that fails is parsed again, slowly, to name the key.
"""

import json
import re
from typing import Any

from runyard.server.services.errors import Problem, Refusal

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_MAX_INTEGER = 2**63


def check_exact(body: bytes, value: Any) -> None:
    """Raise unless decoding has lost nothing of a body.

    Raises:
        Refusal: InvalidBody, with the path.
    """
    members, level = 0, [value]
    while level:
        found = level.pop()
        if isinstance(found, dict):
            members += len(found)
            level += found.values()
        elif isinstance(found, list):
            level += found
        elif isinstance(found, int) and not -_MAX_INTEGER <= found < _MAX_INTEGER:
            path, _ = _find_large_integer(value)
            given = f"an integer of {found.bit_length()} bits"
            raise _invalid_body(
                path,
                given,
                "an integer of at most 63 bits",
                f"{path or '/'} is {given}; try: a smaller one",
            )
    # Each member of an object has one colon outside of strings.
    if _STRING.sub(b"", body).count(b":") != members:
        _raise_for_duplicate(body)


def _find_large_integer(value: Any, path: str = "") -> tuple[str, bool]:
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            location, is_found = _find_large_integer(item, f"{path}/{_escape_pointer(name)}")
            if is_found:
                return location, True
    return path, isinstance(value, int) and not -_MAX_INTEGER <= value < _MAX_INTEGER


def _raise_for_duplicate(body: bytes) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)[:80]
            message = f"the key {twice!r} occurs twice in one object; try: send each key once"
            raise _invalid_body(f"/{_escape_pointer(twice)}", twice, "each key once", message)
        return document

    json.loads(body, object_pairs_hook=unique)


def _invalid_body(path: str, given: str, allowed: str, message: str) -> Refusal:
    problem = Problem(path=path, given=given, allowed=allowed, message=message)
    return Refusal("InvalidBody", f"the body is not valid: {message}", problems=[problem])


def _escape_pointer(name: object) -> str:
    return str(name)[:200].replace("~", "~0").replace("/", "~1")
