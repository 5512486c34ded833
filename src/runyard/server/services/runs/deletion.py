"""Delete runs: gone from the API at once, their bytes as soon as nothing can write them any more.

DELETE writes a tombstone and a mark on the row, in one transaction. A run that still has an open
attempt is killed by the same mark and keeps its rows until that attempt is closed. An attempt that
was closed only because it was silent is reopened, as for a kill. Then the purge removes bytes first
and rows last. Whatever interrupts it, the next purge finds what is left: after the next close, at
the next start, or when the sweep runs, every minute.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection

from runyard import removal
from runyard.blobs import BlobError, BlobHeld
from runyard.ids import PathEscapes, resolve_folder
from runyard.rundir import weights_name
from runyard.server.services import etags, events, notifications, retention
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import not_found
from runyard.server.services.notifications import run_topic
from runyard.store import StoreUnavailable, attempts, organizations, outputs, tombstones
from runyard.store import blobs as blob_rows
from runyard.store import runs as rows
from runyard.store.datasets import datasets, versions
from runyard.store.tables import AnyRow
from runyard.store.telemetry import logs

log = logging.getLogger(__name__)

LINES_AT_ONCE = 20_000


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint and its files: path, size in bytes, SHA-256."""

    id: str
    files: tuple[tuple[str, int, str], ...]

    @property
    def size_bytes(self) -> int:
        return sum(size_bytes for _, size_bytes, _ in self.files)


@dataclass(frozen=True, kw_only=True)
class RunContents:
    """Everything that belongs to a run and is deleted with it."""

    checkpoints: tuple[StoredCheckpoint, ...]
    log_lines: int
    log_bytes: int
    metric_points: int
    attempts: int
    has_open_attempt: bool

    @property
    def checkpoint_bytes(self) -> int:
        return sum(checkpoint.size_bytes for checkpoint in self.checkpoints)


async def read_contents(services: Services, *, org: str, run_id: str) -> RunContents:
    """Return what the server holds of a run.

    Raises:
        Refusal: NotFound.
    """

    def count(tx: Connection) -> RunContents:
        key = {"org": org, "run_id": run_id}
        row = rows.get(tx, **key)
        if row is None or row.deleted:
            raise not_found("run", run_id)
        return RunContents(
            checkpoints=tuple(
                StoredCheckpoint(
                    id=output.id,
                    files=tuple(
                        (file.path, file.size_bytes, file.sha256)
                        for file in outputs.list_files(tx, **key, output_id=output.id)
                    ),
                )
                for output in outputs.list_by_run(tx, **key)
            ),
            log_lines=row.log_count,
            log_bytes=row.log_bytes,
            metric_points=row.metric_count,
            attempts=len(attempts.list_by_run(tx, **key)),
            has_open_attempt=attempts.has_open(tx, **key),
        )

    return await services.store.read_in_thread(count)


def is_deleted(services: Services, *, org: str, run_id: str) -> bool:
    """Return whether a run with this id was deleted."""
    return services.store.read(lambda tx: tombstones.exists(tx, org=org, kind="run", id=run_id))


def is_removed(services: Services, *, org: str, run_id: str) -> bool:
    """Return whether no row of a run is left; its bytes are removed before its rows."""
    return services.store.read(lambda tx: rows.get(tx, org=org, run_id=run_id)) is None


async def delete(services: Services, actor: Actor, run_id: str, *, if_match: str | None) -> None:
    """Delete a run and everything that belongs to it.

    Raises:
        Refusal: NotFound, EtagMismatch.
    """
    org, now_ms = actor.org, services.clock.now_ms()

    def mark_run_deleted(tx: Connection) -> None:
        row = rows.get(tx, org=org, run_id=run_id)
        if row is None or row.deleted:
            raise not_found("run", run_id)
        etags.check(if_match, row.etag)
        mark_deleted(services, tx, actor, run_id, now_ms=now_ms)

    await services.store.write(mark_run_deleted)
    services.notifier.notify(run_topic(org, run_id))
    services.notifier.notify(notifications.QUEUE)
    await purge_if_due(services, org=org, run_id=run_id)


def mark_deleted(
    services: Services, tx: Connection, actor: Actor, run_id: str, *, now_ms: int
) -> None:
    """Mark a listed run as deleted, within a transaction; ``purge_if_due`` removes the rest."""
    rows.change(tx, org=actor.org, run_id=run_id, values={"deleted": True})
    attempts.reopen_unproven(tx, org=actor.org, run_id=run_id)
    tombstones.add(tx, org=actor.org, kind="run", id=run_id, time_ms=now_ms)
    events.record_by(tx, actor, now_ms=now_ms, kind="run", target=run_id, what="deleted")
    services.audit(actor, "delete run", run_id)(tx)


async def resume_removals(services: Services) -> None:
    """Remove what interrupted uploads left behind, then sweep. Runs before anything is served."""
    for org in services.store.read(organizations.list_ids):
        await asyncio.to_thread(services.blobs(org).clear_incoming)
    await sweep(services)


async def sweep(services: Services) -> None:
    """Finish every incomplete removal, and expire old tombstones."""
    now_ms = services.clock.now_ms()
    if services.store.read(lambda tx: tombstones.has_expired(tx, now_ms=now_ms)):
        await services.store.write(lambda tx: tombstones.remove_expired(tx, now_ms=now_ms))
    for row in services.store.read(rows.list_deleted):
        await purge_if_due(services, org=row.org, run_id=row.id)
    for org in services.store.read(organizations.list_ids):
        await retention.remove_unneeded_blobs(services, org=org)
        await retention.remove_unneeded_images(services, org=org)


async def purge_if_due(services: Services, *, org: str, run_id: str) -> None:
    """Remove a deleted run's bytes and rows, unless one of its attempts may still be alive."""

    def is_due(tx: Connection) -> bool:
        row = rows.get(tx, org=org, run_id=run_id)
        return row is not None and row.deleted and not attempts.has_open(tx, org=org, run_id=run_id)

    if not services.store.read(is_due):
        return
    try:
        await _purge_run(services, org, run_id)
    except BlobHeld:
        log.info(
            "run %s is deleted; its bytes are removed when no backup or restore needs them any "
            "more",
            run_id,
        )
    except (OSError, BlobError, StoreUnavailable) as error:
        # The deletion itself is on disk; the sweep removes what is left.
        log.error("run %s is deleted, but not all of its bytes are removed yet: %s", run_id, error)


async def thin_out_log(services: Services, *, org: str, run_id: str) -> None:
    """Remove a log except for its last lines, in short transactions.

    No other write waits until all of it is gone.
    """
    while await services.store.write(
        partial(logs.trim_log, org=org, run_id=run_id, limit=LINES_AT_ONCE)
    ):
        pass


async def _purge_run(services: Services, org: str, run_id: str) -> None:
    await thin_out_log(services, org=org, run_id=run_id)
    async with services.blob_lock:
        unshared = services.store.read(
            lambda tx: blob_rows.list_exclusive_hashes(tx, org=org, run_id=run_id)
        )
        weights = services.store.read(
            lambda tx: blob_rows.list_weight_files(tx, org=org, run_id=run_id)
        )
        await asyncio.to_thread(_remove_bytes, services, org, run_id, unshared)
        if weights:
            await asyncio.to_thread(_remove_weights, services, org, weights)

        def delete_run_rows(tx: Connection) -> None:
            if versions.list_pinned(tx, org=org, run_id=run_id):
                # Its versions may have been the last to need an image.
                datasets.release_contents(tx, org=org)
            rows.remove(tx, org=org, run_id=run_id)

        await services.store.write(delete_run_rows)


def _remove_bytes(services: Services, org: str, run_id: str, hashes: set[str]) -> None:
    blobs = services.blobs(org)
    for sha256 in hashes:
        blobs.delete(sha256)
    try:
        removal.remove_run(services.settings.runs_dir, org, run_id)
    except PathEscapes as error:
        # An id from before ids were checked, or an operator's link: remove nothing outside.
        log.error("run %s is deleted, and its folder is kept: %s", run_id, error)


def _remove_weights(services: Services, org: str, files: Sequence[AnyRow]) -> None:
    """Remove the weights that attempts on this machine fetched, unless a supervisor holds the lock.

    Another run that starts from the same weights fetches them again.
    """
    name = weights_name((file.path, file.sha256) for file in files)
    home = resolve_folder(services.settings.weights_dir, org, name)
    with contextlib.suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            removal.remove_tree(home)
        finally:
            os.close(descriptor)
