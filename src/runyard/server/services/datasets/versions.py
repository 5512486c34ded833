"""Versions: what a dataset holds at one moment, under a name made from the content itself.

A version is a manifest: one JSON line for each picture that has records, sorted by file name, with what is said of it.
It is a blob, and the first digits of its hash are the version's id; so the same content is the same version, whoever
made it and whenever. One is made after each import, and when a run is created from a dataset that has changed since.

A version is kept while a run is pinned to it, and for as long as every picture it names is kept anyway; when a picture
goes that it names, and no run needs it, it goes as well (see ``retention``).
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

from runyard.server.services import etags, pages
from runyard.server.services.access.signing import Position
from runyard.server.services.context import Services
from runyard.server.services.datasets import datasets
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.jobs import in_thread
from runyard.server.services.pages import PageRequest
from runyard.store import assets as asset_rows
from runyard.store import datasets as dataset_rows
from runyard.store import versions as rows
from runyard.store.tables import AnyRow
from vi.api.resources.datasets.responses import DatasetVersion
from vi.api.responses import ResourceMetadata

ID_LENGTH = 16
TRIES = 3


class ManifestLine(msgspec.Struct):
    """One picture of a version. Width and height are as shown, in pixels."""

    filename: str
    sha256: str
    size: int
    width: int
    height: int
    mime: str
    records: list[msgspec.Raw]


class ManifestContent(msgspec.Struct):
    """The part of a line that says whose bytes it needs."""

    sha256: str


_LINE, _CONTENT = msgspec.json.Decoder(ManifestLine), msgspec.json.Decoder(ManifestContent)


@dataclass
class _Written:
    """A manifest on disk, and what it counts."""

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


async def current(services: Services, *, org: str, dataset_id: str) -> AnyRow | None:
    """The version of what the dataset holds now, made if there is none yet; None for a dataset without records.

    Waits until an import that is being taken over has been.

    Raises:
        Refusal: NotFound.
    """
    place: Any = {"org": org, "dataset_id": dataset_id}
    async with services.jobs.lock(org, dataset_id):
        for _ in range(TRIES):
            dataset = services.store.read(partial(datasets.found, **place))
            if dataset.version_revision == dataset.revision and dataset.version is not None:
                version = dataset.version
                return services.store.read(partial(rows.get, **place, version=version))
            if not dataset.record_count:
                return None
            with tempfile.TemporaryFile(dir=services.settings.data_dir) as file:
                written = await in_thread(_write_manifest, services, dataset, file)
                if not written.assets:
                    return None
                if (row := await _keep(services, dataset, written)) is not None:
                    return row
    raise Refusal("StorageUnavailable", f"dataset {dataset_id!r} is changing too quickly; try again when it rests")


def get(services: Services, *, org: str, dataset_id: str, version: str) -> DatasetVersion:
    """Raises Refusal: NotFound."""

    def work(connection: Connection) -> tuple[AnyRow, AnyRow | None]:
        dataset = datasets.found(connection, org=org, dataset_id=dataset_id)
        return dataset, rows.get(connection, org=org, dataset_id=dataset_id, version=version)

    dataset, row = services.store.read(work)
    if row is None:
        raise not_found(f"version of dataset {dataset_id!r}", version)
    return document(row, dataset.type)


async def page(services: Services, *, org: str, dataset_id: str, wanted: PageRequest) -> bytes:
    dataset = services.store.read(partial(datasets.found, org=org, dataset_id=dataset_id))

    def fetch(connection: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(connection, org=org, dataset_id=dataset_id, after=after, limit=limit)

    return await pages.read(
        services,
        wanted,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(document(row, dataset.type)),
        place=lambda row: Position(row.number, row.id),
    )


def document(row: AnyRow, type: str) -> DatasetVersion:
    told = DatasetVersion(
        organization_id=row.org,
        dataset_id=row.dataset_id,
        version_id=row.id,
        number=row.number,
        type=type,
        assets=row.asset_count,
        records=row.record_count,
        size_bytes=row.size_bytes,
        metadata=ResourceMetadata(time_created=row.time_created, last_updated=row.time_created, generation=1),
        self_link=datasets.link(row.org, row.dataset_id, "versions", row.id),
    )
    etags.sealed(told)
    return told


def lines(services: Services, row: AnyRow) -> Iterator[ManifestLine]:
    """The manifest of a version, line by line. Raises BlobMissing, BlobDamaged."""
    with services.blobs(row.org).open(row.sha256) as file:
        for line in file:
            yield _LINE.decode(line)


def contents(services: Services, row: AnyRow) -> set[str]:
    """Hashes of the pictures that a version names. Raises BlobMissing, BlobDamaged."""
    with services.blobs(row.org).open(row.sha256) as file:
        return {_CONTENT.decode(line).sha256 for line in file}


def _write_manifest(services: Services, dataset: AnyRow, file: IO[bytes]) -> _Written:
    """Write the manifest as one moment shows it."""
    place: Any = {"org": dataset.org, "dataset_id": dataset.id}
    with services.store.snapshot() as connection, tempfile.TemporaryFile(dir=services.settings.data_dir) as unsorted:
        now = dataset_rows.get(connection, **place)
        written = _Written(file, now.revision if now is not None else -1)
        found: list[tuple[str, int, int]] = []
        for name, line, records, size_bytes in _manifest_lines(connection, place):
            found.append((name, unsorted.tell(), len(line)))
            unsorted.write(line)
            written.assets += 1
            written.records += records
            written.size_bytes += size_bytes
        # Sorted here: databases disagree on the order of texts, and the same content shall be the same version.
        for _, start, length in sorted(found):
            unsorted.seek(start)
            line = unsorted.read(length)
            file.write(line)
            written.digest.update(line)
        written.manifest_bytes = file.tell()
    return written


def _manifest_lines(connection: Connection, place: dict[str, str]) -> Iterator[tuple[str, bytes, int, int]]:
    """(file name, line, number of records, size of the picture) of each picture with records."""
    for filename, rows_of in groupby(asset_rows.iter_records(connection, **place), key=lambda row: row.filename):
        said = list(rows_of)
        first = said[0]
        records = [msgspec.Raw(row.contents) for row in said]
        line = ManifestLine(filename, first.content, first.size_bytes, first.width, first.height, first.mime, records)
        yield filename, msgspec.json.encode(line) + b"\n", len(records), first.size_bytes


async def _keep(services: Services, dataset: AnyRow, written: _Written) -> AnyRow | None:
    """Make the version of a manifest, or find the one there is; None if the dataset has changed meanwhile."""
    place: Any = {"org": dataset.org, "dataset_id": dataset.id}
    sha256, now_ms = written.sha256, services.clock.now_ms()
    version = sha256[:ID_LENGTH]

    def work(connection: Connection) -> AnyRow | None:
        now = datasets.found(connection, **place)
        if now.revision != written.revision:
            return None
        changes: dict[str, Any] = {"version": version, "version_revision": now.revision}
        if rows.get(connection, **place, version=version) is None:
            changes["version_count"] = now.version_count + 1
            rows.add(
                connection,
                {
                    **place,
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
        dataset_rows.change(connection, **place, values=changes)
        return rows.get(connection, **place, version=version)

    written.file.seek(0)
    blobs = services.blobs(dataset.org)
    async with services.blob_lock:
        await in_thread(blobs.put, written.file, sha256=sha256, size_bytes=written.manifest_bytes)
        return await services.store.write(work)
