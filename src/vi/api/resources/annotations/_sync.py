# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""``client.annotations``: what is said of pictures, part by part, and files of it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vi._concurrency import synchronous as concurrency
from vi._http._sync import Http
from vi._http.links._sync import Links
from vi.api._arguments import check_id
from vi.api._pages._sync import PaginatedResponse, list_pages
from vi.api._progress import byte_progress
from vi.api.resources.annotations.responses import Annotation, AnnotationImportSession, FileUploads
from vi.api.resources.annotations.results import AnnotationUploadResult
from vi.api.resources.assets._files import Outgoing, Paths, outgoing
from vi.api.resources.datasets._places import dataset_path, word
from vi.api.resources.datasets._sessions import FIRST_PAUSE_S, check_reached, is_over, next_pause_s
from vi.api.resources.datasets._sync import Datasets
from vi.api.resources.datasets.results import DatasetDownloadResult
from vi.api.resources.datasets.types import DatasetExportSettings
from vi.api.responses import DeletedResource
from vi.api.types import PaginationParams
from vi.errors import ViError, ViUploadError

ENDINGS = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xml", ".txt", ".yaml", ".yml", ".parquet"})
DEFAULT_SAVE_DIR = "~/.datature/vi/annotations"
_UPLOAD_WITHIN_MS = 55 * 60 * 1000
_AT_ONCE = 4


class Annotations:
    """What is said of the pictures of the organisation's datasets."""

    def __init__(self, http: Http, organization_id: str, datasets: Datasets) -> None:
        self._http = http
        self._organization_id = organization_id
        self._datasets = datasets

    def list(
        self, dataset_id: str, asset_id: str, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> PaginatedResponse[Annotation]:
        """A page of what is said of one picture.

        Raises:
            ViNotFoundError: there is no such dataset or picture.
        """
        return list_pages(self._http, self._path(dataset_id, asset_id), item=Annotation, pagination=pagination)

    def get(self, dataset_id: str, asset_id: str, annotation_id: str) -> Annotation:
        """One annotation.

        Raises:
            ViNotFoundError: there is no such dataset, picture or annotation.
        """
        return self._http.call("GET", self._path(dataset_id, asset_id, annotation_id), decode_as=Annotation)

    def update(self, dataset_id: str, asset_id: str, annotation_id: str, body: Mapping[str, Any]) -> Annotation:
        """Change what ``body`` has, in the form of the wire, such as ``{"spec": {"contents": {...}}}``.

        Raises:
            ViNotFoundError: there is no such dataset, picture or annotation.
            ViValidationError: the body is no annotation.
        """
        path = self._path(dataset_id, asset_id, annotation_id)
        return self._http.call("PATCH", path, body=body, decode_as=Annotation)

    def replace(self, dataset_id: str, asset_id: str, annotation_id: str, body: Mapping[str, Any]) -> Annotation:
        """Put another annotation in its place; errors as of ``update``."""
        path = self._path(dataset_id, asset_id, annotation_id)
        return self._http.call("PUT", path, body=body, decode_as=Annotation)

    def delete(self, dataset_id: str, asset_id: str, annotation_id: str) -> DeletedResource:
        """Delete one annotation.

        Raises:
            ViNotFoundError: there is no such dataset, picture or annotation.
        """
        self._http.call("DELETE", self._path(dataset_id, asset_id, annotation_id))
        return DeletedResource(id=annotation_id)

    def upload(
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
        """Send annotation files for pictures that are in the dataset already.

        Args:
            dataset_id: where to.
            paths: files and folders; one, or several.
            wait_until_done: until the annotations are in the dataset.
            show_progress: draw a progress bar, if there is a terminal.
            on_bad_annotation: what a bad row does: ``"Warn"``, ``"RejectFile"`` or ``"RejectSession"``.
            on_bad_file: the same for a file that cannot be read; the stricter of the two counts for both.
            on_overwritten: the same for a row whose id is there already.

        Raises:
            ViInvalidParameterError: there is nothing to send.
            ViUploadError: a file could not be sent; the session was ended.
            ViOperationError: the server took nothing, and why.
        """
        files = concurrency.in_thread(outgoing, paths, None, endings=ENDINGS)
        policies = {
            "onBadAnnotation": word(on_bad_annotation, name="on_bad_annotation"),
            "onBadFile": word(on_bad_file, name="on_bad_file"),
            "onOverwritten": word(on_overwritten, name="on_overwritten"),
        }
        spec = {
            "uploadBefore": round(time.time() * 1000) + _UPLOAD_WITHIN_MS,
            "failurePolicies": policies,
            "source": "UploadedIndividualFiles",
        }
        body = {"spec": spec, "metadata": {"attributes": {}}}
        session = self._http.call("POST", self._sessions_path(dataset_id), body=body, decode_as=AnnotationImportSession)
        try:
            self._send(dataset_id, session.session_id, files, show_progress=show_progress)
        except BaseException as error:  # an interrupt as well: nobody will send the rest
            self._give_up(dataset_id, session.session_id)
            if isinstance(error, OSError):
                raise ViUploadError(f"{error.filename} cannot be read: {error.strerror}", cause=error) from error
            raise
        session = self._tell(dataset_id, session.session_id, status="Reached")
        if wait_until_done:
            session = self.wait_until_done(dataset_id, session.session_id)
        return AnnotationUploadResult(session)

    def wait_until_done(self, dataset_id: str, annotation_import_session_id: str) -> AnnotationImportSession:
        """Wait until the annotations of a session are in the dataset.

        Raises:
            ViOperationError: the server took nothing, and why.
        """
        path, pause_s = self._session_path(dataset_id, annotation_import_session_id), FIRST_PAUSE_S
        while True:
            session = self._http.call("GET", path, decode_as=AnnotationImportSession)
            conditions = session.status.conditions
            if is_over(conditions):
                check_reached(conditions, what="the upload of annotations", reason=session.status.reason)
                return session
            self._http.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    def download(
        self,
        dataset_id: str,
        dataset_export_id: str | None = None,
        export_settings: DatasetExportSettings | Mapping[str, Any] | str | None = None,
        save_dir: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> DatasetDownloadResult:
        """Fetch a dataset without its pictures; see ``client.datasets.download``."""
        return self._datasets.download(
            dataset_id,
            dataset_export_id,
            annotations_only=True,
            export_settings=export_settings or "ViJsonl",
            save_dir=save_dir or DEFAULT_SAVE_DIR,
            overwrite=overwrite,
            show_progress=show_progress,
        )

    def _send(self, dataset_id: str, session_id: str, files: Sequence[Outgoing], *, show_progress: bool) -> None:
        announced = {file.name: {"sizeBytes": file.size_bytes, "kind": "Unknown"} for file in files}
        path = self._session_path(dataset_id, session_id) + "/files"
        uploads = (self._http.call("POST", path, body={"files": announced}, decode_as=FileUploads)).files
        sent_bytes = 0

        def send(file: Outgoing) -> None:
            nonlocal sent_bytes
            upload = uploads.get(file.name)
            if upload is None:
                raise ViUploadError(f"the server names no address for {file.name!r}")
            asked = f"the upload of {file.name!r}"
            links.send(upload.method, upload.url, content=file.body, headers=upload.headers, asked=asked)
            sent_bytes += file.size_bytes

        total_bytes = sum(file.size_bytes for file in files)
        with byte_progress("Sending annotations", total_bytes=total_bytes, show=show_progress) as draw:

            def tell() -> None:
                draw(sent_bytes)

            with Links(self._http) as links:
                concurrency.for_each(files, send, at_once=_AT_ONCE, tick=tell)

    def _tell(
        self, dataset_id: str, session_id: str, *, status: str, reason: str | None = None
    ) -> AnnotationImportSession:
        """Say that every file was sent, or that none will come any more."""
        condition = {
            "condition": "FilesInserted",
            "status": status,
            "lastTransitionTime": round(time.time() * 1000),
            **({"reason": reason} if reason else {}),
        }
        path = self._session_path(dataset_id, session_id) + "/status"
        body = {"status": {"conditions": [condition]}}
        return self._http.call("PATCH", path, body=body, decode_as=AnnotationImportSession, idempotent=True)

    def _give_up(self, dataset_id: str, session_id: str) -> None:
        try:
            self._tell(dataset_id, session_id, status="FailedReach", reason="UserUploadErrored")
        except ViError:
            return  # the first error is the one to tell; the session ends at its deadline

    def _sessions_path(self, dataset_id: str) -> str:
        return dataset_path(self._organization_id, dataset_id) + "/annotationImportSessions"

    def _session_path(self, dataset_id: str, session_id: str) -> str:
        return f"{self._sessions_path(dataset_id)}/{check_id(session_id, name='annotation_import_session_id')}"

    def _path(self, dataset_id: str, asset_id: str, annotation_id: str | None = None) -> str:
        asset = check_id(asset_id, name="asset_id")
        path = f"{dataset_path(self._organization_id, dataset_id)}/assets/{asset}/annotations"
        return path if annotation_id is None else f"{path}/{check_id(annotation_id, name='annotation_id')}"
