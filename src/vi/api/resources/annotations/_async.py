"""``client.annotations``: annotations of images, and upload of annotation files."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vi._concurrency import asynchronous as concurrency
from vi._http._async import AsyncHttp
from vi._http.links._async import AsyncSignedLinks
from vi.api._arguments import check_id
from vi.api._pages._async import AsyncPaginatedResponse, fetch_page
from vi.api._progress import byte_progress
from vi.api.resources.annotations.responses import Annotation, AnnotationImportSession, FileUploads
from vi.api.resources.annotations.results import AnnotationUploadResult
from vi.api.resources.assets._files import OutgoingFile, Paths, collect_files
from vi.api.resources.datasets._async import AsyncDatasets
from vi.api.resources.datasets._parameters import dataset_path, parse_word
from vi.api.resources.datasets._sessions import (
    FIRST_PAUSE_S,
    check_reached,
    is_finished,
    next_pause_s,
)
from vi.api.resources.datasets.results import DatasetDownloadResult
from vi.api.resources.datasets.types import DatasetExportSettings
from vi.api.responses import DeletedResource
from vi.api.types import PaginationParams
from vi.errors import ViError, ViUploadError

ENDINGS = frozenset(
    {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xml", ".txt", ".yaml", ".yml", ".parquet"}
)
DEFAULT_SAVE_DIR = "~/.datature/vi/annotations"
_UPLOAD_WITHIN_MS = 55 * 60 * 1000
_MAX_CONCURRENCY = 4


class AsyncAnnotations:
    """Annotations of the images of the organization's datasets."""

    def __init__(self, http: AsyncHttp, organization_id: str, datasets: AsyncDatasets) -> None:
        self._http = http
        self._organization_id = organization_id
        self._datasets = datasets

    async def list(
        self,
        dataset_id: str,
        asset_id: str,
        pagination: PaginationParams | dict[str, Any] = PaginationParams(),
    ) -> AsyncPaginatedResponse[Annotation]:
        """Return a page of the annotations of an image.

        Raises:
            ViNotFoundError: The dataset or image does not exist.
        """
        return await fetch_page(
            self._http, self._path(dataset_id, asset_id), item=Annotation, pagination=pagination
        )

    async def get(self, dataset_id: str, asset_id: str, annotation_id: str) -> Annotation:
        """Return an annotation.

        Raises:
            ViNotFoundError: The dataset, image or annotation does not exist.
        """
        return await self._http.call(
            "GET", self._path(dataset_id, asset_id, annotation_id), decode_as=Annotation
        )

    async def update(
        self, dataset_id: str, asset_id: str, annotation_id: str, body: Mapping[str, Any]
    ) -> Annotation:
        """Change the fields in ``body``, in wire form, such as ``{"spec": {"contents": {...}}}``.

        Raises:
            ViNotFoundError: The dataset, image or annotation does not exist.
            ViValidationError: The body is not a valid annotation.
        """
        path = self._path(dataset_id, asset_id, annotation_id)
        return await self._http.call("PATCH", path, body=body, decode_as=Annotation)

    async def replace(
        self, dataset_id: str, asset_id: str, annotation_id: str, body: Mapping[str, Any]
    ) -> Annotation:
        """Replace an annotation with ``body``, in wire form.

        Raises:
            ViNotFoundError: The dataset, image or annotation does not exist.
            ViValidationError: The body is not a valid annotation.
        """
        path = self._path(dataset_id, asset_id, annotation_id)
        return await self._http.call("PUT", path, body=body, decode_as=Annotation)

    async def delete(self, dataset_id: str, asset_id: str, annotation_id: str) -> DeletedResource:
        """Delete an annotation.

        Raises:
            ViNotFoundError: The dataset, image or annotation does not exist.
        """
        await self._http.call("DELETE", self._path(dataset_id, asset_id, annotation_id))
        return DeletedResource(id=annotation_id)

    async def upload(
        self,
        dataset_id: str,
        paths: Paths,
        wait_until_done: bool = True,
        show_progress: bool = True,
        *,
        on_bad_annotation: str = "RejectSession",
        on_bad_file: str = "RejectSession",
        on_overwritten: str = "RejectSession",
    ) -> AnnotationUploadResult:
        """Upload annotation files for images that are already in the dataset.

        Args:
            dataset_id: Id of the dataset.
            paths: One or more files and folders.
            wait_until_done: Wait until the annotations are in the dataset.
            show_progress: Draw a progress bar if standard error is a terminal.
            on_bad_annotation: Policy for an invalid row: ``"Warn"``, ``"RejectFile"`` or
                ``"RejectSession"``.
            on_bad_file: Policy for an unreadable file; the stricter of the two applies to both.
            on_overwritten: Policy for a row whose id already exists.

        Raises:
            ViInvalidParameterError: There is no file to upload, or two files have the same name.
            ViUploadError: A file could not be read or sent; the session was aborted.
            ViOperationError: The server accepted nothing; the message has the reason.
        """
        files = await concurrency.run_in_thread(collect_files, paths, None, endings=ENDINGS)
        policies = {
            "onBadAnnotation": parse_word(on_bad_annotation, name="on_bad_annotation"),
            "onBadFile": parse_word(on_bad_file, name="on_bad_file"),
            "onOverwritten": parse_word(on_overwritten, name="on_overwritten"),
        }
        spec = {
            "uploadBefore": round(time.time() * 1000) + _UPLOAD_WITHIN_MS,
            "failurePolicies": policies,
            "source": "UploadedIndividualFiles",
        }
        body = {"spec": spec, "metadata": {"attributes": {}}}
        session = await self._http.call(
            "POST", self._sessions_path(dataset_id), body=body, decode_as=AnnotationImportSession
        )
        try:
            await self._upload_files(
                dataset_id, session.session_id, files, show_progress=show_progress
            )
        except BaseException as error:  # also on interrupt: the remaining files will never be sent
            await self._abort_session(dataset_id, session.session_id)
            if isinstance(error, OSError):
                raise ViUploadError(
                    f"{error.filename} cannot be read: {error.strerror}", cause=error
                ) from error
            raise
        session = await self._set_status(dataset_id, session.session_id, status="Reached")
        if wait_until_done:
            session = await self.wait_until_done(dataset_id, session.session_id)
        return AnnotationUploadResult(session)

    async def wait_until_done(
        self, dataset_id: str, annotation_import_session_id: str
    ) -> AnnotationImportSession:
        """Wait until an upload session has ended, and return it.

        Raises:
            ViNotFoundError: The dataset or session does not exist.
            ViOperationError: The session failed; the message has the reason.
        """
        path, pause_s = self._session_path(dataset_id, annotation_import_session_id), FIRST_PAUSE_S
        while True:
            session = await self._http.call("GET", path, decode_as=AnnotationImportSession)
            conditions = session.status.conditions
            if is_finished(conditions):
                check_reached(
                    conditions, what="the upload of annotations", reason=session.status.reason
                )
                return session
            await self._http.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    async def download(
        self,
        dataset_id: str,
        dataset_export_id: str | None = None,
        export_settings: DatasetExportSettings | Mapping[str, Any] | str | None = None,
        save_dir: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> DatasetDownloadResult:
        """Download the annotations of a dataset; see ``client.datasets.download``."""
        return await self._datasets.download(
            dataset_id,
            dataset_export_id,
            annotations_only=True,
            export_settings=export_settings or "ViJsonl",
            save_dir=save_dir or DEFAULT_SAVE_DIR,
            overwrite=overwrite,
            show_progress=show_progress,
        )

    async def _upload_files(
        self,
        dataset_id: str,
        session_id: str,
        files: Sequence[OutgoingFile],
        *,
        show_progress: bool,
    ) -> None:
        announced = {file.name: {"sizeBytes": file.size_bytes, "kind": "Unknown"} for file in files}
        path = self._session_path(dataset_id, session_id) + "/files"
        uploads = (
            await self._http.call("POST", path, body={"files": announced}, decode_as=FileUploads)
        ).files
        sent_bytes = 0

        async def send(file: OutgoingFile) -> None:
            nonlocal sent_bytes
            upload = uploads.get(file.name)
            if upload is None:
                raise ViUploadError(f"the server returned no upload link for {file.name!r}")
            request_name = f"the upload of {file.name!r}"
            await links.send(
                upload.method,
                upload.url,
                content=file.body,
                headers=upload.headers,
                request_name=request_name,
            )
            sent_bytes += file.size_bytes

        total_bytes = sum(file.size_bytes for file in files)
        with byte_progress(
            "Uploading annotations", total_bytes=total_bytes, show=show_progress
        ) as draw:

            async def update_bar() -> None:
                draw(sent_bytes)

            async with AsyncSignedLinks(self._http) as links:
                await concurrency.for_each(
                    files, send, max_concurrency=_MAX_CONCURRENCY, on_tick=update_bar
                )

    async def _set_status(
        self, dataset_id: str, session_id: str, *, status: str, reason: str | None = None
    ) -> AnnotationImportSession:
        """Report that all files were sent, or that no more will follow."""
        condition = {
            "condition": "FilesInserted",
            "status": status,
            "lastTransitionTime": round(time.time() * 1000),
            **({"reason": reason} if reason else {}),
        }
        path = self._session_path(dataset_id, session_id) + "/status"
        body = {"status": {"conditions": [condition]}}
        return await self._http.call(
            "PATCH", path, body=body, decode_as=AnnotationImportSession, idempotent=True
        )

    async def _abort_session(self, dataset_id: str, session_id: str) -> None:
        try:
            await self._set_status(
                dataset_id, session_id, status="FailedReach", reason="UserUploadErrored"
            )
        except ViError:
            return  # the first error is raised by the caller; the session ends at its deadline

    def _sessions_path(self, dataset_id: str) -> str:
        return dataset_path(self._organization_id, dataset_id) + "/annotationImportSessions"

    def _session_path(self, dataset_id: str, session_id: str) -> str:
        bare = check_id(session_id, name="annotation_import_session_id")
        return f"{self._sessions_path(dataset_id)}/{bare}"

    def _path(self, dataset_id: str, asset_id: str, annotation_id: str | None = None) -> str:
        asset = check_id(asset_id, name="asset_id")
        path = f"{dataset_path(self._organization_id, dataset_id)}/assets/{asset}/annotations"
        return (
            path
            if annotation_id is None
            else f"{path}/{check_id(annotation_id, name='annotation_id')}"
        )
