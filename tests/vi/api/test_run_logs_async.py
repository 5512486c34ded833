"""``client.runs.logs`` with filters and from the end, and ``client.runs.samples``."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

import vi

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(server: Any, clock: Any, key: str) -> AsyncIterator[vi.AsyncClient]:
    async with vi.AsyncClient(key, "lab", transport=server.transport) as client:
        client._http.sleep = clock.async_sleep
        yield client


def log_line(number: int) -> dict[str, Any]:
    return {"number": number, "time": 1, "attempt": 1, "stream": "stdout", "text": f"line {number}"}


def log_page(*numbers: int, next: int, **more: Any) -> dict[str, Any]:
    return {"items": [log_line(number) for number in numbers], "next": next, **more}


async def test_a_tail_is_read_upward_and_yielded_downward(
    client: vi.AsyncClient, server: Any
) -> None:
    server.answers(log_page(8, 9, next=9, previous=8, hasMore=True))
    server.answers(log_page(next=7, previous=4, hasMore=True))
    server.answers(log_page(1, 2, 3, next=3, previous=None, hasMore=False))
    assert [line.number async for line in client.runs.logs("r-1", tail=6, search="x")] == [
        1, 2, 3, 8, 9,
    ]  # fmt: skip
    assert [dict(request.url.params) for request in server.requests] == [
        {"tail": "6", "limit": "6", "search": "x"},
        {"before": "8", "limit": "4", "search": "x"},
        {"before": "4", "limit": "4", "search": "x"},
    ]


async def test_a_followed_tail_continues_after_its_last_line(
    client: vi.AsyncClient, server: Any
) -> None:
    server.answers(log_page(8, 9, next=9, previous=8, hasMore=True))
    server.answers(log_page(12, next=12, ended=False, hasMore=False))
    server.answers(log_page(next=12, ended=True, hasMore=False))
    followed = client.runs.logs("r-1", follow=True, tail=2, level="warning")
    assert [line.number async for line in followed] == [8, 9, 12]
    since = [request.url.params.get("since") for request in server.requests]
    assert since == [None, "9", "12"]
    assert {request.url.params["level"] for request in server.requests} == {"warning"}


async def test_a_search_continues_where_a_request_stopped(
    client: vi.AsyncClient, server: Any
) -> None:
    server.answers(log_page(next=5000, hasMore=True, searchedTo=5000))
    server.answers(log_page(6000, next=6000, hasMore=True))
    server.answers(log_page(next=9000, hasMore=False))
    options: Any = {"search": "a.b", "regex": True, "case_sensitive": True, "attempt": 2}
    assert [line.number async for line in client.runs.logs("r-1", **options)] == [6000]
    assert [request.url.params["since"] for request in server.requests] == ["0", "5000", "6000"]
    assert dict(server.requests[0].url.params) == {
        "since": "0", "attempt": "2", "search": "a.b", "regex": "true", "case": "true",
    }  # fmt: skip


async def test_since_and_until_are_numbers_or_times(client: vi.AsyncClient, server: Any) -> None:
    day = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(2):
        server.answers(log_page(next=0, hasMore=False))
    assert [line async for line in client.runs.logs("r-1", since=day, until=7)] == []
    first = dict(server.requests[0].url.params)
    assert first == {"since": "0", "until": "7", "after": str(round(day.timestamp() * 1000))}
    ago = timedelta(minutes=10)
    assert [line async for line in client.runs.logs("r-1", since=ago, until=day)] == []
    second = dict(server.requests[1].url.params)
    assert second["to"] == str(round(day.timestamp() * 1000))
    left_s = datetime.now(UTC).timestamp() - int(second["after"]) / 1000
    assert left_s == pytest.approx(600, abs=60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tail": 0}, "tail is 0, expected"),
        ({"tail": "5"}, "tail is '5', expected"),
        ({"level": "loud"}, "level is 'loud', expected: one of debug"),
        ({"since": "10m"}, "since is '10m', expected: the number of a line"),
        ({"until": True}, "until is True, expected"),
    ],
)
async def test_a_malformed_argument_is_rejected_without_a_request(
    client: vi.AsyncClient, server: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(vi.ViInvalidParameterError, match=message):
        client.runs.logs("r-1", **options)
    assert server.requests == []


SAMPLE = {
    "index": 3,
    "step": 20,
    "image": {"width": 32, "height": 24, "href": "/x", "sha256": None, "filename": "a.png"},
    "question": "Where?",
    "truth": {"text": "here", "boxes": [{"box": [0, 0, 0.5, 1], "phrase": "it"}]},
    "predicted": {"text": "there", "boxes": []},
    "scores": {"iou": 0.25},
    "score": 0.25,
    "parse": "ok",
}


async def test_samples_of_an_evaluation_are_pages(client: vi.AsyncClient, server: Any) -> None:
    server.answers({"items": [SAMPLE], "nextPage": "t", "evaluations": [10, 20], "step": 20})
    server.answers({"items": [SAMPLE | {"index": 4}], "nextPage": None})
    page = await client.runs.samples("r-1", pagination={"page_size": 1})
    assert [sample.index async for sample in page.all_items()] == [3, 4]
    sample = page.items[0]
    assert (sample.truth.boxes[0].box, sample.predicted.text) == ((0, 0, 0.5, 1), "there")
    assert (sample.image.filename, sample.scores, sample.parse) == ("a.png", {"iou": 0.25}, "ok")
    first, second = (dict(request.url.params) for request in server.requests)
    assert first == {"s": "1", "orderBy": "score", "evaluation": "latest"}
    assert second["p"] == "t"
    server.answers({"items": []})
    await client.runs.samples("r-1", 20, "index")
    server.answers({"items": []})
    await client.runs.samples("r-1", index=3)
    server.answers({"items": [], "evaluations": [10, 20]})
    assert await client.runs.evaluations("r-1") == [10, 20]
    queries = [dict(request.url.params) for request in server.requests[2:4]]
    assert [query.get("evaluation") for query in queries] == ["20", None]
    assert queries[1]["index"] == "3"


async def test_the_image_of_a_sample_is_bytes(client: vi.AsyncClient, server: Any) -> None:
    server.script.append(httpx2.Response(200, content=b"picture"))
    assert await client.runs.sample_image("r-1", 3, size=160) == b"picture"
    assert server.asked == ["GET /workspaces/lab/runs/r-1/samples/3/image?size=160"]
