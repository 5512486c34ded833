"""Conversion of documents to data frames; pandas and polars are imported when called.

A document becomes one row. Nested fields have dotted names, times are datetimes in UTC.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import pandas
    import polars

_TIMES = frozenset(
    {"expires_at", "killed_at", "last_transition_time", "last_updated", "last_used_at", "time"}
    | {"time_created", "time_ended", "time_started"}
)


def import_library(name: str) -> Any:
    """Return a library that the SDK does not depend on.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f"this needs {name}, which is not installed. try: pip install {name}", name=name
        ) from error


def to_pandas_frame(documents: Sequence[Any]) -> "pandas.DataFrame":
    """Return a pandas data frame with one row per document."""
    return import_library("pandas").DataFrame(build_columns(documents))


def to_polars_frame(documents: Sequence[Any]) -> "polars.DataFrame":
    """Return a polars data frame with one row per document."""
    return import_library("polars").DataFrame(build_columns(documents), strict=False)


def build_columns(documents: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the columns of all documents; None where one lacks a field."""
    records = [item._to_record() for item in documents]
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def flatten_document(document: Any, *, prefix: str = "") -> dict[str, Any]:
    """Return the fields of a document with dotted names; lists stay lists of plain values."""
    if isinstance(document, msgspec.Struct):
        given = {name: getattr(document, name) for name in document.__struct_fields__}
    else:
        given = document
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, msgspec.Struct | Mapping):
            fields |= flatten_document(value, prefix=f"{prefix}{name}.")
        elif name in _TIMES and isinstance(value, int):
            fields[prefix + name] = to_datetime(value)
        else:
            fields[prefix + name] = msgspec.to_builtins(value, enc_hook=str)
    return fields


def to_datetime(time_ms: int | None) -> datetime | None:
    """Return epoch milliseconds as a datetime in UTC; None for None and 0."""
    return datetime.fromtimestamp(time_ms / 1000, UTC) if time_ms else None
