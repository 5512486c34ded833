"""Image sessions of the published client: an import of files announced and uploaded one by one.

Valid images are kept whatever happens to the others. With ``FailAfterOne`` the session counts as
failed when one file was refused, with ``FailAfterAll`` when all were.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from runyard.server.services import etags
from runyard.server.services.context import Actor, Services
from runyard.server.services.datasets import assets, datasets
from runyard.server.services.errors import Refusal
from runyard.server.services.imports import import_jobs, imports, sessions
from runyard.server.services.imports.imports import AnnouncedFile
from runyard.store.datasets import imports as rows
from runyard.store.tables import AnyRow
from vi.api.resources.assets.responses import (
    AnnouncedAsset,
    AssetIngestionSession,
    AssetLink,
    AssetUpload,
    IngestionError,
    IngestionProgress,
    IngestionSpec,
    IngestionStatus,
    IngestionTasks,
)
from vi.api.responses import ConditionStatus, ResourceMetadata

KIND: imports.Kind = "Ingestion"
MOST_FILES = 5000
_REACHED = {"Done": ("Finished",)}


async def create(
    services: Services,
    actor: Actor,
    dataset_id: str,
    *,
    spec: IngestionSpec,
    files: Sequence[AnnouncedAsset],
) -> AnyRow:
    """Begin a session.

    Raises:
        Refusal: NotFound, InvalidBody (no files, too many, two of one name, or a name that is no
            plain path).
    """
    names = [file.filename for file in files]
    if not 0 < len(files) <= MOST_FILES:
        raise Refusal(
            "InvalidBody",
            f"a session accepts 1 to {MOST_FILES} files, not {len(files)}; try: several sessions",
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise Refusal(
            "InvalidBody",
            f"file {twice[0]!r} is announced twice; expected a different name for each",
        )
    for name in names:
        assets.check_name(name)
    announced = [
        AnnouncedFile(
            name=file.filename,
            size_bytes=file.size,
            crc32c=None if file.crc32c is None else file.crc32c % 2**32,
            mime=file.mime,
            custom=file.custom_metadata,
            error_code="EBADMIME" if file.kind != "Image" else None,
        )
        for file in files
    ]
    row = await imports.create(
        services,
        actor,
        dataset_id,
        kind=KIND,
        spec=spec,
        deadline_ms=services.clock.now_ms() + int(imports.INGESTION_HOURS * 3600_000),
        attributes={},
        files=announced,
    )
    if all(file.error_code for file in announced):
        await import_jobs.end_early(
            services, row, state="Failed", why="no file of the session is an image"
        )
    return row


def list_uploads(services: Services, row: AnyRow, origin: str) -> list[AssetUpload]:
    """Return the upload address of each announced file."""
    expiry = imports.get_upload_expiry(services, row)
    return [
        AssetUpload(
            metadata=AnnouncedAsset(
                filename=file.name,
                mime=file.mime or "",
                size=file.size_bytes,
                crc32c=None if file.crc32c is None else to_signed(file.crc32c),
                custom_metadata=msgspec.json.decode(file.custom) if file.custom else None,
                kind="Image" if file.fault is None else "Video",
            ),
            upload=AssetLink(
                url=imports.sign_upload_url(services, row, origin, number=file.number),
                expiry=expiry,
                headers={"Content-Type": file.mime or "application/octet-stream"},
                method="PUT",
            ),
        )
        for file in services.store.read(partial(rows.list_files, org=row.org, import_id=row.id))
    ]


def to_document(
    services: Services, row: AnyRow, *, origin: str | None = None
) -> AssetIngestionSession:
    """Return a session's wire document; with ``origin``, also the upload addresses."""
    seen = msgspec.json.decode(row.seen)
    spec = msgspec.json.decode(row.spec, type=IngestionSpec)
    rejected: dict[str, str] = seen.get("faults", {})
    if row.state in rows.ACTIVE_STATES:
        total, received, failed, _ = services.store.read(
            partial(rows.count_files, org=row.org, import_id=row.id)
        )
        events: list[Any] = [IngestionTasks(tasks={"upload": {"done": received, "total": total}})]
        counts = IngestionProgress(total=total, succeeded=0, errored=failed)
    else:
        total = seen.get("files", {}).get("total", 0)
        events = [IngestionError(files=rejected, time=row.last_updated)] if rejected else []
        counts = IngestionProgress(
            total=total, succeeded=total - len(rejected), errored=len(rejected)
        )
    conditions = sessions.build_conditions(row, ("Finished",), _REACHED.get(row.state, ()))
    if (
        row.state == "Done"
        and rejected
        and (spec.failure_mode == "FailAfterOne" or len(rejected) == total)
    ):
        name, code = next(iter(rejected.items()))
        finished = conditions[0]
        finished.status = ConditionStatus.FAILED_REACH
        finished.message = (
            f"{len(rejected)} of {total} files were rejected, such as {name!r} ({code}); the "
            "others were imported"
        )
    document = AssetIngestionSession(
        organization_id=row.org,
        dataset_id=row.dataset_id,
        session_id=row.id,
        ingestion_id=row.id,
        spec=spec,
        status=IngestionStatus(conditions=conditions, events=events, progress_count=counts),
        metadata=ResourceMetadata(
            time_created=row.time_created, last_updated=row.last_updated, generation=1
        ),
        self_link=datasets.build_path(row.org, row.dataset_id, "assetIngestionSessions", row.id),
    )
    etags.seal(document)
    if origin is not None and row.state == "Receiving":
        document.status.assets = list_uploads(services, row, origin)
    return document


def to_signed(crc32c: int) -> int:
    """Return the signed 32-bit integer, which is what the published client writes."""
    return crc32c - 2**32 if crc32c >= 2**31 else crc32c
