"""Our own view of an import: ``DatasetImport``, its findings in pages, and its report."""

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import msgspec

from runyard.blobs import BlobError
from runyard.server.services import etags, paging
from runyard.server.services.access.signing import Position
from runyard.server.services.context import Services
from runyard.server.services.datasets import datasets
from runyard.server.services.errors import Refusal
from runyard.server.services.imports import import_jobs, imports
from runyard.server.services.paging import PageRequest
from runyard.store.datasets import imports as rows
from runyard.store.tables import AnyRow
from vi.api.resources.datasets.responses import (
    DatasetImport,
    Finding,
    FindingGroup,
    ImportFindings,
    ImportProgress,
    ImportReport,
    ImportSpec,
    ImportStatus,
    ImportUpload,
    SessionCondition,
)
from vi.api.responses import ConditionStatus, ResourceMetadata

KIND: imports.Kind = "Import"
CONDITIONS = ("Finished", "Checked", "Received")  # the newest first
SHOWN_OF_EACH = 5
# The conditions that each state has reached.
_REACHED = {
    "Receiving": (),
    "Sealed": ("Received",),
    "Committing": ("Received", "Checked"),
    "Done": CONDITIONS,
}


def to_document(services: Services, row: AnyRow, *, origin: str | None) -> DatasetImport:
    """Return an import's wire document.

    With ``origin`` it has the address for packs, while they are accepted.
    """
    seen = msgspec.json.decode(row.seen)
    is_over = row.state not in rows.ACTIVE_STATES
    progress = seen.get("progress", {}) if is_over else _read_progress(services, row)
    document = DatasetImport(
        organization_id=row.org,
        dataset_id=row.dataset_id,
        import_id=row.id,
        spec=_decode_spec(row),
        status=ImportStatus(
            conditions=build_conditions(
                row, CONDITIONS, _REACHED.get(row.state, ("Received",) if row.time_sealed else ())
            ),
            progress=msgspec.convert(_drop_nulls(progress), ImportProgress),
            findings=msgspec.convert(progress, ImportFindings),
            format=seen.get("format"),
            version=row.version,
            why=row.why,
            splits=(seen.get("counts") or {}).get("splits") or {},
        ),
        metadata=ResourceMetadata(
            time_created=row.time_created,
            last_updated=row.last_updated,
            generation=1,
            attributes=msgspec.json.decode(row.attributes),
        ),
        self_link=datasets.build_path(row.org, row.dataset_id, "imports", row.id),
    )
    etags.seal(document)
    if origin is not None and row.state == "Receiving":
        document.status.upload = ImportUpload(
            url=imports.sign_upload_url(services, row, origin),
            expiry=row.deadline,
            max_size_bytes=imports.LARGEST_UPLOAD,
        )
    return document


def _decode_spec(row: AnyRow) -> ImportSpec:
    """Return the spec; an import from before there was a policy for splits ignores them."""
    given = {"split": "ignore", **msgspec.json.decode(row.spec)}
    return msgspec.convert(given, ImportSpec)


def build_conditions(
    row: AnyRow, names: tuple[str, ...], reached: tuple[str, ...]
) -> list[SessionCondition]:
    """Return the conditions that a session waits for, has reached, or will never reach."""
    conditions = []
    for name in names:
        condition = SessionCondition(condition=name, last_transition_time=row.time_created)
        if name in reached:
            condition.status = ConditionStatus.REACHED
            condition.last_transition_time = (
                row.time_sealed if name == "Received" else row.last_updated
            )
        elif row.state in ("Failed", "Cancelled"):
            condition.status = ConditionStatus.FAILED_REACH
            condition.last_transition_time = row.last_updated
            condition.reason = "CancelledByUser" if row.state == "Cancelled" else None
            condition.message = row.why
        conditions.append(condition)
    return conditions


async def read_findings(
    services: Services,
    row: AnyRow,
    *,
    severity: str | None,
    code: str | None,
    page_request: PageRequest,
) -> bytes:
    """Return a page of findings in the order in which they were found.

    ``severity`` and ``code`` filter them.
    """
    after = paging.parse_position(services, org=row.org, page_request=page_request)

    def read_page() -> bytes:
        found: list[bytes] = []
        size_bytes, further = 0, None
        with _open_findings(services, row) as file:
            file.seek(after[0] if after else 0)
            while (begin := file.tell()) >= 0 and (line := file.readline()).endswith(b"\n"):
                item = msgspec.json.decode(line, type=Finding)
                if severity not in (None, item.severity) or code not in (None, item.code):
                    continue
                encoded = msgspec.json.encode(item)
                size_bytes += len(encoded) + 1
                if len(found) == page_request.size or (
                    found and size_bytes > page_request.most_bytes
                ):
                    further = paging.page_token(
                        services, Position(begin, ""), org=row.org, page_request=page_request
                    )
                    break
                found.append(encoded)
        return paging.join(found, further)

    return await asyncio.to_thread(read_page)


def build_report(services: Services, row: AnyRow) -> ImportReport:
    """Return counts by code and the first findings of each.

    It reads all findings, so call it off the event loop.
    """
    groups: dict[str, FindingGroup] = {}
    with _open_findings(services, row) as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            item = msgspec.json.decode(line, type=Finding)
            group = groups.setdefault(
                item.code,
                FindingGroup(code=item.code, severity=item.severity, count=0, cure=item.cure),
            )
            group.count += 1
            if len(group.first) < SHOWN_OF_EACH:
                group.first.append(item)
    status = to_document(services, row, origin=None).status
    for code, count in status.findings.by_code.items():
        if code in groups:
            # Beyond a limit, findings are counted, not written.
            groups[code].count = max(count, groups[code].count)
    return ImportReport(
        import_id=row.id,
        dataset_id=row.dataset_id,
        format=status.format,
        why=status.why,
        version=status.version,
        images=status.progress.images,
        rows=status.progress.rows,
        rows_kept=status.progress.rows_kept,
        splits=status.splits,
        errors=status.findings.errors,
        warnings=status.findings.warnings,
        groups=sorted(groups.values(), key=lambda group: (-group.count, group.code)),
    )


@contextmanager
def _open_findings(services: Services, row: AnyRow) -> Iterator[BinaryIO]:
    """Open the findings: a growing file while the import is under way, a blob afterwards."""
    path = import_jobs.get_folder(services, row.org, row.id) / import_jobs.FINDINGS
    try:
        if row.sha256 is not None:
            with services.blobs(row.org).open(row.sha256) as blob:
                yield blob
        elif row.state in rows.ACTIVE_STATES and path.exists():
            with open(path, "rb") as file:
                yield file
        else:
            yield io.BytesIO()
    except BlobError as error:
        raise Refusal(
            "BlobMissing", f"the report of import {row.id!r} is lost or damaged on the server"
        ) from error


def _read_progress(services: Services, row: AnyRow) -> dict[str, Any]:
    progress = import_jobs.read_progress(services, row)
    if not progress:
        total, received, _, size_bytes = services.store.read(
            partial(rows.count_files, org=row.org, import_id=row.id)
        )
        progress = {
            "phase": "Receiving",
            "files": total,
            "filesDone": 0,
            "bytesDone": 0,
            "received": received,
        }
        progress["sizeBytes"] = size_bytes
    if row.state == "Committing":
        progress["phase"] = "Saving"
    return progress


def _drop_nulls(progress: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in progress.items() if value is not None}
