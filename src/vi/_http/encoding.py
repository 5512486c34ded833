"""JSON of what callers hand in: exactly the values given, or an error that names the one that JSON cannot carry.

msgspec alone writes NaN and infinity as ``null``, which a server reads as "take the default", and turns decimals,
bytes, dates, sets and keys that are no strings into something else silently. Here every value is checked first, and
what would come out as another value is refused before anything is sent.
"""

import enum
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from vi._text import printable, shorten_repr
from vi.errors import ViInvalidParameterError

DEEPEST = 100  # no reader on the way would take more; a value that contains itself ends here as well


def encode_body(value: Any, *, name: str = "the body") -> bytes:
    """Return a value as JSON.

    Structs of msgspec, enumerations and mappings are written as what they stand for, and numbers of numpy as the Python
    number that equals them.

    Raises:
        ViInvalidParameterError: JSON has no such value; ``details["problems"]`` holds its path as a JSON pointer.
    """
    return msgspec.json.encode(to_json_value(value, name=name))


def to_json_value(value: Any, *, name: str = "the body") -> Any:
    """Return a copy of a value that consists of dict, list, str, int, float, bool and None alone; errors as above."""
    return _Walk(name).copy(value, (), 0)


class _Walk:
    """One way through a value; ``name`` is what messages call its top."""

    def __init__(self, name: str) -> None:
        self._name = name

    def copy(self, value: Any, path: tuple[object, ...], depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return self._text(value, path)
        if kind is int:
            return self._integer(value, path)
        if kind is float:
            return self._float(value, path)
        if depth >= DEEPEST:
            raise self._refused(path, "is nested too deeply", f"at most {DEEPEST} levels; it may contain itself")
        if isinstance(value, Mapping):
            return {self._key(key, path): self.copy(item, (*path, key), depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item, (*path, index), depth + 1) for index, item in enumerate(value)]
        if isinstance(value, msgspec.Struct):
            return self._struct(value, path, depth)
        if isinstance(value, enum.Enum):
            return self.copy(value.value, path, depth + 1)
        return self._other(value, path)

    def _struct(self, value: msgspec.Struct, path: tuple[object, ...], depth: int) -> dict[str, Any]:
        config = value.__struct_config__
        document: dict[str, Any] = {} if config.tag is None else {str(config.tag_field): config.tag}
        for field in msgspec.structs.fields(value):
            item = getattr(value, field.name)
            if item is not msgspec.UNSET:
                document[field.encode_name] = self.copy(item, (*path, field.encode_name), depth + 1)
        return document

    def _other(self, value: Any, path: tuple[object, ...]) -> Any:
        """Return what subclasses of the plain types, and the numbers of numpy, are worth."""
        if isinstance(value, str):
            return self._text(str.__str__(value), path)
        if type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "ndim", None) == 0:
            plain = value.item()
            if type(plain) in (bool, int, float, str):
                return self.copy(plain, path, 0)
        elif isinstance(value, int):
            return self._integer(int.__int__(value), path)
        elif isinstance(value, float):
            return self._float(float.__float__(value), path)
        kind = type(value).__name__
        raise self._refused(path, f"is a Python {kind}, which JSON does not have", _JSON_VALUES + _WAYS.get(kind, ""))

    def _text(self, value: str, path: tuple[object, ...]) -> str:
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            shown = shorten_repr(value, longest=80)
            raise self._refused(path, f"is {shown}, which has a lone surrogate in it", "text in Unicode", shown)
        return value

    def _integer(self, value: int, path: tuple[object, ...]) -> int:
        if not -(2**63) <= value < 2**63:
            given = f"an integer of {value.bit_length()} bits"
            raise self._refused(path, f"is {given}", "an integer that fits into 64 bits, with its sign", given)
        return value

    def _float(self, value: float, path: tuple[object, ...]) -> float:
        if not math.isfinite(value):
            allowed = "a finite number (None, where the field takes it, means what its documentation says)"
            raise self._refused(path, f"is {value!r}, which JSON does not have", allowed, str(value))
        return value

    def _key(self, key: object, path: tuple[object, ...]) -> str:
        if not isinstance(key, str):
            given = shorten_repr(key, longest=80)
            raise self._refused(
                path, f"has the key {given} of type {type(key).__name__}", "keys that are strings", given
            )
        text = str(key.value) if isinstance(key, enum.Enum) else str.__str__(key)
        return self._text(text, (*path, text))

    def _refused(
        self, path: tuple[object, ...], what: str, allowed: str, given: object = None
    ) -> ViInvalidParameterError:
        pointer = "".join(f"/{_step(name)}" for name in path)
        message = f"{pointer or self._name} {what}; expected: {allowed}"
        problem = {"path": pointer, "given": given, "allowed": allowed, "message": message}
        return ViInvalidParameterError(message, suggestion="Nothing was sent.", details={"problems": [problem]})


_JSON_VALUES = "a dict, list, string, int, float, bool or None"
_WAYS = {
    "ndarray": "; try: value.tolist()",
    "Tensor": "; try: value.tolist()",
    "Decimal": "; try: float(value), or str(value)",
    "Fraction": "; try: float(value)",
    "set": "; try: sorted(value)",
    "bytes": "; try: value.decode()",
    "datetime": "; try: value.isoformat()",
}


def _step(name: object) -> str:
    text = name if isinstance(name, str) else str(name)
    return printable(text[:200]).replace("~", "~0").replace("/", "~1")
