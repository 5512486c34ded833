"""Keys are created, listed, revoked, rotated and recovered, and a key that has ended opens nothing."""

import asyncio
import json
import stat
from collections.abc import Callable
from typing import Any

import pytest

from runyard.server.http import access
from runyard.server.services.access import key_lifecycle
from runyard.server.services.access.keys import LENGTH, parse
from runyard.server.services.operations import backups
from runyard.store import StoreUnavailable
from runyard.store import keys as key_rows
from runyard.store.tables import keys as table
from tests.server.test_backups import put_back, rewritten, take

HOUR_MS = 3600_000


async def issue(house: Any, **spec: Any) -> dict[str, Any]:
    answer = await (await house.api()).post(house.path("keys"), json={"spec": {"name": "ci"} | spec})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def rotate(house: Any, key_id: str, **spec: Any) -> Any:
    return await (await house.api()).post(house.path(f"keys/{key_id}/rotations"), json={"spec": spec})


async def opens(house: Any, secret_key: str) -> bool:
    status = (await (await house.client(secret_key)).get(house.path("runs"))).status_code
    assert status in (200, 401)
    return bool(status == 200)


async def actions(house: Any) -> list[tuple[str, str]]:
    items = (await (await house.api()).get(house.path("audit"), params={"s": 100})).json()["items"]
    return [(entry["action"], entry["target"]) for entry in reversed(items)]


def own_id(house: Any) -> str:
    return str(house.key[7:23])


def test_a_key_is_created_used_and_revoked(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        api = await house.api()
        key = await issue(house, role="viewer")
        key_id, secret = key["keyId"], key["secretKey"]
        assert len(secret) == LENGTH
        assert secret[7:23] == key_id
        assert (key["spec"], key["status"]["state"]) == ({"name": "ci", "role": "viewer", "expires": None}, "Active")
        assert key["status"]["createdBy"] == f"key {own_id(house)}"
        assert (key["status"]["lastUsed"], key["workspaceId"]) == (None, house.org)

        assert await opens(house, secret)
        denied = await (await house.client(secret)).put(house.path("runs/r1"), json={"spec": {}})
        assert denied.json()["code"] == "RoleForbidden"
        read = await api.get(key["selfLink"])
        assert "secretKey" not in read.json()
        assert read.json()["status"]["lastUsed"] == house.clock.now_ms()
        listed = (await api.get(house.path("keys"), params={"s": 1})).json()
        assert [item["keyId"] for item in listed["items"]] in ([key_id], [own_id(house)])  # of the same millisecond
        rest = (await api.get(house.path("keys"), params={"s": 1, "p": listed["nextPage"]})).json()
        ids = [item["keyId"] for item in (*listed["items"], *rest["items"])]
        assert (sorted(ids), rest["nextPage"]) == (sorted([key_id, own_id(house)]), None)

        for _ in range(2):  # a repeat after a lost response is harmless
            revoked = await api.delete(key["selfLink"])
            assert (revoked.status_code, revoked.json()["status"]["state"]) == (200, "Revoked")
        assert not await opens(house, secret)
        assert await actions(house) == [
            ("create key", f"{key_id} (viewer)"),
            ("revoke key", key_id),
            ("reject key", f"key {key_id}: revoked"),
        ]

    in_house(story)


def test_no_secret_of_a_key_is_kept_or_logged(in_house: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    async def story(house: Any) -> None:
        caplog.set_level("DEBUG")
        created = await issue(house)
        rotated = (await rotate(house, created["keyId"])).json()
        written = [str(row) for row in house.services.store.read(key_rows.list_all)]
        written += [str(entry) for entry in await actions(house)] + caplog.messages
        written += [(await (await house.api()).get(house.path("keys"))).text]
        for key in (created, rotated):
            parts = parse(key["secretKey"])
            assert parts is not None
            assert not any(parts.secret in text for text in written)

    in_house(story)


def test_a_key_expires_at_its_time(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        now_ms = house.clock.now_ms()
        key = await issue(house, role="admin", expires=now_ms + HOUR_MS)
        assert await opens(house, key["secretKey"])
        house.clock.forward(3599.999)
        assert await opens(house, key["secretKey"])
        house.clock.forward(0.001)
        assert not await opens(house, key["secretKey"])
        assert (await (await house.api()).get(key["selfLink"])).json()["status"]["state"] == "Expired"
        past = await (await house.api()).post(house.path("keys"), json={"spec": {"name": "x", "expires": now_ms}})
        assert (past.status_code, past.json()["code"]) == (400, "InvalidBody")
        assert past.json()["problems"][0]["path"] == "/spec/expires"

    in_house(story)


def test_a_key_that_cannot_be_is_rejected(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        for spec in (
            {},
            {"name": ""},
            {"name": "n" * 256},
            {"name": "a\x00b"},
            {"name": "a\nb"},
            {"name": "x", "role": "controller"},
            {"name": "x", "role": "root"},
            {"name": "x", "expires": -1},
            {"name": "x", "expires": 2**63},
            {"name": "x", "expires": "tomorrow"},
            {"name": "x", "secretKey": "mine"},
            {"name": "x", "keyId": "mine"},
        ):
            answer = await (await house.api()).post(house.path("keys"), json={"spec": spec})
            assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBody"), spec
        assert len(house.services.store.read(key_rows.list_all)) == 2

    in_house(story)


def test_a_rotation_replaces_a_key_at_once_or_after_an_overlap(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        api, now_ms = await house.api(), house.clock.now_ms()
        first = await issue(house, role="member", expires=now_ms + 24 * HOUR_MS)
        house.clock.forward(3600)
        answer = await rotate(house, first["keyId"], overlapSeconds=60)
        assert answer.status_code == 201, answer.text
        second = answer.json()
        assert second["keyId"] != first["keyId"]
        # The same name, role and lifetime.
        assert second["spec"] == first["spec"] | {"expires": now_ms + 25 * HOUR_MS}
        old = (await api.get(first["selfLink"])).json()
        assert (old["status"]["replacedBy"], old["status"]["state"]) == (second["keyId"], "Active")
        assert [await opens(house, key["secretKey"]) for key in (first, second)] == [True, True]
        # Again, because the response was lost: the lifetime is still that of the key, not of its overlap.
        again = (await rotate(house, first["keyId"], overlapSeconds=60)).json()
        assert again["spec"] == second["spec"]
        house.clock.forward(60)
        assert [await opens(house, key["secretKey"]) for key in (first, second)] == [False, True]
        assert (await rotate(house, first["keyId"])).json()["code"] == "KeyEnded"

        third = (await rotate(house, second["keyId"], expires=house.clock.now_ms() + HOUR_MS)).json()
        assert third["spec"]["expires"] == house.clock.now_ms() + HOUR_MS
        assert [await opens(house, key["secretKey"]) for key in (second, third)] == [False, True]
        assert (await rotate(house, second["keyId"])).json()["code"] == "KeyEnded"
        assert (await rotate(house, "nobody")).json()["code"] == "NotFound"
        assert (await rotate(house, third["keyId"], overlapSeconds=-1)).json()["code"] == "InvalidBody"

    in_house(story)


def test_an_overlap_never_lengthens_a_life(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        key = await issue(house, expires=house.clock.now_ms() + HOUR_MS)
        await rotate(house, key["keyId"], overlapSeconds=7200)
        house.clock.forward(3600)
        assert not await opens(house, key["secretKey"])

    in_house(story)


def test_the_last_admin_key_that_does_not_expire_stays(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        api = await house.api()
        await issue(house, role="member")
        passing = await issue(house, role="admin", expires=house.clock.now_ms() + HOUR_MS)
        refused = await api.delete(house.path(f"keys/{own_id(house)}"))
        assert (refused.status_code, refused.json()["code"]) == (409, "LastAdminKey")
        ending = await rotate(house, own_id(house), expires=house.clock.now_ms() + HOUR_MS)
        assert (ending.status_code, ending.json()["code"]) == (409, "LastAdminKey")
        assert await opens(house, house.key)
        assert (await api.delete(passing["selfLink"])).status_code == 200

        second = await issue(house, role="admin")
        assert (await api.delete(house.path(f"keys/{own_id(house)}"))).status_code == 200
        assert not await opens(house, house.key)
        other = await house.client(second["secretKey"])
        assert (await other.delete(second["selfLink"])).json()["code"] == "LastAdminKey"
        rotated = await other.post(house.path(f"keys/{second['keyId']}/rotations"), json={"spec": {}})
        assert rotated.status_code == 201  # its replacement does not expire either

    in_house(story)


def test_keys_of_another_organization_are_not_there(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        await house.services.store.write(
            lambda connection: key_rows.add(
                connection, key_id="A" * 16, org="org-other", role="admin", secret_mac=b"", name="", time_ms=1,
                created_by="",
            )
        )  # fmt: skip
        api = await house.api()
        assert (await api.get(house.path("keys/" + "A" * 16))).status_code == 404
        assert (await api.delete(house.path("keys/" + "A" * 16))).status_code == 404
        assert (await rotate(house, "A" * 16)).status_code == 404
        assert "A" * 16 not in (await api.get(house.path("keys"))).text

    in_house(story)


def test_a_change_by_anybody_else_is_found(in_house: Callable[..., None]) -> None:
    """Another process, or a hand in the database: no counter is needed for it to be seen."""

    async def story(house: Any) -> None:
        key = await issue(house)
        assert await opens(house, key["secretKey"])

        def revoke(connection: Any) -> None:
            connection.execute(table.update().where(table.c.id == key["keyId"]).values(revoked=5))

        await house.services.store.write(revoke)
        assert await opens(house, key["secretKey"])
        await key_lifecycle.refresh(house.services)
        assert not await opens(house, key["secretKey"])

        def restore(connection: Any) -> None:
            connection.execute(table.update().where(table.c.id == key["keyId"]).values(revoked=None, role="viewer"))

        await house.services.store.write(restore)
        await key_lifecycle.refresh(house.services)
        assert await opens(house, key["secretKey"])
        assert (await (await house.client(key["secretKey"])).put(house.path("runs/r1"), json={})).status_code == 403

    in_house(story)


def test_a_refresh_that_read_too_early_does_not_undo_a_revocation(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        key = await issue(house)
        store = house.services.store
        real = store.read_in_thread

        async def read_then_be_overtaken(work: Any) -> Any:
            found = await real(work)
            if work is key_rows.list_all:
                assert (await (await house.api()).delete(key["selfLink"])).status_code == 200
            return found

        store.read_in_thread = read_then_be_overtaken
        await key_lifecycle.refresh(house.services)
        assert not await opens(house, key["secretKey"])

    in_house(story)


def test_the_pulse_refreshes_the_keyring_within_ten_seconds() -> None:
    assert key_lifecycle.REFRESH_BEATS * 1.0 + access.KEY_CHECK_S <= 10  # a beat is a second; see leases.TICK_S


def test_last_uses_are_written_in_batches_and_never_by_a_request(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        key = await issue(house)
        writes = 0
        real = house.services.store.write

        async def count(work: Any) -> Any:
            nonlocal writes
            writes += 1
            return await real(work)

        house.services.store.write = count
        for _ in range(50):
            house.clock.forward(0.1)
            await opens(house, key["secretKey"])
        assert writes == 0
        await key_lifecycle.write_usage(house.services)
        await key_lifecycle.write_usage(house.services)
        assert writes == 1
        row = house.services.store.read(lambda c: key_rows.get(c, org=house.org, key_id=key["keyId"]))
        assert row.last_used == house.clock.now_ms()

        async def fail(work: Any) -> Any:
            raise StoreUnavailable("full")

        house.clock.forward(1)
        await opens(house, key["secretKey"])
        house.services.store.write = fail
        with pytest.raises(StoreUnavailable):
            await key_lifecycle.write_usage(house.services)
        house.services.store.write = real
        await key_lifecycle.write_usage(house.services)
        row = house.services.store.read(lambda c: key_rows.get(c, org=house.org, key_id=key["keyId"]))
        assert row.last_used == house.clock.now_ms(), "a use that could not be written is not lost"

    in_house(story)


@pytest.mark.parametrize(
    ("how", "query"),
    [("revoked", "logs?since=0&wait=30"), ("expired", "logs?since=0&wait=30"), ("revoked", "logs?since=0&w%61it=30")],
)
def test_a_long_poll_ends_with_its_key(
    in_house: Callable[..., None], acts: Any, monkeypatch: pytest.MonkeyPatch, how: str, query: str
) -> None:
    monkeypatch.setattr(access, "KEY_CHECK_S", 0.01)

    async def story(house: Any) -> None:
        await acts.running(house)
        key = await issue(house, role="viewer", expires=house.clock.now_ms() + HOUR_MS)
        ended, lasting = await house.client(key["secretKey"]), await house.api()
        path = house.path(f"runs/r1/{query}")
        polls = [asyncio.create_task(client.get(path)) for client in (ended, lasting)]
        await asyncio.sleep(0.05)
        assert not any(poll.done() for poll in polls)
        if how == "revoked":
            await lasting.delete(key["selfLink"])
        else:
            house.clock.epoch_ms += HOUR_MS  # not the time that polls are measured by, which would end both
        async with asyncio.timeout(10):
            answer = await polls[0]
        assert (answer.status_code, answer.json()["code"]) == (401, "Unauthorized")
        assert not polls[1].done()
        polls[1].cancel()

    in_house(story)


def test_a_stream_out_breaks_off_with_its_key(in_house: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(house: Any) -> None:
        key = await issue(house, role="admin")
        real = backups.OutgoingBackup.pieces

        def pieces(self: Any) -> Any:
            for number, piece in enumerate(real(self)):
                if number == 1:
                    house.services.keyring.put([Revoked(row)])
                yield piece

        row = house.services.store.read(lambda c: key_rows.get(c, org=house.org, key_id=key["keyId"]))
        monkeypatch.setattr(backups.OutgoingBackup, "pieces", pieces)
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = {"host": "localhost", "authorization": f"Bearer {key['secretKey']}"}
        await house.door(scope(house, "POST", "storage/backups", headers), receive, send)
        assert sent[0]["status"] == 200
        length = int(dict(sent[0]["headers"])[b"content-length"])
        assert sum(len(message.get("body", b"")) for message in sent) < length
        assert all(message.get("more_body") for message in sent[1:])

    in_house(story)


def test_a_stream_in_is_refused_with_its_key(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        key = await issue(house, role="admin")
        row = house.services.store.read(lambda c: key_rows.get(c, org=house.org, key_id=key["keyId"]))
        data = await take(house)

        async def body() -> Any:
            yield data[:1000]
            house.services.keyring.put([Revoked(row)])
            yield data[1000:2000]
            yield data[2000:]

        before = house.services.store.read(key_rows.list_all)
        answer = await (await house.client(key["secretKey"])).post(house.path("storage/restores"), content=body())
        assert (answer.status_code, answer.json()["code"]) == (401, "Unauthorized")
        assert house.services.store.read(key_rows.list_all) == before

    in_house(story)


class Revoked:
    """A row of a key that was revoked."""

    def __init__(self, row: Any) -> None:
        self.id, self.org, self.role = row.id, row.org, row.role
        self.secret_mac, self.expires, self.revoked = row.secret_mac, row.expires, 1


def scope(house: Any, method: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": house.path(path),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "root_path": "",
        "state": {},
    }


def test_an_admin_key_is_recovered_by_whoever_owns_the_data_folder(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        marker = house.settings.secrets_dir / key_lifecycle.RECOVERY_FILE
        marker.touch()
        await key_lifecycle.refresh(house.services)
        assert not marker.exists()
        credentials = json.loads(house.settings.credentials_file.read_text())
        assert credentials["secret_key"] == house.key, "a key that is good is kept"

        other = await issue(house, role="admin")
        await (await house.client(other["secretKey"])).delete(house.path(f"keys/{own_id(house)}"))
        marker.touch()
        await key_lifecycle.refresh(house.services)
        credentials = json.loads(house.settings.credentials_file.read_text())
        assert credentials["organization_id"] == house.org
        assert stat.S_IMODE(house.settings.credentials_file.stat().st_mode) == 0o600
        recovered = await house.client(credentials["secret_key"])
        items = (await recovered.get(house.path("audit"), params={"action": "recover key"})).json()["items"]
        assert [(entry["actor"], entry["target"]) for entry in items] == [("operator", credentials["secret_key"][7:23])]

        house.settings.credentials_file.unlink()
        marker.touch()
        await key_lifecycle.refresh(house.services)
        new = json.loads(house.settings.credentials_file.read_text())["secret_key"]
        assert new != credentials["secret_key"]
        assert await opens(house, new)

    in_house(story)


def test_a_recovery_that_was_cut_off_adopts_the_key_it_wrote(
    in_house: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(house: Any) -> None:
        house.settings.credentials_file.unlink()
        marker = house.settings.secrets_dir / key_lifecycle.RECOVERY_FILE
        marker.touch()
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(key_lifecycle, "add_key", cut)
            await key_lifecycle.refresh(house.services)
        written = json.loads(house.settings.credentials_file.read_text())["secret_key"]
        assert not await opens(house, written)
        await key_lifecycle.refresh(house.services)
        assert json.loads(house.settings.credentials_file.read_text())["secret_key"] == written
        assert await opens(house, written)

    def cut(*_: Any, **__: Any) -> str:
        raise RuntimeError("cut here")

    in_house(story)


def test_a_key_revoked_after_a_backup_stays_revoked_when_it_is_restored(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        revoked, kept = await issue(house), await issue(house, role="viewer", expires=house.clock.now_ms() + HOUR_MS)
        await opens(house, kept["secretKey"])
        data = await take(house)
        await (await house.api()).delete(revoked["selfLink"])
        later = await issue(house, name="later")
        assert (await put_back(house, data)).status_code == 200
        assert [await opens(house, key["secretKey"]) for key in (revoked, kept, later)] == [False, True, True]
        told = (await (await house.api()).get(kept["selfLink"])).json()
        assert told["spec"] == kept["spec"]
        await key_lifecycle.write_usage(house.services)  # rejected keys are counted on in the restored audit log
        assert ("reject key", f"key {revoked['keyId']}: revoked") in await actions(house)

    in_house(story)


def test_a_backup_from_before_keys_had_a_lifecycle_is_restored(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        key = await issue(house, role="viewer")

        def as_older(manifest: Any, tables: Any, _blobs: Any) -> None:
            manifest.schema_revision = "0003"
            for name, new in (("keys", {"created_by", "last_used", "replaced_by"}), ("audit", {"count"})):
                part = next(part for part in manifest.tables if part.name == name)
                kept = [index for index, column in enumerate(part.columns) if column not in new]
                assert len(kept) == len(part.columns) - len(new)
                part.columns = [part.columns[index] for index in kept]
                rows = [json.loads(line) for line in tables[name].splitlines()]
                tables[name] = b"".join(json.dumps([row[index] for index in kept]).encode() + b"\n" for row in rows)

        data = rewritten(await take(house), as_older)
        before = await actions(house)
        assert (await put_back(house, data)).status_code == 200
        assert await opens(house, key["secretKey"])
        assert (await actions(house))[: len(before)] == before

    in_house(story)
