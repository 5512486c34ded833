"""``client.assets``: the pictures of a dataset, one by one.

For whole folders with labels there is ``client.datasets.import_folder``, which sends many files at once in one piece;
``upload`` here sends each by itself, as other clients of this API do.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vi._concurrency import asynchronous as concurrency
from vi._http._async import AsyncHttp
from vi._http.links._async import AsyncLinks
from vi.api._arguments import check_id, local_path
from vi.api._copies import is_file_of
from vi.api._folders import path_below
from vi.api._pages._async import AsyncPaginatedResponse, list_pages
from vi.api._progress import byte_progress
from vi.api.resources.assets._files import PICTURES, Outgoing, Paths, outgoing
from vi.api.resources.assets.responses import Asset, AssetCount, AssetIngestionSession
from vi.api.resources.assets.results import AssetDownloadResult, AssetUploadResult
from vi.api.resources.assets.types import AssetSortCriterion
from vi.api.resources.datasets._places import dataset_path, query_parameters, sort_parameters, word
from vi.api.resources.datasets._sessions import FIRST_PAUSE_S, check_reached, is_over, next_pause_s
from vi.api.responses import DeletedResource
from vi.api.types import PaginationParams
from vi.errors import ViDownloadError, ViError, ViInvalidParameterError, ViNotFoundError, ViUploadError

DEFAULT_SAVE_DIR = "~/.datature/vi/assets"
_SOURCE = "assetSources/managed/datature/default"
_MOST_IN_A_SESSION = 5000
_AT_ONCE = 8


class AsyncAssets:
    """The pictures of the organisation's datasets."""

    def __init__(self, http: AsyncHttp, organization_id: str) -> None:
        self._http = http
        self._organization_id = organization_id

    async def list(
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
    ) -> AsyncPaginatedResponse[Asset]:
        """A page of a dataset's pictures.

        Args:
            dataset_id: which dataset.
            pagination: page size and where to go on.
            filter_criteria: those whose file name has this text in it, or that a dict names.
            contents: with links to the bytes.
            sort_by: ``AssetSortCriterion``, a dict with ``criterion`` and ``order``, or a criterion such as
                ``"filename"`` or ``"metadata.fileSize"``.
            metadata_query: by their metadata.
            rule_query: by rules.
            strict_query: how ``metadata_query`` is read.
            page_after: taken for the sake of other clients.

        Raises:
            ViNotFoundError: there is no such dataset.
        """
        filters: Any = [
            *sort_parameters(sort_by),
            ("contents", "y" if contents else None),
            *query_parameters(
                filter_criteria=filter_criteria,
                metadata_query=metadata_query,
                rule_query=rule_query,
                strict_query=strict_query,
            ),
            ("pageAfter", "y" if page_after else None),
        ]
        return await list_pages(self._http, self._path(dataset_id), item=Asset, pagination=pagination, filters=filters)

    async def get(self, dataset_id: str, asset_id: str, contents: bool | None = None) -> Asset:
        """One picture; ``contents`` asks for links to its bytes as well.

        Raises:
            ViNotFoundError: there is no such dataset or picture.
        """
        params = {"contents": "y" if contents else None}
        return await self._http.call("GET", self._path(dataset_id, asset_id), params=params, decode_as=Asset)

    async def count(
        self,
        dataset_id: str,
        filter_criteria: str | Mapping[str, Any] | None = None,
        metadata_query: str | None = None,
        rule_query: str | None = None,
        strict_query: bool | None = None,
    ) -> int:
        """How many pictures there are; the arguments are those of ``list``."""
        params = query_parameters(
            filter_criteria=filter_criteria,
            metadata_query=metadata_query,
            rule_query=rule_query,
            strict_query=strict_query,
        )
        path = self._path(dataset_id) + ":count"
        return (await self._http.call("GET", path, params=params, decode_as=AssetCount)).count

    async def rename(
        self, dataset_id: str, new_name: str, asset_id: str | None = None, filename: str | None = None
    ) -> dict[str, Any]:
        """Give a picture, named by its id or by its file name, another file name.

        Raises:
            ViConflictError: another picture of the dataset has this name.
            ViNotFoundError: there is no such dataset or picture.
        """
        if (asset_id is None) == (filename is None):
            raise ViInvalidParameterError(
                f"asset_id is {asset_id!r} and filename is {filename!r}", suggestion="Give one of the two."
            )
        if asset_id is None:
            asset_id = await self._id_of(dataset_id, str(filename))
        path = self._path(dataset_id, asset_id) + "/name"
        return await self._http.call("POST", path, body={"filename": new_name}, decode_as=dict[str, Any])

    async def delete(self, dataset_id: str, asset_id: str) -> DeletedResource:
        """Delete a picture with everything that is said of it.

        Raises:
            ViNotFoundError: there is no such dataset or picture.
        """
        await self._http.call("DELETE", self._path(dataset_id, asset_id))
        return DeletedResource(id=asset_id)

    async def upload(
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
        """Send pictures, each by itself. Those of a folder go under their paths in it, single files under their names.

        Args:
            dataset_id: where to.
            paths: files and folders; one, or several.
            assets_bytes: pictures in memory, each with its file name.
            failure_mode: good pictures are taken whatever becomes of others; ``"FailAfterOne"`` raises when one file
                is no picture, ``"FailAfterAll"`` when all are none.
            on_asset_overwritten: what becomes of the records of a picture whose name is taken already:
                ``"RemoveLinkedResource"`` or ``"KeepLinkedResource"``.
            wait_until_done: until the pictures are in the dataset.
            show_progress: draw a progress bar, if there is a terminal.
            progress: taken for the sake of other clients; a bar of theirs is not drawn on.

        Raises:
            ViInvalidParameterError: there is nothing to send.
            ViUploadError: a file could not be sent; its session was cancelled.
            ViOperationError: the server took nothing.
        """
        files = await concurrency.in_thread(outgoing, paths, assets_bytes, endings=PICTURES)
        spec = {
            "kind": "Upload",
            "failureMode": word(failure_mode, name="failure_mode"),
            "onAssetOverwritten": word(on_asset_overwritten, name="on_asset_overwritten"),
        }
        total_bytes, sessions, done = sum(file.size_bytes for file in files), [], 0
        with byte_progress("Sending pictures", total_bytes=total_bytes, show=show_progress) as draw:
            for start in range(0, len(files), _MOST_IN_A_SESSION):
                some = files[start : start + _MOST_IN_A_SESSION]
                sessions.append(await self._send(dataset_id, spec, some, draw=draw, before=done))
                done += sum(file.size_bytes for file in some)
        if wait_until_done:
            sessions = [await self.wait_until_done(dataset_id, session.session_id) for session in sessions]
        return AssetUploadResult(sessions)

    async def wait_until_done(self, dataset_id: str, asset_ingestion_session_id: str) -> AssetIngestionSession:
        """Wait until the pictures of a session are in the dataset.

        Raises:
            ViOperationError: the server took nothing.
        """
        path, pause_s = self._session_path(dataset_id, asset_ingestion_session_id), FIRST_PAUSE_S
        while True:
            session = await self._http.call("GET", path, decode_as=AssetIngestionSession)
            if is_over(session.status.conditions):
                refused = AssetUploadResult([session]).failed_files
                reason = ", ".join(f"{name} ({code})" for name, code in list(refused.items())[:5]) or None
                check_reached(session.status.conditions, what="the upload of pictures", reason=reason)
                return session
            await self._http.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    async def download(
        self,
        dataset_id: str,
        save_dir: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
        http2: bool = False,
    ) -> AssetDownloadResult:
        """Fetch every picture into ``<save_dir>/<dataset id>/`` under its relative path.

        An image that is there already, with its size and SHA-256, is not fetched again, unless ``overwrite``. Each
        appears only whole, with its hash proven.

        Args:
            dataset_id: of which dataset.
            save_dir: where to; without it ``~/.datature/vi/assets``.
            overwrite: fetch again what is there.
            show_progress: draw a progress bar, if there is a terminal.
            http2: taken for the sake of other clients.

        Raises:
            ViNotFoundError: there is no such dataset.
            ViDownloadError: a picture arrived damaged, or cannot be stored.
        """
        bare_id = check_id(dataset_id, name="dataset_id").rpartition("_")[2]
        folder = path_below(local_path(save_dir or DEFAULT_SAVE_DIR, name="save_dir"), bare_id)
        pages = await self.list(dataset_id, PaginationParams(page_size=1000), contents=True)
        count = arrived_bytes = 0

        async def fetch(asset: Asset) -> None:
            nonlocal arrived_bytes
            await self._fetch(links, asset, path_below(folder, asset.filename), overwrite=overwrite)
            arrived_bytes += asset.metadata.file_size

        with byte_progress("Fetching pictures", total_bytes=None, show=show_progress) as draw:

            async def tell() -> None:
                draw(arrived_bytes)

            async with AsyncLinks(self._http) as links:
                async for page in pages:
                    count += len(page.items)
                    await concurrency.for_each(page.items, fetch, at_once=_AT_ONCE, tick=tell)
        return AssetDownloadResult(dataset_id, count, str(folder))

    async def _send(
        self, dataset_id: str, spec: dict[str, Any], files: Sequence[Outgoing], *, draw: Any, before: int
    ) -> AssetIngestionSession:
        """One session: announce the files, and put each where the answer says."""
        told = [
            {"filename": file.name, "mime": file.mime, "size": file.size_bytes, "crc32c": None, "kind": "Image"}
            for file in files
        ]
        path = self._sessions_path(dataset_id)
        body = {"spec": {**spec, "assets": [{**file, "customMetadata": None} for file in told]}}
        session = await self._http.call("POST", path, body=body, decode_as=AssetIngestionSession)
        uploads = {upload.metadata.filename: upload.upload for upload in session.status.assets or []}
        sent_bytes = before

        async def send(file: Outgoing) -> None:
            nonlocal sent_bytes
            upload = uploads.get(file.name)
            if upload is None:
                raise ViUploadError(f"the server names no address for {file.name!r}")
            asked = f"the upload of {file.name!r}"
            await links.send("PUT", upload.url, content=file.body, headers=upload.headers, asked=asked)
            sent_bytes += file.size_bytes

        async def tell() -> None:
            draw(sent_bytes)

        try:
            async with AsyncLinks(self._http) as links:
                await concurrency.for_each(files, send, at_once=_AT_ONCE, tick=tell)
        except BaseException as error:  # an interrupt as well: a session whose files never come would wait for them
            await self._cancel(dataset_id, session.session_id)
            if isinstance(error, OSError):
                raise ViUploadError(f"{error.filename} cannot be read: {error.strerror}", cause=error) from error
            raise
        return session

    async def _cancel(self, dataset_id: str, session_id: str) -> None:
        try:
            path = self._session_path(dataset_id, session_id) + ":cancel"
            await self._http.call("POST", path, idempotent=True)
        except ViError:
            return  # the first error is the one to tell; the session ends at its deadline

    async def _fetch(self, links: AsyncLinks, asset: Asset, target: Path, *, overwrite: bool) -> None:
        size_bytes, sha256 = asset.metadata.file_size, asset.metadata.sha256
        try:
            if not overwrite and await concurrency.in_thread(is_file_of, target, size_bytes=size_bytes, sha256=sha256):
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            link = asset.contents.asset if asset.contents else None
            if link is None:
                raise ViDownloadError(f"the server gives no link for {asset.filename!r}")
            asked = f"the download of {asset.filename!r}"
            answer = await links.send("GET", link.url, headers=link.headers, asked=asked)
            if sha256 and hashlib.sha256(answer.body).hexdigest() != sha256:
                raise ViDownloadError(f"{asset.filename!r} arrived damaged: its SHA-256 is not {sha256}")
            beside = target.with_name(f".{target.name}.new")
            beside.write_bytes(answer.body)
            beside.replace(target)
        except OSError as error:
            raise ViDownloadError(
                f"{asset.filename!r} cannot be stored in {target.parent}: {error.strerror or error}",
                suggestion="Check space and rights there, or name another save_dir.",
                cause=error,
            ) from error

    def _sessions_path(self, dataset_id: str) -> str:
        return f"{dataset_path(self._organization_id, dataset_id)}/{_SOURCE}/assetIngestionSessions"

    async def _id_of(self, dataset_id: str, filename: str) -> str:
        """An address has no room for a file name with folders in it, so the picture is looked for first."""
        found = await self.list(dataset_id, filter_criteria=filename)
        async for asset in found.all_items():
            if asset.filename == filename:
                return asset.asset_id
        raise ViNotFoundError(f"dataset {dataset_id!r} has no picture {filename!r}")

    def _session_path(self, dataset_id: str, session_id: str) -> str:
        return f"{self._sessions_path(dataset_id)}/{check_id(session_id, name='asset_ingestion_session_id')}"

    def _path(self, dataset_id: str, asset_id: str | None = None) -> str:
        path = dataset_path(self._organization_id, dataset_id) + "/assets"
        return path if asset_id is None else f"{path}/{check_id(asset_id, name='asset_id')}"
