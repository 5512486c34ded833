"""Events: each change has one, numbered in the order of commits, read once and in order."""

from typing import Any

import pytest

from runyard.server.http.routes import ROUTES
from runyard.server.services import events
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
    changed = {"metadata": {"attributes": {"owner": "kim"}}}
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
    assert by_what["evaluation"]["details"]["values"] == {"validation/loss": 0.5}
    assert by_what["attempt-ended"]["details"]["cause"] == "exit code 64"
    assert by_what["checkpoint"]["details"]["checkpoint"] == "epoch-1"
    assert by_what["warning"]["details"]["message"] == "the learning rate is high"
    assert {event["kind"] for event in page["items"]} == {"run"}


CHANGES_NO_RESOURCE = {
    # They are in the audit log, for admins; what they change is no resource that is watched.
    ("POST", "keys"),
    ("POST", "keys/{}/rotations"),
    ("DELETE", "keys/{}"),
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
    assert seen - test_audited.CHANGES_NOTHING == MUTATING
    assert MUTATING >= CHANGES_NO_RESOURCE
    assert {get_shape(route.path) for route in ROUTES} >= {"events"}
