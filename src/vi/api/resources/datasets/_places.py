"""Where things of a dataset lie on the server, and what callers may name them by: pure functions."""

import enum
from collections.abc import Mapping
from typing import Any

from vi._http.encoding import encode_body
from vi._http.requests import Scalar
from vi._text import shorten_repr
from vi.api._arguments import check_id, text_or_none
from vi.api.resources.datasets.responses import Dataset, DatasetImport
from vi.errors import ViInvalidParameterError


def dataset_path(organization_id: str, dataset_id: str) -> str:
    """The address of one dataset. The id may carry the organisation's in front, as some answers and addresses do."""
    bare = check_id(dataset_id, name="dataset_id").rpartition("_")[2]
    return f"/workspaces/{organization_id}/datasets/{organization_id}_{check_id(bare, name='dataset_id')}"


def named_dataset(value: object) -> str:
    """A dataset's id, of it or of something that belongs to it."""
    if isinstance(value, Dataset | DatasetImport):
        return value.dataset_id
    inner = getattr(value, "dataset_id", value)
    return check_id(inner, name="dataset_id")


def named_import(of: object, import_id: str | None) -> tuple[str, str | None]:
    """``(dataset id, import id)`` of an import, of what ``import_folder`` returned, or of the two ids."""
    if import_id is None:
        import_id = getattr(of, "import_id", None)
    return named_dataset(of), None if import_id is None else check_id(import_id, name="import_id")


def word(value: object, *, name: str) -> str:
    """A word of the wire, given as itself or as a member of an enumeration."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str) and value:
        return value
    raise ViInvalidParameterError(f"{name} is {shorten_repr(value)}", suggestion="Give a string.")


def export_document(settings: object) -> dict[str, Any]:
    """The spec of an export, given as ``DatasetExportSettings``, as a dict of the same names, or as a format alone."""
    if isinstance(settings, str | enum.Enum):
        settings = {"format": settings}
    options = _field(settings, "options")
    split_ratio = _field(options, "split_ratio", "splitRatio")
    normalized = _field(options, "normalized")
    if normalized is not None and not isinstance(normalized, bool):
        raise ViInvalidParameterError(
            f"export_settings.options.normalized is {shorten_repr(normalized)}", suggestion="Give True or False."
        )
    return {
        "format": word(_field(settings, "format") or "ViFull", name="export_settings.format"),
        "options": {
            "normalized": True if normalized is None else normalized,
            "splitRatio": split_ratio,
            "pictures": _field(options, "pictures"),
        },
    }


def query_parameters(
    *,
    filter_criteria: str | Mapping[str, Any] | None,
    metadata_query: str | None,
    rule_query: str | None,
    strict_query: bool | None,
) -> list[tuple[str, Scalar]]:
    """Which pictures are meant, as parameters of an address."""
    return [
        ("filter", _filter_text(filter_criteria)),
        ("metadataQuery", metadata_query),
        ("ruleQuery", rule_query),
        ("strictQuery", "y" if strict_query else None),
    ]


def _filter_text(criteria: object) -> str | None:
    if isinstance(criteria, Mapping):
        return encode_body(criteria, name="filter_criteria").decode()
    return text_or_none(criteria, name="filter_criteria")


def sort_parameters(sort_by: object) -> list[tuple[str, Scalar]]:
    """By what pictures are sorted, given as ``AssetSortCriterion``, as a dict of the same names, or as a criterion."""
    if sort_by is None:
        return []
    if isinstance(sort_by, str | enum.Enum):
        sort_by = {"criterion": sort_by}
    criterion = word(_field(sort_by, "criterion") or "default", name="sort_by.criterion")
    return [("o", word(_field(sort_by, "order") or "asc", name="sort_by.order")), ("sortBy", criterion)]


def _field(value: object, *names: str) -> Any:
    if value is None:
        return None
    for name in names:
        found = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if found is not None:
            return found
    return None
