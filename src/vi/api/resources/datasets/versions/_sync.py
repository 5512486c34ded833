# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""``client.datasets.versions``: what a dataset held at one moment, and always will. Runs are pinned to versions."""

from typing import Any

from vi._http._sync import Http
from vi.api._arguments import check_id
from vi.api._pages._sync import PaginatedResponse, list_pages
from vi.api.resources.datasets._places import dataset_path
from vi.api.resources.datasets.responses import DatasetVersion
from vi.api.types import PaginationParams


class Versions:
    """The versions of the organisation's datasets."""

    def __init__(self, http: Http, organization_id: str) -> None:
        self._http = http
        self._organization_id = organization_id

    def list(
        self, dataset_id: str, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> PaginatedResponse[DatasetVersion]:
        """A page of a dataset's versions, newest first.

        Raises:
            ViNotFoundError: there is no such dataset.
        """
        return list_pages(self._http, self._path(dataset_id), item=DatasetVersion, pagination=pagination)

    def get(self, dataset_id: str, version_id: str) -> DatasetVersion:
        """One version.

        Raises:
            ViNotFoundError: there is no such dataset or version.
        """
        path = f"{self._path(dataset_id)}/{check_id(version_id, name='version_id')}"
        return self._http.call("GET", path, decode_as=DatasetVersion)

    def _path(self, dataset_id: str) -> str:
        return dataset_path(self._organization_id, dataset_id) + "/versions"
