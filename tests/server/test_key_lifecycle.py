"""Keys are created, listed, revoked, rotated and recovered; an ended key opens nothing."""

import asyncio
import json
import stat
from typing import Any

import pytest

from runyard.security.key_format import LENGTH, parse
from runyard.server.http import access
from runyard.server.services.access import key_lifecycle
from runyard.server.services.operations import backups
from runyard.store import StoreUnavailable
from runyard.store.access import keys as key_rows
from runyard.store.tables import keys as table
from tests.server.test_backups import put_back, rewritten, take_backup
from tests.support import attempts
from tests.support.server import TestServer

HOUR_MS = 3600_000


async def issue(server: TestServer, **spec: Any) -> dict[str, Any]:
    answer = await (await server.api()).post(
        server.path("keys"), json={"spec": {"name": "ci"} | spec}
    )
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def rotate(server: TestServer, key_id: str, **spec: Any) -> Any:
    return await (await server.api()).post(
        server.path(f"keys/{key_id}/rotations"), json={"spec": spec}
    )


async def opens(server: TestServer, secret_key: str) -> bool:
    status = (await (await server.client(secret_key)).get(server.path("runs"))).status_code
    assert status in (200, 401)
    return bool(status == 200)


async def actions(server: TestServer) -> list[tuple[str, str]]:
    items = (await (await server.api()).get(server.path("audit"), params={"s": 100})).json()[
        "items"
    ]
    return [(entry["action"], entry["target"]) for entry in reversed(items)]


def own_id(server: TestServer) -> str:
    return str(server.key[7:23])


async def test_a_key_is_created_used_and_revoked(server: TestServer) -> None:
    api = await server.api()
    key = await issue(server, role="viewer")
    key_id, secret = key["keyId"], key["secretKey"]
    assert len(secret) == LENGTH
    assert secret[7:23] == key_id
    assert (key["spec"], key["status"]["state"]) == (
        {"name": "ci", "role": "viewer", "expires": None},
        "Active",
    )
    assert key["status"]["createdBy"] == f"key {own_id(server)}"
    assert (key["status"]["lastUsed"], key["workspaceId"]) == (None, server.org)

    assert await opens(server, secret)
    denied = await (await server.client(secret)).put(server.path("runs/r1"), json={"spec": {}})
    assert denied.json()["code"] == "RoleForbidden"
    read = await api.get(key["selfLink"])
    assert "secretKey" not in read.json()
    assert read.json()["status"]["lastUsed"] == server.clock.now_ms()
    listed = (await api.get(server.path("keys"), params={"s": 1})).json()
    # Of the same millisecond.
    assert [item["keyId"] for item in listed["items"]] in ([key_id], [own_id(server)])
    rest = (await api.get(server.path("keys"), params={"s": 1, "p": listed["nextPage"]})).json()
    ids = [item["keyId"] for item in (*listed["items"], *rest["items"])]
    assert (sorted(ids), rest["nextPage"]) == (sorted([key_id, own_id(server)]), None)

    for _ in range(2):  # a repeat after a lost response is harmless
        revoked = await api.delete(key["selfLink"])
        assert (revoked.status_code, revoked.json()["status"]["state"]) == (200, "Revoked")
    assert not await opens(server, secret)
    assert await actions(server) == [
        ("create key", f"{key_id} (viewer)"),
        ("revoke key", key_id),
        ("reject key", f"key {key_id}: revoked"),
    ]


async def test_no_secret_of_a_key_is_kept_or_logged(
    server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    created = await issue(server)
    rotated = (await rotate(server, created["keyId"])).json()
    written = [str(row) for row in server.services.store.read(key_rows.list_all)]
    written += [str(entry) for entry in await actions(server)] + caplog.messages
    written += [(await (await server.api()).get(server.path("keys"))).text]
    for key in (created, rotated):
        parts = parse(key["secretKey"])
        assert parts is not None
        assert not any(parts.secret in text for text in written)


async def test_a_key_expires_at_its_time(server: TestServer) -> None:
    now_ms = server.clock.now_ms()
    key = await issue(server, role="admin", expires=now_ms + HOUR_MS)
    assert await opens(server, key["secretKey"])
    server.clock.forward(3599.999)
    assert await opens(server, key["secretKey"])
    server.clock.forward(0.001)
    assert not await opens(server, key["secretKey"])
    assert (await (await server.api()).get(key["selfLink"])).json()["status"]["state"] == "Expired"
    past = await (await server.api()).post(
        server.path("keys"), json={"spec": {"name": "x", "expires": now_ms}}
    )
    assert (past.status_code, past.json()["code"]) == (400, "InvalidBody")
    assert past.json()["problems"][0]["path"] == "/spec/expires"


async def test_an_impossible_key_is_rejected(server: TestServer) -> None:
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
        answer = await (await server.api()).post(server.path("keys"), json={"spec": spec})
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBody"), spec
    assert len(server.services.store.read(key_rows.list_all)) == 2


async def test_a_rotation_replaces_a_key_at_once_or_after_an_overlap(server: TestServer) -> None:
    api, now_ms = await server.api(), server.clock.now_ms()
    first = await issue(server, role="member", expires=now_ms + 24 * HOUR_MS)
    server.clock.forward(3600)
    answer = await rotate(server, first["keyId"], overlapSeconds=60)
    assert answer.status_code == 201, answer.text
    second = answer.json()
    assert second["keyId"] != first["keyId"]
    # The same name, role and lifetime.
    assert second["spec"] == first["spec"] | {"expires": now_ms + 25 * HOUR_MS}
    old = (await api.get(first["selfLink"])).json()
    assert (old["status"]["replacedBy"], old["status"]["state"]) == (second["keyId"], "Active")
    assert [await opens(server, key["secretKey"]) for key in (first, second)] == [True, True]
    # Again, because the response was lost: the lifetime is still that of the key, not of its
    # overlap.
    again = (await rotate(server, first["keyId"], overlapSeconds=60)).json()
    assert again["spec"] == second["spec"]
    server.clock.forward(60)
    assert [await opens(server, key["secretKey"]) for key in (first, second)] == [False, True]
    assert (await rotate(server, first["keyId"])).json()["code"] == "KeyEnded"

    third = (await rotate(server, second["keyId"], expires=server.clock.now_ms() + HOUR_MS)).json()
    assert third["spec"]["expires"] == server.clock.now_ms() + HOUR_MS
    assert [await opens(server, key["secretKey"]) for key in (second, third)] == [False, True]
    assert (await rotate(server, second["keyId"])).json()["code"] == "KeyEnded"
    assert (await rotate(server, "nobody")).json()["code"] == "NotFound"
    assert (await rotate(server, third["keyId"], overlapSeconds=-1)).json()["code"] == "InvalidBody"


async def test_an_overlap_never_extends_the_lifetime_of_a_key(server: TestServer) -> None:
    key = await issue(server, expires=server.clock.now_ms() + HOUR_MS)
    await rotate(server, key["keyId"], overlapSeconds=7200)
    server.clock.forward(3600)
    assert not await opens(server, key["secretKey"])


async def test_the_last_admin_key_without_expiry_cannot_be_revoked(server: TestServer) -> None:
    api = await server.api()
    await issue(server, role="member")
    passing = await issue(server, role="admin", expires=server.clock.now_ms() + HOUR_MS)
    refused = await api.delete(server.path(f"keys/{own_id(server)}"))
    assert (refused.status_code, refused.json()["code"]) == (409, "LastAdminKey")
    ending = await rotate(server, own_id(server), expires=server.clock.now_ms() + HOUR_MS)
    assert (ending.status_code, ending.json()["code"]) == (409, "LastAdminKey")
    assert await opens(server, server.key)
    assert (await api.delete(passing["selfLink"])).status_code == 200

    second = await issue(server, role="admin")
    assert (await api.delete(server.path(f"keys/{own_id(server)}"))).status_code == 200
    assert not await opens(server, server.key)
    other = await server.client(second["secretKey"])
    assert (await other.delete(second["selfLink"])).json()["code"] == "LastAdminKey"
    rotated = await other.post(server.path(f"keys/{second['keyId']}/rotations"), json={"spec": {}})
    assert rotated.status_code == 201  # its replacement does not expire either


async def test_keys_of_another_organization_are_not_found(server: TestServer) -> None:
    await server.services.store.write(
        lambda connection: key_rows.add(
            connection,
            key_id="A" * 16,
            org="org-other",
            role="admin",
            secret_mac=b"",
            name="",
            time_ms=1,
            created_by="",
        )
    )
    api = await server.api()
    assert (await api.get(server.path("keys/" + "A" * 16))).status_code == 404
    assert (await api.delete(server.path("keys/" + "A" * 16))).status_code == 404
    assert (await rotate(server, "A" * 16)).status_code == 404
    assert "A" * 16 not in (await api.get(server.path("keys"))).text


async def test_a_change_by_another_process_is_detected(server: TestServer) -> None:
    """By another process, or by hand in the database: it is detected without a counter."""
    key = await issue(server)
    assert await opens(server, key["secretKey"])

    def revoke(connection: Any) -> None:
        connection.execute(table.update().where(table.c.id == key["keyId"]).values(revoked=5))

    await server.services.store.write(revoke)
    assert await opens(server, key["secretKey"])
    await key_lifecycle.refresh(server.services)
    assert not await opens(server, key["secretKey"])

    def restore(connection: Any) -> None:
        connection.execute(
            table.update().where(table.c.id == key["keyId"]).values(revoked=None, role="viewer")
        )

    await server.services.store.write(restore)
    await key_lifecycle.refresh(server.services)
    assert await opens(server, key["secretKey"])
    assert (
        await (await server.client(key["secretKey"])).put(server.path("runs/r1"), json={})
    ).status_code == 403


async def test_a_refresh_that_read_too_early_does_not_undo_a_revocation(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await issue(server)
    store = server.services.store
    real = store.read_in_thread

    async def read_then_be_overtaken(work: Any) -> Any:
        found = await real(work)
        if work is key_rows.list_all:
            assert (await (await server.api()).delete(key["selfLink"])).status_code == 200
        return found

    monkeypatch.setattr(store, "read_in_thread", read_then_be_overtaken)
    await key_lifecycle.refresh(server.services)
    assert not await opens(server, key["secretKey"])


def test_the_periodic_task_refreshes_the_keyring_within_ten_seconds() -> None:
    # A beat is a second; see leases.TICK_S.
    assert key_lifecycle.REFRESH_BEATS * 1.0 + access.KEY_CHECK_S <= 10


async def test_last_use_times_are_written_in_batches_and_never_by_a_request(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await issue(server)
    writes = 0
    real = server.services.store.write

    async def count(work: Any) -> Any:
        nonlocal writes
        writes += 1
        return await real(work)

    monkeypatch.setattr(server.services.store, "write", count)
    for _ in range(50):
        server.clock.forward(0.1)
        await opens(server, key["secretKey"])
    assert writes == 0
    await key_lifecycle.write_usage(server.services)
    await key_lifecycle.write_usage(server.services)
    assert writes == 1
    row = server.services.store.read(lambda c: key_rows.get(c, org=server.org, key_id=key["keyId"]))
    assert row is not None
    assert row.last_used == server.clock.now_ms()

    async def fail(work: Any) -> Any:
        raise StoreUnavailable("full")

    server.clock.forward(1)
    await opens(server, key["secretKey"])
    monkeypatch.setattr(server.services.store, "write", fail)
    with pytest.raises(StoreUnavailable):
        await key_lifecycle.write_usage(server.services)
    monkeypatch.setattr(server.services.store, "write", real)
    await key_lifecycle.write_usage(server.services)
    row = server.services.store.read(lambda c: key_rows.get(c, org=server.org, key_id=key["keyId"]))
    assert row is not None
    assert row.last_used == server.clock.now_ms(), "a use that could not be written is not lost"


@pytest.mark.parametrize(
    ("how", "query"),
    [
        ("revoked", "logs?since=0&wait=30"),
        ("expired", "logs?since=0&wait=30"),
        ("revoked", "logs?since=0&w%61it=30"),
    ],
)
async def test_a_long_poll_ends_when_its_key_is_revoked(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, how: str, query: str
) -> None:
    monkeypatch.setattr(access, "KEY_CHECK_S", 0.01)
    await attempts.start(server)
    key = await issue(server, role="viewer", expires=server.clock.now_ms() + HOUR_MS)
    ended, lasting = await server.client(key["secretKey"]), await server.api()
    path = server.path(f"runs/r1/{query}")
    polls = [asyncio.create_task(client.get(path)) for client in (ended, lasting)]
    await asyncio.sleep(0.05)
    assert not any(poll.done() for poll in polls)
    if how == "revoked":
        await lasting.delete(key["selfLink"])
    else:
        server.clock.epoch_ms += (
            HOUR_MS  # not the time that polls are measured by, which would end both
        )
    async with asyncio.timeout(10):
        answer = await polls[0]
    assert (answer.status_code, answer.json()["code"]) == (401, "Unauthorized")
    assert not polls[1].done()
    polls[1].cancel()


async def test_a_backup_download_stops_when_its_key_is_revoked(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await issue(server, role="admin")
    real = backups.OutgoingBackup.pieces

    def pieces(self: Any) -> Any:
        for number, piece in enumerate(real(self)):
            if number == 1:
                server.services.keyring.put([Revoked(row)])
            yield piece

    row = server.services.store.read(lambda c: key_rows.get(c, org=server.org, key_id=key["keyId"]))
    monkeypatch.setattr(backups.OutgoingBackup, "pieces", pieces)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"host": "localhost", "authorization": f"Bearer {key['secretKey']}"}
    await server.gateway(scope(server, "POST", "storage/backups", headers), receive, send)
    assert sent[0]["status"] == 200
    length = int(dict(sent[0]["headers"])[b"content-length"])
    assert sum(len(message.get("body", b"")) for message in sent) < length
    assert all(message.get("more_body") for message in sent[1:])


async def test_an_upload_is_refused_when_its_key_is_revoked(server: TestServer) -> None:
    key = await issue(server, role="admin")
    row = server.services.store.read(lambda c: key_rows.get(c, org=server.org, key_id=key["keyId"]))
    data = await take_backup(server)

    async def body() -> Any:
        yield data[:1000]
        server.services.keyring.put([Revoked(row)])
        yield data[1000:2000]
        yield data[2000:]

    before = server.services.store.read(key_rows.list_all)
    answer = await (await server.client(key["secretKey"])).post(
        server.path("storage/restores"), content=body()
    )
    assert (answer.status_code, answer.json()["code"]) == (401, "Unauthorized")
    assert server.services.store.read(key_rows.list_all) == before


class Revoked:
    """A row of a key that was revoked."""

    def __init__(self, row: Any) -> None:
        self.id, self.org, self.role = row.id, row.org, row.role
        self.secret_mac, self.expires, self.revoked = row.secret_mac, row.expires, 1


def scope(server: TestServer, method: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": server.path(path),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "root_path": "",
        "state": {},
    }


async def test_the_owner_of_the_data_folder_can_recover_an_admin_key(
    server: TestServer,
) -> None:
    marker = server.settings.secrets_dir / key_lifecycle.RECOVERY_FILE
    marker.touch()
    await key_lifecycle.refresh(server.services)
    assert not marker.exists()
    credentials = json.loads(server.settings.credentials_file.read_text())
    assert credentials["secret_key"] == server.key, "a key that is good is kept"

    other = await issue(server, role="admin")
    await (await server.client(other["secretKey"])).delete(server.path(f"keys/{own_id(server)}"))
    marker.touch()
    await key_lifecycle.refresh(server.services)
    credentials = json.loads(server.settings.credentials_file.read_text())
    assert credentials["organization_id"] == server.org
    assert stat.S_IMODE(server.settings.credentials_file.stat().st_mode) == 0o600
    recovered = await server.client(credentials["secret_key"])
    items = (await recovered.get(server.path("audit"), params={"action": "recover key"})).json()[
        "items"
    ]
    assert [(entry["actor"], entry["target"]) for entry in items] == [
        ("operator", credentials["secret_key"][7:23])
    ]

    server.settings.credentials_file.unlink()
    marker.touch()
    await key_lifecycle.refresh(server.services)
    new = json.loads(server.settings.credentials_file.read_text())["secret_key"]
    assert new != credentials["secret_key"]
    assert await opens(server, new)


async def test_an_interrupted_recovery_adopts_the_key_it_wrote(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:

    def cut(*_: Any, **__: Any) -> str:
        raise RuntimeError("cut here")

    server.settings.credentials_file.unlink()
    marker = server.settings.secrets_dir / key_lifecycle.RECOVERY_FILE
    marker.touch()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(key_lifecycle, "add_key", cut)
        await key_lifecycle.refresh(server.services)
    written = json.loads(server.settings.credentials_file.read_text())["secret_key"]
    assert not await opens(server, written)
    await key_lifecycle.refresh(server.services)
    assert json.loads(server.settings.credentials_file.read_text())["secret_key"] == written
    assert await opens(server, written)


async def test_a_key_revoked_after_a_backup_stays_revoked_when_it_is_restored(
    server: TestServer,
) -> None:
    revoked, kept = (
        await issue(server),
        await issue(server, role="viewer", expires=server.clock.now_ms() + HOUR_MS),
    )
    await opens(server, kept["secretKey"])
    data = await take_backup(server)
    await (await server.api()).delete(revoked["selfLink"])
    later = await issue(server, name="later")
    assert (await put_back(server, data)).status_code == 200
    assert [await opens(server, key["secretKey"]) for key in (revoked, kept, later)] == [
        False,
        True,
        True,
    ]
    document = (await (await server.api()).get(kept["selfLink"])).json()
    assert document["spec"] == kept["spec"]
    # counts of rejected keys continue in the restored audit log.
    await key_lifecycle.write_usage(server.services)
    assert ("reject key", f"key {revoked['keyId']}: revoked") in await actions(server)


async def test_a_backup_from_before_key_lifecycles_is_restored(server: TestServer) -> None:
    key = await issue(server, role="viewer")

    def as_older(manifest: Any, tables: Any, _blobs: Any) -> None:
        manifest.schema_revision = "0003"
        for name, new in (
            ("keys", {"created_by", "last_used", "replaced_by"}),
            ("audit", {"count"}),
        ):
            part = next(part for part in manifest.tables if part.name == name)
            kept = [index for index, column in enumerate(part.columns) if column not in new]
            assert len(kept) == len(part.columns) - len(new)
            part.columns = [part.columns[index] for index in kept]
            rows = [json.loads(line) for line in tables[name].splitlines()]
            tables[name] = b"".join(
                json.dumps([row[index] for index in kept]).encode() + b"\n" for row in rows
            )

    data = rewritten(await take_backup(server), as_older)
    before = await actions(server)
    assert (await put_back(server, data)).status_code == 200
    assert await opens(server, key["secretKey"])
    assert (await actions(server))[: len(before)] == before
