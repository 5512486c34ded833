"""Ids from before ids were checked at creation: renamed when the server starts.

A run named ``abc:finish`` could be created once. No request can name it any more, and no restore
accepts it, so a backup that holds it would be useless. Such runs, flows, training projects and
checkpoints get a valid id that shows the old one; nothing of them is lost. A run that a machine may
still be working on is left for the next start, and a backup is refused meanwhile.
"""

import hashlib
import logging
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import ids
from runyard.server.services import etags
from runyard.server.services.context import Actor, Services
from runyard.server.services.runs.flows import FLOW
from runyard.server.services.runs.training_projects import TRAINING_PROJECT
from runyard.store import legacy_ids as rows
from vi.api.resources.runs.responses import Run

log = logging.getLogger(__name__)

RENAMED = ("runs", "flows", "training_projects", "outputs")
_DOCUMENTS: dict[str, tuple[type[Any], str]] = {
    "run": (Run, "run_id"),
    FLOW.name: (FLOW.document, "flow_id"),
    TRAINING_PROJECT.name: (TRAINING_PROJECT.document, "training_project_id"),
}


async def rename_invalid(services: Services) -> None:
    """Rename everything with an invalid id. Runs before anything is served."""
    for kind, org, run_id, id in services.store.read(rows.list_invalid):
        if run_id is not None and services.store.read(
            partial(rows.is_open, org=org, run_id=run_id)
        ):
            log.warning(
                "%s %s has an invalid id; it is renamed when its run has ended",
                kind,
                ids.shorten(id),
            )
            continue
        await _rename_document(services, kind, org, run_id, id)


def build_valid_id(id: str) -> str:
    """Return a valid id that shows an invalid one; each gets a different one."""
    shown = re.sub(r"[^A-Za-z0-9_-]+", "-", id)[:200].strip("-")
    return f"{shown}-{hashlib.sha256(id.encode(errors='replace')).hexdigest()[:8]}".lstrip("-")


async def _rename_document(
    services: Services, kind: str, org: str, run_id: str | None, old: str
) -> None:
    new = build_valid_id(old)
    actor = Actor(org=org, name="server", role="admin", address="")

    def rename_rows(tx: Connection) -> None:
        if kind == "checkpoint":
            rows.rename_checkpoint(tx, org=org, run_id=run_id or "", old=old, new=new)
        else:
            type, field = _DOCUMENTS[kind]

            def rename(document: bytes) -> tuple[bytes, str]:
                renamed = msgspec.json.decode(document, type=type)
                setattr(renamed, field, new)
                renamed.self_link = f"{renamed.self_link.rpartition('/')[0]}/{new}"
                if isinstance(renamed, Run):
                    renamed.status.log = f"{renamed.self_link}/logs"
                return etags.seal(renamed)

            rows.rename(tx, kind, org=org, old=old, new=new, rename=rename)
        services.audit(actor, f"rename {kind}", f"{old} to {new}")(tx)

    if kind == "run":
        _move_folder(services.settings.runs_dir, org, old, new)
    await services.store.write(rename_rows)
    log.warning("%s %s had an invalid id; its id is %s now", kind, ids.shorten(old), new)


def _move_folder(runs_dir: Path, org: str, old: str, new: str) -> None:
    """Rename the run's folder too, if the old id could name one; repeating it is harmless."""
    try:
        before, after = (
            ids.resolve_folder(runs_dir, org, old),
            ids.resolve_folder(runs_dir, org, new),
        )
    except ids.PathEscapes:
        return
    if before.is_dir() and not after.exists():
        os.replace(before, after)
