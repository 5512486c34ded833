"""JSON bodies in which nothing is lost on the way in: no key twice, no integer that no column holds.

The decoder keeps the last of two equal keys without a word, and takes integers of any length. Both are found by what is
cheap on a good body (counting), and named by what is slow on a bad one.
"""

import json
import re
from typing import Any

from runyard.server.services.errors import Problem, Refusal

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_LARGEST = 2**63


def check_exact(body: bytes, value: Any) -> None:
    """Refuse JSON that was read as something else than it says.

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
        elif isinstance(found, int) and not -_LARGEST <= found < _LARGEST:
            path, _ = _find_large(value)
            given = f"an integer of {found.bit_length()} bits"
            raise _refusal(
                path, given, "an integer of at most 63 bits", f"{path or '/'} is {given}; send a smaller one"
            )
    # Each member of an object has one colon outside of strings.
    if _STRING.sub(b"", body).count(b":") != members:
        _name_duplicate(body)


def _find_large(value: Any, path: str = "") -> tuple[str, bool]:
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            place, is_found = _find_large(item, f"{path}/{_step(name)}")
            if is_found:
                return place, True
    return path, isinstance(value, int) and not -_LARGEST <= value < _LARGEST


def _name_duplicate(body: bytes) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)[:80]
            message = f"the key {twice!r} stands twice in one object; send each key once"
            raise _refusal(f"/{_step(twice)}", twice, "each key once", message)
        return document

    json.loads(body, object_pairs_hook=unique)


def _refusal(path: str, given: str, allowed: str, message: str) -> Refusal:
    problem = Problem(path=path, given=given, allowed=allowed, message=message)
    return Refusal("InvalidBody", f"the body does not fit: {message}", problems=[problem])


def _step(name: object) -> str:
    return str(name)[:200].replace("~", "~0").replace("/", "~1")
