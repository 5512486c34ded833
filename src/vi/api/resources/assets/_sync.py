# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""``client.assets``: the images of a dataset.

For folders with labels, ``client.datasets.import_folder`` is faster, because it sends many files in
one request. ``upload`` here sends each file separately, like other clients of this API.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vi._concurrency import synchronous as concurrency
from vi._http._sync import Http
from vi._http.links._sync import SignedLinks
from vi.api._arguments import check_id, parse_local_path
from vi.api._folders import resolve_inside
from vi.api._manifest import has_content
from vi.api._pages._sync import PaginatedResponse, fetch_page
from vi.api._progress import byte_progress
from vi.api.resources.assets._files import IMAGE_TYPES, OutgoingFile, Paths, collect_files
from vi.api.resources.assets.responses import Asset, AssetCount, AssetIngestionSession
from vi.api.resources.assets.results import AssetDownloadResult, AssetUploadResult
from vi.api.resources.assets.types import AssetSortCriterion
from vi.api.resources.datasets._parameters import (
    dataset_path,
    encode_asset_query,
    encode_sort,
    parse_word,
)
from vi.api.resources.datasets._sessions import (
    FIRST_PAUSE_S,
    check_reached,
    is_finished,
    next_pause_s,
)
from vi.api.responses import DeletedResource
from vi.api.types import PaginationParams
from vi.errors import (
    ViDownloadError,
    ViError,
    ViInvalidParameterError,
    ViNotFoundError,
    ViUploadError,
)

DEFAULT_SAVE_DIR = "~/.datature/vi/assets"
_SOURCE = "assetSources/managed/datature/default"
_MAX_SESSION_FILES = 5000
_MAX_CONCURRENCY = 8


class Assets:
    """Images of the organization's datasets."""

    def __init__(self, http: Http, organization_id: str) -> None:
        self._http = http
        self._organization_id = organization_id

    def list(
        self,
        dataset_id: str,
        pagination: PaginationParams | dict[str, Any] = PaginationParams(),
        filter_criteria: str | Mapping[str, Any] | None = None,
        contents: bool | None = None,
        sort_by: AssetSortCriterion | Mapping[str, Any] | str | None = None,
        metadata_query: str | None = None,
        rule_query: str | None = None,
        strict_query: bool | None = None,
        page_after: bool | None = None,
    ) -> PaginatedResponse[Asset]:
        """Return a page of the images of a dataset.

        Args:
            dataset_id: Id of the dataset.
            pagination: Page size and page token.
            filter_criteria: Text that the file name contains, or a dict of criteria.
            contents: Include links to the bytes.
            sort_by: ``AssetSortCriterion``, a dict with ``criterion`` and ``order``, or a criterion
                such as ``"filename"`` or ``"metadata.fileSize"``.
            metadata_query: Query on the metadata.
            rule_query: Query by rules.
            strict_query: Interpret ``metadata_query`` strictly.
            page_after: Ignored; accepted for compatibility with other clients.

        Raises:
            ViNotFoundError: No dataset has this id.
        """
        filters: Any = [
            *encode_sort(sort_by),
            ("contents", "y" if contents else None),
            *encode_asset_query(
                filter_criteria=filter_criteria,
                metadata_query=metadata_query,
                rule_query=rule_query,
                strict_query=strict_query,
            ),
            ("pageAfter", "y" if page_after else None),
        ]
        return fetch_page(
            self._http, self._path(dataset_id), item=Asset, pagination=pagination, filters=filters
        )

    def get(self, dataset_id: str, asset_id: str, contents: bool | None = None) -> Asset:
        """Return an image; ``contents`` includes links to its bytes.

        Raises:
            ViNotFoundError: The dataset or image does not exist.
        """
        params = {"contents": "y" if contents else None}
        return self._http.call(
            "GET", self._path(dataset_id, asset_id), params=params, decode_as=Asset
        )

    def count(
        self,
        dataset_id: str,
        filter_criteria: str | Mapping[str, Any] | None = None,
        metadata_query: str | None = None,
        rule_query: str | None = None,
        strict_query: bool | None = None,
    ) -> int:
        """Return the number of matching images; the arguments are those of ``list``.

        Raises:
            ViNotFoundError: No dataset has this id.
        """
        params = encode_asset_query(
            filter_criteria=filter_criteria,
            metadata_query=metadata_query,
            rule_query=rule_query,
            strict_query=strict_query,
        )
        path = self._path(dataset_id) + ":count"
        return (self._http.call("GET", path, params=params, decode_as=AssetCount)).count

    def rename(
        self,
        dataset_id: str,
        new_name: str,
        asset_id: str | None = None,
        filename: str | None = None,
    ) -> dict[str, Any]:
        """Rename an image, given by its id or its current file name.

        Args:
            dataset_id: Id of the dataset.
            new_name: New file name.
            asset_id: Id of the image.
            filename: Current file name, in place of ``asset_id``.

        Raises:
            ViInvalidParameterError: Not exactly one of ``asset_id`` and ``filename`` is given.
            ViConflictError: Another image of the dataset has this name.
            ViNotFoundError: The dataset or image does not exist.
        """
        if (asset_id is None) == (filename is None):
            raise ViInvalidParameterError(
                f"asset_id is {asset_id!r} and filename is {filename!r}, expected: exactly one of "
                "them",
                suggestion="try: asset_id only",
            )
        if asset_id is None:
            asset_id = self._find_asset_id(dataset_id, str(filename))
        path = self._path(dataset_id, asset_id) + "/name"
        return self._http.call("POST", path, body={"filename": new_name}, decode_as=dict[str, Any])

    def delete(self, dataset_id: str, asset_id: str) -> DeletedResource:
        """Delete an image and its annotations.

        Raises:
            ViNotFoundError: The dataset or image does not exist.
        """
        self._http.call("DELETE", self._path(dataset_id, asset_id))
        return DeletedResource(id=asset_id)

    def upload(
        self,
        dataset_id: str,
        paths: Paths | None = None,
        assets_bytes: Sequence[tuple[str, bytes]] | None = None,
        failure_mode: str = "FailAfterOne",
        on_asset_overwritten: str = "RemoveLinkedResource",
        wait_until_done: bool = True,
        show_progress: bool = True,
        progress: Any = None,
    ) -> AssetUploadResult:
        """Upload images one by one, named by their path in the given folder, or by their file name.

        Args:
            dataset_id: Id of the dataset.
            paths: One or more files and folders.
            assets_bytes: Images in memory, each with its file name.
            failure_mode: Valid images are accepted in any case; ``"FailAfterOne"`` raises if one
                file is invalid, ``"FailAfterAll"`` if all are invalid.
            on_asset_overwritten: ``"RemoveLinkedResource"`` or ``"KeepLinkedResource"``: what
                happens to the records of an existing image of the same name.
            wait_until_done: Wait until the images are in the dataset.
            show_progress: Draw a progress bar if standard error is a terminal.
            progress: Ignored; accepted for compatibility with other clients.

        Raises:
            ViInvalidParameterError: There is no file to upload, or two files have the same name.
            ViUploadError: A file could not be read or sent; its session was canceled.
            ViOperationError: The server accepted no image, or rejected one in ``"FailAfterOne"``.
        """
        files = concurrency.run_in_thread(collect_files, paths, assets_bytes, endings=IMAGE_TYPES)
        spec = {
            "kind": "Upload",
            "failureMode": parse_word(failure_mode, name="failure_mode"),
            "onAssetOverwritten": parse_word(on_asset_overwritten, name="on_asset_overwritten"),
        }
        total_bytes, sessions, done = sum(file.size_bytes for file in files), [], 0
        with byte_progress("Uploading images", total_bytes=total_bytes, show=show_progress) as draw:
            for start in range(0, len(files), _MAX_SESSION_FILES):
                some = files[start : start + _MAX_SESSION_FILES]
                sessions.append(
                    self._upload_session(dataset_id, spec, some, draw=draw, before=done)
                )
                done += sum(file.size_bytes for file in some)
        if wait_until_done:
            sessions = [
                self.wait_until_done(dataset_id, session.session_id) for session in sessions
            ]
        return AssetUploadResult(sessions)

    def wait_until_done(
        self, dataset_id: str, asset_ingestion_session_id: str
    ) -> AssetIngestionSession:
        """Wait until an upload session has ended, and return it.

        Raises:
            ViNotFoundError: The dataset or session does not exist.
            ViOperationError: The session failed.
        """
        path, pause_s = self._session_path(dataset_id, asset_ingestion_session_id), FIRST_PAUSE_S
        while True:
            session = self._http.call("GET", path, decode_as=AssetIngestionSession)
            if is_finished(session.status.conditions):
                refused = AssetUploadResult([session]).failed_files
                reason = (
                    ", ".join(f"{name} ({code})" for name, code in list(refused.items())[:5])
                    or None
                )
                check_reached(session.status.conditions, what="the upload of images", reason=reason)
                return session
            self._http.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    def download(
        self,
        dataset_id: str,
        save_dir: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
        http2: bool = False,
    ) -> AssetDownloadResult:
        """Download every image to ``<save_dir>/<dataset id>/`` under its relative path.

        An existing file with the right size and SHA-256 is not downloaded again. Each file appears
        only when it is complete and verified.

        Args:
            dataset_id: Id of the dataset.
            save_dir: Target folder. Default: ``~/.datature/vi/assets``.
            overwrite: Download existing files again.
            show_progress: Draw a progress bar if standard error is a terminal.
            http2: Ignored; accepted for compatibility with other clients.

        Raises:
            ViNotFoundError: No dataset has this id.
            ViDownloadError: An image is damaged, or cannot be stored.
        """
        bare_id = check_id(dataset_id, name="dataset_id").rpartition("_")[2]
        folder = resolve_inside(
            parse_local_path(save_dir or DEFAULT_SAVE_DIR, name="save_dir"), bare_id
        )
        pages = self.list(dataset_id, PaginationParams(page_size=1000), contents=True)
        count = arrived_bytes = 0

        def fetch(asset: Asset) -> None:
            nonlocal arrived_bytes
            self._download_asset(
                links, asset, resolve_inside(folder, asset.filename), overwrite=overwrite
            )
            arrived_bytes += asset.metadata.file_size

        with byte_progress("Downloading images", total_bytes=None, show=show_progress) as draw:

            def update_bar() -> None:
                draw(arrived_bytes)

            with SignedLinks(self._http) as links:
                for page in pages:
                    count += len(page.items)
                    concurrency.for_each(
                        page.items, fetch, max_concurrency=_MAX_CONCURRENCY, on_tick=update_bar
                    )
        return AssetDownloadResult(dataset_id, count, str(folder))

    def _upload_session(
        self,
        dataset_id: str,
        spec: dict[str, Any],
        files: Sequence[OutgoingFile],
        *,
        draw: Any,
        before: int,
    ) -> AssetIngestionSession:
        """Create a session, and upload each file to the link in the response."""
        announced = [
            {
                "filename": file.name,
                "mime": file.mime,
                "size": file.size_bytes,
                "crc32c": None,
                "kind": "Image",
            }
            for file in files
        ]
        path = self._sessions_path(dataset_id)
        body = {
            "spec": {**spec, "assets": [{**file, "customMetadata": None} for file in announced]}
        }
        session = self._http.call("POST", path, body=body, decode_as=AssetIngestionSession)
        uploads = {
            upload.metadata.filename: upload.upload for upload in session.status.assets or []
        }
        sent_bytes = before

        def send(file: OutgoingFile) -> None:
            nonlocal sent_bytes
            upload = uploads.get(file.name)
            if upload is None:
                raise ViUploadError(f"the server returned no upload link for {file.name!r}")
            request_name = f"the upload of {file.name!r}"
            links.send(
                "PUT",
                upload.url,
                content=file.body,
                headers=upload.headers,
                request_name=request_name,
            )
            sent_bytes += file.size_bytes

        def update_bar() -> None:
            draw(sent_bytes)

        try:
            with SignedLinks(self._http) as links:
                concurrency.for_each(
                    files, send, max_concurrency=_MAX_CONCURRENCY, on_tick=update_bar
                )
        except (
            BaseException
        ) as error:  # also on interrupt: the session would wait for the missing files
            self._cancel_session(dataset_id, session.session_id)
            if isinstance(error, OSError):
                raise ViUploadError(
                    f"{error.filename} cannot be read: {error.strerror}", cause=error
                ) from error
            raise
        return session

    def _cancel_session(self, dataset_id: str, session_id: str) -> None:
        try:
            path = self._session_path(dataset_id, session_id) + ":cancel"
            self._http.call("POST", path, idempotent=True)
        except ViError:
            return  # the first error is raised by the caller; the session ends at its deadline

    def _download_asset(
        self, links: SignedLinks, asset: Asset, target: Path, *, overwrite: bool
    ) -> None:
        size_bytes, sha256 = asset.metadata.file_size, asset.metadata.sha256
        try:
            if not overwrite and concurrency.run_in_thread(
                has_content, target, size_bytes=size_bytes, sha256=sha256
            ):
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            link = asset.contents.asset if asset.contents else None
            if link is None:
                raise ViDownloadError(f"the server returned no link for {asset.filename!r}")
            request_name = f"the download of {asset.filename!r}"
            response = links.send("GET", link.url, headers=link.headers, request_name=request_name)
            if sha256 and hashlib.sha256(response.body).hexdigest() != sha256:
                raise ViDownloadError(
                    f"the download of {asset.filename!r} is damaged: its SHA-256 is not {sha256}"
                )
            staged = target.with_name(f".{target.name}.new")
            staged.write_bytes(response.body)
            staged.replace(target)
        except OSError as error:
            raise ViDownloadError(
                f"{asset.filename!r} cannot be stored in {target.parent}: "
                f"{error.strerror or error}",
                suggestion="try: check disk space and permissions, or use another save_dir",
                cause=error,
            ) from error

    def _sessions_path(self, dataset_id: str) -> str:
        return f"{dataset_path(self._organization_id, dataset_id)}/{_SOURCE}/assetIngestionSessions"

    def _find_asset_id(self, dataset_id: str, filename: str) -> str:
        """Return the id of an image by file name, which may contain slashes."""
        found = self.list(dataset_id, filter_criteria=filename)
        for asset in found.all_items():
            if asset.filename == filename:
                return asset.asset_id
        raise ViNotFoundError(f"dataset {dataset_id!r} has no image {filename!r}")

    def _session_path(self, dataset_id: str, session_id: str) -> str:
        bare = check_id(session_id, name="asset_ingestion_session_id")
        return f"{self._sessions_path(dataset_id)}/{bare}"

    def _path(self, dataset_id: str, asset_id: str | None = None) -> str:
        path = dataset_path(self._organization_id, dataset_id) + "/assets"
        return path if asset_id is None else f"{path}/{check_id(asset_id, name='asset_id')}"
