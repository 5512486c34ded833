"""Models: the proven checkpoints of a run, registered by its supervisor, downloaded as tar files.

Bytes come first, the row after: a checkpoint is listed only when every file of it is stored under
its hash. The length and hash of the archive are computed once, at registration, and stored in the
row.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
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
from runyard.server.services import events, paging, retention
from runyard.server.services.access.signing import AttemptToken, Link, Position, link_expiry
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.notifications import run_topic
from runyard.server.services.paging import PageRequest
from runyard.server.services.runs import leases
from runyard.server.services.runs.references import BEST, LATEST
from runyard.server.services.runs.runs import decode_run
from runyard.server.services.runs.runs import get as get_run
from runyard.server.services.validation import check_checkpoint
from runyard.store import blobs as blob_rows
from runyard.store import outputs as rows
from runyard.store.tables import AnyRow
from vi.api.resources.models.responses import (
    DownloadUrl,
    Model,
    ModelContents,
    ModelSpec,
    ModelStatus,
)
from vi.api.responses import ResourceMetadata


def list_models(services: Services, *, org: str, run_id: str, origin: str | None) -> list[Model]:
    """Return every checkpoint of a run, oldest first.

    With ``origin``, each has a download link that begins with it.

    Raises:
        Refusal: NotFound.
    """
    get_run(services, org=org, run_id=run_id)
    found = services.store.read(lambda tx: rows.list_by_run(tx, org=org, run_id=run_id))
    return [_to_document(services, row, origin) for row in found]


async def page(
    services: Services, *, org: str, run_id: str, origin: str | None, page_request: PageRequest
) -> bytes:
    """Return a page of checkpoints as JSON, oldest first.

    Raises:
        Refusal: NotFound.
    """
    get_run(services, org=org, run_id=run_id)

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(tx, org=org, run_id=run_id, after=after[0] if after else 0, limit=limit)

    return await paging.read(
        services,
        page_request,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(_to_document(services, row, origin)),
        get_position=lambda row: Position(row.number, ""),
    )


async def list_all(services: Services, *, org: str, run_id: str, origin: str | None) -> bytes:
    """Return all checkpoints as one page of JSON, oldest first.

    If they do not fit in one response, return the newest.

    Raises:
        Refusal: NotFound.
    """
    get_run(services, org=org, run_id=run_id)

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page_backward(tx, org=org, run_id=run_id, before=after, limit=limit)

    def read_items(tx: Connection) -> bytes:
        items, _, _ = paging.gather(
            partial(fetch, tx),
            after=None,
            size=limits.WHOLE_LIST.value,
            encode=lambda row: msgspec.json.encode(_to_document(services, row, origin)),
            get_position=lambda row: row.number,
        )
        return paging.join(items[::-1], None)

    return await services.store.read_in_thread(read_items)


def get_model(
    services: Services, *, org: str, run_id: str, checkpoint: str, origin: str | None
) -> Model:
    """Return one checkpoint by id, ``latest`` or ``best``.

    The best is that with the best metric of the run, or the latest if none was scored.

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


def open_link(services: Services, link: Link) -> tuple[Archive, Any] | None:
    """Return the archive of a link and its row; None when it was deleted or replaced since."""

    def find_output(tx: Connection) -> tuple[Any, Any]:
        key = {"org": link.org, "run_id": link.run_id, "output_id": link.output_id}
        return rows.get(tx, **key), rows.list_files(tx, **key)

    row, files = services.store.read(find_output)
    if row is None or row.archive_sha256 != link.sha256:
        return None
    return _build_archive(files), row


async def register(
    services: Services, token: AttemptToken, report: CheckpointReport
) -> CheckpointsKept:
    """List a checkpoint whose bytes have all arrived, and prune those that need not be kept.

    Return the checkpoints that are listed. A repeat changes nothing. Neither does the report of a
    checkpoint that was pruned, which a supervisor that starts after a crash finds again.

    Raises:
        Refusal: LeaseLost, BlobMissing, InvalidId, InvalidBody.
    """
    attempt, run_row = services.store.read(lambda tx: leases.get_open_attempt(services, tx, token))
    check_checkpoint(report)
    blobs = services.blobs(token.org)
    async with services.blob_lock:
        for file in report.files:
            await asyncio.to_thread(_check_stored, blobs, file)
        try:
            archive = _build_archive(report.files)
        except ValueError as error:
            raise Refusal(
                "InvalidBody", f"the checkpoint's files cannot be archived: {error}"
            ) from error
        archive_sha256 = await asyncio.to_thread(archive.sha256, blobs)
        values = {
            "org": token.org,
            "run_id": run_row.id,
            "id": report.checkpoint_id,
            "attempt": attempt.number,
            "step": report.step,
            "epoch": report.epoch,
            "measured": msgspec.json.encode(_clean_metrics(report.metrics)),
            "is_best": report.is_best,
            "time": report.time,
            "archive_size_bytes": archive.size_bytes,
            "archive_sha256": archive_sha256,
        }
        files = [
            {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in report.files
        ]

        def insert_checkpoint(tx: Connection) -> CheckpointsKept:
            leases.get_open_attempt(services, tx, token)  # it may have been closed during hashing
            known = rows.get(tx, org=token.org, run_id=run_row.id, output_id=report.checkpoint_id)
            if known is None and _is_superseded(tx, values):
                blob_rows.mark_unneeded(
                    tx, org=token.org, hashes={file.sha256 for file in report.files}
                )
            elif (
                known is None
                or known.archive_sha256 != archive_sha256
                or known.attempt != attempt.number
            ):
                rows.add(tx, values, files=files)
                _record_checkpoint(services, tx, values)
            flow = decode_run(run_row.document).spec.flow
            kept = retention.prune_checkpoints(tx, org=token.org, run_id=run_row.id, flow=flow)
            return CheckpointsKept(
                kept=[KeptCheckpoint(attempt=row.attempt, checkpoint_id=row.id) for row in kept]
            )

        answer = await services.store.write(insert_checkpoint)
    await retention.remove_unneeded_blobs(services, org=token.org)
    services.notifier.notify(run_topic(token.org, run_row.id))
    return answer


def _check_stored(blobs: Blobs, file: CheckpointFile) -> None:
    """Check that a file has arrived with the reported length.

    The layout of the archive depends on it.

    Raises:
        Refusal: BlobMissing, InvalidBody.
    """
    try:
        size_bytes = blobs.size_bytes(file.sha256)
    except BlobMissing as error:
        message = f"file {file.path!r} ({file.sha256}) has not arrived; try: send it, then repeat"
        raise Refusal("BlobMissing", message) from error
    if size_bytes != file.size_bytes:
        message = (
            f"size_bytes of file {file.path!r} is {file.size_bytes}; the file that was sent has "
            f"{size_bytes}"
        )
        raise Refusal("InvalidBody", message)


def _clean_metrics(metrics: dict[str, float]) -> dict[str, float]:
    return {
        clean_text(name, limits.METRIC_NAME): value
        for name, value in islice(metrics.items(), limits.METRICS.value)
    }


def _record_checkpoint(services: Services, tx: Connection, values: Mapping[str, Any]) -> None:
    events.record(
        tx,
        org=values["org"],
        now_ms=services.clock.now_ms(),
        kind="run",
        target=values["run_id"],
        what="checkpoint",
        document={
            "checkpoint": values["id"],
            "step": values["step"],
            "epoch": values["epoch"],
            "attempt": values["attempt"],
            "isBest": values["is_best"],
            "metrics": msgspec.Raw(values["measured"]),
        },
    )


def _is_superseded(tx: Connection, values: dict[str, Any]) -> bool:
    """Return whether this attempt has listed a later checkpoint.

    They come in order, so this one was listed before.
    """
    listed = rows.list_by_run(tx, org=values["org"], run_id=values["run_id"])
    return any(row.attempt == values["attempt"] and row.step > values["step"] for row in listed)


def has_blob(services: Services, token: AttemptToken, sha256: str) -> bool:
    """Return whether the server has a blob that an attempt would upload.

    Raises:
        Refusal: LeaseLost.
    """
    services.store.read(lambda tx: leases.get_open_attempt(services, tx, token))
    return services.blobs(token.org).has(sha256)


@contextlib.contextmanager
def receive_blob(
    services: Services, token: AttemptToken, *, sha256: str, size_bytes: int
) -> Iterator[Any]:
    """Receive one file; leaving the block stores it, an error inside leaves nothing.

    Raises:
        Refusal: LeaseLost, InvalidBody (length or hash are not those announced).
    """
    services.store.read(lambda tx: leases.get_open_attempt(services, tx, token))
    try:
        with services.blobs(token.org).receive(sha256=sha256, size_bytes=size_bytes) as upload:
            yield upload
    except BlobMismatch as error:
        raise Refusal(
            "InvalidBody", f"blob {sha256} was not stored: {error}; try: send the file again"
        ) from error


def _build_archive(files: Any) -> Archive:
    """Return the archive to download: all files but the state that only a resumed run needs."""
    return Archive(
        [
            ArchiveFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in sorted(files, key=lambda file: str(file.path))
            if not file.path.startswith(f"{TRAINING_STATE}/")
        ]
    )


def _to_document(services: Services, row: Any, origin: str | None) -> Model:
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
            contents=None if origin is None else _sign_download(services, row, origin),
        ),
        metadata=ResourceMetadata(time_created=row.time, last_updated=row.time, generation=1),
        self_link=self_link,
        etag=row.archive_sha256[:16],
    )


def _sign_download(services: Services, row: Any, origin: str) -> ModelContents:
    expires_at = link_expiry(services.clock.now_ms(), link_hours=services.settings.link_hours)
    token = services.signer.sign_link(
        Link(row.org, row.run_id, row.id, row.archive_sha256, expires_at)
    )
    return ModelContents(
        download_url=DownloadUrl(url=f"{origin}/downloads/{token}", expires_at=expires_at),
        sha256=row.archive_sha256,
        size_bytes=row.archive_size_bytes,
    )
