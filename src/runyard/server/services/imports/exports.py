"""Exports: a dataset as one zip, made by a separate process, kept for a while, fetched by signed
link.

An export holds one consistent snapshot of the dataset, read in one transaction. The process reads
the images from the spans of their bytes in blobs, so nothing is copied except into the file that it
makes. Previews are made the same way.
"""

import asyncio
import hashlib
import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.datasets import exporting
from runyard.datasets.writers.registry import find_writer
from runyard.ids import resolve_folder
from runyard.limits import clean_text
from runyard.rundir import read_json, write_json
from runyard.server.services import etags, paging, retention
from runyard.server.services.access.signing import FileLink, link_expiry
from runyard.server.services.context import Actor, Services
from runyard.server.services.datasets import datasets, versions
from runyard.server.services.errors import Problem, Refusal, not_found
from runyard.server.services.imports import imports
from runyard.server.services.imports.subprocesses import read_output_tail, run_worker
from runyard.server.services.jobs import run_in_thread
from runyard.server.services.paging import PageRequest
from runyard.store import blobs as blob_rows
from runyard.store.datasets import assets as asset_rows
from runyard.store.datasets import versions as rows
from runyard.store.tables import AnyRow, dataset_exports
from vi.api.resources.datasets.responses import (
    DatasetExport,
    ExportSpec,
    ExportStatus,
    SessionCondition,
)
from vi.api.resources.models.responses import DownloadUrl
from vi.api.responses import ConditionStatus, ResourceMetadata

log = logging.getLogger(__name__)

FORMATS = (
    *("ViFull", "ViJsonl", "Coco", "PascalVoc", "YoloDarknet", "YoloKerasPytorch"),
    *("CsvFourCorner", "CsvWidthHeight", "Parquet", "Conversations"),
)
MODULE = "runyard.datasets.exporting"
KEPT_MS = 7 * 24 * 3600 * 1000
AT_ONCE = 500
PREVIEW_TIMEOUT_S = 60.0
MOST_SHOWN = 48
PREVIEW_PREFIX = imports.INCOMING + "preview-"


async def create(services: Services, actor: Actor, dataset_id: str, *, spec: ExportSpec) -> AnyRow:
    """Begin an export; return its row.

    Raises:
        Refusal: NotFound, InvalidBody (a format that is not known, or cannot carry data of this
            type).
    """
    org, now_ms, id = actor.org, services.clock.now_ms(), secrets.token_hex(12)

    def insert_export(tx: Connection) -> AnyRow:
        dataset = datasets.get_row(tx, org=org, dataset_id=dataset_id)
        _check_format(spec, dataset.type)
        values: dict[str, Any] = {
            "org": org,
            "id": id,
            "dataset_id": dataset_id,
            "state": "Waiting",
            "version": None,
        }
        values |= {"spec": msgspec.json.encode(spec), "why": None, "sha256": None, "size_bytes": 0}
        rows.add_job(
            tx, dataset_exports, {**values, "time_created": now_ms, "last_updated": now_ms}
        )
        services.audit(actor, "export dataset", f"{dataset_id}/{id}")(tx)
        row = rows.get_job(tx, dataset_exports, org=org, id=id)
        assert row is not None  # noqa: S101 - added above
        return row

    row = await services.store.write(insert_export)
    start(services, row)
    return row


def get(services: Services, *, org: str, dataset_id: str, id: str) -> AnyRow:
    """Return the row of an export.

    Raises:
        Refusal: NotFound.
    """

    def find_export(tx: Connection) -> AnyRow | None:
        datasets.get_row(tx, org=org, dataset_id=dataset_id)
        return rows.get_job(tx, dataset_exports, org=org, id=id)

    row = services.store.read(find_export)
    if row is None or row.dataset_id != dataset_id:
        raise not_found(f"export of dataset {dataset_id!r}", id)
    return row


async def page(
    services: Services,
    *,
    org: str,
    dataset_id: str,
    to_document: Callable[[AnyRow], DatasetExport],
    page_request: PageRequest,
) -> bytes:
    """Return a page of exports as JSON, newest first.

    ``to_document`` builds the document of a row.
    """
    key: Any = {"org": org, "dataset_id": dataset_id}
    services.store.read(partial(datasets.get_row, **key))

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.job_page(tx, dataset_exports, **key, after=after, limit=limit)

    return await paging.read(
        services,
        page_request,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(to_document(row)),
    )


def to_document(services: Services, row: AnyRow, origin: str) -> DatasetExport:
    """Return an export's wire document, with a link once the file exists."""
    condition = SessionCondition(condition="Finished", last_transition_time=row.time_created)
    if row.state != "Waiting":
        condition.status = (
            ConditionStatus.REACHED if row.state == "Done" else ConditionStatus.FAILED_REACH
        )
        condition.last_transition_time, condition.message = row.last_updated, row.why
    document = DatasetExport(
        organization_id=row.org,
        dataset_id=row.dataset_id,
        export_id=row.id,
        spec=msgspec.json.decode(row.spec, type=ExportSpec),
        status=ExportStatus(conditions=[condition], version=row.version),
        metadata=ResourceMetadata(
            time_created=row.time_created, last_updated=row.last_updated, generation=1
        ),
        self_link=datasets.build_path(row.org, row.dataset_id, "datasetExports", row.id),
    )
    etags.seal(document)
    if row.sha256 is not None:
        document.status.download_url = _sign_link(services, row, origin, document.spec.format)
        document.status.size_bytes, document.status.sha256 = row.size_bytes, row.sha256
    return document


def start(services: Services, row: AnyRow) -> None:
    """Start the task of an export."""
    services.jobs.start(("export", row.org, row.id), lambda: _run_export(services, row))


async def sweep(services: Services) -> None:
    """Start what is not done; remove exports that are older than ``KEPT_MS``."""
    for row in services.store.read(partial(rows.list_active_jobs, table=dataset_exports)):
        start(services, row)
    before_ms = services.clock.now_ms() - KEPT_MS
    for row in services.store.read(partial(rows.list_old_exports, before_ms=before_ms)):

        def delete_export(tx: Connection, row: AnyRow = row) -> None:
            rows.remove_export(tx, org=row.org, id=row.id)
            blob_rows.mark_unneeded(tx, org=row.org, hashes={row.sha256} - {None})

        await services.store.write(delete_export)
        await retention.remove_unneeded_blobs(services, org=row.org)


def get_folder(services: Services, org: str, export_id: str) -> Path:
    """Return the folder in which an export is made."""
    return resolve_folder(services.settings.imports_dir, org, datasets.EXPORT_FOLDER + export_id)


async def _run_export(services: Services, row: AnyRow) -> None:
    spec = msgspec.json.decode(row.spec, type=ExportSpec)
    folder = get_folder(services, row.org, row.id)
    job = {"format": spec.format, "options": msgspec.to_builtins(spec.options), "seed": 0}
    version = await versions.ensure_current(services, org=row.org, dataset_id=row.dataset_id)
    async with services.jobs.workers:
        result = await _make_file(services, row.org, row.dataset_id, folder, job)
    if result is None or "file" not in result:
        why = (result or {}).get(
            "why", "the export process ended without a result; see the server's log"
        )
        await _end_export(services, row, folder, {"state": "Failed", "why": clean_text(why)})
        return
    path = folder / result["file"]
    sha256, size_bytes = await run_in_thread(_hash_file, path)
    # Held, not locked, since it may be large; only the row is written under the lock.
    hold = services.blobs(row.org).hold([sha256])
    try:
        await run_in_thread(_store_blob, services, row.org, path, sha256, size_bytes)
        values = {"state": "Done", "sha256": sha256, "size_bytes": size_bytes}
        values["why"] = result.get("note")  # what the format cannot carry
        async with services.blob_lock:
            await _end_export(
                services, row, folder, {**values, "version": version.id if version else None}
            )
    finally:
        hold.release()


async def _end_export(
    services: Services, row: AnyRow, folder: Path, values: dict[str, Any]
) -> None:
    def end_export(tx: Connection) -> None:
        if rows.get_job(tx, dataset_exports, org=row.org, id=row.id) is not None:
            now_ms = services.clock.now_ms()
            rows.change_job(
                tx,
                dataset_exports,
                org=row.org,
                id=row.id,
                values={**values, "last_updated": now_ms},
            )
        elif values.get("sha256"):
            # its dataset was deleted meanwhile
            blob_rows.mark_unneeded(tx, org=row.org, hashes={values["sha256"]})

    await services.store.write(end_export)
    await run_in_thread(shutil.rmtree, folder, ignore_errors=True)


async def preview(
    services: Services, *, org: str, dataset_id: str, count: int, seed: int, version: str | None
) -> bytes:
    """Return a PNG of some images with their records, of a version or of the current content.

    Raises:
        Refusal: NotFound.
    """
    row = None
    if version is not None:
        versions.get(services, org=org, dataset_id=dataset_id, version=version)
        row = services.store.read(
            partial(rows.get, org=org, dataset_id=dataset_id, version=version)
        )
    services.store.read(partial(datasets.get_row, org=org, dataset_id=dataset_id))
    root = resolve_folder(services.settings.imports_dir, org)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(await run_in_thread(tempfile.mkdtemp, dir=root, prefix=PREVIEW_PREFIX))
    try:
        job = {"format": "Preview", "count": min(count, MOST_SHOWN), "seed": seed}
        async with asyncio.timeout(PREVIEW_TIMEOUT_S):
            result = await _make_file(services, org, dataset_id, folder, job, version=row)
        if result is None:
            raise Refusal("Internal", "the preview could not be created; see the server's log")
        return await run_in_thread((folder / result["file"]).read_bytes)
    finally:
        await run_in_thread(shutil.rmtree, folder, ignore_errors=True)


async def _make_file(
    services: Services,
    org: str,
    dataset_id: str,
    folder: Path,
    job: dict[str, Any],
    *,
    version: AnyRow | None = None,
) -> dict[str, Any] | None:
    """Return the result of the process; None when it left none."""

    def write_job() -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / exporting.ITEMS, "wb") as file:
            lines = (
                _iter_dataset_lines(services, org, dataset_id)
                if version is None
                else _iter_version_lines(services, version)
            )
            file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)
        write_json(folder / exporting.JOB, {**job, "blobsDir": str(services.blobs(org).root)})

    await run_in_thread(write_job)
    async with run_worker(MODULE, folder) as ending:
        await asyncio.wait({ending})
    result = read_json(folder / exporting.RESULT)
    if result is None:
        log.error("the worker of %s left no result: %s", folder.name, read_output_tail(folder))
    return result


def _iter_dataset_lines(services: Services, org: str, dataset_id: str) -> Iterator[dict[str, Any]]:
    """Yield every image of a dataset in one consistent snapshot, by file name."""
    key: Any = {"org": org, "dataset_id": dataset_id}
    with services.store.snapshot() as tx:
        after = ""
        while chunk := asset_rows.list_by_filename(
            tx, **key, after=after, limit=AT_ONCE, with_bytes=True
        ):
            after = chunk[-1].filename
            annotated = [asset.id for asset in chunk if asset.record_count]
            records: dict[str, list[dict[str, Any]]] = {}
            for record in asset_rows.list_records(tx, **key, asset_ids=annotated):
                line = {
                    "id": record.id,
                    "contents": msgspec.Raw(record.contents),
                    "category": record.category,
                }
                records.setdefault(record.asset_id, []).append(line)
            for asset in chunk:
                yield {
                    "filename": asset.filename,
                    "sha256": asset.content,
                    "size": asset.size_bytes,
                    "width": asset.width,
                    "height": asset.height,
                    "blob": asset.blob,
                    "offset": asset.offset,
                    "records": records.get(asset.id, []),
                    "split": asset.split,
                }


def _iter_version_lines(services: Services, version: AnyRow) -> Iterator[dict[str, Any]]:
    """Yield every image of a version."""
    spans = services.store.read(
        partial(
            asset_rows.find_blob_spans,
            org=version.org,
            hashes=versions.list_image_hashes(services, version),
        )
    )
    for line in versions.iter_lines(services, version):
        span = spans.get(line.sha256)
        if span is not None:
            yield _build_line(line, span)


def _build_line(line: versions.ManifestLine, span: AnyRow) -> dict[str, Any]:
    return {
        "filename": line.filename,
        "sha256": line.sha256,
        "size": line.size,
        "width": line.width,
        "height": line.height,
        "blob": span.sha256,
        "offset": span.offset,
        "records": [
            {"id": str(number), "contents": contents}
            for number, contents in enumerate(line.records, 1)
        ],
        "split": line.split,
    }


def _check_format(spec: ExportSpec, type: str) -> None:
    writer = find_writer(spec.format) if spec.format in FORMATS else None
    if writer is not None and type in writer.types:
        return
    fitting = [
        name for name in FORMATS if (known := find_writer(name)) is not None and type in known.types
    ]
    message = (
        f"a dataset of type {type} cannot be exported as {spec.format!r}; expected one of "
        f"{', '.join(fitting)}"
    )
    raise Refusal(
        "InvalidBody",
        message,
        problems=[
            Problem(
                path="/spec/format", given=spec.format, allowed=", ".join(fitting), message=message
            )
        ],
    )


def _sign_link(services: Services, row: AnyRow, origin: str, format: str) -> DownloadUrl:
    expires_at = link_expiry(services.clock.now_ms(), link_hours=services.settings.link_hours)
    token = services.signer.sign_file_link(
        FileLink(row.org, row.dataset_id, "export", row.id, row.sha256, expires_at)
    )
    return DownloadUrl(
        url=f"{origin}/downloads/{token}/{row.dataset_id}-{format}.zip", expires_at=expires_at
    )


def _hash_file(path: Path) -> tuple[str, int]:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _store_blob(services: Services, org: str, path: Path, sha256: str, size_bytes: int) -> None:
    with open(path, "rb") as file:
        services.blobs(org).put(file, sha256=sha256, size_bytes=size_bytes)
