"""``client.datasets.versions``: immutable versions of datasets, which runs are pinned to."""

from typing import Any

from vi._http._async import AsyncHttp
from vi.api._arguments import check_id
from vi.api._pages._async import AsyncPaginatedResponse, fetch_page
from vi.api.resources.datasets._parameters import dataset_path
from vi.api.resources.datasets.responses import DatasetVersion
from vi.api.types import PaginationParams


class AsyncVersions:
    """Versions of the organization's datasets."""

    def __init__(self, http: AsyncHttp, organization_id: str) -> None:
        self._http = http
        self._organization_id = organization_id

    async def list(
        self, dataset_id: str, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[DatasetVersion]:
        """Return a page of the versions of a dataset, newest first.

        Raises:
            ViNotFoundError: No dataset has this id.
        """
        return await fetch_page(
            self._http, self._path(dataset_id), item=DatasetVersion, pagination=pagination
        )

    async def get(self, dataset_id: str, version_id: str) -> DatasetVersion:
        """Return a version.

        Raises:
            ViNotFoundError: The dataset or version does not exist.
        """
        path = f"{self._path(dataset_id)}/{check_id(version_id, name='version_id')}"
        return await self._http.call("GET", path, decode_as=DatasetVersion)

    def _path(self, dataset_id: str) -> str:
        return dataset_path(self._organization_id, dataset_id) + "/versions"
