"""Exports: a dataset as one zip, made by a process of its own, kept for a while, fetched by signed link. And previews.

What is exported is what the dataset holds at one moment, read in one transaction. A process that makes one knows the
pictures by where their bytes lie, so nothing is copied but into the file that it makes.
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
from runyard.datasets.writers import by_name
from runyard.ids import resolve_folder
from runyard.limits import clean_text
from runyard.rundir import read_json, write_json
from runyard.server.services import etags, pages, retention
from runyard.server.services.access.signing import FileLink, link_expiry
from runyard.server.services.context import Actor, Services
from runyard.server.services.datasets import datasets, versions
from runyard.server.services.errors import Problem, Refusal, not_found
from runyard.server.services.imports import imports
from runyard.server.services.imports.subprocesses import last_words, worker
from runyard.server.services.jobs import in_thread
from runyard.server.services.pages import PageRequest
from runyard.store import assets as asset_rows
from runyard.store import blobs as blob_rows
from runyard.store import versions as rows
from runyard.store.tables import AnyRow, dataset_exports
from vi.api.resources.datasets.responses import DatasetExport, ExportSpec, ExportStatus, SessionCondition
from vi.api.resources.models.responses import DownloadUrl
from vi.api.responses import ConditionStatus, ResourceMetadata

log = logging.getLogger(__name__)

FORMATS = (
    *("ViFull", "ViJsonl", "Coco", "PascalVoc", "YoloDarknet", "YoloKerasPytorch"),
    *("CsvFourCorner", "CsvWidthHeight", "Parquet"),
)
MODULE = "runyard.datasets.exporting"
KEPT_MS = 7 * 24 * 3600 * 1000
AT_ONCE = 500
PREVIEW_TIMEOUT_S = 60.0
MOST_SHOWN = 48
PREVIEW_PREFIX = imports.INCOMING + "preview-"


async def create(services: Services, actor: Actor, dataset_id: str, *, spec: ExportSpec) -> AnyRow:
    """Begin an export; returns its row.

    Raises:
        Refusal: NotFound, InvalidBody (a format that is not known, or cannot carry data of this type).
    """
    org, now_ms, id = actor.org, services.clock.now_ms(), secrets.token_hex(12)

    def work(connection: Connection) -> AnyRow:
        dataset = datasets.found(connection, org=org, dataset_id=dataset_id)
        _check_format(spec, dataset.type)
        values: dict[str, Any] = {"org": org, "id": id, "dataset_id": dataset_id, "state": "Waiting", "version": None}
        values |= {"spec": msgspec.json.encode(spec), "why": None, "sha256": None, "size_bytes": 0}
        rows.add_job(connection, dataset_exports, {**values, "time_created": now_ms, "last_updated": now_ms})
        services.audit(actor, "export dataset", f"{dataset_id}/{id}")(connection)
        row = rows.get_job(connection, dataset_exports, org=org, id=id)
        assert row is not None  # noqa: S101 - added above
        return row

    row = await services.store.write(work)
    start(services, row)
    return row


def get(services: Services, *, org: str, dataset_id: str, id: str) -> AnyRow:
    """Raises Refusal: NotFound."""

    def work(connection: Connection) -> AnyRow | None:
        datasets.found(connection, org=org, dataset_id=dataset_id)
        return rows.get_job(connection, dataset_exports, org=org, id=id)

    row = services.store.read(work)
    if row is None or row.dataset_id != dataset_id:
        raise not_found(f"export of dataset {dataset_id!r}", id)
    return row


async def page(
    services: Services, *, org: str, dataset_id: str, told: Callable[[AnyRow], DatasetExport], wanted: PageRequest
) -> bytes:
    """Return a page of exports, newest first, each as the document that ``told`` makes of its row."""
    place: Any = {"org": org, "dataset_id": dataset_id}
    services.store.read(partial(datasets.found, **place))

    def fetch(connection: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.job_page(connection, dataset_exports, **place, after=after, limit=limit)

    return await pages.read(services, wanted, org=org, fetch=fetch, encode=lambda row: msgspec.json.encode(told(row)))


def document(services: Services, row: AnyRow, origin: str) -> DatasetExport:
    """An export as it is told, with a link once the file is there."""
    condition = SessionCondition(condition="Finished", last_transition_time=row.time_created)
    if row.state != "Waiting":
        condition.status = ConditionStatus.REACHED if row.state == "Done" else ConditionStatus.FAILED_REACH
        condition.last_transition_time, condition.message = row.last_updated, row.why
    told = DatasetExport(
        organization_id=row.org,
        dataset_id=row.dataset_id,
        export_id=row.id,
        spec=msgspec.json.decode(row.spec, type=ExportSpec),
        status=ExportStatus(conditions=[condition], version=row.version),
        metadata=ResourceMetadata(time_created=row.time_created, last_updated=row.last_updated, generation=1),
        self_link=datasets.link(row.org, row.dataset_id, "datasetExports", row.id),
    )
    etags.sealed(told)
    if row.sha256 is not None:
        told.status.download_url = _link(services, row, origin, told.spec.format)
        told.status.size_bytes, told.status.sha256 = row.size_bytes, row.sha256
    return told


def start(services: Services, row: AnyRow) -> None:
    services.jobs.start(("export", row.org, row.id), lambda: _make(services, row))


async def sweep(services: Services) -> None:
    """Start what is not done; forget exports that nobody will fetch any more."""
    for row in services.store.read(partial(rows.list_active_jobs, table=dataset_exports)):
        start(services, row)
    before_ms = services.clock.now_ms() - KEPT_MS
    for row in services.store.read(partial(rows.list_old_exports, before_ms=before_ms)):

        def work(connection: Connection, row: AnyRow = row) -> None:
            rows.remove_export(connection, org=row.org, id=row.id)
            blob_rows.mark_unneeded(connection, org=row.org, hashes={row.sha256} - {None})

        await services.store.write(work)
        await retention.remove_unneeded(services, org=row.org)


def folder_of(services: Services, org: str, export_id: str) -> Path:
    return resolve_folder(services.settings.imports_dir, org, datasets.EXPORT_FOLDER + export_id)


async def _make(services: Services, row: AnyRow) -> None:
    spec = msgspec.json.decode(row.spec, type=ExportSpec)
    folder = folder_of(services, row.org, row.id)
    job = {"format": spec.format, "options": msgspec.to_builtins(spec.options), "seed": 0}
    version = await versions.current(services, org=row.org, dataset_id=row.dataset_id)
    async with services.jobs.workers:
        result = await _worked(services, row.org, row.dataset_id, folder, job)
    if result is None or "file" not in result:
        why = (result or {}).get("why", "the process that makes the file ended without a word; the log says more")
        await _end(services, row, folder, {"state": "Failed", "why": clean_text(why)})
        return
    path = folder / result["file"]
    sha256, size_bytes = await in_thread(_hashed, path)
    # Held rather than locked, for it may be large; under the lock of those who remove, only the row is written.
    hold = services.blobs(row.org).hold([sha256])
    try:
        await in_thread(_store, services, row.org, path, sha256, size_bytes)
        values = {"state": "Done", "sha256": sha256, "size_bytes": size_bytes}
        async with services.blob_lock:
            await _end(services, row, folder, {**values, "version": version.id if version else None})
    finally:
        hold.release()


async def _end(services: Services, row: AnyRow, folder: Path, values: dict[str, Any]) -> None:
    def work(connection: Connection) -> None:
        if rows.get_job(connection, dataset_exports, org=row.org, id=row.id) is not None:
            now_ms = services.clock.now_ms()
            rows.change_job(
                connection, dataset_exports, org=row.org, id=row.id, values={**values, "last_updated": now_ms}
            )
        elif values.get("sha256"):
            # its dataset was deleted meanwhile
            blob_rows.mark_unneeded(connection, org=row.org, hashes={values["sha256"]})

    await services.store.write(work)
    await in_thread(shutil.rmtree, folder, ignore_errors=True)


async def preview(
    services: Services, *, org: str, dataset_id: str, count: int, seed: int, version: str | None
) -> bytes:
    """A PNG of some pictures with what is said of them, those of a version or of what the dataset holds now.

    Raises:
        Refusal: NotFound.
    """
    row = None
    if version is not None:
        versions.get(services, org=org, dataset_id=dataset_id, version=version)
        row = services.store.read(partial(rows.get, org=org, dataset_id=dataset_id, version=version))
    services.store.read(partial(datasets.found, org=org, dataset_id=dataset_id))
    root = resolve_folder(services.settings.imports_dir, org)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(await in_thread(tempfile.mkdtemp, dir=root, prefix=PREVIEW_PREFIX))
    try:
        job = {"format": "Preview", "count": min(count, MOST_SHOWN), "seed": seed}
        async with asyncio.timeout(PREVIEW_TIMEOUT_S):
            result = await _worked(services, org, dataset_id, folder, job, version=row)
        if result is None:
            raise Refusal("Internal", "the preview could not be made; the server's log says more")
        return await in_thread((folder / result["file"]).read_bytes)
    finally:
        await in_thread(shutil.rmtree, folder, ignore_errors=True)


async def _worked(
    services: Services, org: str, dataset_id: str, folder: Path, job: dict[str, Any], *, version: AnyRow | None = None
) -> dict[str, Any] | None:
    """What the process says last; None when it says nothing."""

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / exporting.ITEMS, "wb") as file:
            lines = _lines(services, org, dataset_id) if version is None else _lines_of(services, version)
            file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)
        write_json(folder / exporting.JOB, {**job, "blobsDir": str(services.blobs(org).root)})

    await in_thread(prepare)
    async with worker(MODULE, folder) as ending:
        await asyncio.wait({ending})
    result = read_json(folder / exporting.RESULT)
    if result is None:
        log.error("the worker of %s left no result: %s", folder.name, last_words(folder))
    return result


def _lines(services: Services, org: str, dataset_id: str) -> Iterator[dict[str, Any]]:
    """Every picture of a dataset as one moment shows it, by file name."""
    place: Any = {"org": org, "dataset_id": dataset_id}
    with services.store.snapshot() as connection:
        after = ""
        while chunk := asset_rows.list_by_filename(connection, **place, after=after, limit=AT_ONCE, with_bytes=True):
            after = chunk[-1].filename
            annotated = [asset.id for asset in chunk if asset.record_count]
            said: dict[str, list[dict[str, Any]]] = {}
            for record in asset_rows.list_records(connection, **place, asset_ids=annotated):
                told = {"id": record.id, "contents": msgspec.Raw(record.contents), "category": record.category}
                said.setdefault(record.asset_id, []).append(told)
            for asset in chunk:
                yield {
                    "filename": asset.filename,
                    "sha256": asset.content,
                    "size": asset.size_bytes,
                    "width": asset.width,
                    "height": asset.height,
                    "blob": asset.blob,
                    "offset": asset.offset,
                    "records": said.get(asset.id, []),
                }


def _lines_of(services: Services, version: AnyRow) -> Iterator[dict[str, Any]]:
    """Every picture of a version."""
    places = services.store.read(
        partial(asset_rows.find_blob_spans, org=version.org, hashes=versions.contents(services, version))
    )
    for line in versions.lines(services, version):
        place = places.get(line.sha256)
        if place is not None:
            yield _line_of(line, place)


def _line_of(line: versions.ManifestLine, place: AnyRow) -> dict[str, Any]:
    return {
        "filename": line.filename,
        "sha256": line.sha256,
        "size": line.size,
        "width": line.width,
        "height": line.height,
        "blob": place.sha256,
        "offset": place.offset,
        "records": [{"id": str(number), "contents": said} for number, said in enumerate(line.records, 1)],
    }


def _check_format(spec: ExportSpec, type: str) -> None:
    writer = by_name(spec.format) if spec.format in FORMATS else None
    if writer is not None and type in writer.types:
        return
    fitting = [name for name in FORMATS if (known := by_name(name)) is not None and type in known.types]
    message = f"a dataset of type {type} cannot be exported as {spec.format!r}; take one of {', '.join(fitting)}"
    raise Refusal(
        "InvalidBody",
        message,
        problems=[Problem(path="/spec/format", given=spec.format, allowed=", ".join(fitting), message=message)],
    )


def _link(services: Services, row: AnyRow, origin: str, format: str) -> DownloadUrl:
    expires_at = link_expiry(services.clock.now_ms(), link_hours=services.settings.link_hours)
    token = services.signer.file_link(FileLink(row.org, row.dataset_id, "export", row.id, row.sha256, expires_at))
    return DownloadUrl(url=f"{origin}/downloads/{token}/{row.dataset_id}-{format}.zip", expires_at=expires_at)


def _hashed(path: Path) -> tuple[str, int]:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _store(services: Services, org: str, path: Path, sha256: str, size_bytes: int) -> None:
    with open(path, "rb") as file:
        services.blobs(org).put(file, sha256=sha256, size_bytes=size_bytes)
