"""The two clients: ``Client`` blocks until each response, ``AsyncClient`` is its ``await`` twin.

Each is loaded on first use, so that a script without an event loop does not load asyncio.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vi._client._async import AsyncClient
    from vi._client._sync import Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from vi._client._sync import Client

        return Client
    if name == "AsyncClient":
        from vi._client._async import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
