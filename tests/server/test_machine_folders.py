"""Which run folders machines must remove: those of deleted runs, and none that a run may need."""

from typing import Any

import pytest

from runyard.server.services.operations.machine_folders import decide_removal
from runyard.store import organizations, tombstones
from runyard.store.storage import RunRecords
from tests.support import attempts
from tests.support.server import TestServer

Answer = dict[str, Any]


async def report(
    server: TestServer, *runs: str, machine: str = "m1", org: str = "", continues: bool = False
) -> list[tuple[str, str]]:
    """Report run folders as a machine does; return the runs to remove, each with its store."""
    body = {"host": f"host-{machine}", "labels": {}, "accelerators": []}
    names = [{"organization_id": org or server.org, "run_id": run} for run in runs]
    controller = await server.client(server.controller_key)
    answer = await controller.put(
        f"/internal/v1/machines/{machine}",
        json={**body, "run_folders": names, "continues_folders": continues},
    )
    assert answer.status_code == 200, answer.text
    removals = answer.json()["remove"]
    assert all(removal["organization_id"] == (org or server.org) for removal in removals)
    return [(removal["run_id"], removal["store_id"]) for removal in removals]


async def check_storage(server: TestServer) -> Answer:
    return dict((await (await server.api()).get(server.path("storage"))).json())


def read_store_id(server: TestServer) -> str:
    return str(
        server.services.store.read(lambda tx: organizations.get_meta(tx, organizations.STORE_ID))
    )


async def end_run(server: TestServer, run_id: str) -> None:
    attempt = await attempts.start(server, run_id)
    await attempt.finish(0, outcome="Succeeded", reason="Completed", message="done")


async def delete(server: TestServer, run_id: str) -> None:
    assert (await (await server.api()).delete(server.path(f"runs/{run_id}"))).status_code == 204


async def test_a_deleted_run_is_removed_from_every_machine(server: TestServer) -> None:
    for run_id in ("r1", "r2"):
        await end_run(server, run_id)
    assert await report(server, "r1", "r2") == []
    await delete(server, "r1")
    for machine in ("m1", "m2"):
        assert await report(server, "r1", "r2", machine=machine) == [("r1", "")]


async def test_a_deleted_run_is_kept_only_where_its_attempt_is_unsettled(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server, "r1")
    await delete(server, "r1")
    assert await report(server, "r1") == []
    assert await report(server, "r1", machine="m2") == [("r1", "")]
    await attempt.finish(75)
    assert await report(server, "r1") == [("r1", "")]


async def test_a_run_without_row_and_tombstone_must_be_of_the_present_store(
    server: TestServer,
) -> None:
    await end_run(server, "r1")
    await delete(server, "r1")
    server.clock.forward(tombstones.RETENTION_MS / 1000 + 1)
    store_id = read_store_id(server)
    assert await report(server, "r1", "r2") == [("r1", store_id), ("r2", store_id)]


async def test_the_folders_of_an_organization_of_another_server_are_kept(
    server: TestServer,
) -> None:
    assert await report(server, "r1", org="elsewhere") == []
    found = await check_storage(server)
    assert (found["agrees"], found["foldersOnMachines"]) == (
        False,
        [
            {
                "machineId": "m1",
                "host": "host-m1",
                "organizationId": "elsewhere",
                "runId": "r1",
            }
        ],
    )


async def test_runs_of_a_restored_store_are_kept(server: TestServer) -> None:
    api = await server.api()
    await end_run(server, "deleted")
    backup = (await api.post(server.path("storage/backups"))).content
    await delete(server, "deleted")
    await end_run(server, "later")
    before = read_store_id(server)
    assert (await api.post(server.path("storage/restores"), content=backup)).status_code == 200
    after = read_store_id(server)
    assert before != after
    # The restore has brought one back. The other was placed in the earlier incarnation.
    assert await report(server, "deleted", "later") == [("later", after)]
    await delete(server, "deleted")
    assert ("deleted", "") in await report(server, "deleted", "later")


async def test_nothing_is_removed_during_a_restore(server: TestServer) -> None:
    await end_run(server, "r1")
    await delete(server, "r1")
    async with server.services.restore_lock:
        assert await report(server, "r1") == []
    assert await report(server, "r1") == [("r1", "")]


async def test_a_collection_removes_what_is_kept_in_doubt(server: TestServer) -> None:
    api = await server.api()
    assert await report(server, "r1", org="elsewhere") == []
    collected = (await api.post(server.path("storage/collections"))).json()
    assert [folder["runId"] for folder in collected["foldersOnMachines"]] == ["r1"]
    assert (await check_storage(server))["agrees"]
    assert await report(server, "r1", org="elsewhere") == [("r1", "")]
    assert not (await check_storage(server))["agrees"]
    assert await report(server) == []
    assert (await check_storage(server))["agrees"]


async def test_an_approved_run_that_exists_again_is_kept(server: TestServer) -> None:
    await report(server, "r1")
    await (await server.api()).post(server.path("storage/collections"))
    await end_run(server, "r1")
    assert await report(server, "r1") == []


async def test_several_reports_of_one_machine_are_one_list(server: TestServer) -> None:
    await report(server, "r1")
    await report(server, "r2", continues=True)
    assert [f["runId"] for f in (await check_storage(server))["foldersOnMachines"]] == ["r1", "r2"]
    await report(server, "r3")
    assert [f["runId"] for f in (await check_storage(server))["foldersOnMachines"]] == ["r3"]


async def test_a_controller_that_lists_no_folders_still_reports(server: TestServer) -> None:
    controller = await server.client(server.controller_key)
    body = {"host": "older", "labels": {}, "accelerators": [], "slots": 1}
    answer = await controller.put("/internal/v1/machines/m1", json=body)
    assert (answer.status_code, answer.json()) == (200, {"remove": [], "self_test": False})
    [machine] = server.services.machines.list_connected(uptime_s=server.clock.monotonic_s())
    assert machine.report.host == "older"


@pytest.mark.parametrize(
    ("rows", "tombstones", "open_attempts", "store_id", "is_approved", "expected"),
    [
        ({"r": False}, {"r"}, set(), "s", True, None),  # listed
        ({"r": True}, {"r"}, set(), "s", False, ""),
        ({"r": True}, {"r"}, {"r"}, "s", True, None),  # still to be settled
        ({}, {"r"}, set(), "s", False, ""),
        ({}, {"r"}, set(), "", False, None),  # of another server's organization
        ({}, set(), set(), "s", False, "s"),
        ({}, set(), set(), "", False, None),
        ({}, set(), set(), "", True, ""),
    ],
)
def test_decide_removal(
    rows: dict[str, bool],
    tombstones: set[str],
    open_attempts: set[str],
    store_id: str,
    is_approved: bool,
    expected: str | None,
) -> None:
    records = RunRecords(rows, frozenset(tombstones), frozenset(open_attempts))
    assert decide_removal("r", records, store_id=store_id, is_approved=is_approved) == expected
