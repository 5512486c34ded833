"""Files behind a signed link to an image or an export, valid while the row that names them is
unchanged.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from runyard.server.services.access.signing import FileLink
from runyard.server.services.context import Services
from runyard.store.datasets import assets as asset_rows
from runyard.store.datasets import versions as job_rows
from runyard.store.tables import dataset_exports

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class StoredFile:
    """A range of bytes within a blob, with name and MIME type."""

    org: str
    blob: str
    offset: int
    size_bytes: int
    name: str
    mime: str
    content: str

    def read(self, services: Services, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to ``end``.

        A server must close the connection when iterating raises BlobMissing, BlobDamaged or
        EOFError.
        """
        with services.blobs(self.org).open(self.blob) as file:
            file.seek(self.offset + start)
            while start < end:
                chunk = file.read(min(CHUNK_BYTES, end - start))
                if not chunk:
                    raise EOFError(f"blob {self.blob} ends before the file that it contains")
                yield chunk
                start += len(chunk)


def open_link(services: Services, link: FileLink) -> StoredFile | None:
    """Return the file of a link; None when it was deleted or replaced."""
    if link.kind == "export":
        export = services.store.read(
            partial(job_rows.get_job, table=dataset_exports, org=link.org, id=link.id)
        )
        if export is None or export.sha256 != link.content:
            return None
        name = f"{export.dataset_id}.zip"
        return StoredFile(
            link.org, export.sha256, 0, export.size_bytes, name, "application/zip", export.sha256
        )
    asset = services.store.read(
        partial(asset_rows.get, org=link.org, dataset_id=link.dataset_id, asset_id=link.id)
    )
    if asset is None or asset.content != link.content:
        return None
    span = services.store.read(
        partial(asset_rows.find_blob_span, org=link.org, content=asset.content)
    )
    if span is None:
        return None
    name = asset.filename.rpartition("/")[2]
    return StoredFile(
        link.org, span.sha256, span.offset, span.size_bytes, name, asset.mime, asset.content
    )
