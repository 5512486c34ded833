"""What a signed link to a picture or to an export opens, as long as the row that names it stands as it was."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from runyard.server.services.access.signing import FileLink
from runyard.server.services.context import Services
from runyard.store import assets as asset_rows
from runyard.store import versions as job_rows
from runyard.store.tables import dataset_exports

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class StoredFile:
    """Bytes within a blob, and what they are called and are."""

    org: str
    blob: str
    offset: int
    size_bytes: int
    name: str
    mime: str
    content: str

    def read(self, services: Services, start: int, end: int) -> Iterator[bytes]:
        """Raises BlobMissing, BlobDamaged, EOFError while iterating, so a server must close the connection then."""
        with services.blobs(self.org).open(self.blob) as file:
            file.seek(self.offset + start)
            while start < end:
                chunk = file.read(min(CHUNK_BYTES, end - start))
                if not chunk:
                    raise EOFError(f"blob {self.blob} ends before the file in it does")
                yield chunk
                start += len(chunk)


def opened(services: Services, link: FileLink) -> StoredFile | None:
    """What the link opens; None when it is gone, or is another thing now."""
    if link.kind == "export":
        export = services.store.read(partial(job_rows.get_job, table=dataset_exports, org=link.org, id=link.id))
        if export is None or export.sha256 != link.content:
            return None
        name = f"{export.dataset_id}.zip"
        return StoredFile(link.org, export.sha256, 0, export.size_bytes, name, "application/zip", export.sha256)
    asset = services.store.read(partial(asset_rows.get, org=link.org, dataset_id=link.dataset_id, asset_id=link.id))
    if asset is None or asset.content != link.content:
        return None
    place = services.store.read(partial(asset_rows.find_blob_span, org=link.org, content=asset.content))
    if place is None:
        return None
    name = asset.filename.rpartition("/")[2]
    return StoredFile(link.org, place.sha256, place.offset, place.size_bytes, name, asset.mime, asset.content)
