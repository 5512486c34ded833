# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""``client.sessions``: browsers that are signed in to the pages, and links that sign one in."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from vi._http._sync import Http
from vi.api._arguments import check_id
from vi.api._pages._sync import PaginatedResponse, fetch_page
from vi.api.resources.sessions.responses import BrowserSession, SignInCode, SignInLink
from vi.api.responses import DeletedResource
from vi.api.types import PaginationParams


class Sessions:
    """Browsers that are signed in; iteration yields all of them. For admins, except links."""

    def __init__(self, http: Http, organization_id: str) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/sessions"

    def list(
        self, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> PaginatedResponse[BrowserSession]:
        """Return a page of the sessions that have not ended, newest first."""
        return fetch_page(self._http, self._base, item=BrowserSession, pagination=pagination)

    def create_link(self, path: str = "/ui/runs") -> SignInLink:
        """Create a link that signs one browser in as the key of this client.

        It is valid for ten minutes and can be used once. Treat it like the key until then.

        Args:
            path: The page that it opens, such as ``/ui/runs/RUN_ID``.

        Raises:
            ViRateLimitError: The key has too many unused links.
        """
        made = self._http.call("POST", "/ui/codes", decode_as=SignInCode)
        page = f"/ui/enter?next={quote(path, safe='')}"
        return SignInLink(
            url=f"{self._http.endpoint.rstrip('/')}{page}#{made.code}", expires=made.expires
        )

    def revoke(self, session_id: str) -> DeletedResource:
        """End the session of a browser at once.

        Raises:
            ViNotFoundError: There is no such session, or it has ended.
        """
        path = f"{self._base}/{check_id(session_id, name='session_id')}"
        self._http.call("DELETE", path)
        return DeletedResource(id=session_id)

    def __iter__(self) -> Iterator[BrowserSession]:
        yield from (self.list(PaginationParams(page_size=100))).all_items()

    def __call__(self) -> Iterator[BrowserSession]:
        return self.__iter__()
