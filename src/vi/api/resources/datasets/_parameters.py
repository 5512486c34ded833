"""Paths and parameters of dataset requests, from arguments of callers: pure functions."""

import enum
from collections.abc import Mapping
from typing import Any

from vi._http.encoding import encode_body
from vi._http.requests import QueryValue
from vi._text import shorten_repr
from vi.api._arguments import check_id, check_text
from vi.api.resources.datasets.responses import Dataset, DatasetImport
from vi.errors import ViInvalidParameterError


def dataset_path(organization_id: str, dataset_id: str) -> str:
    """Return the path of a dataset; its id may be prefixed with the id of the organization."""
    bare = check_id(check_id(dataset_id, name="dataset_id").rpartition("_")[2], name="dataset_id")
    return f"/workspaces/{organization_id}/datasets/{organization_id}_{bare}"


def parse_dataset_id(value: object) -> str:
    """Return the dataset id of an id, a dataset, an import or an import result."""
    if isinstance(value, Dataset | DatasetImport):
        return value.dataset_id
    inner = getattr(value, "dataset_id", value)
    return check_id(inner, name="dataset_id")


def parse_import_ids(of: object, import_id: str | None) -> tuple[str, str | None]:
    """Return dataset id and import id of an import, an import result, or the two ids."""
    if import_id is None:
        import_id = getattr(of, "import_id", None)
    return parse_dataset_id(of), None if import_id is None else check_id(
        import_id, name="import_id"
    )


def parse_word(value: object, *, name: str) -> str:
    """Return a non-empty string, given as a string or an enum member.

    Raises:
        ViInvalidParameterError: The value is something else.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str) and value:
        return value
    raise ViInvalidParameterError(f"{name} is {shorten_repr(value)}, expected: a non-empty string")


def encode_export(settings: object) -> dict[str, Any]:
    """Return the spec of an export from ``DatasetExportSettings``, an equivalent dict, or a format.

    Raises:
        ViInvalidParameterError: A value is malformed.
    """
    if isinstance(settings, str | enum.Enum):
        settings = {"format": settings}
    options = _field(settings, "options")
    split_ratio = _field(options, "split_ratio", "splitRatio")
    normalized = _field(options, "normalized")
    if normalized is not None and not isinstance(normalized, bool):
        raise ViInvalidParameterError(
            f"export_settings.options.normalized is {shorten_repr(normalized)}, expected: True or "
            "False"
        )
    return {
        "format": parse_word(_field(settings, "format") or "ViFull", name="export_settings.format"),
        "options": {
            "normalized": True if normalized is None else normalized,
            "splitRatio": split_ratio,
            "pictures": _field(options, "pictures"),
        },
    }


def encode_asset_query(
    *,
    filter_criteria: str | Mapping[str, Any] | None,
    metadata_query: str | None,
    rule_query: str | None,
    strict_query: bool | None,
) -> list[tuple[str, QueryValue]]:
    """Return the query parameters that select images."""
    return [
        ("filter", _filter_text(filter_criteria)),
        ("metadataQuery", metadata_query),
        ("ruleQuery", rule_query),
        ("strictQuery", "y" if strict_query else None),
    ]


def _filter_text(criteria: object) -> str | None:
    if isinstance(criteria, Mapping):
        return encode_body(criteria, name="filter_criteria").decode()
    return check_text(criteria, name="filter_criteria")


def encode_sort(sort_by: object) -> list[tuple[str, QueryValue]]:
    """Return the query parameters of a sort order: an ``AssetSortCriterion``, a dict or a key."""
    if sort_by is None:
        return []
    if isinstance(sort_by, str | enum.Enum):
        sort_by = {"criterion": sort_by}
    criterion = parse_word(_field(sort_by, "criterion") or "default", name="sort_by.criterion")
    return [
        ("o", parse_word(_field(sort_by, "order") or "asc", name="sort_by.order")),
        ("sortBy", criterion),
    ]


def _field(value: object, *names: str) -> Any:
    if value is None:
        return None
    for name in names:
        found = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if found is not None:
            return found
    return None
