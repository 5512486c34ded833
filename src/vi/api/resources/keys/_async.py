"""``client.keys``: who may use the server, as what, and until when; for admins."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from vi._http._async import AsyncHttp
from vi.api._arguments import check_id, milliseconds
from vi.api._pages._async import AsyncPaginatedResponse, list_pages
from vi.api.resources.keys.responses import IssuedKey, Key, KeyRole
from vi.api.types import PaginationParams


class AsyncKeys:
    """The organization's keys; iterating yields every one of them, revoked ones too."""

    def __init__(self, http: AsyncHttp, organization_id: str) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/keys"

    async def list(
        self, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[Key]:
        """Return a page of keys, newest first."""
        return await list_pages(self._http, self._base, item=Key, pagination=pagination)

    async def get(self, key_id: str) -> Key:
        """Return a key, without its secret.

        Raises:
            ViNotFoundError: the organization has no such key.
        """
        return await self._http.call("GET", self._path(key_id), decode_as=Key)

    async def create(self, name: str, role: KeyRole = "member", *, expires: datetime | int | None = None) -> IssuedKey:
        """Create a key; ``secret_key`` of what this returns is not shown again.

        It is not repeated after a lost response: then ``list`` shows a key that was never used, to be revoked.

        Args:
            name: what the key is for.
            role: ``viewer`` reads, ``member`` changes things, ``admin`` manages keys and storage as well.
            expires: a datetime or epoch milliseconds; None for never.
        """
        body = {"spec": {"name": name, "role": role, "expires": milliseconds(expires, name="expires")}}
        return await self._http.call("POST", self._base, body=body, decode_as=IssuedKey)

    async def revoke(self, key_id: str) -> Key:
        """End a key now; it stays listed.

        Raises:
            ViConflictError: it is the last admin key that does not expire.
        """
        return await self._http.call("DELETE", self._path(key_id), decode_as=Key)

    async def rotate(self, key_id: str, *, overlap_s: int = 0, expires: datetime | int | None = None) -> IssuedKey:
        """Create a key in the place of another one; ``secret_key`` of what this returns is not shown again.

        Args:
            key_id: the key to replace.
            overlap_s: seconds for which the old key stays valid.
            expires: when the new key ends; None gives it the name, role and lifetime of the old one.

        Raises:
            ViConflictError: the key is revoked or has expired.
        """
        body = {"spec": {"overlapSeconds": overlap_s, "expires": milliseconds(expires, name="expires")}}
        return await self._http.call("POST", f"{self._path(key_id)}/rotations", body=body, decode_as=IssuedKey)

    async def __aiter__(self) -> AsyncIterator[Key]:
        async for key in (await self.list(PaginationParams(page_size=100))).all_items():
            yield key

    def __call__(self) -> AsyncIterator[Key]:
        return self.__aiter__()

    def _path(self, key_id: str) -> str:
        return f"{self._base}/{check_id(key_id, name='key_id')}"
