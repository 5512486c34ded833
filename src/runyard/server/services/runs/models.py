"""Models: the proven checkpoints of a run, registered by its supervisor, downloaded as one tar each.

Bytes come first, the row after: a checkpoint is listed only when every file of it is stored under its hash. Length and
hash of the archive are computed once, then, and stand in the row.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.blobs import Archive, ArchiveFile, BlobMismatch, BlobMissing, Blobs
from runyard.limits import clean_text
from runyard.protocol import CheckpointFile, CheckpointReport, CheckpointsKept, KeptCheckpoint
from runyard.rundir import TRAINING_STATE
from runyard.server.services import pages, retention
from runyard.server.services.access.signing import AttemptToken, Link, Position, link_expiry
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.notifications import run_topic
from runyard.server.services.pages import PageRequest
from runyard.server.services.runs import leases
from runyard.server.services.runs.references import BEST, LATEST
from runyard.server.services.runs.runs import decoded
from runyard.server.services.runs.runs import get as get_run
from runyard.server.services.validation import check_checkpoint
from runyard.store import blobs as blob_rows
from runyard.store import outputs as rows
from runyard.store.tables import AnyRow
from vi.api.resources.models.responses import DownloadUrl, Model, ModelContents, ModelSpec, ModelStatus
from vi.api.responses import ResourceMetadata


def list_models(services: Services, *, org: str, run_id: str, origin: str | None) -> list[Model]:
    """Every checkpoint of a run, oldest first. With ``origin``, each has a download link beginning with it.

    Raises:
        Refusal: NotFound.
    """
    get_run(services, org=org, run_id=run_id)
    found = services.store.read(lambda connection: rows.list_by_run(connection, org=org, run_id=run_id))
    return [_model(services, row, origin) for row in found]


async def page(services: Services, *, org: str, run_id: str, origin: str | None, wanted: PageRequest) -> bytes:
    """Return a page of checkpoints as JSON, oldest first.

    Raises:
        Refusal: NotFound.
    """
    get_run(services, org=org, run_id=run_id)

    def fetch(connection: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(connection, org=org, run_id=run_id, after=after[0] if after else 0, limit=limit)

    return await pages.read(
        services,
        wanted,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(_model(services, row, origin)),
        place=lambda row: Position(row.number, ""),
    )


async def whole_list(services: Services, *, org: str, run_id: str, origin: str | None) -> bytes:
    """Return all checkpoints as one page of JSON, oldest first; of too many for one response the newest.

    Raises:
        Refusal: NotFound.
    """
    get_run(services, org=org, run_id=run_id)

    def fetch(connection: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page_backward(connection, org=org, run_id=run_id, before=after, limit=limit)

    def work(connection: Connection) -> bytes:
        items, _, _ = pages.gather(
            partial(fetch, connection),
            after=None,
            size=limits.WHOLE_LIST.value,
            encode=lambda row: msgspec.json.encode(_model(services, row, origin)),
            place=lambda row: row.number,
        )
        return pages.join(items[::-1], None)

    return await services.store.read_in_thread(work)


def get_model(services: Services, *, org: str, run_id: str, checkpoint: str, origin: str | None) -> Model:
    """One checkpoint by id, or ``latest``, or ``best`` (by the run's metric; the latest if none was scored).

    Raises:
        Refusal: NotFound.
    """
    models = list_models(services, org=org, run_id=run_id, origin=origin)
    if checkpoint == BEST:
        models = [model for model in models if model.spec.is_best] or models
    elif checkpoint != LATEST:
        models = [model for model in models if model.model_id == checkpoint]
    if not models:
        raise not_found(f"checkpoint of run {run_id!r}", checkpoint)
    return models[-1]


def opened_link(services: Services, link: Link) -> tuple[Archive, Any] | None:
    """The archive behind a link, and its row; None when it has been deleted or replaced since."""

    def work(connection: Connection) -> tuple[Any, Any]:
        place = {"org": link.org, "run_id": link.run_id, "output_id": link.output_id}
        return rows.get(connection, **place), rows.list_files(connection, **place)

    row, files = services.store.read(work)
    if row is None or row.archive_sha256 != link.sha256:
        return None
    return _archive(files), row


async def register(services: Services, token: AttemptToken, report: CheckpointReport) -> CheckpointsKept:
    """List a checkpoint whose bytes have all arrived, and those no more that need not be kept. Tells which are listed.

    A repeat changes nothing. Neither does one that was listed once and is not kept any more, which a supervisor that
    came after a crash finds again.

    Raises:
        Refusal: LeaseLost, BlobMissing, InvalidId, InvalidBody.
    """
    attempt, run_row = services.store.read(lambda connection: leases.open_attempt(connection, token))
    check_checkpoint(report)
    blobs = services.blobs(token.org)
    async with services.blob_lock:
        for file in report.files:
            await asyncio.to_thread(_check_stored, blobs, file)
        try:
            archive = _archive(report.files)
        except ValueError as error:
            raise Refusal("InvalidBody", f"the checkpoint's files do not make an archive: {error}") from error
        archive_sha256 = await asyncio.to_thread(archive.sha256, blobs)
        values = {
            "org": token.org,
            "run_id": run_row.id,
            "id": report.checkpoint_id,
            "attempt": attempt.number,
            "step": report.step,
            "epoch": report.epoch,
            "measured": msgspec.json.encode(_within_limits(report.metrics)),
            "is_best": report.is_best,
            "time": report.time,
            "archive_size_bytes": archive.size_bytes,
            "archive_sha256": archive_sha256,
        }
        files = [{"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in report.files]

        def work(connection: Connection) -> CheckpointsKept:
            leases.open_attempt(connection, token)  # it may have been closed while we hashed
            known = rows.get(connection, org=token.org, run_id=run_row.id, output_id=report.checkpoint_id)
            if known is None and _is_superseded(connection, values):
                blob_rows.mark_unneeded(connection, org=token.org, hashes={file.sha256 for file in report.files})
            elif known is None or known.archive_sha256 != archive_sha256 or known.attempt != attempt.number:
                rows.add(connection, values, files=files)
            flow = decoded(run_row.document).spec.flow
            kept = retention.prune(connection, org=token.org, run_id=run_row.id, flow=flow)
            return CheckpointsKept(kept=[KeptCheckpoint(attempt=row.attempt, checkpoint_id=row.id) for row in kept])

        answer = await services.store.write(work)
    await retention.remove_unneeded(services, org=token.org)
    services.changes.tell(run_topic(token.org, run_row.id))
    return answer


def _check_stored(blobs: Blobs, file: CheckpointFile) -> None:
    """Check that a file has arrived with the length that is reported: its archive is laid out by that number.

    Raises:
        Refusal: BlobMissing, InvalidBody.
    """
    try:
        size_bytes = blobs.size_bytes(file.sha256)
    except BlobMissing as error:
        message = f"file {file.path!r} ({file.sha256}) is not here; send it, then repeat"
        raise Refusal("BlobMissing", message) from error
    if size_bytes != file.size_bytes:
        message = f"size_bytes of file {file.path!r} is {file.size_bytes}; the file that was sent has {size_bytes}"
        raise Refusal("InvalidBody", message)


def _within_limits(metrics: dict[str, float]) -> dict[str, float]:
    return {
        clean_text(name, limits.METRIC_NAME): value for name, value in islice(metrics.items(), limits.METRICS.value)
    }


def _is_superseded(connection: Connection, values: dict[str, Any]) -> bool:
    """Whether this attempt has listed a later checkpoint: they come in order, so this one was listed before."""
    listed = rows.list_by_run(connection, org=values["org"], run_id=values["run_id"])
    return any(row.attempt == values["attempt"] and row.step > values["step"] for row in listed)


def has_blob(services: Services, token: AttemptToken, sha256: str) -> bool:
    services.store.read(lambda connection: leases.open_attempt(connection, token))
    return services.blobs(token.org).has(sha256)


@contextlib.contextmanager
def receiving_blob(services: Services, token: AttemptToken, *, sha256: str, size_bytes: int) -> Iterator[Any]:
    """Take one file; leaving the block stores it, an error inside leaves nothing.

    Raises:
        Refusal: LeaseLost, InvalidBody (length or hash are not those announced).
    """
    services.store.read(lambda connection: leases.open_attempt(connection, token))
    try:
        with services.blobs(token.org).receive(sha256=sha256, size_bytes=size_bytes) as upload:
            yield upload
    except BlobMismatch as error:
        raise Refusal("InvalidBody", f"blob {sha256} was not stored: {error}; send the file again") from error


def _archive(files: Any) -> Archive:
    """What people download: everything but the state that only a resume needs."""
    return Archive(
        [
            ArchiveFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in sorted(files, key=lambda file: str(file.path))
            if not file.path.startswith(f"{TRAINING_STATE}/")
        ]
    )


def _model(services: Services, row: Any, origin: str | None) -> Model:
    self_link = f"/workspaces/{row.org}/runs/{row.run_id}/outputs/{row.id}"
    return Model(
        organization_id=row.org,
        run_id=row.run_id,
        model_id=row.id,
        spec=ModelSpec(
            epoch=row.epoch,
            step=row.step,
            evaluation_metrics=msgspec.json.decode(row.measured),
            is_best=row.is_best,
        ),
        status=ModelStatus(
            storage_object=f"{row.run_id}/{row.id}.tar",
            contents=None if origin is None else _contents(services, row, origin),
        ),
        metadata=ResourceMetadata(time_created=row.time, last_updated=row.time, generation=1),
        self_link=self_link,
        etag=row.archive_sha256[:16],
    )


def _contents(services: Services, row: Any, origin: str) -> ModelContents:
    expires_at = link_expiry(services.clock.now_ms(), link_hours=services.settings.link_hours)
    token = services.signer.link(Link(row.org, row.run_id, row.id, row.archive_sha256, expires_at))
    return ModelContents(
        download_url=DownloadUrl(url=f"{origin}/downloads/{token}", expires_at=expires_at),
        sha256=row.archive_sha256,
        size_bytes=row.archive_size_bytes,
    )
