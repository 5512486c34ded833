# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""``client.datasets``: pictures with what is said of them, from a folder in and as a folder out.

``import_folder`` is the short way in: it sends a folder as it is, in any of the known formats, and hands back the
dataset, its version and every defect that was found. ``imports`` and ``versions`` are the parts it is made of.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from vi._concurrency import synchronous as concurrency
from vi._http._sync import Http
from vi.api._arguments import check_id, if_match_headers, local_path, metadata_document, spec_document
from vi.api._folders import path_below
from vi.api._pages._sync import PaginatedResponse, list_pages
from vi.api._progress import byte_progress, import_progress
from vi.api.resources.datasets._files import LocalFiles, find_files
from vi.api.resources.datasets._places import (
    dataset_path,
    export_document,
    named_dataset,
    named_import,
    word,
)
from vi.api.resources.datasets._sessions import FIRST_PAUSE_S, check_reached, failure_of, is_over, next_pause_s
from vi.api.resources.datasets.imports._sync import Imports
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
from vi.api.resources.datasets.versions._sync import Versions
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
_AWAY = (ViNetworkError, ViTimeoutError, ViServerError, ViRateLimitError)
_FIRST_FINDINGS = 1000


class Datasets:
    """The organisation's datasets; iterating yields every one of them.

    Wherever a ``dataset_id`` is asked for, the id may carry the organisation's in front (``<organisation>_<dataset>``).
    """

    def __init__(self, http: Http, organization_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._http = http
        self._organization_id = organization_id
        self._base = f"/workspaces/{organization_id}/datasets"
        self.imports = Imports(http, organization_id, clock=clock)
        self.versions = Versions(http, organization_id)

    def list(self, pagination: PaginationParams | dict[str, Any] = PaginationParams()) -> PaginatedResponse[Dataset]:
        """A page of datasets, newest first."""
        return list_pages(self._http, self._base, item=Dataset, pagination=pagination)

    def list_simple(
        self, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> PaginatedResponse[Dataset]:
        """The same from the address that other clients use for short lists; fields may be missing."""
        path = f"/workspaces/{self._organization_id}/simpleDatasets"
        return list_pages(self._http, path, item=Dataset, pagination=pagination)

    def get(self, dataset_id: str) -> Dataset:
        """One dataset.

        Raises:
            ViNotFoundError: there is none with this id.
        """
        return self._http.call("GET", self._path(dataset_id), decode_as=Dataset)

    def create(
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
        """Make an empty dataset.

        Args:
            name: for people.
            dataset_type: ``"phrase-grounding"``, ``"vqa"`` or ``"freeform"``.
            content: pictures are all there is.
            description: for people.
            localization: taken for the sake of other clients; here data lies where the server does.
            data_localization: the same.
            tags: taken for the sake of other clients.
            metadata: attributes to find it by.

        Raises:
            ViValidationError: a value is not one of those above.
        """
        body = {
            "name": name,
            "owner": self._organization_id,
            "description": description,
            "type": word(dataset_type, name="dataset_type"),
            "content": word(content, name="content"),
            "localization": word(localization, name="localization"),
            "dataLocalization": word(data_localization, name="data_localization"),
            "status": 0,
            "tags": dict(tags or {}),
            **metadata_document(metadata),
        }
        return self._http.call("POST", self._base, body=body, decode_as=Dataset)

    def update(
        self,
        dataset_id: str,
        spec: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str | None] | None = None,
        *,
        if_match: str | None = None,
    ) -> Dataset:
        """Change name, description or attributes, and nothing that is not given.

        Raises:
            ViConflictError: ``if_match`` was given and is no longer the dataset's etag.
            ViNotFoundError: there is none with this id.
        """
        body = {**spec_document(spec or {}), **metadata_document(metadata, removable=True)}
        headers = if_match_headers(if_match)
        return self._http.call("PATCH", self._path(dataset_id), body=body, headers=headers, decode_as=Dataset)

    def delete(self, dataset_id: str) -> DeletedDataset:
        """Delete a dataset with everything in it. It is gone at once; its bytes follow (``get_deletion_operation``).

        Raises:
            ViConflictError: a run that waits or trains needs it.
            ViNotFoundError: there is none with this id.
        """
        return self._http.call("DELETE", self._path(dataset_id), decode_as=DeletedDataset)

    def get_deletion_operation(self, dataset_id: str) -> DeletedDataset:
        """What has become of a deletion.

        Raises:
            ViNotFoundError: no dataset of this id was deleted.
        """
        return self._http.call("GET", self._path(dataset_id) + "/deleteOperation", decode_as=DeletedDataset)

    def import_folder(
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
    ) -> FolderImport:
        """Send a folder of pictures and labels, or one archive, as it is; the server finds out what it is.

        Ctrl-C, or cancelling the task, cancels the import. When the server cannot be reached for long, the import stays
        open for 24 hours and goes on with ``resume``.

        Args:
            path: a folder, or a file such as ``.zip``, ``.parquet`` or ``.jsonl``. Files whose names begin with a dot
                are left out, and so are links that lead out of the folder; the latter are told as findings.
            format: of the annotation files; ``"auto"`` looks at them.
            name: of the new dataset; the folder's name unless given.
            dataset_type: ``"phrase-grounding"``, ``"vqa"`` or ``"freeform"``; unless given, what the files carry.
            on_error: ``"Warn"`` takes what can be mended, ``"RejectRow"`` leaves bad rows out, ``"RejectFile"`` the
                files they are in, ``"RejectAll"`` takes nothing if anything is bad.
            wait: until it is over; without it the import goes on by itself once everything is sent.
            progress: True draws a bar, if there is a terminal; a function is called with the import several times a
                second (``status.progress.phase`` is ``Sending`` while files go out).
            dataset_id: import into this dataset instead of a new one.
            resume: an import of that dataset which broke off; only what has not arrived is sent.
            metadata: attributes of a new dataset.

        Raises:
            ViInvalidParameterError: the path names nothing that could be sent.
            ViUploadError: a file cannot be read, or changes while it is sent.
            ViImportFailedError: nothing was taken; ``imported.findings`` says why.
            ViError: the server stayed away; the suggestion says how to go on.
        """
        if dataset_id is not None and (name is not None or metadata is not None):
            raise ViInvalidParameterError(
                "name and metadata are for a new dataset, and dataset_id names one that is there",
                suggestion="Leave them out, or change the dataset with client.datasets.update.",
            )
        if resume is not None and dataset_id is None:
            dataset_id = named_dataset(resume) if isinstance(resume, DatasetImport) else None
            if dataset_id is None:
                raise ViInvalidParameterError("resume needs dataset_id", suggestion="Give the id of its dataset, too.")
        found = concurrency.in_thread(find_files, path)
        if on_error == "RejectAll" and found.left_out:
            first = found.left_out[0]
            raise ViInvalidParameterError(
                f"{first.file!r} cannot be sent: {first.cause}", suggestion="on_error is 'RejectAll'; " + first.cure
            )
        is_new = dataset_id is None
        if dataset_id is not None:
            dataset = self.get(dataset_id)
        else:
            shown_type = "phrase-grounding" if dataset_type is None else dataset_type
            named = name or Path(path).expanduser().resolve().name
            dataset = self.create(named, shown_type, metadata=metadata)
        draws = progress if isinstance(progress, bool) else False
        imported: DatasetImport | None = None
        try:
            imported = self._begun(
                dataset,
                found,
                path,
                format=format,
                on_error=on_error,
                decides_type=dataset_type is None and (is_new or self._is_undecided(dataset)),
                resume=resume,
            )
            with import_progress(draws) as draw:
                tell = draw if isinstance(progress, bool) else progress
                if imported.status.upload is not None:  # None: one that broke off after everything had been sent
                    imported = self.imports.send(imported, found.files, is_resumed=resume is not None, on_update=tell)
                if wait:
                    imported = self.imports.wait(dataset.dataset_id, imported.import_id, on_update=tell)
        except _AWAY as error:
            if imported is not None:
                error.suggestion = (
                    "What has arrived is kept for 24 hours. Import the same path again with "
                    f"dataset_id={dataset.dataset_id!r} and resume={imported.import_id!r} to go on."
                )
            raise
        except BaseException:  # an interrupt as well: nobody waits for it any more, so nothing of it shall stay
            self._forget(dataset, imported, is_new=is_new)
            raise
        return (
            self._outcome(dataset, imported, found)
            if wait
            else FolderImport(dataset, imported, findings=found.left_out)
        )

    def findings(
        self,
        of: str | FolderImport | DatasetImport,
        import_id: str | None = None,
        pagination: PaginationParams | dict[str, Any] = PaginationParams(page_size=100),
        *,
        severity: str | None = None,
        code: str | None = None,
    ) -> PaginatedResponse[Finding]:
        """A page of what an import found, in the order in which it was found; also while it is going on.

        Args:
            of: the import, or the id of its dataset: without ``import_id`` that dataset's newest import.
            import_id: which import of the dataset.
            pagination: page size and where to go on.
            severity: only ``"error"`` or only ``"warning"``.
            code: only those of one kind, such as ``"BoxOutside"``.

        Raises:
            ViNotFoundError: there is no such dataset or import.
        """
        filters: Any = [("severity", severity), ("code", code)]
        path = self._import_path(of, import_id) + "/findings"
        return list_pages(self._http, path, item=Finding, pagination=pagination, filters=filters)

    def report(self, of: str | FolderImport | DatasetImport, import_id: str | None = None) -> ImportReport:
        """What an import found, by code, with the first findings of each; arguments as of ``findings``.

        Raises:
            ViNotFoundError: there is no such dataset or import.
        """
        return self._http.call("GET", self._import_path(of, import_id) + "/report", decode_as=ImportReport)

    def report_html(self, of: str | FolderImport | DatasetImport, import_id: str | None = None) -> str:
        """The report as one page that needs nothing else.

        Raises:
            ViNotFoundError: there is no such dataset or import.
        """
        path = self._import_path(of, import_id) + "/report"
        return (self._http.send("GET", path, headers={"Accept": "text/html"})).body.decode()

    @overload
    def preview(
        self, dataset_id: str, path: None = None, *, count: int = 12, seed: int = 0, version: str | None = None
    ) -> bytes: ...

    @overload
    def preview(
        self, dataset_id: str, path: str | Path, *, count: int = 12, seed: int = 0, version: str | None = None
    ) -> Path: ...

    def preview(
        self,
        dataset_id: str,
        path: str | Path | None = None,
        *,
        count: int = 12,
        seed: int = 0,
        version: str | None = None,
    ) -> bytes | Path:
        """A sheet of pictures with their boxes, phrases, questions and answers, to see whether the data is right.

        Args:
            dataset_id: which dataset.
            path: where to write the PNG; without it, its bytes are returned.
            count: how many pictures.
            seed: which ones; the same seed chooses the same.
            version: of this version; without it the newest.

        Raises:
            ViNotFoundError: there is no such dataset or version, or nothing in it.
        """
        target = None if path is None else local_path(path, name="path")
        params = {"count": count, "seed": seed, "version": version}
        answer = self._http.send(
            "GET", self._path(dataset_id) + "/preview", params=params, headers={"Accept": "image/png"}
        )
        if target is None:
            return answer.body
        from vi.api.resources.datasets._archive import write_whole

        try:
            concurrency.in_thread(write_whole, target, answer.body)
        except OSError as error:
            raise ViDownloadError(
                f"{target} cannot be written: {error.strerror or error}",
                suggestion="Check space and rights there, or name another path.",
                cause=error,
            ) from error
        return target

    def create_export(
        self,
        dataset_id: str,
        export_settings: DatasetExportSettings | Mapping[str, Any] | str = DatasetExportSettings(),
    ) -> DatasetExport:
        """Have the server write the dataset into one zip; ``get_export`` tells when it is there.

        Args:
            dataset_id: which dataset.
            export_settings: format and options: ``DatasetExportSettings``, a dict with the same names, or a format.

        Raises:
            ViValidationError: there is no such format, or not for datasets of this type.
        """
        body = {"spec": export_document(export_settings)}
        return self._http.call("POST", self._path(dataset_id) + "/datasetExports", body=body, decode_as=DatasetExport)

    def get_export(self, dataset_id: str, dataset_export_id: str) -> DatasetExport:
        """One export as it is now.

        Raises:
            ViNotFoundError: there is no such dataset or export.
        """
        path = f"{self._path(dataset_id)}/datasetExports/{check_id(dataset_export_id, name='dataset_export_id')}"
        return self._http.call("GET", path, decode_as=DatasetExport)

    def list_exports(
        self, dataset_id: str, page_size: int | None = None, page: str | None = None
    ) -> PaginatedResponse[DatasetExport]:
        """A page of a dataset's exports, newest first."""
        pagination = PaginationParams(page_token=page, page_size=10 if page_size is None else page_size)
        path = self._path(dataset_id) + "/datasetExports"
        return list_pages(self._http, path, item=DatasetExport, pagination=pagination)

    def download(
        self,
        dataset_id: str,
        dataset_export_id: str | None = None,
        annotations_only: bool = False,
        export_settings: DatasetExportSettings | Mapping[str, Any] | str = DatasetExportSettings(),
        save_dir: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> DatasetDownloadResult:
        """Have a dataset written, fetch it, and unpack it into ``<save_dir>/<dataset id>/``.

        A download that was cut goes on where it stopped. The folder appears only whole, with length and hash proven.

        Args:
            dataset_id: which dataset.
            dataset_export_id: an export that was made before; without it a new one is made.
            annotations_only: without pictures, which otherwise come along in every format; ``ViFull`` then becomes
                ``ViJsonl``.
            export_settings: format and options, as of ``create_export``.
            save_dir: where to; without it ``~/.datature/vi/datasets``.
            overwrite: replace what is there.
            show_progress: draw a progress bar, if there is a terminal.

        Raises:
            ViNotFoundError: there is no such dataset or export.
            ViOperationError: the export failed.
            ViDownloadError: the folder is there already, or what arrived is damaged or cannot be stored.
        """
        from vi._http.transfer._sync import download
        from vi.api.resources.datasets._archive import unpack, write_whole

        dataset = self.get(dataset_id)
        root = local_path(save_dir or DEFAULT_SAVE_DIR, name="save_dir")
        folder = path_below(root, check_id(dataset.dataset_id, name="datasetId"))
        if folder.exists() and not overwrite:
            raise ViDownloadError(
                f"{folder} is there already", suggestion="Give overwrite=True to replace it, or another save_dir."
            )
        export = self._exported(dataset_id, dataset_export_id, export_settings, annotations_only=annotations_only)
        link = export.status.download_url
        if link is None:
            raise ViDownloadError(f"the server gives no download link for export {export.export_id} of {dataset_id}")
        archive = folder.with_name(f".{dataset.dataset_id}-{check_id(export.export_id, name='exportId')}.zip")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with byte_progress(dataset.name, total_bytes=export.status.size_bytes, show=show_progress) as draw:
                download(
                    self._http,
                    link.url,
                    archive,
                    size_bytes=export.status.size_bytes,
                    sha256=export.status.sha256,
                    on_progress=draw,
                )
            concurrency.in_thread(unpack, archive, folder)
            about = {
                "name": dataset.name,
                "organizationId": self._organization_id,
                "exportDir": str(folder),
                "createdAt": round(datetime.now(UTC).timestamp() * 1000),
            }
            write_whole(folder / "metadata.json", msgspec.json.encode(about))
        except OSError as error:
            raise ViDownloadError(
                f"dataset {dataset_id} cannot be stored in {folder.parent}: {error.strerror or error}",
                suggestion="Check space and rights there, or name another save_dir.",
                cause=error,
            ) from error
        return DatasetDownloadResult(dataset.dataset_id, str(folder))

    def bulk_delete_assets(
        self,
        dataset_id: str,
        filter_criteria: str | Mapping[str, Any] | None = None,
        metadata_query: str | None = None,
        rule_query: str | None = None,
        strict_query: bool | None = None,
    ) -> BulkDeletion:
        """Delete many pictures with their records, and wait until they are gone.

        Args:
            dataset_id: of which dataset.
            filter_criteria: those whose file name has this text in it, or that a dict names.
            metadata_query: by their metadata.
            rule_query: by rules.
            strict_query: how ``metadata_query`` is read.

        Raises:
            ViOperationError: the deletion failed.
            ViValidationError: a query cannot be read; without any nothing is deleted.
        """
        spec = {
            "filter": filter_criteria,
            "metadataQuery": metadata_query,
            "ruleQuery": rule_query,
            "strictQuery": strict_query,
        }
        path = self._path(dataset_id) + "/deleteManyAssetsSessions"
        session = self._http.call("POST", path, body={"spec": spec}, decode_as=BulkDeletion)
        return self._until_reached(
            lambda: self.get_bulk_asset_deletion_session(dataset_id, session.session_id),
            what=f"the deletion of pictures of dataset {dataset_id}",
        )

    def get_bulk_asset_deletion_session(self, dataset_id: str, delete_many_assets_session_id: str) -> BulkDeletion:
        """One deletion of many pictures as it is now."""
        session_id = check_id(delete_many_assets_session_id, name="delete_many_assets_session_id")
        path = f"{self._path(dataset_id)}/deleteManyAssetsSessions/{session_id}"
        return self._http.call("GET", path, decode_as=BulkDeletion)

    def get_aggregation_statistics(self, dataset_id: str) -> dict[str, Any]:
        """Counts of a dataset: pictures, pictures with records, records, bytes."""
        return self._http.call("GET", self._path(dataset_id) + "/aggregationStatistics", decode_as=dict[str, Any])

    statistics = get_aggregation_statistics

    def generate_aggregation_statistics(self, dataset_id: str) -> None:
        """Have the counts made anew; here they always are, so this is for the sake of other clients' scripts."""
        self._http.call("POST", self._path(dataset_id) + "/aggregationStatistics:generate")

    def __iter__(self) -> Any:
        yield from (self.list(PaginationParams(page_size=100))).all_items()

    def __call__(self) -> Any:
        return self.__iter__()

    def _begun(
        self,
        dataset: Dataset,
        found: LocalFiles,
        path: str | Path,
        *,
        format: str,
        on_error: str,
        decides_type: bool,
        resume: str | DatasetImport | None,
    ) -> DatasetImport:
        """A new import, or the one that broke off."""
        if resume is not None:
            import_id = resume.import_id if isinstance(resume, DatasetImport) else resume
            return self.imports.get(dataset.dataset_id, import_id)
        return self.imports.create(
            dataset.dataset_id,
            format=format,
            on_error=on_error,
            dataset_type="auto" if decides_type else None,
            source=Path(path).name,
            files=len(found.files),
            size_bytes=found.size_bytes,
        )

    def _is_undecided(self, dataset: Dataset) -> bool:
        """Whether an import was to decide the dataset's type, and none has yet; the server sees to the second."""
        newest = self.imports.list(dataset.dataset_id, PaginationParams(page_size=1))
        return bool(newest) and newest[0].spec.dataset_type == "auto"

    def _outcome(self, dataset: Dataset, imported: DatasetImport, found: LocalFiles) -> FolderImport:
        """What there is to say of an import that is over.

        Raises:
            ViImportFailedError: it took nothing.
        """
        place = (dataset.dataset_id, imported.import_id)
        first = self.findings(*place, PaginationParams(page_size=_FIRST_FINDINGS))
        version = imported.status.version
        result = FolderImport(
            dataset=self.get(dataset.dataset_id),
            session=imported,
            version=self.versions.get(dataset.dataset_id, version) if version else None,
            findings=[*found.left_out, *first.items],
        )
        if imported.has_failed:
            why = imported.status.why or failure_of(imported.status.conditions)
            raise ViImportFailedError(
                f"nothing was imported into dataset {dataset.dataset_id}: {why}",
                suggestion=(
                    "error.imported.findings lists what was found, client.datasets.report sums it up. Mend it, then "
                    f"import again with dataset_id={place[0]!r}."
                ),
                details={"datasetId": place[0], "importId": place[1]},
                imported=result,
            )
        return result

    def _forget(self, dataset: Dataset, imported: DatasetImport | None, *, is_new: bool) -> None:
        """Cancel what was begun, and delete the dataset that was made for it. What cannot be reached ends by itself."""
        try:
            if imported is not None:
                self.imports.cancel(dataset.dataset_id, imported.import_id)
            if is_new:
                self.delete(dataset.dataset_id)
        except ViError:
            return  # the first error is the one to tell; an import that is left ends at its deadline

    def _exported(
        self,
        dataset_id: str,
        export_id: str | None,
        settings: DatasetExportSettings | Mapping[str, Any] | str,
        *,
        annotations_only: bool,
    ) -> DatasetExport:
        """An export that is ready."""
        if export_id is None:
            document = export_document(settings)
            if annotations_only and document["format"] == "ViFull":
                document["format"] = "ViJsonl"
            if document["options"]["pictures"] is None:
                document["options"]["pictures"] = not annotations_only
            export_id = (self.create_export(dataset_id, document)).export_id
        return self._until_reached(
            lambda: self.get_export(dataset_id, export_id), what=f"export {export_id} of dataset {dataset_id}"
        )

    def _until_reached(self, ask: Callable[[], T], *, what: str) -> T:
        """Ask until a session is over; it must have ended well."""
        pause_s = FIRST_PAUSE_S
        while True:
            session: Any = ask()
            if is_over(session.status.conditions):
                check_reached(session.status.conditions, what=what)
                return session  # type: ignore[no-any-return]
            self._http.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    def _import_path(self, of: object, import_id: str | None) -> str:
        dataset_id, import_id = named_import(of, import_id)
        if import_id is None:
            newest = self.imports.list(dataset_id, PaginationParams(page_size=1))
            if not newest:
                raise ViNotFoundError(
                    f"dataset {dataset_id} has had no import", suggestion="client.datasets.import_folder begins one."
                )
            import_id = newest[0].import_id
        return f"{self._path(dataset_id)}/imports/{import_id}"

    def _path(self, dataset_id: str) -> str:
        return dataset_path(self._organization_id, named_dataset(dataset_id))
