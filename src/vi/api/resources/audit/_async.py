"""``client.audit``: who did what, and which keys were rejected; for admins."""

from datetime import datetime
from typing import Any

from vi._http._async import AsyncHttp
from vi._http.requests import Scalar
from vi.api._arguments import milliseconds
from vi.api._pages._async import AsyncPaginatedResponse, list_pages
from vi.api.resources.audit.responses import AuditEntry
from vi.api.types import PaginationParams


class AsyncAudit:
    """The organization's audit log."""

    def __init__(self, http: AsyncHttp, organization_id: str) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/audit"

    async def list(
        self,
        pagination: PaginationParams | dict[str, Any] = PaginationParams(),
        *,
        actor: str | None = None,
        action: str | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
    ) -> AsyncPaginatedResponse[AuditEntry]:
        """Return a page of entries, newest first.

        Args:
            pagination: which page, and how large.
            actor: a key's id, ``operator``, or ``nobody``.
            action: such as ``create run`` or ``reject key``.
            since: entries from this moment on; a datetime or epoch milliseconds.
            until: entries before this moment.
        """
        filters: list[tuple[str, Scalar]] = [
            ("actor", actor),
            ("action", action),
            ("since", milliseconds(since, name="since")),
            ("until", milliseconds(until, name="until")),
        ]
        return await list_pages(self._http, self._base, item=AuditEntry, pagination=pagination, filters=filters)
