"""``client.datasets``: annotated images, imported from a folder and exported to a folder.

``import_folder`` uploads a folder in any supported format and returns the dataset, its version and
the findings. ``imports`` and ``versions`` give access to the single steps.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from vi._concurrency import asynchronous as concurrency
from vi._http._async import AsyncHttp
from vi.api._arguments import (
    build_if_match_headers,
    check_id,
    encode_metadata,
    encode_spec,
    parse_local_path,
)
from vi.api._folders import resolve_inside
from vi.api._pages._async import AsyncPaginatedResponse, fetch_page
from vi.api._progress import byte_progress, import_progress
from vi.api.resources.datasets._files import LocalFiles, find_files
from vi.api.resources.datasets._parameters import (
    dataset_path,
    encode_export,
    parse_dataset_id,
    parse_import_ids,
    parse_word,
)
from vi.api.resources.datasets._sessions import (
    FIRST_PAUSE_S,
    check_reached,
    find_failure,
    is_finished,
    next_pause_s,
)
from vi.api.resources.datasets.imports._async import AsyncImports
from vi.api.resources.datasets.responses import (
    BulkDeletion,
    Dataset,
    DatasetExport,
    DatasetImport,
    DeletedDataset,
    Finding,
    ImportReport,
)
from vi.api.resources.datasets.results import DatasetDownloadResult, FolderImport
from vi.api.resources.datasets.types import DatasetExportSettings
from vi.api.resources.datasets.types import DatasetType as DatasetTypeMember
from vi.api.resources.datasets.versions._async import AsyncVersions
from vi.api.types import PaginationParams
from vi.errors import (
    ViDownloadError,
    ViError,
    ViImportFailedError,
    ViInvalidParameterError,
    ViNetworkError,
    ViNotFoundError,
    ViRateLimitError,
    ViServerError,
    ViTimeoutError,
)

T = TypeVar("T")

DEFAULT_SAVE_DIR = "~/.datature/vi/datasets"
_UNAVAILABLE_ERRORS = (ViNetworkError, ViTimeoutError, ViServerError, ViRateLimitError)
_MAX_FINDINGS = 1000


class AsyncDatasets:
    """Datasets of the organization; iteration yields all of them.

    A ``dataset_id`` may be prefixed with the id of the organization (``<organization>_<dataset>``).
    """

    def __init__(
        self, http: AsyncHttp, organization_id: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._organization_id = organization_id
        self._base = f"/workspaces/{organization_id}/datasets"
        self.imports = AsyncImports(http, organization_id, clock=clock)
        self.versions = AsyncVersions(http, organization_id)

    async def list(
        self, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[Dataset]:
        """Return a page of datasets, newest first."""
        return await fetch_page(self._http, self._base, item=Dataset, pagination=pagination)

    async def list_simple(
        self, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[Dataset]:
        """Return a page of datasets with fewer fields, from the endpoint that other clients use."""
        path = f"/workspaces/{self._organization_id}/simpleDatasets"
        return await fetch_page(self._http, path, item=Dataset, pagination=pagination)

    async def get(self, dataset_id: str) -> Dataset:
        """Return a dataset.

        Raises:
            ViNotFoundError: No dataset has this id.
        """
        return await self._http.call("GET", self._path(dataset_id), decode_as=Dataset)

    async def create(
        self,
        name: str,
        dataset_type: str | DatasetTypeMember = "phrase-grounding",
        content: str = "Image",
        description: str = "",
        localization: str = "Datature/Multi",
        data_localization: str = "Datature/Multi",
        tags: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Dataset:
        """Create an empty dataset.

        Args:
            name: Name for people.
            dataset_type: ``"phrase-grounding"``, ``"vqa"`` or ``"freeform"``.
            content: Only ``"Image"``.
            description: Description for people.
            localization: Ignored; accepted for compatibility with other clients.
            data_localization: Ignored; accepted for compatibility with other clients.
            tags: Ignored; accepted for compatibility with other clients.
            metadata: Attributes.

        Raises:
            ViValidationError: A value is not one of those above.
        """
        body = {
            "name": name,
            "owner": self._organization_id,
            "description": description,
            "type": parse_word(dataset_type, name="dataset_type"),
            "content": parse_word(content, name="content"),
            "localization": parse_word(localization, name="localization"),
            "dataLocalization": parse_word(data_localization, name="data_localization"),
            "status": 0,
            "tags": dict(tags or {}),
            **encode_metadata(metadata),
        }
        return await self._http.call("POST", self._base, body=body, decode_as=Dataset)

    async def update(
        self,
        dataset_id: str,
        spec: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str | None] | None = None,
        *,
        if_match: str | None = None,
    ) -> Dataset:
        """Change the given fields (name, description) and attributes.

        Args:
            dataset_id: Id of the dataset.
            spec: Fields to change.
            metadata: Attributes to set; None as a value removes an attribute.
            if_match: Etag; the change fails if the dataset has changed since.

        Raises:
            ViConflictError: ``if_match`` is outdated.
            ViNotFoundError: No dataset has this id.
        """
        body = {**encode_spec(spec or {}), **encode_metadata(metadata, removable=True)}
        headers = build_if_match_headers(if_match)
        return await self._http.call(
            "PATCH", self._path(dataset_id), body=body, headers=headers, decode_as=Dataset
        )

    async def delete(self, dataset_id: str) -> DeletedDataset:
        """Delete a dataset and its contents.

        The deletion is effective at once; its bytes are freed later (``get_deletion_operation``).

        Raises:
            ViConflictError: A pending or running run uses the dataset.
            ViNotFoundError: No dataset has this id.
        """
        return await self._http.call("DELETE", self._path(dataset_id), decode_as=DeletedDataset)

    async def get_deletion_operation(self, dataset_id: str) -> DeletedDataset:
        """Return the state of the deletion of a dataset.

        Raises:
            ViNotFoundError: No dataset with this id was deleted.
        """
        return await self._http.call(
            "GET", self._path(dataset_id) + "/deleteOperation", decode_as=DeletedDataset
        )

    async def import_folder(
        self,
        path: str | Path,
        format: str = "auto",
        name: str | None = None,
        dataset_type: str | DatasetTypeMember | None = None,
        on_error: str = "RejectRow",
        wait: bool = True,
        progress: bool | Callable[[DatasetImport], Any] = True,
        *,
        dataset_id: str | None = None,
        resume: str | DatasetImport | None = None,
        metadata: Mapping[str, str] | None = None,
        box_unit: str = "auto",
        box_form: str = "auto",
        on_bad_box: str = "reject",
        split: str = "keep",
    ) -> FolderImport:
        """Import a folder of images and labels, or one archive; the server detects the format.

        Ctrl-C, or cancellation of the task, cancels the import. If the server stays unavailable,
        the import remains open for 24 hours and can be continued with ``resume``.

        Args:
            path: Folder, or a file such as ``.zip``, ``.parquet`` or ``.jsonl``. Names that begin
                with a dot are ignored. Links that lead outside the folder are skipped and reported
                as findings, except those of a Hub snapshot to its files.
            format: Format of the annotation files; ``"auto"`` detects it.
            name: Name of the new dataset. Default: the name of the folder.
            dataset_type: ``"phrase-grounding"``, ``"vqa"`` or ``"freeform"``. Default: the type of
                the annotations.
            on_error: ``"Warn"`` repairs rows if possible, ``"RejectRow"`` skips invalid rows,
                ``"RejectFile"`` skips their files, ``"RejectAll"`` accepts nothing if any row is
                invalid.
            wait: Wait until the import has ended. If False, it continues on the server after the
                upload.
            progress: True draws a bar if standard error is a terminal. A function is called with
                the import several times a second; ``status.progress.phase`` is ``Sending`` during
                the upload.
            dataset_id: Import into this dataset instead of a new one.
            resume: Interrupted import of that dataset; only missing data is uploaded.
            metadata: Attributes of a new dataset.
            box_unit: Unit of the numbers of a box: ``"pixel"``, ``"fraction"``, ``"percent"`` or
                ``"thousandth"`` of the image. Default: what the format defines.
            box_form: Meaning of the four numbers: ``"corners"``, or ``"size"`` for a corner with
                width and height. Default: what the format defines.
            on_bad_box: ``"reject"`` skips the row of an invalid box, ``"drop"`` only the box.
            split: ``"keep"`` records the data's own split into train, validation and test, from
                folders, label files or a column; runs then train on the first and validate on the
                second. ``"ignore"`` merges its parts.

        Raises:
            ViInvalidParameterError: The path has no file to import, or arguments contradict each
                other.
            ViUploadError: A file cannot be read, or changes during the upload.
            ViImportFailedError: Nothing was accepted; ``error.imported.findings`` has the reasons.
            ViError: The server stayed unavailable; the suggestion says how to resume.
        """
        if dataset_id is not None and (name is not None or metadata is not None):
            raise ViInvalidParameterError(
                "name and metadata are for a new dataset, but dataset_id names an existing one",
                suggestion="try: omit them, or change the dataset with client.datasets.update",
            )
        if resume is not None and dataset_id is None:
            dataset_id = parse_dataset_id(resume) if isinstance(resume, DatasetImport) else None
            if dataset_id is None:
                raise ViInvalidParameterError(
                    "resume requires dataset_id",
                    suggestion="try: dataset_id=... with the dataset of the import",
                )
        found = await concurrency.run_in_thread(find_files, path)
        if on_error == "RejectAll" and found.skipped:
            first = found.skipped[0]
            raise ViInvalidParameterError(
                f"{first.file!r} cannot be imported: {first.cause}",
                suggestion=f"on_error is 'RejectAll'. try: {first.cure}",
            )
        is_new = dataset_id is None
        if dataset_id is not None:
            dataset = await self.get(dataset_id)
        else:
            initial_type = "phrase-grounding" if dataset_type is None else dataset_type
            dataset_name = name or Path(path).expanduser().resolve().name
            dataset = await self.create(dataset_name, initial_type, metadata=metadata)
        shows_bar = progress if isinstance(progress, bool) else False
        imported: DatasetImport | None = None
        try:
            imported = await self._create_or_get_import(
                dataset,
                found,
                path,
                format=format,
                on_error=on_error,
                box_unit=box_unit,
                box_form=box_form,
                on_bad_box=on_bad_box,
                split=split,
                decides_type=dataset_type is None
                and (is_new or await self._has_undecided_type(dataset)),
                resume=resume,
            )
            with import_progress(shows_bar) as draw:
                on_update = draw if isinstance(progress, bool) else progress
                # None: interrupted after the upload was finished.
                if imported.status.upload is not None:
                    imported = await self.imports.send(
                        imported, found.files, is_resumed=resume is not None, on_update=on_update
                    )
                if wait:
                    imported = await self.imports.wait(
                        dataset.dataset_id, imported.import_id, on_update=on_update
                    )
        except _UNAVAILABLE_ERRORS as error:
            if imported is not None:
                error.suggestion = (
                    "Uploaded data is kept for 24 hours. try: import the same path again with "
                    f"dataset_id={dataset.dataset_id!r} and resume={imported.import_id!r}"
                )
            raise
        except BaseException:  # also on interrupt: an abandoned import must not remain
            await self._discard_import(dataset, imported, is_new=is_new)
            raise
        return (
            await self._build_result(dataset, imported, found)
            if wait
            else FolderImport(dataset, imported, findings=found.skipped, skipped=found.skipped)
        )

    async def findings(
        self,
        of: str | FolderImport | DatasetImport,
        import_id: str | None = None,
        pagination: PaginationParams | dict[str, Any] = PaginationParams(page_size=100),
        *,
        severity: str | None = None,
        code: str | None = None,
    ) -> AsyncPaginatedResponse[Finding]:
        """Return a page of the findings of an import, which may still be running.

        Args:
            of: The import, or the id of its dataset.
            import_id: Id of the import. Default: the newest import of the dataset.
            pagination: Page size and page token.
            severity: Only ``"error"`` or only ``"warning"``.
            code: Only findings with this code, such as ``"BoxOutside"``.

        Raises:
            ViNotFoundError: The dataset or import does not exist.
        """
        filters: Any = [("severity", severity), ("code", code)]
        path = await self._import_path(of, import_id) + "/findings"
        return await fetch_page(
            self._http, path, item=Finding, pagination=pagination, filters=filters
        )

    async def report(
        self, of: str | FolderImport | DatasetImport, import_id: str | None = None
    ) -> ImportReport:
        """Return the findings of an import grouped by code, with the first findings of each code.

        Args:
            of: The import, or the id of its dataset.
            import_id: Id of the import. Default: the newest import of the dataset.

        Raises:
            ViNotFoundError: The dataset or import does not exist.
        """
        return await self._http.call(
            "GET", await self._import_path(of, import_id) + "/report", decode_as=ImportReport
        )

    async def report_html(
        self, of: str | FolderImport | DatasetImport, import_id: str | None = None
    ) -> str:
        """Return the report as a self-contained HTML page; the arguments are those of ``report``.

        Raises:
            ViNotFoundError: The dataset or import does not exist.
        """
        path = await self._import_path(of, import_id) + "/report"
        return (await self._http.send("GET", path, headers={"Accept": "text/html"})).body.decode()

    @overload
    async def preview(
        self,
        dataset_id: str,
        path: None = None,
        *,
        count: int = 12,
        seed: int = 0,
        version: str | None = None,
    ) -> bytes: ...

    @overload
    async def preview(
        self,
        dataset_id: str,
        path: str | Path,
        *,
        count: int = 12,
        seed: int = 0,
        version: str | None = None,
    ) -> Path: ...

    async def preview(
        self,
        dataset_id: str,
        path: str | Path | None = None,
        *,
        count: int = 12,
        seed: int = 0,
        version: str | None = None,
    ) -> bytes | Path:
        """Return a contact sheet of images with their boxes, phrases, questions and answers.

        Args:
            dataset_id: Id of the dataset.
            path: File to write the PNG to; None returns its bytes.
            count: Number of images.
            seed: Seed of the random selection of images.
            version: Id of the version. Default: the newest.

        Raises:
            ViNotFoundError: The dataset or version does not exist or is empty.
            ViDownloadError: The file cannot be written.
        """
        target = None if path is None else parse_local_path(path, name="path")
        params = {"count": count, "seed": seed, "version": version}
        answer = await self._http.send(
            "GET",
            self._path(dataset_id) + "/preview",
            params=params,
            headers={"Accept": "image/png"},
        )
        if target is None:
            return answer.body
        from vi.api.resources.datasets._archive import write_file_atomically

        try:
            await concurrency.run_in_thread(write_file_atomically, target, answer.body)
        except OSError as error:
            raise ViDownloadError(
                f"{target} cannot be written: {error.strerror or error}",
                suggestion="try: check disk space and permissions, or use another path",
                cause=error,
            ) from error
        return target

    async def create_export(
        self,
        dataset_id: str,
        export_settings: DatasetExportSettings | Mapping[str, Any] | str = DatasetExportSettings(),
    ) -> DatasetExport:
        """Start an export of a dataset as a zip on the server; ``get_export`` returns its state.

        Args:
            dataset_id: Id of the dataset.
            export_settings: ``DatasetExportSettings``, a dict with the same names, or a format.

        Raises:
            ViNotFoundError: No dataset has this id.
            ViValidationError: The format is unknown, or does not support the type of the dataset.
        """
        body = {"spec": encode_export(export_settings)}
        return await self._http.call(
            "POST", self._path(dataset_id) + "/datasetExports", body=body, decode_as=DatasetExport
        )

    async def get_export(self, dataset_id: str, dataset_export_id: str) -> DatasetExport:
        """Return the current state of an export.

        Raises:
            ViNotFoundError: The dataset or export does not exist.
        """
        bare = check_id(dataset_export_id, name="dataset_export_id")
        path = f"{self._path(dataset_id)}/datasetExports/{bare}"
        return await self._http.call("GET", path, decode_as=DatasetExport)

    async def list_exports(
        self, dataset_id: str, page_size: int | None = None, page: str | None = None
    ) -> AsyncPaginatedResponse[DatasetExport]:
        """Return a page of the exports of a dataset, newest first.

        Raises:
            ViNotFoundError: No dataset has this id.
        """
        pagination = PaginationParams(
            page_token=page, page_size=10 if page_size is None else page_size
        )
        path = self._path(dataset_id) + "/datasetExports"
        return await fetch_page(self._http, path, item=DatasetExport, pagination=pagination)

    async def download(
        self,
        dataset_id: str,
        dataset_export_id: str | None = None,
        annotations_only: bool = False,
        export_settings: DatasetExportSettings | Mapping[str, Any] | str = DatasetExportSettings(),
        save_dir: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> DatasetDownloadResult:
        """Export a dataset, download it, and unpack it to ``<save_dir>/<dataset id>/``.

        An interrupted download is resumed. The folder appears only when it is complete and
        verified.

        Args:
            dataset_id: Id of the dataset.
            dataset_export_id: Existing export to download; None creates a new one.
            annotations_only: Exclude the images, which every format includes otherwise; ``ViFull``
                becomes ``ViJsonl``.
            export_settings: Format and options, as in ``create_export``.
            save_dir: Target folder. Default: ``~/.datature/vi/datasets``.
            overwrite: Replace an existing folder.
            show_progress: Draw a progress bar if standard error is a terminal.

        Raises:
            ViNotFoundError: The dataset or export does not exist.
            ViOperationError: The export failed.
            ViDownloadError: The folder exists, or the download is damaged or cannot be stored.
        """
        from vi._http.downloads._async import download_file
        from vi.api.resources.datasets._archive import unpack_zip, write_file_atomically

        dataset = await self.get(dataset_id)
        root = parse_local_path(save_dir or DEFAULT_SAVE_DIR, name="save_dir")
        folder = resolve_inside(root, check_id(dataset.dataset_id, name="datasetId"))
        if folder.exists() and not overwrite:
            raise ViDownloadError(
                f"{folder} already exists",
                suggestion="try: overwrite=True to replace it, or another save_dir",
            )
        export = await self._finish_export(
            dataset_id, dataset_export_id, export_settings, annotations_only=annotations_only
        )
        link = export.status.download_url
        if link is None:
            raise ViDownloadError(
                f"the server gives no download link for export {export.export_id} of {dataset_id}"
            )
        archive = folder.with_name(
            f".{dataset.dataset_id}-{check_id(export.export_id, name='exportId')}.zip"
        )
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with byte_progress(
                dataset.name, total_bytes=export.status.size_bytes, show=show_progress
            ) as draw:
                await download_file(
                    self._http,
                    link.url,
                    archive,
                    size_bytes=export.status.size_bytes,
                    sha256=export.status.sha256,
                    on_progress=draw,
                )
            await concurrency.run_in_thread(unpack_zip, archive, folder)
            about = {
                "name": dataset.name,
                "organizationId": self._organization_id,
                "exportDir": str(folder),
                "createdAt": round(datetime.now(UTC).timestamp() * 1000),
            }
            write_file_atomically(folder / "metadata.json", msgspec.json.encode(about))
        except OSError as error:
            raise ViDownloadError(
                f"dataset {dataset_id} cannot be stored in {folder.parent}: "
                f"{error.strerror or error}",
                suggestion="try: check disk space and permissions, or use another save_dir",
                cause=error,
            ) from error
        return DatasetDownloadResult(dataset.dataset_id, str(folder))

    async def bulk_delete_assets(
        self,
        dataset_id: str,
        filter_criteria: str | Mapping[str, Any] | None = None,
        metadata_query: str | None = None,
        rule_query: str | None = None,
        strict_query: bool | None = None,
    ) -> BulkDeletion:
        """Delete the matching images and their records, and wait for the end of the deletion.

        Args:
            dataset_id: Id of the dataset.
            filter_criteria: Text that the file name contains, or a dict of criteria.
            metadata_query: Query on the metadata.
            rule_query: Query by rules.
            strict_query: Interpret ``metadata_query`` strictly.

        Raises:
            ViNotFoundError: No dataset has this id.
            ViOperationError: The deletion failed.
            ViValidationError: A query is malformed, or no query is given.
        """
        spec = {
            "filter": filter_criteria,
            "metadataQuery": metadata_query,
            "ruleQuery": rule_query,
            "strictQuery": strict_query,
        }
        path = self._path(dataset_id) + "/deleteManyAssetsSessions"
        session = await self._http.call("POST", path, body={"spec": spec}, decode_as=BulkDeletion)
        return await self._wait_until_reached(
            lambda: self.get_bulk_asset_deletion_session(dataset_id, session.session_id),
            what=f"the deletion of images of dataset {dataset_id}",
        )

    async def get_bulk_asset_deletion_session(
        self, dataset_id: str, delete_many_assets_session_id: str
    ) -> BulkDeletion:
        """Return the current state of a bulk deletion.

        Raises:
            ViNotFoundError: The dataset or deletion does not exist.
        """
        session_id = check_id(delete_many_assets_session_id, name="delete_many_assets_session_id")
        path = f"{self._path(dataset_id)}/deleteManyAssetsSessions/{session_id}"
        return await self._http.call("GET", path, decode_as=BulkDeletion)

    async def get_aggregation_statistics(self, dataset_id: str) -> dict[str, Any]:
        """Return the counts of a dataset: images, annotated images, records, bytes.

        Raises:
            ViNotFoundError: No dataset has this id.
        """
        return await self._http.call(
            "GET", self._path(dataset_id) + "/aggregationStatistics", decode_as=dict[str, Any]
        )

    statistics = get_aggregation_statistics

    async def generate_aggregation_statistics(self, dataset_id: str) -> None:
        """Do nothing, since counts are always current.

        Kept for compatibility with other clients.
        """
        await self._http.call("POST", self._path(dataset_id) + "/aggregationStatistics:generate")

    async def __aiter__(self) -> Any:
        async for dataset in (await self.list(PaginationParams(page_size=100))).all_items():
            yield dataset

    def __call__(self) -> Any:
        return self.__aiter__()

    async def _create_or_get_import(
        self,
        dataset: Dataset,
        found: LocalFiles,
        path: str | Path,
        *,
        format: str,
        on_error: str,
        box_unit: str,
        box_form: str,
        on_bad_box: str,
        split: str,
        decides_type: bool,
        resume: str | DatasetImport | None,
    ) -> DatasetImport:
        """Return a new import, or the interrupted one."""
        if resume is not None:
            import_id = resume.import_id if isinstance(resume, DatasetImport) else resume
            return await self.imports.get(dataset.dataset_id, import_id)
        return await self.imports.create(
            dataset.dataset_id,
            format=format,
            on_error=on_error,
            box_unit=box_unit,
            box_form=box_form,
            on_bad_box=on_bad_box,
            split=split,
            dataset_type="auto" if decides_type else None,
            source=Path(path).name,
            files=len(found.files),
            size_bytes=found.size_bytes,
        )

    async def _has_undecided_type(self, dataset: Dataset) -> bool:
        """Return True if the newest import was to determine the type of the dataset.

        The server ignores the request if the type has been determined since.
        """
        newest = await self.imports.list(dataset.dataset_id, PaginationParams(page_size=1))
        return bool(newest) and newest[0].spec.dataset_type == "auto"

    async def _build_result(
        self, dataset: Dataset, imported: DatasetImport, found: LocalFiles
    ) -> FolderImport:
        """Return the result of an import that has ended.

        Raises:
            ViImportFailedError: It accepted nothing.
        """
        dataset_id, import_id = dataset.dataset_id, imported.import_id
        first = await self.findings(
            dataset_id, import_id, PaginationParams(page_size=_MAX_FINDINGS)
        )
        version = imported.status.version
        result = FolderImport(
            dataset=await self.get(dataset.dataset_id),
            session=imported,
            version=await self.versions.get(dataset.dataset_id, version) if version else None,
            findings=[*found.skipped, *first.items],
            skipped=found.skipped,
        )
        if imported.has_failed:
            why = imported.status.why or find_failure(imported.status.conditions)
            raise ViImportFailedError(
                f"nothing was imported into dataset {dataset.dataset_id}: {why}",
                suggestion=(
                    "error.imported.findings lists the findings, client.datasets.report "
                    "summarizes them. try: fix them, then import again with "
                    f"dataset_id={dataset_id!r}"
                ),
                details={"datasetId": dataset_id, "importId": import_id},
                imported=result,
            )
        return result

    async def _discard_import(
        self, dataset: Dataset, imported: DatasetImport | None, *, is_new: bool
    ) -> None:
        """Cancel the import, and delete the dataset if it was created for it; ignore failures."""
        try:
            if imported is not None:
                await self.imports.cancel(dataset.dataset_id, imported.import_id)
            if is_new:
                await self.delete(dataset.dataset_id)
        except ViError:
            return  # the first error is raised by the caller; the import ends at its deadline

    async def _finish_export(
        self,
        dataset_id: str,
        export_id: str | None,
        settings: DatasetExportSettings | Mapping[str, Any] | str,
        *,
        annotations_only: bool,
    ) -> DatasetExport:
        """Return a finished export, an existing one or a new one."""
        if export_id is None:
            document = encode_export(settings)
            if annotations_only and document["format"] == "ViFull":
                document["format"] = "ViJsonl"
            if document["options"]["pictures"] is None:
                document["options"]["pictures"] = not annotations_only
            export_id = (await self.create_export(dataset_id, document)).export_id
        return await self._wait_until_reached(
            lambda: self.get_export(dataset_id, export_id),
            what=f"export {export_id} of dataset {dataset_id}",
        )

    async def _wait_until_reached(self, request: Callable[[], Awaitable[T]], *, what: str) -> T:
        """Ask until a session is over; it must have ended well."""
        pause_s = FIRST_PAUSE_S
        while True:
            session: Any = await request()
            if is_finished(session.status.conditions):
                check_reached(session.status.conditions, what=what)
                return session  # type: ignore[no-any-return]
            await self._http.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    async def _import_path(self, of: object, import_id: str | None) -> str:
        dataset_id, import_id = parse_import_ids(of, import_id)
        if import_id is None:
            newest = await self.imports.list(dataset_id, PaginationParams(page_size=1))
            if not newest:
                raise ViNotFoundError(
                    f"dataset {dataset_id} has no import",
                    suggestion="try: client.datasets.import_folder",
                )
            import_id = newest[0].import_id
        return f"{self._path(dataset_id)}/imports/{import_id}"

    def _path(self, dataset_id: str) -> str:
        return dataset_path(self._organization_id, parse_dataset_id(dataset_id))
