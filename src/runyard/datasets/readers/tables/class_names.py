"""The names of class numbers that are written next to a table.

``classes.txt`` has one name per line, from class 0. Hugging Face's ``dataset_info.json`` and
``dataset_infos.json`` name them by column, in the features. The file nearest
to the table counts.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from runyard.datasets.readers.lines import BOM, open_text
from runyard.datasets.sources import Source

NAMES_FILES = ("classes.txt", "classes.names", "labels.txt")
INFO_FILES = ("dataset_info.json", "dataset_infos.json")
_MAX_BYTES = 4 << 20


def find_names_files(source: Source, table: str) -> list[str]:
    """Return the files that may name the classes of this table, the nearest first."""
    present = set(source.paths())
    found = []
    for folder in _iter_folders(table):
        for name in (*NAMES_FILES, *INFO_FILES):
            path = f"{folder}/{name}" if folder else name
            if path in present and path != table:
                found.append(path)
    return found


def read_names(source: Source, table: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names of classes by column, and those for any other column."""
    by_column: dict[str, list[str]] = {}
    names: list[str] = []
    for path in find_names_files(source, table):
        if source.size_bytes(path) > _MAX_BYTES:
            continue
        with open_text(source, path) as file:
            text = file.read().removeprefix(BOM).decode(errors="replace")
        if path.endswith(".json"):
            by_column = find_class_names(_find_features(text)) | by_column
        elif not names:
            names = [line.strip() for line in text.splitlines()]
            while names and not names[-1]:
                names.pop()
    return by_column, names


def find_class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Find the names of class numbers by column: ``label``, or ``objects.category`` in structs.

    ``features`` are those of Hugging Face's ``datasets``.
    """
    names: dict[str, list[str]] = {}
    for column, outer in features.items():
        feature = unwrap_feature(outer)
        nested = feature if isinstance(feature, Mapping) and get_type(feature) is None else {}
        for name, inner in {
            column: feature,
            **{f"{column}.{key}": unwrap_feature(value) for key, value in nested.items()},
        }.items():
            if get_type(inner) == "ClassLabel" and isinstance(inner.get("names"), list):
                names[name] = [str(word) for word in inner["names"]]
    return names


def get_type(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, Mapping) else None


def unwrap_feature(feature: Any) -> Any:
    """Return the element type of a list, in each of the forms that ``datasets`` writes."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif get_type(feature) in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
        else:
            return feature


def _find_features(text: str) -> dict[str, Any]:
    """Find the features in ``dataset_info.json``, or in the first of ``dataset_infos.json``."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    for info in (document, *document.values()) if isinstance(document, dict) else ():
        features = info.get("features") if isinstance(info, dict) else None
        if isinstance(features, dict):
            return features
    return {}


def _iter_folders(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition("/")[0]
        yield path
