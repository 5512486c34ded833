"""Requests without a valid key are counted and limited by address; valid keys still work."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from runyard.security import key_format
from runyard.security.key_format import new_key
from runyard.server.services.access import keys, wrong_keys
from runyard.server.services.access.key_lifecycle import write_usage
from runyard.server.services.access.keys import Rejection, StoredKey
from runyard.server.services.access.wrong_keys import BURST, MOST_ADDRESSES, MOST_ROWS, WrongKeys
from tests.support.server import TestServer, open_server

NOBODY = Rejection(org=None, key_id=None, reason="no key")


async def rejected(server: TestServer) -> list[dict[str, Any]]:
    answer = await (await server.api()).get(
        server.path("audit"), params={"action": "reject key", "s": 1000}
    )
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


def attempt(
    limiter: WrongKeys, address: str, *, at_s: float = 0.0, rejection: Rejection = NOBODY
) -> str:
    return limiter.reject(address, rejection, now_ms=round(at_s * 1000), now_s=at_s).code


async def test_four_hundred_wrong_keys_get_429_and_valid_keys_keep_working(
    server: TestServer,
) -> None:
    wrong, valid, nobody = (
        await server.client(new_key()),
        await server.api(),
        await server.client(None),
    )
    statuses = []
    for _ in range(400):
        server.clock.forward(0.1)
        answer = await wrong.get(server.path("runs"))
        statuses.append(answer.status_code)
    assert statuses[0] == 401
    assert set(statuses) == {401, 429}
    assert (answer.status_code, answer.json()["code"]) == (429, "TooManyRequests")
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    for path in (
        server.path("runs"),
        "/internal/v1/claims",
        "/internal/v1/attempt/renew",
        "/nowhere",
    ):
        assert (await nobody.get(path)).status_code == 429, "from this address also without any key"
    assert (await valid.get(server.path("runs"))).status_code == 200
    assert (await nobody.get("/health")).status_code == 200
    server.clock.forward(int(answer.headers["retry-after"]))
    assert (await wrong.get(server.path("runs"))).status_code == 401
    [entry, *others] = await rejected(server)
    assert sum(each["count"] for each in (entry, *others)) == 405


async def test_a_valid_key_on_the_wrong_kind_of_route_is_not_counted_as_rejected(
    server: TestServer,
) -> None:
    controller = await server.client(server.controller_key)
    assert (await controller.get(server.path("runs"))).status_code == 401
    assert await rejected(server) == []


async def test_only_the_audit_log_distinguishes_rejected_keys(server: TestServer) -> None:
    now_ms = server.clock.now_ms()
    secrets = {name: new_key() for name in ("revoked", "expired", "wrong secret", "unknown")}
    for name, changes in (
        ("revoked", {"revoked": 1}),
        ("expired", {"expires": now_ms}),
        ("wrong secret", {"secret_mac": b"another"}),
    ):
        parts = key_format.parse(secrets[name])
        assert parts is not None
        mac = keys.secret_mac(server.services.pepper, parts.secret)
        key = StoredKey(
            id=parts.key_id,
            org=server.org,
            role="admin",
            secret_mac=mac,
            expires=None,
            revoked=None,
        )
        server.services.keyring.add(replace(key, **changes))
    texts = [*secrets.values(), None]
    answers = [await (await server.client(text)).get(server.path("runs")) for text in texts]
    assert {(answer.status_code, answer.text) for answer in answers} == {(401, answers[0].text)}
    targets = {entry["target"] for entry in await rejected(server)}
    named = {f"key {secrets[name][7:23]}: {name}" for name in secrets}
    assert targets == named
    entries = await rejected(server)
    assert {entry["address"] for entry in entries} == {"127.0.0.1"}
    assert {entry["actor"] for entry in entries} == {"nobody"}
    # No key at all shares the row of ids that are in no store.
    assert sum(entry["count"] for entry in entries) == 5
    for text in secrets.values():
        assert text[23:97] not in str(entries)


async def test_rejections_within_a_minute_share_a_row_and_the_next_minute_starts_another(
    server: TestServer,
) -> None:
    nobody = await server.client(None)
    server.clock.epoch_ms = 60_000 * 28_000_000
    for _ in range(3):
        await nobody.get("/")
        assert len(await rejected(server)) == 1
    server.clock.forward(59.9)
    await nobody.get("/")
    assert [entry["count"] for entry in await rejected(server)] == [4]
    server.clock.forward(0.1)
    await nobody.get("/")
    assert [entry["count"] for entry in await rejected(server)] == [1, 4]


def test_rejections_are_written_when_the_server_stops(tmp_path: Any) -> None:
    async def scenario() -> None:
        async with open_server(tmp_path / "data") as server:
            await (await server.client(None)).get("/")
        async with open_server(tmp_path / "data") as server:
            assert [entry["count"] for entry in await rejected(server)] == [1]

    asyncio.run(scenario())


async def test_two_concurrent_writers_write_a_row_once(server: TestServer) -> None:
    await (await server.client(None)).get("/")
    await asyncio.gather(*(write_usage(server.services) for _ in range(5)))
    assert [entry["count"] for entry in await rejected(server)] == [1]


async def test_many_addresses_fill_neither_memory_nor_disk(server: TestServer) -> None:
    limiter = server.services.wrong_keys
    for number in range(3 * MOST_ADDRESSES):
        now_ms, now_s = server.clock.now_ms(), server.clock.monotonic_s()
        unknown = Rejection(org=None, key_id=f"{number:016}", reason="unknown")
        limiter.reject(
            f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
            unknown,
            now_ms=now_ms,
            now_s=now_s,
        )
    assert len(limiter._buckets) == MOST_ADDRESSES
    entries = await rejected(server)
    assert len(entries) == MOST_ROWS + 1
    assert sum(entry["count"] for entry in entries) == 3 * MOST_ADDRESSES
    assert entries[0]["address"] == wrong_keys.ELSEWHERE


def test_unwritten_rejections_are_bounded() -> None:
    limiter = WrongKeys()
    for minute in range(200):
        for number in range(30):
            attempt(limiter, f"10.0.0.{number}", at_s=60.0 * minute)
    assert len(limiter._unwritten) == wrong_keys.MOST_UNWRITTEN


def test_the_limit_is_per_address_and_an_ipv6_host_has_one() -> None:
    limiter = WrongKeys()
    for _ in range(BURST):
        assert attempt(limiter, "192.0.2.1") == "Unauthorized"
    assert attempt(limiter, "192.0.2.1") == "TooManyRequests"
    assert attempt(limiter, "::ffff:192.0.2.1") == "TooManyRequests"
    assert attempt(limiter, "192.0.2.2") == "Unauthorized"
    for number in range(BURST):
        assert attempt(limiter, f"2001:db8::{number:x}") == "Unauthorized"
    assert attempt(limiter, "2001:db8::ffff:1") == "TooManyRequests"
    assert attempt(limiter, "2001:db8:0:1::1") == "Unauthorized"
    for odd in ("", "not an address", "1:2:3"):
        assert attempt(limiter, odd) == "Unauthorized"


@pytest.mark.parametrize("pause_s", [0.0, 0.5, 2.0])
def test_tokens_refill_over_time(pause_s: float) -> None:
    limiter = WrongKeys()
    for _ in range(BURST):
        attempt(limiter, "192.0.2.1")
    codes = [attempt(limiter, "192.0.2.1", at_s=pause_s * number) for number in range(1, 101)]
    assert codes.count("Unauthorized") == min(100, int(100 * pause_s))
