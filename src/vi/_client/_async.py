"""The client: credentials once, then one attribute for each kind of thing the server keeps."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from vi._client.credentials import Credentials, check_connection, find_again, find_credentials
from vi._http._async import AsyncHttp
from vi._http.retry import NO_RETRY, RetryPolicy
from vi.api.resources.annotations._async import AsyncAnnotations
from vi.api.resources.assets._async import AsyncAssets
from vi.api.resources.audit._async import AsyncAudit
from vi.api.resources.datasets._async import AsyncDatasets
from vi.api.resources.flows._async import AsyncFlows
from vi.api.resources.keys._async import AsyncKeys
from vi.api.resources.models._async import AsyncModels
from vi.api.resources.models.responses import DownloadedModel
from vi.api.resources.runs._async import AsyncRuns
from vi.api.resources.training_projects._async import AsyncTrainingProjects
from vi.errors import ViConfigurationError


class AsyncClient:
    """Speaks to one server for one organisation.

    Nothing is opened before the first request. One client may be shared, also by event loops and forked processes: each
    has connections of its own. What it hands out, such as ``runs``, keeps working without it, until it is closed.
    A client can be pickled if its key is no argument: the pickle says where the key is found, and has no key in it.

    Args:
        secret_key: the key; else DATATURE_VI_SECRET_KEY, else the configuration file.
        organization_id: for whom; else DATATURE_VI_ORGANIZATION_ID, else the configuration file.
        config_file: a JSON file with these values; else ``~/.runyard/credentials.json``, if it is there.
        endpoint: the server's address; else DATATURE_VI_API_ENDPOINT, else the configuration file, else
            ``http://127.0.0.1:7878/``.
        timeout: seconds to wait for an answer.
        max_retries: how often a request is repeated after a failure, where that is safe; 0 never repeats.
        transport: what carries the requests instead of a network, for tests.

    Raises:
        ViConfigurationError: a value is missing or malformed.
    """

    def __init__(
        self,
        secret_key: str | None = None,
        organization_id: str | None = None,
        config_file: str | Path | None = None,
        endpoint: str | None = None,
        *,
        timeout: float = 60.0,
        max_retries: int = 3,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        check_connection(timeout=timeout, max_retries=max_retries)
        found = find_credentials(
            secret_key=secret_key, organization_id=organization_id, endpoint=endpoint, config_file=config_file
        )
        self._open(found, timeout=timeout, max_retries=max_retries, transport=transport)

    def _open(
        self, found: Credentials, *, timeout: float, max_retries: int, transport: httpx2.AsyncBaseTransport | None
    ) -> None:
        self._credentials, self._transport = found, transport
        self._options = {"timeout": timeout, "max_retries": max_retries}
        self._http = AsyncHttp(
            found.endpoint,
            headers={"Authorization": f"Bearer {found.secret_key}", "Organization-Id": found.organization_id},
            timeout_s=timeout,
            retry=RetryPolicy(max_retries=max_retries) if max_retries > 0 else NO_RETRY,
            transport=transport,
        )
        self.organization_id = found.organization_id
        self.runs = AsyncRuns(self._http, found.organization_id)
        self.flows = AsyncFlows(self._http, found.organization_id)
        self.models = AsyncModels(self._http, found.organization_id)
        self.datasets = AsyncDatasets(self._http, found.organization_id)
        self.assets = AsyncAssets(self._http, found.organization_id)
        self.annotations = AsyncAnnotations(self._http, found.organization_id, self.datasets)
        self.training_projects = AsyncTrainingProjects(self._http, found.organization_id)
        self.keys = AsyncKeys(self._http, found.organization_id)
        self.audit = AsyncAudit(self._http, found.organization_id)

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return self._http.endpoint

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._http.is_closed

    async def get_model(
        self,
        run_id: str,
        ckpt: str | None = None,
        save_path: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> DownloadedModel:
        """Fetch a run's checkpoint and say where it lies; see ``models.download``."""
        return await self.models.download(
            run_id, ckpt, save_dir=save_path, overwrite=overwrite, show_progress=show_progress
        )

    async def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where the key is found, not the key, and no connection: the copy opens its own.

        Raises:
            ViConfigurationError: the key, or the transport, was given as an argument.
        """
        if self._transport is not None:
            raise ViConfigurationError(
                "a client with a transport of its own cannot be pickled", suggestion="Make it anew where it is needed."
            )
        return type(self)._restored, (self._credentials.reference(), self._options)

    @classmethod
    def _restored(cls, reference: dict[str, str], options: dict[str, Any]) -> Self:
        client = cls.__new__(cls)
        client._open(find_again(reference), **options, transport=None)
        return client

    def __copy__(self) -> Self:
        """Return a client for the same server with the same key, and connections of its own."""
        client = type(self).__new__(type(self))
        client._open(self._credentials, **self._options, transport=self._transport)  # type: ignore[arg-type]
        return client

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(organization_id={self.organization_id!r}, endpoint={self.endpoint!r})"
