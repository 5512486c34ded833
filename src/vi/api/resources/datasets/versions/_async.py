"""``client.datasets.versions``: what a dataset held at one moment, and always will. Runs are pinned to versions."""

from typing import Any

from vi._http._async import AsyncHttp
from vi.api._arguments import check_id
from vi.api._pages._async import AsyncPaginatedResponse, list_pages
from vi.api.resources.datasets._places import dataset_path
from vi.api.resources.datasets.responses import DatasetVersion
from vi.api.types import PaginationParams


class AsyncVersions:
    """The versions of the organisation's datasets."""

    def __init__(self, http: AsyncHttp, organization_id: str) -> None:
        self._http = http
        self._organization_id = organization_id

    async def list(
        self, dataset_id: str, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[DatasetVersion]:
        """A page of a dataset's versions, newest first.

        Raises:
            ViNotFoundError: there is no such dataset.
        """
        return await list_pages(self._http, self._path(dataset_id), item=DatasetVersion, pagination=pagination)

    async def get(self, dataset_id: str, version_id: str) -> DatasetVersion:
        """One version.

        Raises:
            ViNotFoundError: there is no such dataset or version.
        """
        path = f"{self._path(dataset_id)}/{check_id(version_id, name='version_id')}"
        return await self._http.call("GET", path, decode_as=DatasetVersion)

    def _path(self, dataset_id: str) -> str:
        return dataset_path(self._organization_id, dataset_id) + "/versions"
