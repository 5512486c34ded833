"""``client.models``: the checkpoints a run has handed over, and their way to this machine."""

from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from vi._concurrency import asynchronous as concurrency
from vi._http._async import AsyncHttp
from vi.api._arguments import check_id
from vi.api._copies import is_intact, write_manifest
from vi.api._pages._async import AsyncPaginatedResponse, list_pages
from vi.api._progress import byte_progress
from vi.api.resources.models._folder import archive_of, folder_of, model_in
from vi.api.resources.models.responses import DownloadedModel, Model
from vi.api.resources.runs._endings import no_checkpoint
from vi.api.resources.runs.responses import Run
from vi.api.types import PaginationParams
from vi.errors import ViDownloadError, ViError, ViNotFoundError, ViOperationError


class _OneModel(Model):
    """A checkpoint asked for by name: itself, a page that holds it, or both in one."""

    items: list[Model] = []


class AsyncModels:
    """The checkpoints of the organisation's runs."""

    def __init__(self, http: AsyncHttp, organization_id: str) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/runs"

    async def list(
        self, run_id: str, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[Model]:
        """A page of a run's checkpoints, the latest last.

        Raises:
            ViNotFoundError: there is no run with this id.
        """
        return await list_pages(self._http, self._path(run_id), item=Model, pagination=pagination)

    async def get(self, run_id: str, ckpt: str | None = None, contents: bool = False) -> Model:
        """One checkpoint: ``ckpt`` is its id, ``"best"`` or ``"latest"``; without it, the latest.

        ``contents`` asks for the download link as well.

        Raises:
            ViNotFoundError: there is no such run or checkpoint, or none yet; then it says which state the run is in.
        """
        path = f"{self._path(run_id)}/{check_id('latest' if ckpt is None else ckpt, name='ckpt')}"
        params = {"contents": "y" if contents else None}
        try:
            answer = await self._http.call("GET", path, params=params, decode_as=_OneModel)
        except ViNotFoundError as error:
            raise await self._nothing_found(run_id, error) from error
        if answer.items:
            return answer.items[-1]
        if answer.model_id:
            return msgspec.convert(msgspec.to_builtins(answer), Model)
        raise ViOperationError(
            f"run {run_id} has no checkpoint {ckpt or ''}".rstrip(),
            suggestion="A run hands over its first checkpoint after its first evaluation; wait for it.",
        )

    async def download(
        self,
        run_id: str,
        ckpt: str | None = None,
        save_dir: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> DownloadedModel:
        """Fetch a checkpoint into ``<save_dir>/<run id>/<checkpoint id>/`` and say where it lies.

        A checkpoint that is there already is not fetched again, unless ``overwrite``, or unless a file of it is missing
        or has changed since: every file is compared with its size and SHA-256 first. A download that was cut resumes
        where it stopped, also in another process. The folder appears only whole, with length and hash proven.

        Args:
            run_id: which run.
            ckpt: id of a checkpoint, ``"best"`` or ``"latest"``; without it, the latest.
            save_dir: where to; without it ``~/.datature/vi/models``.
            overwrite: fetch again and replace what is there.
            show_progress: draw a progress bar, if there is a terminal to draw on.

        Raises:
            ViNotFoundError: there is no such run or checkpoint.
            ViDownloadError: what arrived is damaged or cannot be stored; nothing of it is left under the final name.
        """
        from vi._http.transfer._async import download  # what only downloads need is loaded for them
        from vi.api.resources.models._archive import unpack

        model = await self.get(run_id, ckpt, contents=True)
        folder, contents = folder_of(model, save_dir=save_dir), model.status.contents
        identity = contents.sha256 if contents else None
        if not overwrite and folder.is_dir() and await concurrency.in_thread(is_intact, folder, identity=identity):
            return model_in(folder, model)
        if contents is None:
            raise ViDownloadError(f"the server gives no download link for checkpoint {model.model_id} of {run_id}")
        archive, title = archive_of(folder), f"{run_id}/{model.model_id}"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with byte_progress(title, total_bytes=contents.size_bytes, show=show_progress) as draw:
                await download(
                    self._http,
                    contents.download_url.url,
                    archive,
                    size_bytes=contents.size_bytes,
                    sha256=contents.sha256,
                    on_progress=draw,
                )
            await concurrency.in_thread(unpack, archive, folder, finish=partial(write_manifest, identity=identity))
        except OSError as error:
            raise ViDownloadError(
                f"{title} cannot be stored in {folder.parent}: {error.strerror or error}",
                suggestion="Check space and rights there, or name another save_dir.",
                cause=error,
            ) from error
        return model_in(folder, model)

    async def _nothing_found(self, run_id: str, error: ViNotFoundError) -> ViNotFoundError:
        """What to say when a checkpoint was not found: that the run has none yet, if that is the reason."""
        try:
            run = await self._http.call("GET", f"{self._base}/{run_id}", decode_as=Run)
            has_any = bool(await self.list(run_id, PaginationParams(page_size=1)))
        except ViNotFoundError as missing_run:
            return missing_run
        except ViError:
            return error
        return error if has_any else no_checkpoint(run, error)

    def _path(self, run_id: str) -> str:
        return f"{self._base}/{check_id(run_id, name='run_id')}/outputs"
