"""JSON encoding of caller-supplied values: exact, or an exception that names the offending value.

msgspec alone encodes NaN and infinity as ``null``, which a server reads as "use the default". It
also silently converts decimals, bytes, dates, sets and non-string keys. This module checks every
value first and rejects those that would decode as another value, before anything is sent.
"""

import enum
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from vi._text import printable, shorten_repr
from vi.errors import ViInvalidParameterError

MAX_DEPTH = 100  # servers accept no deeper nesting; also stops a value that contains itself


def encode_body(value: Any, *, name: str = "the body") -> bytes:
    """Return a value as JSON.

    msgspec structs, enum members and mappings are encoded as their contents, and numpy scalars as
    the equal Python number.

    Raises:
        ViInvalidParameterError: JSON has no such value; ``details["problems"]`` has its JSON
            pointer.
    """
    return msgspec.json.encode(to_json_value(value, name=name))


def to_json_value(value: Any, *, name: str = "the body") -> Any:
    """Return a copy that consists only of dict, list, str, int, float, bool and None.

    Raises:
        ViInvalidParameterError: JSON has no such value; ``details["problems"]`` has its JSON
            pointer.
    """
    return _JsonConverter(name).convert(value, (), 0)


class _JsonConverter:
    """Recursive conversion of one value; ``name`` stands for its root in messages."""

    def __init__(self, name: str) -> None:
        self._name = name

    def convert(self, value: Any, path: tuple[object, ...], depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return self._check_text(value, path)
        if kind is int:
            return self._check_integer(value, path)
        if kind is float:
            return self._check_float(value, path)
        if depth >= MAX_DEPTH:
            raise self._error(
                path, "is nested too deeply", f"at most {MAX_DEPTH} levels; it may contain itself"
            )
        if isinstance(value, Mapping):
            return {
                self._check_key(key, path): self.convert(item, (*path, key), depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [
                self.convert(item, (*path, index), depth + 1) for index, item in enumerate(value)
            ]
        if isinstance(value, msgspec.Struct):
            return self._convert_struct(value, path, depth)
        if isinstance(value, enum.Enum):
            return self.convert(value.value, path, depth + 1)
        return self._convert_other(value, path)

    def _convert_struct(
        self, value: msgspec.Struct, path: tuple[object, ...], depth: int
    ) -> dict[str, Any]:
        config = value.__struct_config__
        document: dict[str, Any] = {} if config.tag is None else {str(config.tag_field): config.tag}
        for field in msgspec.structs.fields(value):
            item = getattr(value, field.name)
            if item is not msgspec.UNSET:
                document[field.encode_name] = self.convert(
                    item, (*path, field.encode_name), depth + 1
                )
        return document

    def _convert_other(self, value: Any, path: tuple[object, ...]) -> Any:
        """Return the plain value of a numpy scalar or of a subclass of a plain type."""
        if isinstance(value, str):
            return self._check_text(str.__str__(value), path)
        if (
            type(value).__module__.partition(".")[0] == "numpy"
            and getattr(value, "ndim", None) == 0
        ):
            plain = value.item()
            if type(plain) in (bool, int, float, str):
                return self.convert(plain, path, 0)
        elif isinstance(value, int):
            return self._check_integer(int.__int__(value), path)
        elif isinstance(value, float):
            return self._check_float(float.__float__(value), path)
        kind = type(value).__name__
        raise self._error(
            path,
            f"is a Python {kind}, which JSON does not have",
            _JSON_TYPES + _CONVERSION_HINTS.get(kind, ""),
        )

    def _check_text(self, value: str, path: tuple[object, ...]) -> str:
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            shown = shorten_repr(value, longest=80)
            raise self._error(
                path, f"is {shown}, which has a lone surrogate in it", "text in Unicode", shown
            )
        return value

    def _check_integer(self, value: int, path: tuple[object, ...]) -> int:
        if not -(2**63) <= value < 2**63:
            given = f"an integer of {value.bit_length()} bits"
            raise self._error(
                path, f"is {given}", "an integer that fits into 64 bits, with its sign", given
            )
        return value

    def _check_float(self, value: float, path: tuple[object, ...]) -> float:
        if not math.isfinite(value):
            allowed = (
                "a finite number (None, where the field takes it, means what its documentation "
                "says)"
            )
            raise self._error(path, f"is {value!r}, which JSON does not have", allowed, str(value))
        return value

    def _check_key(self, key: object, path: tuple[object, ...]) -> str:
        if not isinstance(key, str):
            given = shorten_repr(key, longest=80)
            raise self._error(
                path,
                f"has the key {given} of type {type(key).__name__}",
                "keys that are strings",
                given,
            )
        text = str(key.value) if isinstance(key, enum.Enum) else str.__str__(key)
        return self._check_text(text, (*path, text))

    def _error(
        self, path: tuple[object, ...], what: str, allowed: str, given: object = None
    ) -> ViInvalidParameterError:
        pointer = "".join(f"/{_escape_pointer(name)}" for name in path)
        message = f"{pointer or self._name} {what}; expected: {allowed}"
        problem = {"path": pointer, "given": given, "allowed": allowed, "message": message}
        return ViInvalidParameterError(
            message, suggestion="Nothing was sent.", details={"problems": [problem]}
        )


_JSON_TYPES = "a dict, list, string, int, float, bool or None"
_CONVERSION_HINTS = {
    "ndarray": "; try: value.tolist()",
    "Tensor": "; try: value.tolist()",
    "Decimal": "; try: float(value), or str(value)",
    "Fraction": "; try: float(value)",
    "set": "; try: sorted(value)",
    "bytes": "; try: value.decode()",
    "datetime": "; try: value.isoformat()",
}


def _escape_pointer(name: object) -> str:
    text = name if isinstance(name, str) else str(name)
    return printable(text[:200]).replace("~", "~0").replace("/", "~1")
