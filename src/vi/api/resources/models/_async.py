"""``client.models``: list and download the saved checkpoints of runs."""

from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from vi._concurrency import asynchronous as concurrency
from vi._http._async import AsyncHttp
from vi.api._arguments import check_id
from vi.api._manifest import is_intact, write_manifest
from vi.api._pages._async import AsyncPaginatedResponse, fetch_page
from vi.api._progress import byte_progress
from vi.api.resources.models._folder import (
    archive_path,
    checkpoint_folder,
    describe_downloaded_model,
)
from vi.api.resources.models.responses import DownloadedModel, Model
from vi.api.resources.runs._outcome import no_checkpoint_error
from vi.api.resources.runs.responses import Run
from vi.api.types import PaginationParams
from vi.errors import ViDownloadError, ViError, ViNotFoundError, ViOperationError


class _CheckpointResponse(Model):
    """Response to a request for a checkpoint by name: the checkpoint, a page with it, or both."""

    items: list[Model] = []


class AsyncModels:
    """Checkpoints of the organization's runs."""

    def __init__(self, http: AsyncHttp, organization_id: str) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/runs"

    async def list(
        self, run_id: str, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[Model]:
        """Return a page of the checkpoints of a run, newest last.

        Raises:
            ViNotFoundError: No run has this id.
        """
        return await fetch_page(self._http, self._path(run_id), item=Model, pagination=pagination)

    async def get(self, run_id: str, ckpt: str | None = None, contents: bool = False) -> Model:
        """Return a checkpoint.

        Args:
            run_id: Id of the run.
            ckpt: Id of the checkpoint, ``"best"`` or ``"latest"``; None is the latest.
            contents: Include the download link.

        Raises:
            ViNotFoundError: The run or checkpoint does not exist; without any checkpoint yet, the
                message states the state of the run.
        """
        path = f"{self._path(run_id)}/{check_id('latest' if ckpt is None else ckpt, name='ckpt')}"
        params = {"contents": "y" if contents else None}
        try:
            answer = await self._http.call(
                "GET", path, params=params, decode_as=_CheckpointResponse
            )
        except ViNotFoundError as error:
            raise await self._explain_missing_checkpoint(run_id, error) from error
        if answer.items:
            return answer.items[-1]
        if answer.model_id:
            return msgspec.convert(msgspec.to_builtins(answer), Model)
        raise ViOperationError(
            f"run {run_id} has no checkpoint {ckpt or ''}".rstrip(),
            suggestion="A run saves its first checkpoint after its first evaluation. try: "
            "client.runs.wait",
        )

    async def download(
        self,
        run_id: str,
        ckpt: str | None = None,
        save_dir: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> DownloadedModel:
        """Download a checkpoint to ``<save_dir>/<run id>/<checkpoint id>/`` and return its paths.

        An existing folder is reused if size and SHA-256 of each of its files are unchanged. An
        interrupted download is resumed, also by another process. The folder appears only when it is
        complete and verified.

        Args:
            run_id: Id of the run.
            ckpt: Id of the checkpoint, ``"best"`` or ``"latest"``; None is the latest.
            save_dir: Target folder. Default: ``~/.datature/vi/models``.
            overwrite: Download again and replace an existing folder.
            show_progress: Draw a progress bar if standard error is a terminal.

        Raises:
            ViNotFoundError: The run or checkpoint does not exist.
            ViDownloadError: The download is damaged or cannot be stored; no folder is created.
        """
        from vi._http.downloads._async import download_file  # loaded only for downloads
        from vi.api.resources.models._archive import unpack_tar

        model = await self.get(run_id, ckpt, contents=True)
        folder, contents = checkpoint_folder(model, save_dir=save_dir), model.status.contents
        identity = contents.sha256 if contents else None
        if (
            not overwrite
            and folder.is_dir()
            and await concurrency.run_in_thread(is_intact, folder, identity=identity)
        ):
            return describe_downloaded_model(folder, model)
        if contents is None:
            raise ViDownloadError(
                f"the server gives no download link for checkpoint {model.model_id} of {run_id}"
            )
        archive, title = archive_path(folder), f"{run_id}/{model.model_id}"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with byte_progress(title, total_bytes=contents.size_bytes, show=show_progress) as draw:
                await download_file(
                    self._http,
                    contents.download_url.url,
                    archive,
                    size_bytes=contents.size_bytes,
                    sha256=contents.sha256,
                    on_progress=draw,
                )
            await concurrency.run_in_thread(
                unpack_tar, archive, folder, finish=partial(write_manifest, identity=identity)
            )
        except OSError as error:
            raise ViDownloadError(
                f"{title} cannot be stored in {folder.parent}: {error.strerror or error}",
                suggestion="try: check disk space and permissions, or use another save_dir",
                cause=error,
            ) from error
        return describe_downloaded_model(folder, model)

    async def _explain_missing_checkpoint(
        self, run_id: str, error: ViNotFoundError
    ) -> ViNotFoundError:
        """Return the exception for a missing checkpoint, or for a run without any."""
        try:
            run = await self._http.call("GET", f"{self._base}/{run_id}", decode_as=Run)
            has_any = bool(await self.list(run_id, PaginationParams(page_size=1)))
        except ViNotFoundError as missing_run:
            return missing_run
        except ViError:
            return error
        return error if has_any else no_checkpoint_error(run, error)

    def _path(self, run_id: str) -> str:
        return f"{self._base}/{check_id(run_id, name='run_id')}/outputs"
