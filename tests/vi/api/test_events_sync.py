# Generated from test_events_async.py by scripts/unasync: change that file, then run the script.
"""``client.events``, ``client.runs.events`` and ``client.runs.watch``: requests and results."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import vi
from vi.api.resources.events._sync import Events
from vi.api.resources.runs._sync import Runs

RunDocument = Callable[..., dict[str, Any]]
PATH = "/workspaces/lab/events"


@pytest.fixture
def client(server: Any, clock: Any, key: str) -> Iterator[vi.Client]:
    with vi.Client(key, "lab", transport=server.transport) as client:
        client._http.sleep = clock.sleep
        client.runs = Runs(client._http, "lab", clock=clock)
        client.events = Events(client._http, "lab", clock=clock)
        yield client


def event(number: int, target: str = "r-1", what: str = "condition") -> dict[str, Any]:
    return {"number": number, "kind": "run", "target": target, "what": what, "details": {"a": 1}}


def page(*events: dict[str, Any], next: int, reset: bool = False) -> dict[str, Any]:
    return {"items": list(events), "next": next, "reset": reset}


def test_a_page_of_events_is_requested_with_its_filters(client: vi.Client, server: Any) -> None:
    server.answers(page(event(8), next=9))
    found = client.events.list(7, run_id="r-1", kind="run", limit=5)
    assert (found.next, found.items[0].number, found.items[0].details) == (9, 8, {"a": 1})
    assert server.asked == [f"GET {PATH}?after=7&run=r-1&kind=run&limit=5"]


@pytest.mark.parametrize("after", [-1, "newest", True, 1.5])
def test_a_number_that_is_none_is_never_sent(client: vi.Client, server: Any, after: Any) -> None:
    with pytest.raises(vi.ViInvalidParameterError, match="after is"):
        client.events.list(after)
    with pytest.raises(vi.ViInvalidParameterError, match="after is"):
        client.runs.watch("r-1", after=after)
    assert server.asked == []


def test_all_events_so_far_are_read_page_by_page(client: vi.Client, server: Any) -> None:
    server.answers(page(event(1), event(2), next=2))
    server.answers(page(event(4), next=4))
    server.answers(page(next=4))
    assert [each.number for each in client.runs.events("r-1")] == [1, 2, 4]
    assert server.asked[0] == f"GET {PATH}?run=r-1&kind=run"
    assert server.asked[2] == f"GET {PATH}?after=4&run=r-1&kind=run"


def test_following_continues_after_an_outage_and_tells_of_lost_events(
    client: vi.Client, server: Any
) -> None:
    server.answers(page(next=5))
    server.answers(page(event(6), next=6))
    server.breaks()
    server.answers(status=503)
    server.refuses_connections()
    server.answers(page(event(7), next=7))
    server.answers(page(next=90, reset=True))
    server.answers(page(event(91), next=91))
    seen = []
    for each in client.events.iterate("latest", follow=True):
        seen.append((each.number, each.what))
        if each.number == 91:
            break
    assert seen == [(6, "condition"), (7, "condition"), (90, "reset"), (91, "condition")]
    assert server.asked[0] == f"GET {PATH}?after=latest"
    assert server.asked[2:6] == [f"GET {PATH}?after=6&wait=15"] * 4
    assert server.asked[-1] == f"GET {PATH}?after=90&wait=15"


def test_a_server_that_goes_back_is_an_error(client: vi.Client, server: Any) -> None:
    server.answers(page(event(3), next=3))
    with pytest.raises(vi.PaginationError, match="after 6"):
        for _ in client.events.iterate(6):
            pass


def test_watching_a_run_begins_with_its_state_and_ends_with_its_end(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(page(next=5))
    server.answers(run_document("Pending"))
    server.answers(page(event(6), event(7), next=7))
    server.answers(run_document("Pending", "Running", "Succeeded"))
    server.answers(page(next=7))
    seen = list(client.runs.watch("r-1"))
    assert [(change.number, change.event and change.event.number) for change in seen] == [
        (5, None), (6, 6), (7, 7),
    ]  # fmt: skip
    assert [change.run and change.run.condition for change in seen] == [
        "Pending", "Succeeded", "Succeeded",
    ]  # fmt: skip
    assert server.asked[2] == f"GET {PATH}?after=5&run=r-1&kind=run&wait=15"
    assert server.asked[4] == f"GET {PATH}?after=7&run=r-1&kind=run"


def test_a_watch_that_continues_repeats_nothing_and_ends_when_the_run_is_deleted(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(run_document("Pending", "Running"))
    server.answers(page(event(8, what="deleted"), next=8))
    server.answers(status=404)
    server.answers(page(next=8))
    [change] = list(client.runs.watch("r-1", after=7))
    assert (change.run, change.number) == (None, 8)


def test_a_run_that_does_not_exist_cannot_be_watched(client: vi.Client, server: Any) -> None:
    server.answers(page(next=5))
    server.answers(status=404)
    with pytest.raises(vi.ViNotFoundError):
        for _ in client.runs.watch("r-1"):
            pass


def test_a_filter_selects_runs_and_the_last_change_of_each_is_yielded(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    run = run_document("Pending", "Running")
    server.answers(page(next=5))
    server.answers({"items": [run]})  # r-1 matches at the begin
    server.answers(page(event(6), event(7, "other"), event(8), next=8))
    server.answers({"items": []})  # r-1 no longer does
    server.answers({"items": []})  # the other one does not
    seen = []
    for change in client.runs.watch(filter="condition:Running"):
        seen.append((change.number, change.run))
        if change.number == 8:
            break
    assert seen == [(6, None), (8, None)]
    assert server.asked[3] == "GET /workspaces/lab/runs?filter=condition%3ARunning+id%3Ar-1"
    with pytest.raises(vi.ViInvalidParameterError, match="one of them"):
        client.runs.watch("r-1", filter="owner=kim")
