"""The audit log: read its rows, and remove those that are older than the deployment keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.server.services import paging
from runyard.server.services.access.key_lifecycle import write_usage
from runyard.server.services.context import Services
from runyard.server.services.paging import PageRequest
from runyard.store import audit as rows
from runyard.store import organizations
from runyard.store.tables import AnyRow
from vi.api.resources.audit.responses import AuditEntry

PRUNED_AT_ONCE = 1000
DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, kw_only=True)
class AuditFilter:
    """The requested rows; ``since`` is the first millisecond, ``until`` the one after the last."""

    actor: str | None = None
    action: str | None = None
    since: int | None = None
    until: int | None = None


async def page(
    services: Services, *, org: str, filter: AuditFilter, page_request: PageRequest
) -> bytes:
    """Return a page of audit rows as JSON, newest first.

    The first organization also reads what the controller did, whose key belongs to no organization.
    """
    await write_usage(services)
    orgs = [org, ""] if org == services.store.read(organizations.list_ids)[0] else [org]

    def fetch(tx: Connection, after: tuple[int, str] | None, limit: int) -> Sequence[AnyRow]:
        return rows.page(
            tx,
            orgs=orgs,
            before=None if after is None else int(after[1]),
            limit=limit,
            actor=filter.actor,
            action=filter.action,
            since=filter.since,
            until=filter.until,
        )

    return await paging.read(
        services,
        page_request,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(_to_document(row)),
    )


async def sweep(services: Services) -> None:
    """Remove rows that are older than the setting ``audit_days``."""
    if services.settings.audit_days <= 0:
        return
    before_ms = services.clock.now_ms() - services.settings.audit_days * DAY_MS
    while await services.store.write(
        lambda tx: rows.prune(tx, before_ms=before_ms, limit=PRUNED_AT_ONCE)
    ):
        pass


def _to_document(row: Any) -> AuditEntry:
    return AuditEntry(
        number=row.number,
        time=row.time,
        actor=row.actor,
        address=row.address,
        action=row.action,
        target=row.target,
        count=row.count,
    )
