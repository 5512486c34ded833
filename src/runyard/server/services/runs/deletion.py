"""Deleting a run: gone for the API at once, its bytes as soon as nothing can write them any more.

The answer to DELETE is a tombstone and a mark on the row, in one transaction. A run that still has an open attempt is
killed by the same stroke and keeps its rows until that attempt is closed; one that was closed for its silence alone is
open again, as for a kill. Then the purge removes bytes first and rows last, so that whatever interrupts it, the next
one (after the next close, at the next start, or when the sweep comes by, every minute) finds what is left.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Sequence
from functools import partial

from sqlalchemy import Connection

from runyard.blobs import BlobError, BlobHeld
from runyard.ids import PathEscapes, resolve_folder
from runyard.rundir import weights_name
from runyard.server.services import etags, notifications, retention
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import not_found
from runyard.server.services.notifications import run_topic
from runyard.store import StoreUnavailable, attempts, datasets, organizations, telemetry, tombstones, versions
from runyard.store import blobs as blob_rows
from runyard.store import runs as rows
from runyard.store.tables import AnyRow

log = logging.getLogger(__name__)

LINES_AT_ONCE = 20_000


async def delete(services: Services, actor: Actor, run_id: str, *, if_match: str | None) -> None:
    """Delete a run and everything that belongs to it.

    Raises:
        Refusal: NotFound, EtagMismatch.
    """
    org, now_ms = actor.org, services.clock.now_ms()

    def work(connection: Connection) -> None:
        row = rows.get(connection, org=org, run_id=run_id)
        if row is None or row.deleted:
            raise not_found("run", run_id)
        etags.check(if_match, row.etag)
        mark_deleted(services, connection, actor, run_id, now_ms=now_ms)

    await services.store.write(work)
    services.changes.tell(run_topic(org, run_id))
    services.changes.tell(notifications.QUEUE)
    await purge_if_due(services, org=org, run_id=run_id)


def mark_deleted(services: Services, connection: Connection, actor: Actor, run_id: str, *, now_ms: int) -> None:
    """Delete a run that is there, within a transaction; ``purge_if_due`` removes the rest."""
    rows.change(connection, org=actor.org, run_id=run_id, values={"deleted": True})
    attempts.reopen_unproven(connection, org=actor.org, run_id=run_id)
    tombstones.add(connection, org=actor.org, kind="run", id=run_id, time_ms=now_ms)
    services.audit(actor, "delete run", run_id)(connection)


async def begin(services: Services) -> None:
    """Before anything is served: remove what uploads that a crash cut off left behind, then sweep."""
    for org in services.store.read(organizations.list_ids):
        await asyncio.to_thread(services.blobs(org).clear_incoming)
    await sweep(services)


async def sweep(services: Services) -> None:
    """Finish every removal that a failure, a stop or a crash left half done; forget ids deleted long ago."""
    now_ms = services.clock.now_ms()
    if services.store.read(lambda connection: tombstones.has_expired(connection, now_ms=now_ms)):
        await services.store.write(lambda connection: tombstones.remove_expired(connection, now_ms=now_ms))
    for row in services.store.read(rows.list_deleted):
        await purge_if_due(services, org=row.org, run_id=row.id)
    for org in services.store.read(organizations.list_ids):
        await retention.remove_unneeded(services, org=org)
        await retention.remove_unneeded_contents(services, org=org)


async def purge_if_due(services: Services, *, org: str, run_id: str) -> None:
    """Remove a deleted run's bytes and rows, unless an attempt of it may still live."""

    def is_due(connection: Connection) -> bool:
        row = rows.get(connection, org=org, run_id=run_id)
        return row is not None and row.deleted and not attempts.has_open(connection, org=org, run_id=run_id)

    if not services.store.read(is_due):
        return
    try:
        await _purge(services, org, run_id)
    except BlobHeld:
        log.info("run %s is deleted; its bytes go when a backup or a restore needs them no more", run_id)
    except (OSError, BlobError, StoreUnavailable) as error:
        # The deletion itself is on disk; the sweep comes back for what is left.
        log.error("run %s is deleted, but its bytes are not all gone yet: %s", run_id, error)


async def thin_out_log(services: Services, *, org: str, run_id: str) -> None:
    """Remove a log that is to go, but for its last lines, piece by piece: no other write waits until all is gone."""
    while await services.store.write(partial(telemetry.trim_log, org=org, run_id=run_id, limit=LINES_AT_ONCE)):
        pass


async def _purge(services: Services, org: str, run_id: str) -> None:
    await thin_out_log(services, org=org, run_id=run_id)
    async with services.blob_lock:
        unshared = services.store.read(
            lambda connection: blob_rows.list_exclusive_hashes(connection, org=org, run_id=run_id)
        )
        weights = services.store.read(
            lambda connection: blob_rows.list_weight_files(connection, org=org, run_id=run_id)
        )
        await asyncio.to_thread(_remove_bytes, services, org, run_id, unshared)
        if weights:
            await asyncio.to_thread(_remove_weights, services, org, weights)

        def work(connection: Connection) -> None:
            if versions.get_pinned(connection, org=org, run_id=run_id) is not None:
                datasets.release_contents(connection, org=org)  # its version may have been all that needed a picture
            rows.remove(connection, org=org, run_id=run_id)

        await services.store.write(work)


def _remove_bytes(services: Services, org: str, run_id: str, hashes: set[str]) -> None:
    blobs = services.blobs(org)
    for sha256 in hashes:
        blobs.delete(sha256)
    try:
        folder = resolve_folder(services.settings.runs_dir, org, run_id)
    except PathEscapes as error:
        # An id from before ids were checked, or a link that an operator made: nothing outside is ours to remove.
        log.error("run %s is deleted, and its folder is left alone: %s", run_id, error)
        return
    if folder.is_dir():
        shutil.rmtree(folder)


def _remove_weights(services: Services, org: str, files: Sequence[AnyRow]) -> None:
    """Remove what attempts on this machine have fetched of the weights, unless a supervisor holds it (flock).

    Another run that begins from the same weights fetches them again.
    """
    name = weights_name((file.path, file.sha256) for file in files)
    home = resolve_folder(services.settings.weights_dir, org, name)
    with contextlib.suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home)
        finally:
            os.close(descriptor)
