"""Events: each change has one, numbered in the order of commits, read once and in order."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import Mock

import pytest

from runyard.server.http.routes import ROUTES
from runyard.server.services import event_stream, events, hints
from runyard.server.services.notifications import run_topic
from runyard.store import events as rows
from tests.server import test_audited
from tests.server.test_audited import MUTATING, AuditWatch, get_shape
from tests.support import attempts
from tests.support.server import TestServer


async def read_events(server: TestServer, **query: Any) -> dict[str, Any]:
    answer = await (await server.api()).get(server.path("events"), params=query)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def outline(page: dict[str, Any]) -> list[str]:
    """Return each event as what has happened and why."""
    return [
        f"{event['what']} {event['details'].get('reason') or ''}".strip() for event in page["items"]
    ]


async def test_a_run_from_creation_to_deletion_leaves_its_events_in_order(
    server: TestServer,
) -> None:
    attempt, api = await attempts.start(server), await server.api()
    await attempt.event("phase", phase="Training")
    for step in range(3):
        await attempt.event("step", step=step, totalSteps=9, values={"loss": 1.0})
    await attempt.event("warning", message="the learning rate is high")
    await attempt.event("evaluation", step=3, values={"validation/loss": 0.5})
    await attempt.checkpoint()
    changed = {"metadata": {"attributes": {"owner": "kim"}, "name": "second try"}}
    await api.patch(server.path("runs/r1"), json=changed)
    await api.patch(server.path("runs/r1"), json={"spec": {"killedAt": 1}})
    await attempt.finish(64)
    await api.delete(server.path("runs/r1"))

    page = await read_events(server)
    assert [event["number"] for event in page["items"]] == list(range(1, page["next"] + 1))
    assert outline(page) == [
        "created Queued",
        "reason WaitingForWorker",
        "attempt-started",
        "condition Preparing",
        "reason Training",
        "warning",
        "evaluation",
        "checkpoint",
        "updated",
        "kill",
        "reason Stopping",
        "attempt-ended",
        "condition KilledByUser",
        "deleted",
    ]
    by_what = {event["what"]: event for event in page["items"]}
    key = f"key {server.key[7:23]}"
    assert {what: by_what[what]["actor"] for what in ("created", "kill", "deleted", "warning")} == {
        "created": key, "kill": key, "deleted": key, "warning": "",
    }  # fmt: skip
    assert by_what["updated"]["details"] == {"changed": ["attributes", "name"]}
    assert by_what["evaluation"]["details"]["values"] == {"validation/loss": 0.5}
    assert by_what["attempt-ended"]["details"]["cause"] == "exit code 64"
    assert by_what["checkpoint"]["details"]["checkpoint"] == "epoch-1"
    assert by_what["warning"]["details"]["message"] == "the learning rate is high"
    assert {event["kind"] for event in page["items"]} == {"run"}
    check_meanings(page)


def check_meanings(page: dict[str, Any]) -> None:
    """Check that every event is one of the documented ones."""
    assert {(event["kind"], event["what"]) for event in page["items"]} <= {
        (kind, what) for kind, meanings in events.MEANINGS.items() for what in meanings
    }


CHANGES_NO_RESOURCE = {
    # They are in the audit log, for admins; what they change is no resource that is watched.
    ("POST", "keys"),
    ("POST", "keys/{}/rotations"),
    ("DELETE", "keys/{}"),
    ("DELETE", "sessions/{}"),
    ("POST", "machineInvitations"),
    ("DELETE", "machineInvitations/{}"),
    ("PATCH", "machines/{}"),
    ("DELETE", "machines/{}"),
    ("POST", "storage/collections"),
    ("POST", "storage/backups"),
    ("POST", "storage/restores"),  # watchers are sent a reset
    # Steps of an upload or an import, whose start and end are events, and a derived file.
    ("POST", "datasets/{}/datasetExports"),
    ("POST", test_audited.SOURCE + "/multipartUploads"),
    ("DELETE", test_audited.SOURCE + "/multipartUploads/{}"),
    ("POST", test_audited.SOURCE + "/multipartUploads/{}/completion"),
    ("POST", "datasets/{}/annotationImportSessions/{}/files"),
}


class EventWatch(AuditWatch):
    """Sends the same requests, and checks that each leaves an event, or that none is expected."""

    async def __call__(
        self, method: str, template: str, *ids: str, rows: int = 1, **request: Any
    ) -> Any:
        before = events.read_newest_number(self.server.services, org=self.server.org)
        answer = await super().__call__(method, template, *ids, rows=rows, **request)
        if (method, template) not in test_audited.CHANGES_NOTHING | CHANGES_NO_RESOURCE:
            await self.server.services.jobs.wait_until_idle()
            after = events.read_newest_number(self.server.services, org=self.server.org)
            assert (after > before) == bool(rows), (method, template)
        return answer


async def test_every_mutating_route_leaves_an_event(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_audited, "AuditWatch", EventWatch)
    seen = await test_audited.change_everything(server)
    check_meanings(await read_events(server))
    assert seen - test_audited.CHANGES_NOTHING == MUTATING
    assert MUTATING >= CHANGES_NO_RESOURCE
    assert {get_shape(route.path) for route in ROUTES} >= {"events"}


async def test_a_page_is_limited_and_continues_after_its_last_event(server: TestServer) -> None:
    api = await server.api()
    for number in range(5):
        await api.put(server.path(f"runs/r{number}"), json={"spec": {}})
    first = await read_events(server, limit=3)
    assert [event["target"] for event in first["items"]] == ["r0", "r1", "r2"]
    rest = await read_events(server, after=first["next"], limit=3)
    assert [event["target"] for event in rest["items"]] == ["r3", "r4"]
    assert await read_events(server, after=rest["next"]) == {
        "items": [], "next": rest["next"], "reset": False,
    }  # fmt: skip
    assert (await read_events(server, after="latest"))["next"] == rest["next"]


async def test_events_of_one_run_or_kind_are_found_and_the_position_advances_past_others(
    server: TestServer,
) -> None:
    api = await server.api()
    await api.put(server.path("runs/r1"), json={"spec": {}})
    await api.put(server.path("flows/r1"), json={"spec": {"name": "x"}})
    await api.put(server.path("trainingProjects/p1"), json={"spec": {"name": "x"}})
    await api.put(server.path("runs/r2"), json={"spec": {}})
    of_run = await read_events(server, run="r1")
    assert [(event["kind"], event["target"]) for event in of_run["items"]] == [("run", "r1")]
    of_kind = await read_events(server, kind="flow")
    assert [(event["kind"], event["target"]) for event in of_kind["items"]] == [("flow", "r1")]
    assert of_run["next"] == of_kind["next"] == 4
    assert (await read_events(server, run="unknown", after=2))["next"] == 4


@pytest.mark.parametrize(
    "query", ["after=x", "after=-1", "limit=0", "kind=key", "run=a.b", "wait=x"]
)
async def test_a_query_that_is_not_understood_is_refused(server: TestServer, query: str) -> None:
    answer = await (await server.api()).get(server.path(f"events?{query}"))
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] in ("InvalidQuery", "InvalidId")


async def test_a_long_poll_returns_with_the_next_event(server: TestServer) -> None:
    polling = asyncio.create_task(read_events(server, after=0, wait=30))
    await asyncio.sleep(0.05)
    assert not polling.done()
    await (await server.api()).put(server.path("runs/r1"), json={"spec": {}})
    assert outline(await polling) == ["created Queued"]


async def test_a_long_poll_for_one_run_does_not_return_with_events_of_others(
    server: TestServer,
) -> None:
    api = await server.api()
    polling = asyncio.create_task(read_events(server, after=0, wait=30, run="r2"))
    await asyncio.sleep(0.05)
    await api.put(server.path("runs/r1"), json={"spec": {}})
    await asyncio.sleep(0.05)
    assert not polling.done()
    await api.put(server.path("runs/r2"), json={"spec": {}})
    page = await polling
    assert (outline(page), page["next"]) == (["created Queued"], 2)


async def test_a_reader_whose_next_events_were_removed_is_told_to_begin_again(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await server.api()
    for number in range(6):
        await api.put(server.path(f"runs/r{number}"), json={"spec": {}})
    monkeypatch.setattr(events, "MOST_KEPT", 2)
    await events.sweep(server.services)
    assert await read_events(server, after=3) == {"items": [], "next": 6, "reset": True}
    assert [e["number"] for e in (await read_events(server, after=4))["items"]] == [5, 6]
    assert [e["number"] for e in (await read_events(server))["items"]] == [5, 6]
    assert (await read_events(server, after=7))["reset"], "a number from the future"
    server.clock.forward((events.KEPT_DAYS + 1) * 24 * 3600)
    await events.sweep(server.services)
    assert await read_events(server) == {"items": [], "next": 6, "reset": False}
    await api.put(server.path("runs/new"), json={"spec": {}})
    assert [e["number"] for e in (await read_events(server, after=6))["items"]] == [7]


async def test_watchers_from_before_a_restore_are_reset_and_numbers_do_not_go_back(
    server: TestServer,
) -> None:
    api = await server.api()
    await api.put(server.path("runs/kept"), json={"spec": {}})
    backup = await api.post(server.path("storage/backups"))
    await api.put(server.path("runs/lost"), json={"spec": {}})
    before = (await read_events(server))["next"]
    chunks = event_stream.iterate(server.services, server.org, before)
    assert await anext(chunks) == b"retry: 1000\nid: %d\n\n" % before
    polling = asyncio.create_task(read_events(server, after=before, wait=30))
    await asyncio.sleep(0.05)
    restored = await api.post(server.path("storage/restores"), content=backup.content)
    assert restored.status_code == 200, restored.text

    page = await polling
    assert (page["items"], page["reset"]) == ([], True)
    assert page["next"] >= before + rows.RESTORE_GAP
    assert b"event: reset\n" in await anext(chunks)
    await chunks.aclose()
    await api.put(server.path("runs/new"), json={"spec": {}})
    following = await read_events(server, after=page["next"])
    assert [(event["target"], event["number"]) for event in following["items"]] == [
        ("new", page["next"] + 1)
    ]
    assert [event["target"] for event in (await read_events(server))["items"]] == ["kept", "new"]


def parse_hints(chunk: bytes) -> list[dict[str, Any]]:
    parts = chunk.decode().split("\n\n")
    prefix = "event: hint\ndata: "
    return [json.loads(part.removeprefix(prefix)) for part in parts if part.startswith(prefix)]


async def read_hint(chunks: AsyncIterator[bytes]) -> dict[str, Any]:
    while not (hints := parse_hints(await anext(chunks))):
        pass
    [hint] = hints
    return hint


async def read_update(chunks: AsyncIterator[bytes]) -> tuple[dict[str, Any], str]:
    """Return the next hint, and the data of the points before it."""
    while not (found := parse_hints(chunk := await anext(chunks))):
        pass
    _, _, points = chunk.decode().rpartition("event: points\ndata: ")
    return found[0], points.partition("\n")[0] if b"event: points" in chunk else ""


async def test_a_hint_tells_what_a_run_has_and_those_of_a_slow_reader_are_merged(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HINT_EVERY_S", 0.1)
    attempt = await attempts.start(server)
    chunks = event_stream.iterate(server.services, server.org, None)
    await anext(chunks)
    await attempt.event("step", step=7, totalSteps=9, values={"loss": 1.0})
    hint = await read_hint(chunks)
    run = (await (await server.api()).get(server.path("runs/r1"))).json()
    expected = {"run": "r1", "points": 1, "step": 7, "totalSteps": 9, "etag": run["etag"]}
    assert {name: hint[name] for name in expected} == expected
    for step in range(8, 28):
        await attempt.event("step", step=step, totalSteps=99, values={"loss": 1.0})
    begun_s = asyncio.get_running_loop().time()
    merged = await read_hint(chunks)
    assert (merged["step"], merged["points"]) == (27, 21)
    await attempt.ship("a line", stream="stdout")
    assert (await read_hint(chunks))["lines"] == merged["lines"] + 1
    # At most one hint in each period.
    assert asyncio.get_running_loop().time() - begun_s >= 0.1
    await chunks.aclose()


async def test_a_stream_of_one_run_has_only_its_events_and_hints(server: TestServer) -> None:
    first, second = await attempts.start(server, "r1"), await attempts.start(server, "r2")
    filter = events.EventFilter(run_id="r2")
    chunks = event_stream.iterate(server.services, server.org, None, filter=filter)
    await anext(chunks)
    for attempt in (first, second):
        await attempt.event("step", step=1, values={"loss": 1.0})
    chunk = await anext(chunks)
    assert b'"target":"r1"' not in chunk
    hint = parse_hints(chunk) or [await read_hint(chunks)]
    assert [each["run"] for each in hint] == ["r2"]
    await chunks.aclose()


async def test_streams_that_watch_a_run_get_its_new_points_from_one_read(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await attempts.start(server)
    read_update_of = Mock(side_effect=hints._read_update)
    monkeypatch.setattr(hints, "_read_update", read_update_of)
    watched = [
        event_stream.iterate(server.services, server.org, None, watched={"r1"}, hint_every_s=0.05)
        for _ in range(3)
    ]
    other = event_stream.iterate(server.services, server.org, None, hint_every_s=0.05)
    for chunks in (*watched, other):
        await anext(chunks)
    points: list[dict[str, Any]] = []
    for step in range(1, 4):
        await attempt.event("step", step=step, epoch=step / 8, values={"loss": 1 / step})
        read_update_of.reset_mock()
        answers = await asyncio.gather(*map(read_update, (*watched, other)))
        assert read_update_of.call_count == 1
        assert {answer for _, answer in answers[:3]} == {answers[0][1]}
        assert answers[3][1] == ""
        assert {hint["points"] for hint, _ in answers} == {step}
        points += [json.loads(text) for _, text in answers[:1] if text]
    # What was there before somebody looked is fetched.
    assert [each["after"] for each in points] == [1, 2]
    assert [each["rows"][0][0] for each in points] == [2, 3]
    assert points[-1]["rows"][0][2:] == [3 / 8, {"loss": 1 / 3}]

    # Of many points at once only the hint says so.
    lines = [
        {"ev": "step", "step": step, "values": {"loss": 0.5}}
        for step in range(4, 5 + hints.MOST_POINTS)
    ]
    await attempt.ship(*map(json.dumps, lines))
    hint, brought = await read_update(watched[0])
    assert (hint["points"], brought) == (4 + hints.MOST_POINTS, "")
    for chunks in (*watched, other):
        await chunks.aclose()


async def test_a_new_run_is_announced_to_those_who_wait_for_it(server: TestServer) -> None:
    event = server.services.notifier.watch(run_topic(server.org, "r1"))
    await (await server.api()).put(server.path("runs/r1"), json={"spec": {}})
    assert event.is_set()
