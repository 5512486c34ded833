"""Selection of runs: filters as query parameters and as the body of a bulk request."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias

from vi._http.requests import QueryValue
from vi._text import shorten_repr
from vi.api._arguments import check_id, check_text, encode_metadata, to_epoch_ms
from vi.api.responses import ConditionKind
from vi.errors import ViInvalidParameterError

RunIds: TypeAlias = list[str] | tuple[str, ...] | set[str] | frozenset[str]

MAX_IDS = 1000
FILTERS = ("condition", "flow", "training_project", "attribute", "created_after", "created_before")


def encode_filters(
    *,
    condition: ConditionKind | str | None = None,
    flow: str | None = None,
    training_project: str | None = None,
    attribute: Mapping[str, str] | None = None,
    created_after: datetime | int | None = None,
    created_before: datetime | int | None = None,
) -> dict[str, Any]:
    """Return the given filters in wire form; those that are None are omitted."""
    filters = {
        "condition": check_text(condition, name="condition"),
        "flow": check_text(flow, name="flow"),
        "trainingProject": check_text(training_project, name="training_project"),
        "attributes": _attributes(attribute),
        "createdAfter": to_epoch_ms(created_after, name="created_after"),
        "createdBefore": to_epoch_ms(created_before, name="created_before"),
    }
    return {name: value for name, value in filters.items() if value is not None}


def to_query_parameters(
    filters: Mapping[str, Any], *, filter: str | None = None, order_by: str | None = None
) -> list[tuple[str, QueryValue]]:
    """Return the filters, a filter text and the order as query parameters of the list endpoint."""
    attributes = filters.get("attributes") or {}
    texts = {
        "filter": check_text(filter, name="filter"),
        "orderBy": check_text(order_by, name="order_by"),
    }
    return [
        *((name, value) for name, value in filters.items() if name != "attributes"),
        *(("attribute", f"{key}:{value}") for key, value in attributes.items()),
        *((name, value) for name, value in texts.items() if value),
    ]


def encode_run_metadata(
    attributes: Mapping[str, Any] | None, name: str | None, *, removable: bool = False
) -> dict[str, Any]:
    """Return the part of a body that carries attributes and the name of a run.

    ``removable``: None as an attribute removes it, and an empty name restores the flow's.

    Raises:
        ViInvalidParameterError: A name or value is not a string.
    """
    encoded = encode_metadata(attributes, removable=removable)
    if check_text(name, name="name") is None or (not name and not removable):
        return encoded
    return {"metadata": {**encoded.get("metadata", {}), "name": name or None}}


def check_tags(tags: object) -> dict[str, str | None]:
    """Return the attributes to set and to remove.

    Raises:
        ViInvalidParameterError: There is none, or a name or value is not a string.
    """
    if not isinstance(tags, Mapping) or not tags:
        raise ViInvalidParameterError(
            f"set is {shorten_repr(tags)}, expected: a dict with at least one attribute",
            suggestion="try: {'owner': 'kim'}, or {'owner': None} to remove it",
        )
    attributes: dict[str, str | None] = encode_metadata(tags, removable=True)["metadata"][
        "attributes"
    ]
    return attributes


def encode_selection(run_ids: object, filter: object) -> dict[str, Any]:
    """Return the part of a bulk request that selects the runs.

    Raises:
        ViInvalidParameterError: Ids and filter are both given, both missing, empty or malformed.
    """
    if filter is None:
        return {"ids": _ids(run_ids)}
    if run_ids is not None:
        raise ViInvalidParameterError(
            "run_id and filter are both given", suggestion="try: one of the two"
        )
    if filter == "all":
        return {"filter": {"all": True}}
    if isinstance(filter, str) and filter.strip():
        return {"filter": filter}
    unknown = set(filter) - set(FILTERS) if isinstance(filter, Mapping) else set()
    if not isinstance(filter, Mapping) or unknown or not filter:
        what = (
            f"has the unknown key {min(map(repr, unknown))}"
            if unknown
            else f"is {shorten_repr(filter)}"
        )
        raise ViInvalidParameterError(
            f"filter {what}, expected: a filter text, 'all', or a dict with some of "
            f"{', '.join(FILTERS)}",
            suggestion="try: filter={'condition': 'Running'}",
        )
    document = encode_filters(**filter)
    if not document:
        raise ViInvalidParameterError(
            "every value of filter is None, expected: at least one filter",
            suggestion="try: 'all' to select every run",
        )
    return {"filter": document}


def _ids(given: object) -> list[str]:
    if not isinstance(given, list | tuple | set | frozenset) or not given:
        raise ViInvalidParameterError(
            f"run_id is {shorten_repr(given)}, expected: an id or a list of ids",
            suggestion="try: a list of run ids, or filter={...}",
        )
    ids = [check_id(run_id, name=f"run_id[{number}]") for number, run_id in enumerate(given)]
    if len(ids) > MAX_IDS:
        raise ViInvalidParameterError(
            f"run_id has {len(ids)} ids, expected: at most {MAX_IDS}",
            suggestion="try: several calls",
        )
    return ids


def _attributes(given: object) -> dict[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ViInvalidParameterError(
            f"attribute is {shorten_repr(given)}, expected: a dict of strings",
            suggestion="try: {'team': 'a'}",
        )
    for key, value in given.items():
        if not isinstance(key, str) or not isinstance(value, str) or not key or ":" in key:
            raise ViInvalidParameterError(
                f"attribute[{shorten_repr(key)}] is {shorten_repr(value)}, "
                "expected: strings, and a name without a colon",
                suggestion="try: {'team': 'a'}",
            )
    return dict(given)
