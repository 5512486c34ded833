"""Paged lists."""

from typing import Any

import pytest

from vi._http import AsyncHttp
from vi.api._pages._async import AsyncPaginatedResponse, fetch_page
from vi.api.pagination import Page, PaginationError
from vi.api.resources.flows.responses import Flow
from vi.api.types import PaginationParams
from vi.errors import ViInvalidParameterError

pytestmark = pytest.mark.anyio


@pytest.fixture
def http(server: Any) -> AsyncHttp:
    return AsyncHttp("http://server.test", transport=server.transport)


def page(*ids: str, next_page: Any = None) -> dict[str, Any]:
    return {
        "items": [{"flowId": flow_id} for flow_id in ids],
        "nextPage": next_page,
        "prevPage": None,
    }


async def flows(
    http: AsyncHttp, pagination: Any = PaginationParams()
) -> AsyncPaginatedResponse[Flow]:
    return await fetch_page(http, "/flows", item=Flow, pagination=pagination)


async def test_iterating_yields_pages_beginning_with_the_current_one(
    http: AsyncHttp, server: Any
) -> None:
    server.answers(page("a", "b", next_page="t 1&"))
    server.answers(page("c", next_page=""))
    found = [[flow.flow_id for flow in one.items] async for one in await flows(http)]
    assert found == [["a", "b"], ["c"]]
    assert server.asked == ["GET /flows?s=10", "GET /flows?p=t+1%26&s=10"]


async def test_all_items_fetches_pages_on_demand(http: AsyncHttp, server: Any) -> None:
    server.answers(page("a", "b", next_page="t1"))
    items = (await flows(http)).all_items()
    assert [(await anext(items)).flow_id for _ in range(2)] == ["a", "b"]
    assert len(server.requests) == 1


async def test_a_list_can_be_iterated_twice(http: AsyncHttp, server: Any) -> None:
    server.answers(page("a", next_page="t1"))
    first = await flows(http)
    for _ in range(2):
        server.answers(page("b"))
        assert [flow.flow_id async for flow in first.all_items()] == ["a", "b"]


async def test_len_index_and_bool_refer_to_the_first_page(http: AsyncHttp, server: Any) -> None:
    server.answers(page("a", "b", next_page="t1"))
    first = await flows(http)
    assert (len(first), first[1].flow_id, [flow.flow_id for flow in first[:1]], bool(first)) == (
        2,
        "b",
        ["a"],
        True,
    )
    assert (first.next_page, first.prev_page) == ("t1", None)
    server.answers(page())
    assert not await flows(http)


async def test_a_repeated_token_ends_the_list(http: AsyncHttp, server: Any) -> None:
    server.answers(page("a", next_page="t1"))
    server.answers(page("b", next_page="t2"))
    server.answers(page("c", next_page="t1"))
    found = []
    with pytest.raises(PaginationError, match="'t1' twice"):
        async for one in await flows(http):
            found.append(one.items[0].flow_id)
    assert found == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("pagination", "target"),
    [
        (PaginationParams(), "/flows?s=10"),
        (PaginationParams(page_size=50), "/flows?s=50"),
        ({"page_size": 1000, "page_token": "x"}, "/flows?p=x&s=1000"),
        ({}, "/flows?s=10"),
        (None, "/flows?s=10"),
    ],
)
async def test_pagination_is_an_object_or_a_dict(
    http: AsyncHttp, server: Any, pagination: Any, target: str
) -> None:
    server.answers(page())
    await flows(http, pagination)
    assert server.asked == [f"GET {target}"]


@pytest.mark.parametrize(
    "pagination",
    [
        PaginationParams(page_size=0),
        {"page_size": 1001},
        {"page_size": "10"},
        {"page_size": True},
        {"page_size": 1.0},
        {"size": 10},
        {"page_token": 3},
        17,
    ],
)
async def test_wrong_pagination_is_rejected_before_anything_is_sent(
    http: AsyncHttp, server: Any, pagination: Any
) -> None:
    with pytest.raises(ViInvalidParameterError, match=r"page|pagination"):
        await flows(http, pagination)
    assert server.asked == []


async def test_a_page_can_be_constructed_without_a_client() -> None:
    assert Page(items=[1], next_page="t").items == [1]
