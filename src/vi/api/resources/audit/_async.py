"""``client.audit``: audit log of actions and rejected keys; for admins."""

from datetime import datetime
from typing import Any

from vi._http._async import AsyncHttp
from vi._http.requests import QueryValue
from vi.api._arguments import to_epoch_ms
from vi.api._pages._async import AsyncPaginatedResponse, fetch_page
from vi.api.resources.audit.responses import AuditEntry
from vi.api.types import PaginationParams


class AsyncAudit:
    """Audit log of the organization."""

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
            pagination: Page size and page token.
            actor: Id of a key, ``operator`` or ``nobody``.
            action: Action, such as ``create run`` or ``reject key``.
            since: Start of the period, inclusive, as a datetime or epoch milliseconds.
            until: End of the period, exclusive, as a datetime or epoch milliseconds.

        Raises:
            ViAuthenticationError: The key of the client is not an admin's.
        """
        filters: list[tuple[str, QueryValue]] = [
            ("actor", actor),
            ("action", action),
            ("since", to_epoch_ms(since, name="since")),
            ("until", to_epoch_ms(until, name="until")),
        ]
        return await fetch_page(
            self._http, self._base, item=AuditEntry, pagination=pagination, filters=filters
        )
