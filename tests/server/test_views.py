"""Saved views: named filters of the list of runs."""

import pytest

import vi
from tests.support.server import TestServer
from vi.api.resources.views.responses import ViewSpec

pytestmark = pytest.mark.anyio


async def test_a_view_is_saved_listed_replaced_and_deleted(server: TestServer) -> None:
    api = await server.api()
    spec = {"name": "failed", "filter": "condition:Failed", "orderBy": "-name", "columns": ["name"]}
    made = await api.put(server.path("views/v1"), json={"spec": spec})
    assert (made.status_code, made.json()["spec"], made.json()["kind"]) == (201, spec, "View")
    changed = await api.put(server.path("views/v1"), json={"spec": {**spec, "name": "broken"}})
    assert (changed.status_code, changed.json()["spec"]["name"]) == (200, "broken")
    assert (await api.get(server.path("views/v1"))).json() == changed.json()
    listed = (await api.get(server.path("views"))).json()
    assert [view["viewId"] for view in listed["items"]] == ["v1"]
    stale = await api.delete(server.path("views/v1"), headers={"if-match": made.json()["etag"]})
    assert stale.status_code == 412
    assert (await api.delete(server.path("views/v1"))).status_code == 204
    assert (await api.get(server.path("views/v1"))).status_code == 404
    again = await api.put(server.path("views/v1"), json={"spec": spec})
    assert (again.status_code, again.json()["code"]) == (409, "IdDeleted")


async def test_a_view_with_an_invalid_filter_or_order_is_refused(server: TestServer) -> None:
    api = await server.api()
    for spec, code in (
        ({"filter": "condition:Fialed"}, "InvalidFilter"),
        ({"orderBy": "color"}, "InvalidQuery"),
        ({"colour": "red"}, "InvalidBody"),
    ):
        refused = await api.put(server.path("views/v1"), json={"spec": spec})
        assert (refused.status_code, refused.json()["code"]) == (400, code)
    assert (await api.get(server.path("views"))).json()["items"] == []


async def test_a_client_saves_and_lists_views(server: TestServer) -> None:
    import httpx2

    transport = httpx2.ASGITransport(app=server.gateway)
    async with vi.AsyncClient(
        server.key, server.org, endpoint="http://127.0.0.1:7878", transport=transport
    ) as client:
        view = await client.views.save(ViewSpec(name="mine", filter="owner=kim"))
        assert [found.spec.filter async for found in client.views] == ["owner=kim"]
        assert (await client.views.get(view.view_id)) == view
        assert (await client.views.delete(view.view_id)).id == view.view_id
