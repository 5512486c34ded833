"""The published client's sessions of pictures: an import whose files are announced one by one and come one by one.

Good pictures are kept whatever becomes of the others. ``FailAfterOne`` tells the session as failed when one was
refused, ``FailAfterAll`` when all were.
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
from runyard.server.services.imports.imports import Announced
from runyard.store import imports as rows
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
    services: Services, actor: Actor, dataset_id: str, *, spec: IngestionSpec, files: Sequence[AnnouncedAsset]
) -> AnyRow:
    """Begin a session.

    Raises:
        Refusal: NotFound, InvalidBody (no files, too many, two of one name, or a name that is no plain path).
    """
    names = [file.filename for file in files]
    if not 0 < len(files) <= MOST_FILES:
        raise Refusal("InvalidBody", f"a session takes 1 to {MOST_FILES} files, not {len(files)}; divide them")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise Refusal("InvalidBody", f"file {twice[0]!r} is announced twice; give each a name of its own")
    for name in names:
        assets.check_name(name)
    announced = [
        Announced(
            name=file.filename,
            size_bytes=file.size,
            crc32c=None if file.crc32c is None else file.crc32c % 2**32,
            mime=file.mime,
            custom=file.custom_metadata,
            fault="EBADMIME" if file.kind != "Image" else None,
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
    if all(file.fault for file in announced):
        await import_jobs.end_early(services, row, state="Failed", why="no file of the session is a picture")
    return row


def uploads(services: Services, row: AnyRow, origin: str) -> list[AssetUpload]:
    """Where each announced file goes."""
    expiry = imports.ingestion_end(services, row)
    return [
        AssetUpload(
            metadata=AnnouncedAsset(
                filename=file.name,
                mime=file.mime or "",
                size=file.size_bytes,
                crc32c=None if file.crc32c is None else signed(file.crc32c),
                custom_metadata=msgspec.json.decode(file.custom) if file.custom else None,
                kind="Image" if file.fault is None else "Video",
            ),
            upload=AssetLink(
                url=imports.upload_url(services, row, origin, number=file.number),
                expiry=expiry,
                headers={"Content-Type": file.mime or "application/octet-stream"},
                method="PUT",
            ),
        )
        for file in services.store.read(partial(rows.list_files, org=row.org, import_id=row.id))
    ]


def document(services: Services, row: AnyRow, *, origin: str | None = None) -> AssetIngestionSession:
    """A session as it is told; with ``origin``, where each file goes."""
    seen = msgspec.json.decode(row.seen)
    spec = msgspec.json.decode(row.spec, type=IngestionSpec)
    faults: dict[str, str] = seen.get("faults", {})
    if row.state in rows.ACTIVE_STATES:
        total, received, failed, _ = services.store.read(partial(rows.count_files, org=row.org, import_id=row.id))
        events: list[Any] = [IngestionTasks(tasks={"upload": {"done": received, "total": total}})]
        counts = IngestionProgress(total=total, succeeded=0, errored=failed)
    else:
        total = seen.get("files", {}).get("total", 0)
        events = [IngestionError(files=faults, time=row.last_updated)] if faults else []
        counts = IngestionProgress(total=total, succeeded=total - len(faults), errored=len(faults))
    conditions = sessions.conditions(row, ("Finished",), _REACHED.get(row.state, ()))
    if row.state == "Done" and faults and (spec.failure_mode == "FailAfterOne" or len(faults) == total):
        name, code = next(iter(faults.items()))
        conditions[0].status = ConditionStatus.FAILED_REACH
        conditions[
            0
        ].message = f"{len(faults)} of {total} files were not taken, such as {name!r} ({code}); the others were"
    told = AssetIngestionSession(
        organization_id=row.org,
        dataset_id=row.dataset_id,
        session_id=row.id,
        ingestion_id=row.id,
        spec=spec,
        status=IngestionStatus(conditions=conditions, events=events, progress_count=counts),
        metadata=ResourceMetadata(time_created=row.time_created, last_updated=row.last_updated, generation=1),
        self_link=datasets.link(row.org, row.dataset_id, "assetIngestionSessions", row.id),
    )
    etags.sealed(told)
    if origin is not None and row.state == "Receiving":
        told.status.assets = uploads(services, row, origin)
    return told


def signed(crc32c: int) -> int:
    """As a signed 32-bit integer, which is how the published client writes it."""
    return crc32c - 2**32 if crc32c >= 2**31 else crc32c
