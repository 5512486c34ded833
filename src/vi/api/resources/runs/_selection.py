"""Which runs are meant: the filters of ``list``, as query parameters and as the body of a bulk request."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias

from vi._http.requests import Scalar
from vi._text import shorten_repr
from vi.api._arguments import check_id, milliseconds, text_or_none
from vi.api.responses import ConditionKind
from vi.errors import ViInvalidParameterError

RunIds: TypeAlias = list[str] | tuple[str, ...] | set[str] | frozenset[str]

MOST_IDS = 1000
FILTERS = ("condition", "flow", "training_project", "attribute", "created_after", "created_before")


def filter_document(
    *,
    condition: ConditionKind | str | None = None,
    flow: str | None = None,
    training_project: str | None = None,
    attribute: Mapping[str, str] | None = None,
    created_after: datetime | int | None = None,
    created_before: datetime | int | None = None,
) -> dict[str, Any]:
    """Return the given filters in wire form; those that are None are left out."""
    filters = {
        "condition": text_or_none(condition, name="condition"),
        "flow": text_or_none(flow, name="flow"),
        "trainingProject": text_or_none(training_project, name="training_project"),
        "attributes": _attributes(attribute),
        "createdAfter": milliseconds(created_after, name="created_after"),
        "createdBefore": milliseconds(created_before, name="created_before"),
    }
    return {name: value for name, value in filters.items() if value is not None}


def filter_parameters(filters: Mapping[str, Any]) -> list[tuple[str, Scalar]]:
    """Return the filters as parameters of the list's address."""
    attributes = filters.get("attributes") or {}
    return [
        *((name, value) for name, value in filters.items() if name != "attributes"),
        *(("attribute", f"{key}:{value}") for key, value in attributes.items()),
    ]


def selection_document(run_ids: object, filter: object) -> dict[str, Any]:
    """Return the part of a bulk request that says which runs are meant.

    Raises:
        ViInvalidParameterError: both are given, or none, or one that names no run.
    """
    if filter is None:
        return {"ids": _ids(run_ids)}
    if run_ids is not None:
        raise ViInvalidParameterError("run_id and filter are both given", suggestion="Give one of the two.")
    if filter == "all":
        return {"filter": {"all": True}}
    unknown = set(filter) - set(FILTERS) if isinstance(filter, Mapping) else set()
    if not isinstance(filter, Mapping) or unknown or not filter:
        what = f"has the unknown key {min(map(repr, unknown))}" if unknown else f"is {shorten_repr(filter)}"
        raise ViInvalidParameterError(
            f"filter {what}", suggestion=f"Give a dict with some of {', '.join(FILTERS)}, or 'all' for every run."
        )
    document = filter_document(**filter)
    if not document:
        raise ViInvalidParameterError("filter has only None in it", suggestion="Give 'all' to mean every run.")
    return {"filter": document}


def _ids(given: object) -> list[str]:
    if not isinstance(given, list | tuple | set | frozenset) or not given:
        raise ViInvalidParameterError(
            f"run_id is {shorten_repr(given)}", suggestion="Give the id of a run, a list of ids, or filter={...}."
        )
    ids = [check_id(run_id, name=f"run_id[{number}]") for number, run_id in enumerate(given)]
    if len(ids) > MOST_IDS:
        raise ViInvalidParameterError(
            f"run_id has {len(ids)} ids", suggestion=f"Give at most {MOST_IDS} at once, in several calls."
        )
    return ids


def _attributes(given: object) -> dict[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ViInvalidParameterError(f"attribute is {shorten_repr(given)}", suggestion="Give a dict of strings.")
    for key, value in given.items():
        if not isinstance(key, str) or not isinstance(value, str) or not key or ":" in key:
            raise ViInvalidParameterError(
                f"attribute[{shorten_repr(key)}] is {shorten_repr(value)}",
                suggestion="Names and values of attributes are strings; a name that is looked for has no colon.",
            )
    return dict(given)
