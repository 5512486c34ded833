# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""The client: credentials, and one attribute for each kind of resource.

Resources and the HTTP stack are loaded on first use: a script that uses ``runs`` pays for neither
datasets nor models, and a script that sends no request does not load an HTTP library.
"""

from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vi._client.credentials import (
    Credentials,
    check_connection,
    find_credentials,
    restore_credentials,
)
from vi._http._sync import Http
from vi._http.retry import NO_RETRY, RetryPolicy
from vi.errors import ViConfigurationError

if TYPE_CHECKING:
    import httpx2

    from vi.api.resources.annotations._sync import Annotations
    from vi.api.resources.assets._sync import Assets
    from vi.api.resources.audit._sync import Audit
    from vi.api.resources.datasets._sync import Datasets
    from vi.api.resources.events._sync import Events
    from vi.api.resources.flows._sync import Flows
    from vi.api.resources.keys._sync import Keys
    from vi.api.resources.machines._sync import Machines
    from vi.api.resources.models._sync import Models
    from vi.api.resources.models.responses import DownloadedModel
    from vi.api.resources.runs._sync import Runs
    from vi.api.resources.sessions._sync import Sessions
    from vi.api.resources.training_projects._sync import TrainingProjects
    from vi.api.resources.views._sync import Views


class Client:
    """Client of one server for one organization.

    No connection is opened before the first request. Threads, event loops and forked processes may
    share a client; each event loop and process opens its own connections. Resource objects such as
    ``runs`` remain usable until the client is closed. A client can be pickled unless its key was
    passed as an argument; the pickle records where to look up the key, never the key itself.

    Args:
        secret_key: API key. Default: DATATURE_VI_SECRET_KEY, then the configuration file.
        organization_id: Organization to act for. Default: DATATURE_VI_ORGANIZATION_ID, then the
            configuration file.
        config_file: JSON file with these values. Default: ``~/.runyard/credentials.json`` if it
            exists.
        endpoint: Address of the server. Default: DATATURE_VI_API_ENDPOINT, then the configuration
            file, then ``http://127.0.0.1:7878/``. The certificate of an ``https://`` endpoint must
            be one that the configuration file, RUNYARD_CA, SSL_CERT_FILE or the system trusts.
        timeout: Seconds to wait for a response.
        max_retries: Maximum number of retries of a request that is safe to repeat; 0 disables
            retries.
        transport: HTTP transport to use instead of the network, for tests.

    Raises:
        ViConfigurationError: A value is missing or malformed.
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
        transport: "httpx2.BaseTransport | None" = None,
    ) -> None:
        check_connection(timeout=timeout, max_retries=max_retries)
        found = find_credentials(
            secret_key=secret_key,
            organization_id=organization_id,
            endpoint=endpoint,
            config_file=config_file,
        )
        self._open(found, timeout=timeout, max_retries=max_retries, transport=transport)

    def _open(
        self,
        found: Credentials,
        *,
        timeout: float,
        max_retries: int,
        transport: "httpx2.BaseTransport | None",
    ) -> None:
        self._credentials, self._transport = found, transport
        self._options = {"timeout": timeout, "max_retries": max_retries}
        self._http = Http(
            found.endpoint,
            headers={
                "Authorization": f"Bearer {found.secret_key}",
                "Organization-Id": found.organization_id,
            },
            timeout_s=timeout,
            retry=RetryPolicy(max_retries=max_retries) if max_retries > 0 else NO_RETRY,
            trust=found.trust,
            transport=transport,
        )
        self.organization_id = found.organization_id

    @cached_property
    def runs(self) -> "Runs":
        """Training runs."""
        from vi.api.resources.runs._sync import Runs

        return Runs(self._http, self.organization_id)

    @cached_property
    def flows(self) -> "Flows":
        """Saved flows."""
        from vi.api.resources.flows._sync import Flows

        return Flows(self._http, self.organization_id)

    @cached_property
    def models(self) -> "Models":
        """Checkpoints of runs."""
        from vi.api.resources.models._sync import Models

        return Models(self._http, self.organization_id)

    @cached_property
    def datasets(self) -> "Datasets":
        """Datasets, with their imports and versions."""
        from vi.api.resources.datasets._sync import Datasets

        return Datasets(self._http, self.organization_id)

    @cached_property
    def assets(self) -> "Assets":
        """Images of datasets."""
        from vi.api.resources.assets._sync import Assets

        return Assets(self._http, self.organization_id)

    @cached_property
    def annotations(self) -> "Annotations":
        """Annotations of images."""
        from vi.api.resources.annotations._sync import Annotations

        return Annotations(self._http, self.organization_id, self.datasets)

    @cached_property
    def training_projects(self) -> "TrainingProjects":
        """Training projects."""
        from vi.api.resources.training_projects._sync import TrainingProjects

        return TrainingProjects(self._http, self.organization_id)

    @cached_property
    def keys(self) -> "Keys":
        """API keys."""
        from vi.api.resources.keys._sync import Keys

        return Keys(self._http, self.organization_id)

    @cached_property
    def machines(self) -> "Machines":
        """Machines that train runs."""
        from vi.api.resources.machines._sync import Machines

        return Machines(self._http, self.organization_id)

    @cached_property
    def audit(self) -> "Audit":
        """Audit log."""
        from vi.api.resources.audit._sync import Audit

        return Audit(self._http, self.organization_id)

    @cached_property
    def views(self) -> "Views":
        """Saved views of the list of runs."""
        from vi.api.resources.views._sync import Views

        return Views(self._http, self.organization_id)

    @cached_property
    def sessions(self) -> "Sessions":
        """Browsers that are signed in."""
        from vi.api.resources.sessions._sync import Sessions

        return Sessions(self._http, self.organization_id)

    @cached_property
    def events(self) -> "Events":
        """What has changed, in order."""
        from vi.api.resources.events._sync import Events

        return Events(self._http, self.organization_id)

    @property
    def endpoint(self) -> str:
        """Address of the server."""
        return self._http.endpoint

    @property
    def is_closed(self) -> bool:
        """True after ``close``."""
        return self._http.is_closed

    def get_model(
        self,
        run_id: str,
        ckpt: str | None = None,
        save_path: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> "DownloadedModel":
        """Download a checkpoint of a run and return its paths; see ``models.download``."""
        return self.models.download(
            run_id, ckpt, save_dir=save_path, overwrite=overwrite, show_progress=show_progress
        )

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the source of the key instead of the key; the copy opens its own connections.

        Raises:
            ViConfigurationError: The key or the transport was passed as an argument.
        """
        if self._transport is not None:
            raise ViConfigurationError(
                "a client with a custom transport cannot be pickled",
                suggestion="try: create a new client in the other process",
            )
        return type(self)._restore, (self._credentials.reference(), self._options)

    @classmethod
    def _restore(cls, reference: dict[str, str], options: dict[str, Any]) -> Self:
        return cls._with_credentials(restore_credentials(reference), **options)

    @classmethod
    def _with_credentials(cls, found: Credentials, *, timeout: float, max_retries: int) -> Self:
        """Return a client with credentials that were found before."""
        client = cls.__new__(cls)
        client._open(found, timeout=timeout, max_retries=max_retries, transport=None)
        return client

    def __copy__(self) -> Self:
        """Return a client with the same credentials and its own connections."""
        client = type(self).__new__(type(self))
        client._open(self._credentials, **self._options, transport=self._transport)  # type: ignore[arg-type]
        return client

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(organization_id={self.organization_id!r}, "
            f"endpoint={self.endpoint!r})"
        )
