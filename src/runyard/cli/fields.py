"""Selection of fields of JSON documents, and the list of what can be selected.

A field is a path of names as on the wire, such as ``status.progress.step``. Runs have short names
for what is asked for most.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import click

_MISSING = object()
RUN_FIELDS = {
    "id": "runId",
    "name": "name",
    "condition": "status.conditions.-1.condition",
    "reason": "status.conditions.-1.reason",
    "message": "status.conditions.-1.message",
    "flow": "spec.flow.name",
    "created": "metadata.timeCreated",
    "step": "status.progress.step",
    "loss": "status.progress.loss",
    "metric": "status.progress.metric",
    "attributes": "metadata.attributes",
}


def select_fields(value: Any, fields: Sequence[str]) -> Any:
    """Return the given fields of a document, or of each document of a list.

    Raises:
        click.UsageError: No document can have such a field.
    """
    documents = _find_documents(value)
    known = list_fields(value)
    for field in fields:
        _check_field(field, known, documents)
    selected = [_select(document, fields) for document in documents]
    name = _find_list(value)
    return {name: selected} if name is not None else selected[0]


def list_fields(value: Any) -> list[str]:
    """Return the fields that documents such as these have, short names first."""
    import msgspec

    paths: dict[str, None] = {}
    for item in _find_items(value):
        if isinstance(item, msgspec.Struct):
            if type(item).__name__ == "Run":
                paths |= dict.fromkeys(RUN_FIELDS)
            paths |= dict.fromkeys(_list_struct_paths(type(item)))
        paths |= dict.fromkeys(_list_paths(_to_plain(item)))
    return list(paths)


def _find_documents(value: Any) -> list[Any]:
    return [_to_plain(item) for item in _find_items(value)]


def _find_items(value: Any) -> Sequence[Any]:
    name = _find_list(value)
    items: Sequence[Any] = [value] if name is None else value[name]
    return items


def _find_list(value: Any) -> str | None:
    """Return the name of the list that a command prints, such as ``items``; None without one."""
    if not isinstance(value, Mapping):
        return None
    lists = [name for name, item in value.items() if isinstance(item, list | tuple)]
    return lists[0] if len(lists) == 1 else None


def _to_plain(value: Any) -> Any:
    import msgspec

    plain = msgspec.to_builtins(value, enc_hook=str)
    if isinstance(value, msgspec.Struct) and type(value).__name__ == "Run":
        plain["name"] = value.name  # type: ignore[attr-defined]
    return plain


def _check_field(field: str, known: Sequence[str], documents: Sequence[Any]) -> None:
    is_known = field in known or any(name.startswith(f"{field}.") for name in known)
    if is_known or any(_read(document, field) is not _MISSING for document in documents):
        return
    parent = field.rpartition(".")[0]  # such as the attributes, of which other runs have others
    if not documents or any(isinstance(_read(each, parent), Mapping) for each in documents):
        return
    closest = difflib.get_close_matches(field, known, n=1)
    hint = f"Did you mean {closest[0]!r}? " if closest else ""
    raise click.UsageError(f"--json: no field {field!r}. {hint}Fields: {', '.join(known)}")


def _select(document: Any, fields: Sequence[str]) -> dict[str, Any]:
    found = {field: _read(document, field) for field in fields}
    return {field: None if value is _MISSING else value for field, value in found.items()}


def _read(document: Any, field: str) -> Any:
    if isinstance(document, Mapping) and document.get("kind") == "Run":
        if field.startswith("metric."):
            return _read_metric(document, field.removeprefix("metric."))
        field = RUN_FIELDS.get(field, field)
    for name in field.split("."):
        if isinstance(document, Mapping):
            document = document.get(name, _MISSING)
        elif isinstance(document, list) and name.lstrip("-").isdigit() and document:
            document = document[int(name)] if -len(document) <= int(name) < len(document) else None
        else:
            return _MISSING
    return document


def _read_metric(run: Mapping[str, Any], name: str) -> Any:
    """Return the newest value of the metric of a run's evaluations, if it has this name."""
    progress = run.get("status", {}).get("progress") or {}
    return progress.get("metric") if progress.get("metricName") == name else None


def _list_paths(document: Any, prefix: str = "") -> list[str]:
    if not isinstance(document, Mapping):
        return []
    paths = []
    for name, value in document.items():
        below = _list_paths(value, f"{prefix}{name}.")
        paths += below or [f"{prefix}{name}"]
    return paths


def _list_struct_paths(kind: Any, prefix: str = "") -> list[str]:
    import msgspec

    paths = []
    for field in msgspec.structs.fields(kind):
        kinds = [field.type, *get_args(field.type)]
        nested = next(
            (one for one in kinds if isinstance(one, type) and issubclass(one, msgspec.Struct)),
            None,
        )
        path = prefix + field.encode_name
        is_single = nested is not None and list not in {
            getattr(one, "__origin__", None) for one in kinds
        }
        paths += _list_struct_paths(nested, f"{path}.") if is_single else [path]
    return paths
