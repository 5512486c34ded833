"""The two clients: ``Client`` waits for each answer, ``AsyncClient`` has the same names for ``await``."""

from vi._client._async import AsyncClient
from vi._client._sync import Client

__all__ = ["AsyncClient", "Client"]
