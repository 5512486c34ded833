"""Completion of ids in the shell, from a small cache.

Starting a client takes longer than a person waits for the Tab key. The ids of the newest resources
are therefore kept in a file of the user's cache for half a minute; only an older one is replaced,
with a short timeout. Without a server, the ids of the last time are offered.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.global_options import PROFILE_VARIABLE, get_global_options

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    import vi

_MAX_AGE_S = 30.0
_MAX_IDS = 100
_TIMEOUT_S = 2.0
_SELECTING = (
    PROFILE_VARIABLE,
    "RUNYARD_DATA_DIR",
    "DATATURE_VI_API_ENDPOINT",
    "DATATURE_VI_ORGANIZATION_ID",
    "DATATURE_VI_SECRET_KEY",
)


def complete_runs(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Return the newest runs whose id or name begins with the text."""
    return _complete(ctx, "runs", incomplete)


def complete_flows(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Return the newest flows whose id or name begins with the text."""
    return _complete(ctx, "flows", incomplete)


def complete_datasets(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Return the newest datasets whose id or name begins with the text."""
    return _complete(ctx, "datasets", incomplete)


def _complete(ctx: click.Context, kind: str, incomplete: str) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    data_dir = ctx.params.get("data_dir")
    return [
        CompletionItem(one["id"], help=one["help"])
        for one in load_ids(kind, None if data_dir is None else Path(data_dir))
        if one["id"].startswith(incomplete) or one["help"].lower().startswith(incomplete.lower())
    ]


def load_ids(kind: str, data_dir: Path | None) -> list[dict[str, str]]:
    """Return the newest ids of a kind of resource, from the cache if it is fresh."""
    file = _get_cache_file(kind, data_dir)
    try:
        age_s = time.time() - file.stat().st_mtime
        known = json.loads(file.read_bytes())
    except (OSError, ValueError):
        age_s, known = float("inf"), []
    if 0 <= age_s < _MAX_AGE_S:
        return list(known)
    try:
        found = _fetch_ids(kind, data_dir)
    except Exception:  # a completion never prints an error into the line that is typed
        return list(known)
    _write_cache(file, found)
    return found


def _fetch_ids(kind: str, data_dir: Path | None) -> list[dict[str, str]]:
    from runyard.cli.connection import connect

    with connect(data_dir, timeout_s=_TIMEOUT_S) as client:
        return _LISTS[kind](client)


def _list_runs(client: "vi.Client") -> list[dict[str, str]]:
    return [
        {"id": run.run_id, "help": f"{run.name} {run.condition.value if run.condition else ''}"}
        for run in client.runs.list({"page_size": _MAX_IDS}).items
    ]


def _list_flows(client: "vi.Client") -> list[dict[str, str]]:
    return [
        {"id": flow.flow_id, "help": flow.spec.name}
        for flow in client.flows.list({"page_size": _MAX_IDS}).items
    ]


def _list_datasets(client: "vi.Client") -> list[dict[str, str]]:
    return [
        {"id": dataset.dataset_id, "help": dataset.name}
        for dataset in client.datasets.list({"page_size": _MAX_IDS}).items
    ]


_LISTS: dict[str, Callable[["vi.Client"], list[dict[str, str]]]] = {
    "runs": _list_runs,
    "flows": _list_flows,
    "datasets": _list_datasets,
}


def _get_cache_file(kind: str, data_dir: Path | None) -> Path:
    """Return the cache of one server and key: what selects them is part of its name."""
    values: list[Any] = [str(data_dir), get_global_options().profile]
    values += [os.environ.get(name) for name in _SELECTING]
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(root) / "runyard" / f"{kind}-{digest}.json"


def _write_cache(file: Path, ids: list[dict[str, str]]) -> None:
    """Replace the cache; a folder that cannot be written only makes the next time slower."""
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_text(json.dumps(ids))
        os.replace(temporary, file)
    except OSError:
        return
