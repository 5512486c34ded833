"""The audit log: its entries, who may read them, and how long they are kept."""

import json
from typing import Any

import pytest

from runyard.server.services.operations import audit
from runyard.server.services.paging import PageRequest
from runyard.store import audit as rows
from tests.support import attempts
from tests.support.server import TestServer

DAY_S = 24 * 3600.0


async def entries(server: TestServer, **params: Any) -> list[dict[str, Any]]:
    answer = await (await server.api()).get(server.path("audit"), params={"s": 1000} | params)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


async def add(server: TestServer, *, org: str | None = None, **changes: Any) -> None:
    values: dict[str, Any] = {
        "org": server.org if org is None else org,
        "time_ms": server.clock.now_ms(),
        "actor": "key a",
        "address": "127.0.0.1",
        "action": "create run",
        "target": "r",
    }
    await server.services.store.write(lambda connection: rows.add(connection, **(values | changes)))


async def test_entries_are_filtered_and_paged_newest_first(server: TestServer) -> None:
    begun = server.clock.now_ms()
    for number in range(7):
        await add(
            server, target=f"r{number}", actor=f"key {'ab'[number % 2]}", action=f"act {number % 3}"
        )
        server.clock.forward(1)
    assert [entry["target"] for entry in await entries(server)] == [
        f"r{number}" for number in range(6, -1, -1)
    ]
    assert [entry["target"] for entry in await entries(server, actor="a")] == [
        "r6",
        "r4",
        "r2",
        "r0",
    ]
    assert await entries(server, actor="key a") == await entries(server, actor="a")
    assert [entry["target"] for entry in await entries(server, action="act 1", actor="b")] == ["r1"]
    between = await entries(server, since=begun + 1000, until=begun + 3000)
    assert [entry["target"] for entry in between] == ["r2", "r1"]
    assert await entries(server, action="' OR 1=1 --") == []

    api, seen, token = await server.api(), [], None
    while True:
        page = (
            await api.get(
                server.path("audit"), params={"s": 2, "p": token or "", "action": "act 0"}
            )
        ).json()
        seen += [entry["target"] for entry in page["items"]]
        token = page["nextPage"]
        if token is None:
            break
        elsewhere = await api.get(
            server.path("audit"), params={"s": 2, "p": token, "action": "act 1"}
        )
        assert elsewhere.json()["code"] == "InvalidPageToken"
    assert seen == ["r6", "r3", "r0"]
    for bad in (
        {"actor": "a\x00b"},
        {"action": "x" * 256},
        {"since": "yesterday"},
        {"until": "-1"},
    ):
        answer = await api.get(server.path("audit"), params=bad)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidQuery"), bad


async def test_an_organization_reads_its_own_entries_and_the_first_also_the_controllers(
    server: TestServer,
) -> None:
    await attempts.start(server)
    await add(server, org="org-other", target="theirs")
    assert [entry["action"] for entry in await entries(server)] == ["claim run", "create run"]
    page = await audit.page(
        server.services,
        org="org-other",
        filter=audit.AuditFilter(),
        page_request=PageRequest(question="audit"),
    )
    assert [entry["target"] for entry in json.loads(page)["items"]] == ["theirs"]


@pytest.mark.settings(audit_days=30)
@pytest.mark.parametrize("at_once", [10, 25, 1000])
async def test_old_entries_are_removed_and_recent_ones_kept(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(audit, "PRUNED_AT_ONCE", at_once)
    for number in range(25):
        await add(server, target=f"old {number}")
    server.clock.forward(29 * DAY_S)
    await add(server, target="young")
    await audit.sweep(server.services)
    assert len(await entries(server)) == 26
    server.clock.forward(DAY_S + 1)
    await audit.sweep(server.services)
    assert [entry["target"] for entry in await entries(server)] == ["young"]


@pytest.mark.settings(audit_days=0)
async def test_without_a_limit_entries_are_kept_forever(server: TestServer) -> None:
    await add(server)
    server.clock.forward(10_000 * DAY_S)
    await audit.sweep(server.services)
    assert len(await entries(server)) == 1
