"""Validation of arguments and their conversion to wire form, before anything is sent: pure
functions.

A wrong argument is rejected with its name, its value and what is expected, without a request.
"""

import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from vi._http.encoding import to_json_value
from vi._text import shorten_repr
from vi.api.types import PaginationParams
from vi.errors import ViInvalidParameterError

_ID = re.compile(r"[A-Za-z0-9_-]{1,255}", re.ASCII)
_MAX_PAGE_SIZE = 1000


def check_id(value: object, *, name: str) -> str:
    """Return a valid id; any other value could address another path on the server.

    Raises:
        ViInvalidParameterError: The value is not an id.
    """
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise ViInvalidParameterError(
        f"{name} is {shorten_repr(value)}, expected: an id of 1 to 255 letters, digits, '_' and "
        "'-'",
        suggestion="try: the id as the server returned it",
        details={"parameter": name},
    )


def check_index(value: object, *, name: str) -> int:
    """Return a whole number of at least 0.

    Raises:
        ViInvalidParameterError: The value is something else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ViInvalidParameterError(
        f"{name} is {shorten_repr(value)}, expected: a whole number of at least 0",
        suggestion="try: the index as the server returned it",
        details={"parameter": name},
    )


def check_pagination(value: PaginationParams | Mapping[str, Any] | None) -> PaginationParams:
    """Return valid pagination parameters; None gives the defaults.

    Raises:
        ViInvalidParameterError: A key is unknown, or a value is out of range.
    """
    if value is None:
        return PaginationParams()
    if isinstance(value, Mapping):
        unknown = set(value) - {"page_size", "page_token"}
        if unknown:
            raise ViInvalidParameterError(
                f"pagination has the unknown key {min(map(str, unknown))!r}, expected: page_size "
                "and page_token",
                suggestion="try: {'page_size': 50}",
            )
        value = PaginationParams(**value)
    if not isinstance(value, PaginationParams):
        raise ViInvalidParameterError(
            f"pagination is {shorten_repr(value)}, expected: PaginationParams or a dict",
            suggestion="try: PaginationParams(page_size=50) or {'page_size': 50}",
        )
    size = value.page_size
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _MAX_PAGE_SIZE:
        raise ViInvalidParameterError(
            f"page_size is {shorten_repr(size)}, expected: an integer from 1 to {_MAX_PAGE_SIZE}",
            suggestion="try: page_size=100",
        )
    if value.page_token is not None and not isinstance(value.page_token, str):
        raise ViInvalidParameterError(
            f"page_token is {shorten_repr(value.page_token)}, expected: a string",
            suggestion="try: the next_page of an earlier response",
        )
    return value


def encode_metadata(
    attributes: Mapping[str, Any] | None, *, removable: bool = False
) -> dict[str, Any]:
    """Return the part of a body that carries attributes; empty if ``attributes`` is None.

    ``removable`` allows None as a value, which removes an attribute.

    Raises:
        ViInvalidParameterError: A name or value is not a string.
    """
    if attributes is None:
        return {}
    if not isinstance(attributes, Mapping):
        raise ViInvalidParameterError(
            f"metadata is {shorten_repr(attributes)}, expected: a dict of strings",
            suggestion="try: {'experiment': 'baseline'}",
        )
    for key, value in attributes.items():
        if not isinstance(key, str) or not (
            isinstance(value, str) or (removable and value is None)
        ):
            raise ViInvalidParameterError(
                f"metadata[{shorten_repr(key)}] is {shorten_repr(value)}, "
                "expected: names and values of attributes are strings",
                suggestion=f"try: {shorten_repr(str(key))}: {shorten_repr(str(value))}",
            )
    return {"metadata": {"attributes": dict(attributes)}}


def encode_spec(spec: object, *, name: str = "spec") -> dict[str, Any]:
    """Return a spec in wire form.

    A struct gives the fields that differ from their defaults, a dict its items with camelCase keys.
    Only the keys of the spec itself, and of a flow inside it, are converted; settings stay
    unchanged.

    Raises:
        ViInvalidParameterError: The spec is neither a struct nor a dict, or has a key twice.
    """
    if isinstance(spec, msgspec.Struct):
        return {
            field.encode_name: _encode_value(getattr(spec, field.name))
            for field in msgspec.structs.fields(spec)
            if getattr(spec, field.name) != _get_default(field)
        }
    if isinstance(spec, Mapping):
        return {
            key: _encode_value(value, key=key)
            for key, value in _to_camel_keys(spec, name=name).items()
        }
    raise ViInvalidParameterError(
        f"{name} is {shorten_repr(spec)}, expected: a dict or the spec of a resource",
        suggestion="try: a dict with the fields to set",
    )


def to_camel_case(key: object) -> str:
    """Return ``trainingProject`` for ``training_project``.

    Keys without underscores stay unchanged.
    """
    if not isinstance(key, str):
        raise ViInvalidParameterError(
            f"a key of the spec is {shorten_repr(key)}, expected: a string"
        )
    first, *others = key.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in others)


def encode_flow(flow: object) -> dict[str, Any]:
    """Return a flow in wire form: a struct with every field, or a dict as it is.

    Raises:
        ViInvalidParameterError: It contains a value that JSON lacks; paths match the server's
            problems.
    """
    if isinstance(flow, msgspec.Struct):
        document: dict[str, Any] = to_json_value(flow, name="flow")
        return {key: value for key, value in document.items() if value is not None}
    if isinstance(flow, Mapping):
        return dict(to_json_value(flow, name="flow"))
    raise ViInvalidParameterError(
        f"flow is {shorten_repr(flow)}, expected: a flow id, a FlowSpec or a dict",
        suggestion="try: the id of a saved flow, or a dict with the fields of FlowSpec",
    )


def check_text(value: object, *, name: str) -> str | None:
    """Return a string or None.

    Raises:
        ViInvalidParameterError: The value is something else.
    """
    if value is None or isinstance(value, str):
        return value
    raise ViInvalidParameterError(
        f"{name} is {shorten_repr(value)}, expected: a string",
        suggestion="try: a string, or omit the argument",
    )


def build_if_match_headers(etag: object) -> dict[str, str] | None:
    """Return the If-Match header that makes a change conditional on an etag; None without an etag.

    Raises:
        ViInvalidParameterError: The etag is malformed or empty; empty would be unconditional.
    """
    if etag is None:
        return None
    if (
        not isinstance(etag, str)
        or not etag.isascii()
        or not etag.isprintable()
        or not etag.strip()
    ):
        raise ViInvalidParameterError(
            f"if_match is {shorten_repr(etag)}, expected: an etag",
            suggestion="try: the etag of the resource",
        )
    return {"If-Match": etag}


def check_event_number(value: object, *, name: str) -> int | None:
    """Return the number of an event, or None.

    Raises:
        ViInvalidParameterError: The value is something else.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ViInvalidParameterError(
        f"{name} is {shorten_repr(value)}, expected: the number of an event",
        suggestion="try: the number of the last event that was processed, or omit the argument",
        details={"parameter": name},
    )


def check_seconds(value: object, *, name: str, minimum: float = 0.0) -> None:
    """Check that a duration is None or a number of seconds of at least ``minimum``.

    Raises:
        ViInvalidParameterError: It is not.
    """
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not value >= minimum:  # type: ignore[operator]
        raise ViInvalidParameterError(
            f"{name} is {shorten_repr(value)}, expected: a number of seconds, at least {minimum:g}",
            suggestion=f"try: {name}=60, or omit the argument",
        )


def parse_local_path(value: object, *, name: str) -> Path:
    """Return a path on this machine, with ``~`` expanded.

    Raises:
        ViInvalidParameterError: The value is not a valid path.
    """
    try:
        path = Path(value).expanduser()  # type: ignore[arg-type]
        if b"\0" in os.fsencode(path):
            raise ValueError("it contains a null character")
        path.exists()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ViInvalidParameterError(
            f"{name} is {shorten_repr(value)}, expected: a path",
            suggestion="try: a string or a pathlib.Path",
            cause=error,
        ) from error
    return path


def encode_resume_from(value: object) -> dict[str, Any]:
    """Return the checkpoint to resume from in wire form.

    ``value`` is a run id, or a pair of run id and checkpoint.

    Raises:
        ViInvalidParameterError: It is something else.
    """
    if isinstance(value, str):
        return {"runId": check_id(value, name="resume_from")}
    if isinstance(value, tuple | list) and len(value) == 2:
        run_id, checkpoint = value
        return {
            "runId": check_id(run_id, name="resume_from[0]"),
            "checkpoint": check_id(checkpoint, name="resume_from[1]"),
        }
    raise ViInvalidParameterError(
        f"resume_from is {shorten_repr(value)}, expected: a run id, or (run_id, checkpoint)",
        suggestion="try: (run_id, 'latest'), (run_id, 'best') or (run_id, checkpoint_id)",
    )


def to_epoch_ms(value: datetime | int | None, *, name: str) -> int | None:
    """Return a point in time as epoch milliseconds; a datetime without a time zone is local time.

    Raises:
        ViInvalidParameterError: The value is neither a datetime nor an integer, or out of range.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, datetime):
        try:
            return round(value.timestamp() * 1000)
        except (ValueError, OverflowError) as error:
            raise ViInvalidParameterError(
                f"{name} is {shorten_repr(value)}, which is out of range",
                suggestion="try: a datetime with a time zone",
                cause=error,
            ) from error
    raise ViInvalidParameterError(
        f"{name} is {shorten_repr(value)}, expected: a datetime or epoch milliseconds",
        suggestion="try: datetime.now(UTC)",
    )


def _to_camel_keys(document: Mapping[Any, Any], *, name: str) -> dict[str, Any]:
    """Return the document with camelCase keys.

    Raises:
        ViInvalidParameterError: Two spellings of one key are present.
    """
    written = {to_camel_case(key): value for key, value in document.items()}
    if len(written) < len(document):
        names = [to_camel_case(key) for key in document]
        twice = next(key for key in names if names.count(key) > 1)
        raise ViInvalidParameterError(
            f"{name} has {twice!r} twice, in two spellings", suggestion="try: keep one of the two"
        )
    return written


def _encode_value(value: Any, *, key: object = None) -> Any:
    if isinstance(value, msgspec.Struct):
        return encode_flow(value)
    if key == "flow" and isinstance(value, Mapping):
        return _to_camel_keys(value, name="flow")
    return value


def _get_default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
