"""Machines join with an invitation, hold a key of their own, and are drained, excluded, removed."""

import json
from typing import Any

import httpx2
import pytest

from runyard.protocol import PROTOCOL, PROTOCOL_HEADER
from runyard.security.key_format import new_key
from runyard.server.services.runs import leases, waiting_reasons
from runyard.version import VERSION
from tests.support import attempts
from tests.support.server import TestServer

pytestmark = pytest.mark.anyio

MACHINE = "machine-aa"


async def invite(server: TestServer, **spec: Any) -> dict[str, Any]:
    api = await server.api()
    answer = await api.post(server.path("machineInvitations"), json={"spec": spec})
    assert answer.status_code == 201, answer.text
    invitation: dict[str, Any] = answer.json()
    return invitation


async def join(server: TestServer, token: str, **changes: Any) -> httpx2.Response:
    body = {
        "token": token,
        "machine_id": MACHINE,
        "key": new_key(),
        "boot_id": "boot-a",
        "host": "gpu-3",
        "version": VERSION,
        "protocol": PROTOCOL,
    }
    anonymous = await server.client(None)
    return await anonymous.post("/internal/v1/join", json=body | changes)


async def join_machine(
    server: TestServer, machine_id: str = MACHINE, **changes: Any
) -> httpx2.AsyncClient:
    """Let a machine join, and return a client with its key."""
    key, invitation = new_key(), await invite(server, **changes)
    answer = await join(
        server, invitation["token"], machine_id=machine_id, key=key, host=machine_id
    )
    assert answer.status_code == 200, answer.text
    return await server.client(key)


def offer(machine_id: str = MACHINE, **changes: Any) -> dict[str, Any]:
    made = {"claim_id": f"of-{machine_id}", "machine_id": machine_id, "host": machine_id}
    return made | {"slots": 1, "wait_s": 0} | changes


async def create_run(server: TestServer, run_id: str = "r1", **spec: Any) -> None:
    api = await server.api()
    body = {"spec": {"flow": {"name": "f", **spec}}}
    assert (await api.put(server.path(f"runs/{run_id}"), json=body)).status_code == 201


async def claim(
    server: TestServer, machine: httpx2.AsyncClient, **changes: Any
) -> attempts.Attempt | None:
    answer = await machine.post("/internal/v1/claims", json=offer(**changes))
    assert answer.status_code == 200, answer.text
    assignment = answer.json()["assignment"]
    if assignment is None:
        return None
    client = await server.client(assignment["token"])
    return attempts.Attempt(server, client, assignment)


async def start(attempt: attempts.Attempt, machine_id: str = MACHINE) -> None:
    answer = await attempt.post("process", machine_id=machine_id, boot_id="b", pid=7, start_ticks=8)
    assert answer.status_code == 200


def write_own_machine(server: TestServer) -> None:
    """Let the data folder of the server have a machine, as with ``runyard up``."""
    folder = server.settings.machine_dir
    folder.mkdir(parents=True)
    (folder / "machine.json").write_text(json.dumps({"id": "machine-own"}))


async def list_machines(server: TestServer) -> list[dict[str, Any]]:
    api = await server.api()
    items: list[dict[str, Any]] = (await api.get(server.path("machines"))).json()["items"]
    return items


async def test_a_machine_joins_and_takes_runs_with_its_own_key(server: TestServer) -> None:
    machine = await join_machine(server, labels={"team": ["vision"]})
    await create_run(server, tolerations={"team": ["vision"]})
    attempt = await claim(server, machine)
    assert attempt is not None and attempt.assignment["run_id"] == "r1"
    [found] = await list_machines(server)
    assert found["spec"] == {
        "name": MACHINE,
        "labels": {"team": ["vision"]},
        "note": None,
    }
    assert (found["status"]["state"], found["status"]["runs"]) == ("joined", ["r1"])
    assert found["status"]["connected"] is True


async def test_the_key_of_a_machine_is_valid_for_that_machine_alone(server: TestServer) -> None:
    machine = await join_machine(server)
    other = await machine.post("/internal/v1/claims", json=offer("machine-bb"))
    assert (other.status_code, other.json()["code"]) == (403, "MachineMismatch")
    for method in ("GET", "PUT"):
        body = {"host": "x", "labels": {}, "accelerators": []}
        answer = await machine.request(method, "/internal/v1/machines/machine-bb", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "MachineMismatch")
    assert (await machine.get("/internal/v1/machines/" + MACHINE)).status_code == 200
    assert (await machine.get(server.path("runs"))).status_code == 401


async def test_the_controller_key_is_valid_for_the_machine_of_the_data_folder(
    server: TestServer,
) -> None:
    write_own_machine(server)
    controller = await server.client(server.controller_key)
    refused = await controller.post("/internal/v1/claims", json=offer())
    assert (refused.status_code, refused.json()["code"]) == (403, "MachineMismatch")
    assert (
        await controller.post("/internal/v1/claims", json=offer("machine-own"))
    ).status_code == 200


async def test_an_invitation_admits_as_many_machines_as_it_says(server: TestServer) -> None:
    token = (await invite(server, uses=2))["token"]
    for machine_id in ("machine-1", "machine-2"):
        assert (await join(server, token, machine_id=machine_id)).status_code == 200
    refused = await join(server, token, machine_id="machine-3")
    assert refused.status_code == 401
    assert "runyard machines invite" in refused.json()["message"]
    assert len(await list_machines(server)) == 2


async def test_a_repeated_join_uses_an_invitation_once(server: TestServer) -> None:
    """The response was lost: the machine sends the same key again."""
    token, key = (await invite(server))["token"], new_key()
    for _ in range(3):
        assert (await join(server, token, key=key)).status_code == 200
    assert len(await list_machines(server)) == 1
    assert (await join(server, token, key=new_key())).status_code == 401


async def test_an_invitation_ends_with_its_time_and_its_revocation(server: TestServer) -> None:
    expired = (await invite(server, lifetimeSeconds=60))["token"]
    server.clock.forward(61)
    assert (await join(server, expired)).status_code == 401
    revoked, api = await invite(server), await server.api()
    path = server.path(f"machineInvitations/{revoked['invitationId']}")
    assert (await api.delete(path)).status_code == 204
    assert (await join(server, revoked["token"])).status_code == 401
    assert (await api.delete(path)).status_code == 404


@pytest.mark.parametrize(
    "token", ["", "ryjn_", "ryjn_" + "0" * 64, "dtvi_" + "0" * 64, "ryjn_" + "é" * 64]
)
async def test_a_token_that_was_never_issued_is_refused(server: TestServer, token: str) -> None:
    await invite(server)
    assert (await join(server, token)).status_code == 401


async def test_another_version_is_refused_by_name(server: TestServer) -> None:
    token = (await invite(server))["token"]
    refused = await join(server, token, protocol=PROTOCOL + 1, version="9.9")
    assert (refused.status_code, refused.json()["code"]) == (409, "IncompatibleVersion")
    assert "9.9" in refused.json()["message"] and VERSION in refused.json()["message"]
    machine = await join_machine(server)
    later = await machine.get(
        f"/internal/v1/machines/{MACHINE}", headers={PROTOCOL_HEADER: f"{PROTOCOL + 1} 9.9"}
    )
    assert (later.status_code, later.json()["code"]) == (409, "IncompatibleVersion")


async def test_a_copied_data_folder_is_refused_while_the_original_is_connected(
    server: TestServer,
) -> None:
    machine = await join_machine(server)
    await claim(server, machine)
    token = (await invite(server))["token"]
    refused = await join(server, token, boot_id="boot-b")
    assert (refused.status_code, refused.json()["code"]) == (409, "MachineTaken")
    # The refusal did not use the invitation, and the same machine may join again.
    assert (await join(server, token)).status_code == 200
    assert (await machine.get(f"/internal/v1/machines/{MACHINE}")).status_code == 401


async def test_the_id_of_the_instances_own_machine_is_not_given_away(server: TestServer) -> None:
    write_own_machine(server)
    controller = await server.client(server.controller_key)
    report = {"host": "here", "labels": {}, "accelerators": [], "slots": 1}
    await controller.put("/internal/v1/machines/machine-own", json=report)
    server.clock.forward(3600)
    token = (await invite(server))["token"]
    refused = await join(server, token, machine_id="machine-own")
    assert (refused.status_code, refused.json()["code"]) == (409, "MachineTaken")


async def test_two_machines_of_one_name_get_different_names(server: TestServer) -> None:
    token = (await invite(server, uses=2))["token"]
    names = [
        (await join(server, token, machine_id=id, name="gpu")).json()["name"]
        for id in ("machine-1", "machine-2")
    ]
    assert names == ["gpu", "gpu-2"]


@pytest.mark.parametrize("state", ["draining", "excluded"])
async def test_a_machine_out_of_service_takes_no_run(server: TestServer, state: str) -> None:
    machine, api = await join_machine(server), await server.api()
    await claim(server, machine)
    path = server.path(f"machines/{MACHINE}")
    body = {"spec": {"state": state, "note": "Xid 79"}}
    assert (await api.patch(path, json=body)).json()["spec"]["note"] == "Xid 79"
    await create_run(server)
    assert await claim(server, machine) is None
    server.clock.forward(60)  # until the server must have heard every machine
    assert await claim(server, machine) is None
    await waiting_reasons.refresh(server.services)
    condition = (await api.get(server.path("runs/r1"))).json()["status"]["conditions"][-1]
    assert condition["reason"] == "WaitingForMachine"
    assert f"{MACHINE} is {state}" in condition["message"]
    assert "runyard machines resume" in condition["message"]
    await api.patch(path, json={"spec": {"state": "joined"}})
    assert await claim(server, machine) is not None


async def test_a_drained_machine_saves_its_runs_for_others(server: TestServer) -> None:
    first, second = await join_machine(server), await join_machine(server, "machine-bb")
    await create_run(server)
    attempt = await claim(server, first)
    assert attempt is not None
    await start(attempt)
    api = await server.api()
    body = {"spec": {"state": "draining", "withinSeconds": 60}}
    assert (await api.patch(server.path(f"machines/{MACHINE}"), json=body)).status_code == 200
    assert (await attempt.post("renew")).json()["action"] == "continue"
    server.clock.forward(61)
    assert (await attempt.post("renew")).json()["action"] == "stop"
    await attempt.finish(75)
    run = (await api.get(server.path("runs/r1"))).json()
    assert run["status"]["conditions"][-1]["condition"] == "Pending"
    assert await claim(server, first, claim_id="again") is None
    moved = await claim(server, second, machine_id="machine-bb")
    assert moved is not None and moved.assignment["attempt"] == 2
    # Stopping for the machine's sake uses up no try.
    charged = [row.charged for row in _list_attempts(server)]
    assert charged == [False, False]


def _list_attempts(server: TestServer) -> list[Any]:
    from runyard.store import attempts as rows

    store = server.services.store
    return list(store.read(lambda tx: rows.list_by_run(tx, org=server.org, run_id="r1")))


async def test_a_removed_machine_is_refused_and_its_run_resumes_elsewhere(
    server: TestServer,
) -> None:
    first, second = await join_machine(server), await join_machine(server, "machine-bb")
    await create_run(server)
    attempt = await claim(server, first)
    assert attempt is not None
    await start(attempt)
    api, path = await server.api(), server.path(f"machines/{MACHINE}")
    kept = await api.delete(path)
    assert (kept.status_code, kept.json()["code"]) == (409, "MachineInUse")
    assert "r1" in kept.json()["message"]
    assert (await api.delete(path, params={"force": "true"})).status_code == 204
    assert (await first.get(f"/internal/v1/machines/{MACHINE}")).status_code == 401
    answer = await attempt.post("renew")
    assert (answer.status_code, answer.json()["code"]) == (409, "LeaseLost")
    await leases.tick(server.services, 1.0)
    await leases.tick(server.services, 1.0)
    moved = await claim(server, second, machine_id="machine-bb")
    assert moved is not None and moved.assignment["attempt"] == 2
    assert [machine["machineId"] for machine in await list_machines(server)] == ["machine-bb"]
    assert (await api.get(path)).status_code == 404
    token = (await invite(server))["token"]
    assert (await join(server, token)).status_code == 200


async def test_changes_of_machines_are_for_operators(server: TestServer) -> None:
    await join_machine(server)
    member = await server.api()
    created = await member.post(server.path("keys"), json={"spec": {"name": "m", "role": "member"}})
    client = await server.client(created.json()["secretKey"])
    for method, path in (
        ("POST", "machineInvitations"),
        ("PATCH", f"machines/{MACHINE}"),
        ("DELETE", f"machines/{MACHINE}"),
    ):
        answer = await client.request(method, server.path(path), json={})
        assert (answer.status_code, answer.json()["code"]) == (403, "RoleForbidden")
    assert (await client.get(server.path("machines"))).status_code == 200


async def test_the_machine_of_the_instance_is_listed_and_cannot_be_removed(
    server: TestServer,
) -> None:
    write_own_machine(server)
    controller = await server.client(server.controller_key)
    report = {"host": "here", "labels": {}, "accelerators": [], "slots": 2}
    for _ in range(2):
        answer = await controller.put("/internal/v1/machines/machine-own", json=report)
        assert answer.status_code == 200
    [found] = await list_machines(server)
    assert (found["spec"]["name"], found["status"]["slots"]) == ("here", 2)
    api = await server.api()
    refused = await api.delete(server.path("machines/machine-own"), params={"force": "true"})
    assert refused.status_code == 400
    assert "runyard machines exclude here" in refused.json()["message"]


async def test_no_token_and_no_key_is_stored_or_logged(
    server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    invitation, key = await invite(server), new_key()
    assert (await join(server, invitation["token"], key=key)).status_code == 200
    secret = invitation["token"][21:]
    assert secret not in caplog.text and key[23:97] not in caplog.text
    for file in server.settings.data_dir.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert secret.encode() not in content and key[23:97].encode() not in content, file


async def test_a_restore_keeps_machines_as_they_are(server: TestServer) -> None:
    """The keys of machines stay, so a machine that was removed must stay removed."""
    kept, removed = await join_machine(server), await join_machine(server, "machine-bb")
    api = await server.api()
    backup = await api.post(server.path("storage/backups"))
    await api.patch(server.path(f"machines/{MACHINE}"), json={"spec": {"state": "excluded"}})
    assert (await api.delete(server.path("machines/machine-bb"))).status_code == 204
    restored = await api.post(
        server.path("storage/restores"),
        content=backup.content,
        headers={"content-type": "application/x-tar"},
    )
    assert restored.status_code == 200, restored.text
    [found] = await list_machines(server)
    assert (found["machineId"], found["status"]["state"]) == (MACHINE, "excluded")
    assert (await kept.get(f"/internal/v1/machines/{MACHINE}")).status_code == 200
    assert (await removed.get("/internal/v1/machines/machine-bb")).status_code == 401
