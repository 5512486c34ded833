"""``client.flows``: keep recipes, and give one to ``client.runs.create`` by its id."""

import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from vi._http._async import AsyncHttp
from vi.api._arguments import check_id, flow_document, if_match_headers, metadata_document, spec_document
from vi.api._pages._async import AsyncPaginatedResponse, list_pages
from vi.api.resources.flows.responses import Flow, FlowAcceleratorList, FlowSpec
from vi.api.responses import DeletedResource
from vi.api.types import PaginationParams


class AsyncFlows:
    """The organisation's flows; iterating yields every one of them."""

    def __init__(self, http: AsyncHttp, organization_id: str) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/flows"

    async def list(
        self, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> AsyncPaginatedResponse[Flow]:
        """A page of flows, newest first."""
        return await list_pages(self._http, self._base, item=Flow, pagination=pagination)

    async def get(self, flow_id: str) -> Flow:
        """One flow.

        Raises:
            ViNotFoundError: there is none with this id.
        """
        return await self._http.call("GET", self._path(flow_id), decode_as=Flow)

    async def create(
        self,
        spec: FlowSpec | Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
        *,
        flow_id: str | None = None,
    ) -> Flow:
        """Save a recipe. Its id is made here unless given, so a repeat over a bad line never makes a second one.

        Raises:
            ViValidationError: the recipe is wrong; ``details["problems"]`` lists every fault with its path.
        """
        path = self._path(str(uuid.uuid4()) if flow_id is None else flow_id)
        body = {"spec": flow_document(spec), **metadata_document(metadata)}
        return await self._http.call("PUT", path, body=body, decode_as=Flow)

    async def update(
        self,
        flow_id: str,
        spec: FlowSpec | Mapping[str, Any] | None = None,
        metadata: Mapping[str, str | None] | None = None,
        *,
        if_match: str | None = None,
    ) -> Flow:
        """Change the given fields and attributes; runs made before keep the recipe they were made with.

        Raises:
            ViConflictError: ``if_match`` was given and is no longer the flow's etag.
        """
        body = {
            **({} if spec is None else {"spec": spec_document(spec)}),
            **metadata_document(metadata, removable=True),
        }
        headers = if_match_headers(if_match)
        return await self._http.call("PATCH", self._path(flow_id), body=body, headers=headers, decode_as=Flow)

    async def delete(self, flow_id: str) -> DeletedResource:
        """Delete a flow; its runs keep their own copy."""
        await self._http.call("DELETE", self._path(flow_id))
        return DeletedResource(id=flow_id)

    async def get_accelerators(self, flow_id: str) -> FlowAcceleratorList:
        """Whether a run of the flow would fit into the memory of each accelerator there is now, and why.

        Raises:
            ViNotFoundError: there is no such flow.
        """
        return await self._http.call("GET", f"{self._path(flow_id)}/accelerators", decode_as=FlowAcceleratorList)

    async def __aiter__(self) -> AsyncIterator[Flow]:
        async for flow in (await self.list(PaginationParams(page_size=100))).all_items():
            yield flow

    def __call__(self) -> AsyncIterator[Flow]:
        return self.__aiter__()

    def _path(self, flow_id: str) -> str:
        return f"{self._base}/{check_id(flow_id, name='flow_id')}"
