"""Annotation sessions of the published client: an import of files announced after it has begun.

Its client says when all files have arrived; then they are read against the images of the dataset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.server.services import etags
from runyard.server.services.context import Actor, Services
from runyard.server.services.datasets import assets, datasets
from runyard.server.services.errors import Refusal
from runyard.server.services.imports import imports, sessions
from runyard.server.services.imports.imports import AnnouncedFile
from runyard.store.datasets import imports as rows
from runyard.store.tables import AnyRow
from vi.api.resources.annotations.responses import (
    AnnotationCounts,
    AnnotationFiles,
    AnnotationImportSession,
    AnnotationImportSpec,
    AnnotationImportStatus,
    FileUpload,
    FileUploads,
)
from vi.api.responses import ResourceMetadata

KIND: imports.Kind = "Annotations"
LONGEST_MS = 24 * 3600 * 1000
CONDITIONS = ("Complete", "FilesInserted")  # the newest first
_REACHED = {
    "Sealed": ("FilesInserted",),
    "Committing": ("FilesInserted",),
    "Done": ("FilesInserted", "Complete"),
}


@dataclass(frozen=True)
class NewFile:
    """A file to be uploaded; ``crc32c`` is unsigned."""

    size_bytes: int
    crc32c: int | None


async def create(
    services: Services,
    actor: Actor,
    dataset_id: str,
    *,
    spec: AnnotationImportSpec,
    attributes: Mapping[str, str],
) -> AnyRow:
    """Begin a session, which waits for its files until ``uploadBefore``, at most a day.

    Raises:
        Refusal: NotFound, InvalidBody (the time has passed).
    """
    now_ms = services.clock.now_ms()
    if spec.upload_before <= now_ms:
        raise Refusal(
            "InvalidBody",
            f"uploadBefore is {spec.upload_before}, which has passed; expected a time in the "
            "future",
        )
    return await imports.create(
        services,
        actor,
        dataset_id,
        kind=KIND,
        spec=spec,
        deadline_ms=min(spec.upload_before, now_ms + LONGEST_MS),
        attributes=attributes,
    )


async def announce_files(
    services: Services, actor: Actor, row: AnyRow, *, files: Mapping[str, NewFile], origin: str
) -> bytes:
    """Return ``FileUploads`` as JSON: the address for each of the files.

    Announcing a name again gives it another address.

    Raises:
        Refusal: InvalidBody, ImportOver.
    """
    if not files:
        raise Refusal("InvalidBody", "no file is named; expected at least one")
    for name in files:
        assets.check_name(name)

    def insert_announced_files(tx: Connection) -> None:
        now = rows.get(tx, org=row.org, import_id=row.id)
        if now is None or now.state != "Receiving":
            raise imports.import_over(now or row)
        known = {
            file.name: file.number for file in rows.list_files(tx, org=row.org, import_id=row.id)
        }
        for name, file in files.items():
            if name in known:
                values = {
                    "size_bytes": file.size_bytes,
                    "crc32c": file.crc32c,
                    "sha256": None,
                    "fault": None,
                }
                rows.change_file(
                    tx, org=row.org, import_id=row.id, number=known[name], values=values
                )
        new = [
            AnnouncedFile(name=name, size_bytes=file.size_bytes, crc32c=file.crc32c)
            for name, file in files.items()
            if name not in known
        ]
        imports.announce_files(tx, org=row.org, import_id=row.id, files=new)
        services.audit(actor, "announce files", f"{row.dataset_id}/{row.id}")(tx)

    def sign_upload_urls(tx: Connection) -> bytes:
        """Sign an address for each file; thousands of them, so on a reader's thread."""
        uploads = {
            file.name: FileUpload(
                url=imports.sign_upload_url(services, row, origin, number=file.number)
            )
            for file in rows.list_files(tx, org=row.org, import_id=row.id)
            if file.name in files
        }
        return msgspec.json.encode(FileUploads(files=uploads))

    await services.store.write(insert_announced_files)
    return await services.store.read_in_thread(sign_upload_urls)


async def finish(services: Services, actor: Actor, row: AnyRow) -> AnyRow:
    """Seal the session: all files have arrived.

    Raises:
        Refusal: BlobMissing (one is not), ImportOver.
    """
    absent = [
        file.name
        for file in services.store.read(partial(rows.list_files, org=row.org, import_id=row.id))
        if file.sha256 is None
    ]
    if absent and row.state == "Receiving":
        raise Refusal(
            "BlobMissing",
            f"files that have not arrived: {', '.join(absent[:20])}; try: send them, then repeat",
        )
    return await imports.finish(services, actor, row, packs=())


async def give_up(services: Services, actor: Actor, row: AnyRow, *, reason: str) -> AnyRow:
    """End the session: the client will not send what it announced."""
    if reason == "CancelledByUser":
        return await imports.cancel(services, actor, row)
    return await imports.give_up(
        services, actor, row, state="Failed", why="the client could not upload its files"
    )


def to_document(services: Services, row: AnyRow) -> AnnotationImportSession:
    """Return a session's wire document."""
    seen = msgspec.json.decode(row.seen)
    total, received, size_bytes = _count_files(services, row, seen)
    is_done = row.state == "Done"
    file_status = "Processed" if is_done else "Received"
    kept = int((seen.get("counts") or {}).get("rowsKept") or 0) if is_done else 0
    rejected = max(0, int((seen.get("counts") or {}).get("rows") or 0) - kept) if is_done else 0
    reached = _REACHED.get(row.state, ("FilesInserted",) if row.time_sealed else ())
    conditions = sessions.build_conditions(row, CONDITIONS, reached)
    for condition in conditions:
        if condition.condition == "FilesInserted" and row.time_sealed:
            condition.last_transition_time = row.time_sealed
    document = AnnotationImportSession(
        user=row.user,
        organization_id=row.org,
        dataset_id=row.dataset_id,
        session_id=row.id,
        spec=msgspec.json.decode(row.spec, type=AnnotationImportSpec),
        status=AnnotationImportStatus(
            conditions=conditions,
            files=AnnotationFiles(
                page_count=1 if total else 0,
                total_size_bytes=size_bytes,
                status_count=_drop_zeros({file_status: received, "Waiting": total - received}),
            ),
            annotations=AnnotationCounts(
                status_count=_drop_zeros({"Inserted": kept, "Rejected": rejected})
            ),
            reason=row.why,
        ),
        metadata=ResourceMetadata(
            time_created=row.time_created,
            last_updated=row.last_updated,
            generation=1,
            attributes=msgspec.json.decode(row.attributes),
        ),
        self_link=datasets.build_path(row.org, row.dataset_id, "annotationImportSessions", row.id),
    )
    etags.seal(document)
    return document


def _count_files(services: Services, row: AnyRow, seen: dict[str, Any]) -> tuple[int, int, int]:
    if row.state not in rows.ACTIVE_STATES:
        files = seen.get("files", {})
        return files.get("total", 0), files.get("received", 0), files.get("sizeBytes", 0)
    total, received, _, size_bytes = services.store.read(
        partial(rows.count_files, org=row.org, import_id=row.id)
    )
    return total, received, size_bytes


def _drop_zeros(counts: dict[str, int]) -> dict[str, int]:
    return {name: number for name, number in counts.items() if number}
