"""``client.training_projects``: a named place for flows and runs over the same data."""

import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from vi._http._async import AsyncHttp
from vi.api._arguments import check_id, if_match_headers, metadata_document, spec_document
from vi.api._pages._async import AsyncPaginatedResponse, list_pages
from vi.api.resources.training_projects.responses import TrainingProject, TrainingProjectSpec
from vi.api.responses import DeletedResource
from vi.api.types import PaginationParams


class AsyncTrainingProjects:
    """The organisation's training projects; iterating yields every one of them."""

    def __init__(self, http: AsyncHttp, organization_id: str) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/trainingProjects"

    async def list(
        self, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[TrainingProject]:
        """A page of training projects, newest first."""
        return await list_pages(self._http, self._base, item=TrainingProject, pagination=pagination)

    async def get(self, training_project_id: str) -> TrainingProject:
        """One training project.

        Raises:
            ViNotFoundError: there is none with this id.
        """
        return await self._http.call("GET", self._path(training_project_id), decode_as=TrainingProject)

    async def create(
        self,
        spec: TrainingProjectSpec | Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
        *,
        training_project_id: str | None = None,
    ) -> TrainingProject:
        """Make a training project. Its id is made here unless given, so a repeat never makes a second one.

        Raises:
            ViValidationError: the spec is wrong; ``details["problems"]`` lists every fault with its path.
        """
        path = self._path(str(uuid.uuid4()) if training_project_id is None else training_project_id)
        body = {"spec": spec_document(spec), **metadata_document(metadata)}
        return await self._http.call("PUT", path, body=body, decode_as=TrainingProject)

    async def update(
        self,
        training_project_id: str,
        spec: TrainingProjectSpec | Mapping[str, Any] | None = None,
        metadata: Mapping[str, str | None] | None = None,
        *,
        if_match: str | None = None,
    ) -> TrainingProject:
        """Change the given fields and attributes.

        Raises:
            ViConflictError: ``if_match`` was given and is no longer the project's etag.
        """
        body = {
            **({} if spec is None else {"spec": spec_document(spec)}),
            **metadata_document(metadata, removable=True),
        }
        headers = if_match_headers(if_match)
        return await self._http.call(
            "PATCH", self._path(training_project_id), body=body, headers=headers, decode_as=TrainingProject
        )

    async def delete(self, training_project_id: str) -> DeletedResource:
        """Delete a training project; its flows and runs stay."""
        await self._http.call("DELETE", self._path(training_project_id))
        return DeletedResource(id=training_project_id)

    async def __aiter__(self) -> AsyncIterator[TrainingProject]:
        async for project in (await self.list(PaginationParams(page_size=100))).all_items():
            yield project

    def __call__(self) -> AsyncIterator[TrainingProject]:
        return self.__aiter__()

    def _path(self, training_project_id: str) -> str:
        return f"{self._base}/{check_id(training_project_id, name='training_project_id')}"
