"""``client.datasets.imports``: import sessions of datasets.

A session accepts packs under the hash of their bytes, in any order and any number of times, until
``finish``. Uploaded packs are kept while it is open, so that an interrupted import sends only the
missing packs when it is resumed. ``client.datasets.import_folder`` does all of this for a folder.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from vi._concurrency import asynchronous as concurrency
from vi._http._async import AsyncHttp
from vi._http.links._async import AsyncSignedLinks
from vi._http.retry import RetryPolicy
from vi._text import shorten_repr
from vi.api._arguments import check_id, check_seconds, encode_metadata
from vi.api._pages._async import AsyncPaginatedResponse, fetch_page
from vi.api.resources.datasets._packs import Pack, build_pack, group_files
from vi.api.resources.datasets._parameters import dataset_path, parse_import_ids
from vi.api.resources.datasets._sessions import FIRST_PAUSE_S, next_pause_s
from vi.api.resources.datasets._walk import LocalFile
from vi.api.resources.datasets.imports._upload_progress import UploadProgress
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

_UNAVAILABLE_ERRORS = (ViNetworkError, ViTimeoutError, ViServerError, ViRateLimitError)
_UNAVAILABLE_TIMEOUT_S = 120.0
_MAX_CONCURRENCY = 4  # packs in memory, 16 MiB each
_REQUEST_NAME = "the upload of a pack"
_UPLOAD_RETRIES = 8  # with growing pauses: a restart of the server, or a minute without a network


class AsyncImports:
    """Imports of the organization's datasets."""

    def __init__(
        self, http: AsyncHttp, organization_id: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._organization_id = organization_id
        self._clock = clock

    async def list(
        self, dataset_id: str, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[DatasetImport]:
        """Return a page of the imports of a dataset, newest first.

        Raises:
            ViNotFoundError: No dataset has this id.
        """
        return await fetch_page(
            self._http, self._path(dataset_id), item=DatasetImport, pagination=pagination
        )

    async def get(self, dataset_id: str, import_id: str) -> DatasetImport:
        """Return the current state of an import.

        Raises:
            ViNotFoundError: The dataset or import does not exist.
        """
        return await self._http.call(
            "GET", self._path(dataset_id, import_id), decode_as=DatasetImport
        )

    async def create(
        self,
        dataset_id: str,
        *,
        format: str = "auto",
        on_error: str = "RejectRow",
        box_unit: str = "auto",
        box_form: str = "auto",
        on_bad_box: str = "reject",
        split: str = "keep",
        dataset_type: str | None = None,
        source: str | None = None,
        files: int | None = None,
        size_bytes: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> DatasetImport:
        """Create an import. It expires after 24 hours unless it is finished.

        Args:
            dataset_id: Id of the dataset.
            format: Format of the annotation files; ``"auto"`` detects it.
            on_error: Policy for an invalid row: ``"Warn"``, ``"RejectRow"``, ``"RejectFile"`` or
                ``"RejectAll"``.
            box_unit: Unit of the numbers of a box: ``"pixel"``, ``"fraction"``, ``"percent"`` or
                ``"thousandth"`` of the image; ``"auto"`` is what the format defines.
            box_form: Meaning of the four numbers: ``"corners"``, or ``"size"`` for a corner with
                width and height; ``"auto"`` is what the format defines.
            on_bad_box: ``"reject"`` skips the row of an invalid box, ``"drop"`` only the box.
            split: ``"keep"`` records the data's own split into train, validation and test,
                ``"ignore"`` merges its parts.
            dataset_type: ``"auto"`` lets the first import into an empty dataset determine its type.
            source: Description of the source, for people.
            files: Number of files, for progress.
            size_bytes: Number of bytes, for progress.
            metadata: Attributes of the import.

        Raises:
            ViNotFoundError: No dataset has this id.
            ViValidationError: The format, or the value of an option, is unknown.
        """
        spec = {
            "format": format,
            "onError": on_error,
            "boxUnit": box_unit,
            "boxForm": box_form,
            "onBadBox": on_bad_box,
            "split": split,
            "datasetType": dataset_type,
            "source": source,
            "files": files,
            "sizeBytes": size_bytes,
        }
        body = {
            "spec": {key: value for key, value in spec.items() if value is not None},
            "metadata": {"attributes": {}},
            **encode_metadata(metadata),
        }
        return await self._http.call(
            "POST", self._path(dataset_id), body=body, decode_as=DatasetImport
        )

    async def send(
        self,
        imported: DatasetImport,
        files: Sequence[LocalFile],
        *,
        is_resumed: bool = False,
        on_update: Callable[[DatasetImport], Any] = lambda imported: None,
    ) -> DatasetImport:
        """Upload files as packs, several at a time, and finish the upload.

        Args:
            imported: Import, as returned by ``create`` or ``get``.
            files: Files to upload.
            is_resumed: Skip packs that the server already has.
            on_update: Called with the import and its progress several times a second.

        Raises:
            ViUploadError: A file cannot be read, or changes during the upload.
            ViConflictError: The import accepts no more files.
            ViError: The server stayed unavailable; uploaded packs are kept.
        """
        if not isinstance(imported, DatasetImport):
            raise ViInvalidParameterError(
                f"imported is {shorten_repr(imported)}, expected: a DatasetImport",
                suggestion="try: the result of imports.create",
            )
        upload = imported.status.upload
        if upload is None:
            raise ViOperationError(
                f"import {imported.import_id} accepts no more files", suggestion="try: a new import"
            )
        progress = UploadProgress(
            files=len(files), size_bytes=sum(file.size_bytes for file in files), clock=self._clock
        )

        async def send(group: Sequence[LocalFile]) -> None:
            pack = await concurrency.run_in_thread(build_pack, group)
            link = f"{upload.url}/{pack.sha256}"
            was_stored = is_resumed and await links.exists(link, request_name=_REQUEST_NAME)
            if not was_stored:
                await self._upload_pack(
                    links,
                    link,
                    pack,
                    on_sent=lambda sent_bytes: progress.record_sent(pack.sha256, sent_bytes),
                )
            size_bytes = sum(file.size_bytes for file in group)
            progress.record_stored(pack.sha256, size_bytes, files=len(group), was_stored=was_stored)

        async def report_progress() -> None:
            await concurrency.call_listener(on_update, progress.apply_to(imported))

        async with AsyncSignedLinks(self._http) as links:
            await concurrency.for_each(
                group_files(files), send, max_concurrency=_MAX_CONCURRENCY, on_tick=report_progress
            )
        await report_progress()
        return await self.finish(imported.dataset_id, imported.import_id, progress.packs)

    async def finish(self, dataset_id: str, import_id: str, packs: Sequence[str]) -> DatasetImport:
        """Finish the upload, given the SHA-256 of every pack. Repeating the call has no effect.

        Raises:
            ViConflictError: A pack is missing, or the import has ended.
            ViNotFoundError: The dataset or import does not exist.
        """
        return await self._http.call(
            "POST",
            self._path(dataset_id, import_id) + ":finish",
            body={"packs": sorted(set(packs))},
            decode_as=DatasetImport,
            retry=_with_more_retries(self._http.retry),
            idempotent=True,
        )

    async def cancel(self, dataset_id: str, import_id: str) -> DatasetImport:
        """Cancel an import and discard its uploads. An import that has ended is unchanged.

        Raises:
            ViConflictError: The import is just being committed to the dataset.
            ViNotFoundError: The dataset or import does not exist.
        """
        path = self._path(dataset_id, import_id) + ":cancel"
        return await self._http.call("POST", path, decode_as=DatasetImport, idempotent=True)

    async def wait(
        self,
        dataset_id: str,
        import_id: str,
        *,
        timeout: float | None = None,
        on_update: Callable[[DatasetImport], Any] = lambda imported: None,
    ) -> DatasetImport:
        """Wait until an import has ended, successfully or not, and return it.

        A restart of the server does not interrupt the wait.

        Args:
            dataset_id: Id of the dataset.
            import_id: Id of the import.
            timeout: Maximum seconds to wait; None waits without limit.
            on_update: Called with the import after each request.

        Raises:
            ViTimeoutError: The import has not ended after ``timeout`` seconds; it continues.
            ViNotFoundError: The dataset or import does not exist, or was deleted during the wait.
        """
        check_seconds(timeout, name="timeout")
        deadline_s = float("inf") if timeout is None else self._clock() + timeout
        pause_s = FIRST_PAUSE_S
        while True:
            imported = await self._retry_while_unavailable(
                lambda: self.get(dataset_id, import_id), deadline_s=deadline_s
            )
            await concurrency.call_listener(on_update, imported)
            if imported.is_over:
                return imported
            if self._clock() >= deadline_s:
                raise ViTimeoutError(
                    f"import {import_id} did not end within {timeout:g} s; it is "
                    f"{imported.status.progress.phase}",
                    suggestion="The import continues. try: wait again, or "
                    "client.datasets.imports.cancel",
                )
            await self._http.sleep(min(pause_s, max(0.0, deadline_s - self._clock())))
            pause_s = next_pause_s(pause_s)

    async def _upload_pack(
        self, links: AsyncSignedLinks, link: str, pack: Pack, *, on_sent: Callable[[int], None]
    ) -> None:
        """Upload one pack.

        A concurrent cancellation of another import may delete the same bytes; the server then
        reports BlobMissing, and the upload is repeated.
        """
        for tries_left in range(_UPLOAD_RETRIES, -1, -1):
            try:
                await links.send(
                    "PUT",
                    link,
                    content=pack,
                    request_name=_REQUEST_NAME,
                    retry=_with_more_retries(self._http.retry),
                    on_sent=on_sent,
                )
            except ViConflictError as error:
                if error.code != "BlobMissing" or not tries_left:
                    raise
            else:
                return

    async def _retry_while_unavailable(
        self, request: Callable[[], Awaitable[T]], *, deadline_s: float
    ) -> T:
        """Repeat a request until it succeeds, or the server was unavailable for too long."""
        give_up_s = min(self._clock() + _UNAVAILABLE_TIMEOUT_S, deadline_s)
        while True:
            try:
                return await request()
            except _UNAVAILABLE_ERRORS:
                if self._clock() >= give_up_s:
                    raise
            await self._http.sleep(1.0)

    def _path(self, dataset_id: str, import_id: str | None = None) -> str:
        path = (
            dataset_path(self._organization_id, parse_import_ids(dataset_id, None)[0]) + "/imports"
        )
        return path if import_id is None else f"{path}/{check_id(import_id, name='import_id')}"


def _with_more_retries(policy: RetryPolicy) -> RetryPolicy:
    """Return the policy with more retries, unless retries are disabled."""
    return (
        replace(policy, max_retries=max(policy.max_retries, _UPLOAD_RETRIES))
        if policy.max_retries
        else policy
    )
