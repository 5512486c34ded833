"""Versions: what a dataset holds at one moment, under a name derived from the content itself.

A version is a manifest: one JSON line for each image that has records, sorted by file name, with
its records. An image that only conversations of other images show has a line without records. The
manifest is a blob, and the first digits of its hash are the version's id; so the same content is
always the same version. One is created after each import, and when a run is created from a dataset
that has changed since.

A version is kept while a run is pinned to it, and as long as every image it names is kept anyway.
When an image that it names is removed, and no run needs the version, the version is removed as well
(see ``retention``).
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import IO, Any

import msgspec
from sqlalchemy import Connection

from runyard.server.services import etags, events, paging
from runyard.server.services.access.signing import Position
from runyard.server.services.context import Services
from runyard.server.services.datasets import conversations, datasets
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.jobs import run_in_thread
from runyard.server.services.paging import PageRequest
from runyard.store.datasets import assets as asset_rows
from runyard.store.datasets import datasets as dataset_rows
from runyard.store.datasets import versions as rows
from runyard.store.tables import AnyRow
from vi.api.resources.datasets.responses import DatasetVersion
from vi.api.responses import ResourceMetadata

ID_LENGTH = 16
TRIES = 3


class ManifestLine(msgspec.Struct, omit_defaults=True):
    """One image of a version. Width and height are as shown, in pixels.

    Without a split the line is as it was before there were splits.
    """

    filename: str
    sha256: str
    size: int
    width: int
    height: int
    mime: str
    records: list[msgspec.Raw]
    split: str | None = None


class ManifestContent(msgspec.Struct):
    """The part of a line that names the bytes it needs."""

    sha256: str


_LINE, _CONTENT = msgspec.json.Decoder(ManifestLine), msgspec.json.Decoder(ManifestContent)


@dataclass
class _WrittenManifest:
    """A manifest on disk, with its counts."""

    file: Any
    revision: int
    digest: Any = field(default_factory=hashlib.sha256)
    assets: int = 0
    records: int = 0
    size_bytes: int = 0
    manifest_bytes: int = 0

    @property
    def sha256(self) -> str:
        return str(self.digest.hexdigest())


async def ensure_current(services: Services, *, org: str, dataset_id: str) -> AnyRow | None:
    """Return the version of the dataset's current content, creating it if there is none yet.

    Return None for a dataset without records. Waits for an import that is being committed.

    Raises:
        Refusal: NotFound.
    """
    key: Any = {"org": org, "dataset_id": dataset_id}
    async with services.jobs.lock(org, dataset_id):
        for _ in range(TRIES):
            dataset = services.store.read(partial(datasets.get_row, **key))
            if dataset.version_revision == dataset.revision and dataset.version is not None:
                version = dataset.version
                return services.store.read(partial(rows.get, **key, version=version))
            if not dataset.record_count:
                return None
            with tempfile.TemporaryFile(dir=services.settings.data_dir) as file:
                written = await run_in_thread(_write_manifest, services, dataset, file)
                if not written.assets:
                    return None
                if (row := await _store_version(services, dataset, written)) is not None:
                    return row
    raise Refusal(
        "StorageUnavailable",
        f"dataset {dataset_id!r} is changing too quickly; try: wait until imports have ended, then "
        "repeat",
    )


def get(services: Services, *, org: str, dataset_id: str, version: str) -> DatasetVersion:
    """Return a version.

    Raises:
        Refusal: NotFound.
    """

    def find_version(tx: Connection) -> tuple[AnyRow, AnyRow | None]:
        dataset = datasets.get_row(tx, org=org, dataset_id=dataset_id)
        return dataset, rows.get(tx, org=org, dataset_id=dataset_id, version=version)

    dataset, row = services.store.read(find_version)
    if row is None:
        raise not_found(f"version of dataset {dataset_id!r}", version)
    return to_document(row, dataset.type)


async def page(
    services: Services, *, org: str, dataset_id: str, page_request: PageRequest
) -> bytes:
    """Return a page of versions as JSON, newest first.

    Raises:
        Refusal: NotFound.
    """
    dataset = services.store.read(partial(datasets.get_row, org=org, dataset_id=dataset_id))

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(tx, org=org, dataset_id=dataset_id, after=after, limit=limit)

    return await paging.read(
        services,
        page_request,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(to_document(row, dataset.type)),
        get_position=lambda row: Position(row.number, row.id),
    )


def to_document(row: AnyRow, type: str) -> DatasetVersion:
    """Return a version's wire document."""
    document = DatasetVersion(
        organization_id=row.org,
        dataset_id=row.dataset_id,
        version_id=row.id,
        number=row.number,
        type=type,
        assets=row.asset_count,
        records=row.record_count,
        size_bytes=row.size_bytes,
        metadata=ResourceMetadata(
            time_created=row.time_created, last_updated=row.time_created, generation=1
        ),
        self_link=datasets.build_path(row.org, row.dataset_id, "versions", row.id),
    )
    etags.seal(document)
    return document


def iter_lines(services: Services, row: AnyRow) -> Iterator[ManifestLine]:
    """Yield the lines of a version's manifest.

    Raises:
        BlobMissing, BlobDamaged.
    """
    with services.blobs(row.org).open(row.sha256) as file:
        for line in file:
            yield _LINE.decode(line)


def list_image_hashes(services: Services, row: AnyRow) -> set[str]:
    """Return the hashes of the images that a version names.

    Raises:
        BlobMissing, BlobDamaged.
    """
    with services.blobs(row.org).open(row.sha256) as file:
        return {_CONTENT.decode(line).sha256 for line in file}


def _write_manifest(services: Services, dataset: AnyRow, file: IO[bytes]) -> _WrittenManifest:
    """Write the manifest of one consistent snapshot."""
    key: Any = {"org": dataset.org, "dataset_id": dataset.id}
    with (
        services.store.snapshot() as tx,
        tempfile.TemporaryFile(dir=services.settings.data_dir) as unsorted,
    ):
        now = dataset_rows.get(tx, **key)
        written = _WrittenManifest(file, now.revision if now is not None else -1)
        found: list[tuple[str, int, int]] = []
        for name, line, records, size_bytes in _iter_manifest_lines(tx, key):
            found.append((name, unsorted.tell(), len(line)))
            unsorted.write(line)
            written.assets += 1
            written.records += records
            written.size_bytes += size_bytes
        # Sorted here: databases order texts differently, and equal content is the same version.
        for _, start, length in sorted(found):
            unsorted.seek(start)
            line = unsorted.read(length)
            file.write(line)
            written.digest.update(line)
        written.manifest_bytes = file.tell()
    return written


def _iter_manifest_lines(
    tx: Connection, key: dict[str, str]
) -> Iterator[tuple[str, bytes, int, int]]:
    """Yield (file name, line, number of records, size of the image) of each image with records, or
    that a conversation shows.
    """
    shown: set[str] = set()
    for filename, rows_of in groupby(
        asset_rows.iter_records(tx, **key), key=lambda row: row.filename
    ):
        records_of_image = list(rows_of)
        first = records_of_image[0]
        for row in records_of_image:
            shown.update(conversations.list_further_images(row.contents))
        records = [msgspec.Raw(row.contents) for row in records_of_image]
        yield filename, _encode_line(first, records), len(records), first.size_bytes
    for image in asset_rows.find_by_name(tx, **key, names=shown).values():
        if not image.record_count:
            yield image.filename, _encode_line(image, []), 0, image.size_bytes


def _encode_line(image: AnyRow, records: list[msgspec.Raw]) -> bytes:
    line = ManifestLine(
        image.filename,
        image.content,
        image.size_bytes,
        image.width,
        image.height,
        image.mime,
        records,
        image.split,
    )
    return msgspec.json.encode(line) + b"\n"


async def _store_version(
    services: Services, dataset: AnyRow, written: _WrittenManifest
) -> AnyRow | None:
    """Create the version of a manifest, or find the existing one.

    Return None if the dataset has changed meanwhile.
    """
    key: Any = {"org": dataset.org, "dataset_id": dataset.id}
    sha256, now_ms = written.sha256, services.clock.now_ms()
    version = sha256[:ID_LENGTH]

    def insert_version(tx: Connection) -> AnyRow | None:
        now = datasets.get_row(tx, **key)
        if now.revision != written.revision:
            return None
        changes: dict[str, Any] = {"version": version, "version_revision": now.revision}
        if rows.get(tx, **key, version=version) is None:
            changes["version_count"] = now.version_count + 1
            rows.add(
                tx,
                {
                    **key,
                    "id": version,
                    "number": now.version_count + 1,
                    "sha256": sha256,
                    "manifest_bytes": written.manifest_bytes,
                    "asset_count": written.assets,
                    "record_count": written.records,
                    "size_bytes": written.size_bytes,
                    "time_created": now_ms,
                },
            )
            events.record(
                tx,
                org=dataset.org,
                now_ms=now_ms,
                kind="dataset",
                target=dataset.id,
                what="version-created",
                document={"version": version, "number": now.version_count + 1},
            )
        dataset_rows.change(tx, **key, values=changes)
        return rows.get(tx, **key, version=version)

    written.file.seek(0)
    blobs = services.blobs(dataset.org)
    async with services.blob_lock:
        await run_in_thread(
            blobs.put, written.file, sha256=sha256, size_bytes=written.manifest_bytes
        )
        return await services.store.write(insert_version)
