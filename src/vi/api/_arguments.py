"""What callers hand in, checked and put into wire form before anything is sent: pure functions.

A wrong argument is told here, with its name, its value and what would be right, rather than by a server far away.
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
_LARGEST_PAGE = 1000


def check_id(value: object, *, name: str) -> str:
    """The id, if it can be one; anything else would end up as another path on the server."""
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise ViInvalidParameterError(
        f"{name} is {shorten_repr(value)}, which is no id",
        suggestion="An id is 1 to 255 letters, digits, '_' and '-'.",
        details={"parameter": name},
    )


def check_pagination(value: PaginationParams | Mapping[str, Any] | None) -> PaginationParams:
    """The slice of a list that is wanted."""
    if value is None:
        return PaginationParams()
    if isinstance(value, Mapping):
        unknown = set(value) - {"page_size", "page_token"}
        if unknown:
            raise ViInvalidParameterError(
                f"pagination has the unknown key {min(map(str, unknown))!r}",
                suggestion="It takes page_size and page_token.",
            )
        value = PaginationParams(**value)
    if not isinstance(value, PaginationParams):
        raise ViInvalidParameterError(
            f"pagination is {shorten_repr(value)}",
            suggestion="Give PaginationParams(page_size=50) or {'page_size': 50}.",
        )
    size = value.page_size
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _LARGEST_PAGE:
        raise ViInvalidParameterError(
            f"page_size is {shorten_repr(size)}", suggestion=f"It is a whole number from 1 to {_LARGEST_PAGE}."
        )
    if value.page_token is not None and not isinstance(value.page_token, str):
        raise ViInvalidParameterError(
            f"page_token is {shorten_repr(value.page_token)}", suggestion="It is the next_page of an earlier answer."
        )
    return value


def metadata_document(attributes: Mapping[str, Any] | None, *, removable: bool = False) -> dict[str, Any]:
    """The part of a body that carries attributes; empty if none were given.

    ``removable`` allows None as a value, which takes an attribute away.
    """
    if attributes is None:
        return {}
    if not isinstance(attributes, Mapping):
        raise ViInvalidParameterError(
            f"metadata is {shorten_repr(attributes)}",
            suggestion="Give a dict of strings, such as {'experiment': 'baseline'}.",
        )
    for key, value in attributes.items():
        if not isinstance(key, str) or not (isinstance(value, str) or (removable and value is None)):
            raise ViInvalidParameterError(
                f"metadata[{shorten_repr(key)}] is {shorten_repr(value)}",
                suggestion=f"Names and values of attributes are strings; write {str(value)!r}.",
            )
    return {"metadata": {"attributes": dict(attributes)}}


def spec_document(spec: object, *, name: str = "spec") -> dict[str, Any]:
    """A spec in wire form: of a struct the fields that differ from their defaults, a dict with its keys in camelCase.

    Only the keys of the spec itself, and of a flow inside it, are rewritten: what lies in settings belongs to the
    caller.
    """
    if isinstance(spec, msgspec.Struct):
        return {
            field.encode_name: _value_document(getattr(spec, field.name))
            for field in msgspec.structs.fields(spec)
            if getattr(spec, field.name) != _default_of(field)
        }
    if isinstance(spec, Mapping):
        return {key: _value_document(value, key=key) for key, value in _camel_keys(spec, name=name).items()}
    raise ViInvalidParameterError(
        f"{name} is {shorten_repr(spec)}", suggestion="Give a dict, or the spec of a resource."
    )


def camel_case(key: object) -> str:
    """``training_project`` becomes ``trainingProject``; what has no underscore stays as it is."""
    if not isinstance(key, str):
        raise ViInvalidParameterError(f"a key is {shorten_repr(key)}", suggestion="Keys of a spec are strings.")
    first, *others = key.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in others)


def flow_document(flow: object) -> dict[str, Any]:
    """A whole flow in wire form, every field of a struct written out; a dict is sent as it is, the server judges it.

    Raises:
        ViInvalidParameterError: it holds a value that JSON does not have; paths are those of the server's problems.
    """
    if isinstance(flow, msgspec.Struct):
        document: dict[str, Any] = to_json_value(flow, name="flow")
        return {key: value for key, value in document.items() if value is not None}
    if isinstance(flow, Mapping):
        return dict(to_json_value(flow, name="flow"))
    raise ViInvalidParameterError(
        f"flow is {shorten_repr(flow)}",
        suggestion="Give the id of a flow, a FlowSpec, or a dict with the flow's fields.",
    )


def text_or_none(value: object, *, name: str) -> str | None:
    """Return a text to send, or None where there is none."""
    if value is None or isinstance(value, str):
        return value
    raise ViInvalidParameterError(f"{name} is {shorten_repr(value)}", suggestion="Give a string, or leave it out.")


def if_match_headers(etag: object) -> dict[str, str] | None:
    """Return the header that makes a change depend on an etag; none without one.

    An empty etag is refused: it would make the change unconditional, which is not what was asked for.
    """
    if etag is None:
        return None
    if not isinstance(etag, str) or not etag.isascii() or not etag.isprintable() or not etag.strip():
        raise ViInvalidParameterError(f"if_match is {shorten_repr(etag)}", suggestion="Give the etag of a document.")
    return {"If-Match": etag}


def check_seconds(value: object, *, name: str, least: float = 0.0) -> None:
    """See that a duration is a number of seconds, or None.

    Raises:
        ViInvalidParameterError: it is not.
    """
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not value >= least:  # type: ignore[operator]
        raise ViInvalidParameterError(
            f"{name} is {shorten_repr(value)}", suggestion=f"Give a number of seconds from {least:g}, or leave it out."
        )


def local_path(value: object, *, name: str) -> Path:
    """Return a path on this machine, with ``~`` resolved.

    Raises:
        ViInvalidParameterError: no file can have this name.
    """
    try:
        path = Path(value).expanduser()  # type: ignore[arg-type]
        if b"\0" in os.fsencode(path):
            raise ValueError("it has a null character in it")
        path.exists()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ViInvalidParameterError(
            f"{name} is {shorten_repr(value)}, which is no path here",
            suggestion="Give a string or a pathlib.Path.",
            cause=error,
        ) from error
    return path


def resume_document(value: object) -> dict[str, Any]:
    """What a run goes on from in wire form: a run's id, or that and a checkpoint."""
    if isinstance(value, str):
        return {"runId": check_id(value, name="resume_from")}
    if isinstance(value, tuple | list) and len(value) == 2:
        run_id, checkpoint = value
        return {
            "runId": check_id(run_id, name="resume_from[0]"),
            "checkpoint": check_id(checkpoint, name="resume_from[1]"),
        }
    raise ViInvalidParameterError(
        f"resume_from is {shorten_repr(value)}",
        suggestion="Give the id of a run, or (run_id, checkpoint) with a checkpoint's id, 'latest' or 'best'.",
    )


def milliseconds(value: datetime | int | None, *, name: str) -> int | None:
    """A moment as epoch milliseconds; a datetime without a zone is local time."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, datetime):
        try:
            return round(value.timestamp() * 1000)
        except (ValueError, OverflowError) as error:
            raise ViInvalidParameterError(
                f"{name} is {shorten_repr(value)}, which is out of range",
                suggestion="Give a datetime with a time zone.",
                cause=error,
            ) from error
    raise ViInvalidParameterError(
        f"{name} is {shorten_repr(value)}", suggestion="Give a datetime, or epoch milliseconds."
    )


def _camel_keys(document: Mapping[Any, Any], *, name: str) -> dict[str, Any]:
    """The document with its keys in camelCase; one that is there in two spellings is refused, not dropped."""
    written = {camel_case(key): value for key, value in document.items()}
    if len(written) < len(document):
        names = [camel_case(key) for key in document]
        twice = next(key for key in names if names.count(key) > 1)
        raise ViInvalidParameterError(f"{name} has {twice!r} twice, in two spellings", suggestion="Give it once.")
    return written


def _value_document(value: Any, *, key: object = None) -> Any:
    if isinstance(value, msgspec.Struct):
        return flow_document(value)
    if key == "flow" and isinstance(value, Mapping):
        return _camel_keys(value, name="flow")
    return value


def _default_of(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
