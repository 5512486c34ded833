# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""``client.datasets.imports``: the sessions in which files come into a dataset.

A session takes packs, each under the hash of its bytes, in any order and as often as anybody likes, until it is told
that everything is there. What arrived is kept while it is open, so an import that broke off goes on with the packs that
are missing. ``client.datasets.import_folder`` does all of this for a folder.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from vi._concurrency import synchronous as concurrency
from vi._http._sync import Http
from vi._http.links._sync import Links
from vi._http.retry import RetryPolicy
from vi._text import shorten_repr
from vi.api._arguments import check_id, check_seconds, metadata_document
from vi.api._pages._sync import PaginatedResponse, list_pages
from vi.api.resources.datasets._files import LocalFile
from vi.api.resources.datasets._packs import Pack, packed, planned
from vi.api.resources.datasets._places import dataset_path, named_import
from vi.api.resources.datasets._sessions import FIRST_PAUSE_S, next_pause_s
from vi.api.resources.datasets.imports._sending import Sending
from vi.api.resources.datasets.responses import DatasetImport
from vi.api.types import PaginationParams
from vi.errors import (
    ViConflictError,
    ViInvalidParameterError,
    ViNetworkError,
    ViOperationError,
    ViRateLimitError,
    ViServerError,
    ViTimeoutError,
)

T = TypeVar("T")

_AWAY = (ViNetworkError, ViTimeoutError, ViServerError, ViRateLimitError)
_PATIENCE_S = 120.0
_AT_ONCE = 4  # packs in memory, 16 MiB each
_ASKED = "the upload of a pack"
_UPLOAD_RETRIES = 8  # with growing pauses: a restart of the server, or a minute without a network


class Imports:
    """The imports of the organisation's datasets."""

    def __init__(self, http: Http, organization_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._http = http
        self._organization_id = organization_id
        self._clock = clock

    def list(
        self, dataset_id: str, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> PaginatedResponse[DatasetImport]:
        """A page of a dataset's imports, newest first.

        Raises:
            ViNotFoundError: there is no such dataset.
        """
        return list_pages(self._http, self._path(dataset_id), item=DatasetImport, pagination=pagination)

    def get(self, dataset_id: str, import_id: str) -> DatasetImport:
        """One import as it is now.

        Raises:
            ViNotFoundError: there is no such dataset or import.
        """
        return self._http.call("GET", self._path(dataset_id, import_id), decode_as=DatasetImport)

    def create(
        self,
        dataset_id: str,
        *,
        format: str = "auto",
        on_error: str = "RejectRow",
        dataset_type: str | None = None,
        source: str | None = None,
        files: int | None = None,
        size_bytes: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> DatasetImport:
        """Begin an import. It ends by itself after 24 hours if nobody finishes it.

        Args:
            dataset_id: where to.
            format: of the annotation files; ``"auto"`` looks at them.
            on_error: what one bad row does: ``Warn``, ``RejectRow``, ``RejectFile`` or ``RejectAll``.
            dataset_type: ``"auto"`` lets the first import into an empty dataset decide its type.
            source: what people are told the files came from.
            files: how many there will be, for progress.
            size_bytes: how many bytes, for progress.
            metadata: attributes of the import.

        Raises:
            ViNotFoundError: there is no such dataset.
            ViValidationError: there is no such format or policy.
        """
        spec = {
            "format": format,
            "onError": on_error,
            "datasetType": dataset_type,
            "source": source,
            "files": files,
            "sizeBytes": size_bytes,
        }
        body = {
            "spec": {key: value for key, value in spec.items() if value is not None},
            "metadata": {"attributes": {}},
            **metadata_document(metadata),
        }
        return self._http.call("POST", self._path(dataset_id), body=body, decode_as=DatasetImport)

    def send(
        self,
        imported: DatasetImport,
        files: Sequence[LocalFile],
        *,
        is_resumed: bool = False,
        on_update: Callable[[DatasetImport], Any] = lambda imported: None,
    ) -> DatasetImport:
        """Send files as packs, several at once, and say that everything is there.

        ``is_resumed`` asks for each pack first whether it has arrived already.

        Raises:
            ViUploadError: a file cannot be read, or changes meanwhile.
            ViConflictError: the import takes no more files.
            ViError: the server stayed away; what has arrived is kept.
        """
        if not isinstance(imported, DatasetImport):
            raise ViInvalidParameterError(
                f"imported is {shorten_repr(imported)}", suggestion="Give what imports.create returned."
            )
        upload = imported.status.upload
        if upload is None:
            raise ViOperationError(
                f"import {imported.import_id} takes no files any more", suggestion="Begin a new import."
            )
        sending = Sending(files=len(files), size_bytes=sum(file.size_bytes for file in files), clock=self._clock)

        def send(group: Sequence[LocalFile]) -> None:
            pack = concurrency.in_thread(packed, group)
            link = f"{upload.url}/{pack.sha256}"
            was_there = is_resumed and links.exists(link, asked=_ASKED)
            if not was_there:
                self._put(links, link, pack, on_sent=lambda sent_bytes: sending.sent(pack.sha256, sent_bytes))
            size_bytes = sum(file.size_bytes for file in group)
            sending.arrived(pack.sha256, size_bytes, files=len(group), was_there=was_there)

        def tell() -> None:
            concurrency.tell(on_update, sending.told(imported))

        with Links(self._http) as links:
            concurrency.for_each(planned(files), send, at_once=_AT_ONCE, tick=tell)
        tell()
        return self.finish(imported.dataset_id, imported.import_id, sending.packs)

    def finish(self, dataset_id: str, import_id: str, packs: Sequence[str]) -> DatasetImport:
        """Say that everything has been sent: the SHA-256 of every pack. A repeat changes nothing.

        Raises:
            ViConflictError: a pack is not there, or the import is over.
        """
        return self._http.call(
            "POST",
            self._path(dataset_id, import_id) + ":finish",
            body={"packs": sorted(set(packs))},
            decode_as=DatasetImport,
            retry=_patient(self._http.retry),
            idempotent=True,
        )

    def cancel(self, dataset_id: str, import_id: str) -> DatasetImport:
        """End an import; what it has sent is thrown away. One that is over stays as it is.

        Raises:
            ViConflictError: the dataset is being changed by it just now.
            ViNotFoundError: there is no such dataset or import.
        """
        path = self._path(dataset_id, import_id) + ":cancel"
        return self._http.call("POST", path, decode_as=DatasetImport, idempotent=True)

    def wait(
        self,
        dataset_id: str,
        import_id: str,
        *,
        timeout: float | None = None,
        on_update: Callable[[DatasetImport], Any] = lambda imported: None,
    ) -> DatasetImport:
        """Wait until an import is over, however it ends; a server that is restarted meanwhile does not end the waiting.

        Args:
            dataset_id: which dataset.
            import_id: which import.
            timeout: seconds; None waits as long as it takes.
            on_update: called with the import whenever it was looked at.

        Raises:
            ViTimeoutError: the time is over; the import goes on.
            ViNotFoundError: there is no such dataset or import, or no longer.
        """
        check_seconds(timeout, name="timeout")
        deadline_s = float("inf") if timeout is None else self._clock() + timeout
        pause_s = FIRST_PAUSE_S
        while True:
            imported = self._outlast(lambda: self.get(dataset_id, import_id), deadline_s=deadline_s)
            concurrency.tell(on_update, imported)
            if imported.is_over:
                return imported
            if self._clock() >= deadline_s:
                raise ViTimeoutError(
                    f"import {import_id} did not end within {timeout:g} s; it is {imported.status.progress.phase}",
                    suggestion="It goes on: wait again, or end it with client.datasets.imports.cancel.",
                )
            self._http.sleep(min(pause_s, max(0.0, deadline_s - self._clock())))
            pause_s = next_pause_s(pause_s)

    def _put(self, links: Links, link: str, pack: Pack, *, on_sent: Callable[[int], None]) -> None:
        """Send one pack. The server may remove the same bytes for another's sake just then, and asks for them again."""
        for tries_left in range(_UPLOAD_RETRIES, -1, -1):
            try:
                links.send("PUT", link, content=pack, asked=_ASKED, retry=_patient(self._http.retry), on_sent=on_sent)
            except ViConflictError as error:
                if error.code != "BlobMissing" or not tries_left:
                    raise
            else:
                return

    def _outlast(self, ask: Callable[[], T], *, deadline_s: float) -> T:
        """Ask until there is an answer, or the server has been away for too long."""
        patience_s = min(self._clock() + _PATIENCE_S, deadline_s)
        while True:
            try:
                return ask()
            except _AWAY:
                if self._clock() >= patience_s:
                    raise
            self._http.sleep(1.0)

    def _path(self, dataset_id: str, import_id: str | None = None) -> str:
        path = dataset_path(self._organization_id, named_import(dataset_id, None)[0]) + "/imports"
        return path if import_id is None else f"{path}/{check_id(import_id, name='import_id')}"


def _patient(policy: RetryPolicy) -> RetryPolicy:
    """The client's policy, with more tries if it tries again at all."""
    return replace(policy, max_retries=max(policy.max_retries, _UPLOAD_RETRIES)) if policy.max_retries else policy
