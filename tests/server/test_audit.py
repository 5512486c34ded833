"""The audit log: what is in it, who may read it, how long it is kept."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from runyard.server.services.operations import audit
from runyard.store import audit as rows

DAY_S = 24 * 3600.0


async def entries(house: Any, **params: Any) -> list[dict[str, Any]]:
    answer = await (await house.api()).get(house.path("audit"), params={"s": 1000} | params)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


async def add(house: Any, *, org: str | None = None, **changes: Any) -> None:
    values = {
        "org": house.org if org is None else org,
        "time_ms": house.clock.now_ms(),
        "actor": "key a",
        "address": "127.0.0.1",
        "action": "create run",
        "target": "r",
    }
    await house.services.store.write(lambda connection: rows.add(connection, **(values | changes)))


def test_entries_are_filtered_and_paged_newest_first(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        begun = house.clock.now_ms()
        for number in range(7):
            await add(house, target=f"r{number}", actor=f"key {'ab'[number % 2]}", action=f"act {number % 3}")
            house.clock.forward(1)
        assert [entry["target"] for entry in await entries(house)] == [f"r{number}" for number in range(6, -1, -1)]
        assert [entry["target"] for entry in await entries(house, actor="a")] == ["r6", "r4", "r2", "r0"]
        assert await entries(house, actor="key a") == await entries(house, actor="a")
        assert [entry["target"] for entry in await entries(house, action="act 1", actor="b")] == ["r1"]
        between = await entries(house, since=begun + 1000, until=begun + 3000)
        assert [entry["target"] for entry in between] == ["r2", "r1"]
        assert await entries(house, action="' OR 1=1 --") == []

        api, seen, token = await house.api(), [], None
        while True:
            page = (await api.get(house.path("audit"), params={"s": 2, "p": token or "", "action": "act 0"})).json()
            seen += [entry["target"] for entry in page["items"]]
            token = page["nextPage"]
            if token is None:
                break
            elsewhere = await api.get(house.path("audit"), params={"s": 2, "p": token, "action": "act 1"})
            assert elsewhere.json()["code"] == "InvalidPageToken"
        assert seen == ["r6", "r3", "r0"]
        for bad in ({"actor": "a\x00b"}, {"action": "x" * 256}, {"since": "yesterday"}, {"until": "-1"}):
            answer = await api.get(house.path("audit"), params=bad)
            assert (answer.status_code, answer.json()["code"]) == (400, "InvalidQuery"), bad

    in_house(story)


def test_an_organization_reads_its_own_entries_and_the_first_the_controllers_too(
    in_house: Callable[..., None], acts: Any
) -> None:
    async def story(house: Any) -> None:
        await acts.running(house)
        await add(house, org="org-other", target="theirs")
        assert [entry["action"] for entry in await entries(house)] == ["claim run", "create run"]
        page = await audit.page(
            house.services, org="org-other", filter=audit.AuditFilter(), wanted=audit.PageRequest(question="audit")
        )
        assert [entry["target"] for entry in json.loads(page)["items"]] == ["theirs"]

    in_house(story)


@pytest.mark.parametrize("at_once", [10, 25, 1000])
def test_old_entries_are_removed_and_young_ones_stay(
    in_house: Callable[..., None], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(audit, "PRUNED_AT_ONCE", at_once)

    async def story(house: Any) -> None:
        for number in range(25):
            await add(house, target=f"old {number}")
        house.clock.forward(29 * DAY_S)
        await add(house, target="young")
        await audit.sweep(house.services)
        assert len(await entries(house)) == 26
        house.clock.forward(DAY_S + 1)
        await audit.sweep(house.services)
        assert [entry["target"] for entry in await entries(house)] == ["young"]

    in_house(story, audit_days=30)


def test_without_a_limit_entries_stay_for_good(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        await add(house)
        house.clock.forward(10_000 * DAY_S)
        await audit.sweep(house.services)
        assert len(await entries(house)) == 1

    in_house(story, audit_days=0)
