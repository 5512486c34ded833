"""``client.keys``: API keys with their roles and expiry; for admins."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from vi._http._async import AsyncHttp
from vi.api._arguments import check_id, to_epoch_ms
from vi.api._pages._async import AsyncPaginatedResponse, fetch_page
from vi.api.resources.keys.responses import IssuedKey, Key, KeyRole
from vi.api.types import PaginationParams


class AsyncKeys:
    """Keys of the organization; iteration yields all of them, including revoked ones."""

    def __init__(self, http: AsyncHttp, organization_id: str) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/keys"

    async def list(
        self, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[Key]:
        """Return a page of keys, newest first."""
        return await fetch_page(self._http, self._base, item=Key, pagination=pagination)

    async def get(self, key_id: str) -> Key:
        """Return a key, without its secret.

        Raises:
            ViNotFoundError: The organization has no such key.
        """
        return await self._http.call("GET", self._path(key_id), decode_as=Key)

    async def create(
        self, name: str, role: KeyRole = "member", *, expires: datetime | int | None = None
    ) -> IssuedKey:
        """Create a key; the ``secret_key`` of the result is not available again.

        The request is not retried if its response is lost. In that case ``list`` shows an unused
        key, which should be revoked.

        Args:
            name: Purpose of the key.
            role: ``viewer`` reads, ``member`` also changes resources, ``admin`` also manages keys
                and storage.
            expires: Expiry, as a datetime or epoch milliseconds; None for never.

        Raises:
            ViAuthenticationError: The key of the client is not an admin's.
        """
        body = {
            "spec": {"name": name, "role": role, "expires": to_epoch_ms(expires, name="expires")}
        }
        return await self._http.call("POST", self._base, body=body, decode_as=IssuedKey)

    async def revoke(self, key_id: str) -> Key:
        """Revoke a key immediately; it stays listed.

        Raises:
            ViNotFoundError: The organization has no such key.
            ViConflictError: It is the last admin key that does not expire.
        """
        return await self._http.call("DELETE", self._path(key_id), decode_as=Key)

    async def rotate(
        self, key_id: str, *, overlap_s: int = 0, expires: datetime | int | None = None
    ) -> IssuedKey:
        """Replace a key with a new one of the same name and role.

        The ``secret_key`` of the result is not available again.

        Args:
            key_id: Id of the key to replace.
            overlap_s: Seconds for which the old key stays valid.
            expires: Expiry of the new key, as a datetime or epoch milliseconds; None gives it the
                lifetime of the old one.

        Raises:
            ViNotFoundError: The organization has no such key.
            ViConflictError: The key is revoked or has expired.
        """
        body = {
            "spec": {"overlapSeconds": overlap_s, "expires": to_epoch_ms(expires, name="expires")}
        }
        return await self._http.call(
            "POST", f"{self._path(key_id)}/rotations", body=body, decode_as=IssuedKey
        )

    async def __aiter__(self) -> AsyncIterator[Key]:
        async for key in (await self.list(PaginationParams(page_size=100))).all_items():
            yield key

    def __call__(self) -> AsyncIterator[Key]:
        return self.__aiter__()

    def _path(self, key_id: str) -> str:
        return f"{self._base}/{check_id(key_id, name='key_id')}"
