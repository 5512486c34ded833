"""Leases over HTTP: claimed, started, renewed, lost, closed; time is the server's own."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Row, Table

from runyard import processes
from runyard.server.services import notifications
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.notifications import run_topic
from runyard.server.services.runs import deletion, leases
from runyard.server.services.runs.placement import Offer, explain_waiting
from runyard.server.services.runs.runs import decode_run
from runyard.store import attempts as attempt_rows
from runyard.store import outputs, tables
from runyard.store.requirements import Requirements
from tests.support import attempts
from tests.support.server import TestServer, open_server
from vi.api.resources.runs.responses import Run


async def tick(server: TestServer, seconds: float) -> None:
    """Advance the server's clock, two seconds per tick."""
    while seconds > 0:
        server.clock.forward(min(2.0, seconds))
        await leases.tick(server.services, min(2.0, seconds))
        seconds -= 2.0


async def run_of(server: TestServer, run_id: str = "r1") -> dict[str, Any]:
    run: dict[str, Any] = (await (await server.api()).get(server.path(f"runs/{run_id}"))).json()
    return run


def read_rows(table: Table, connection: Connection) -> Sequence[Row[Any]]:
    return connection.execute(table.select()).all()


async def test_a_run_from_claim_to_success(server: TestServer) -> None:
    api = await server.api()
    await api.put(
        server.path("runs/r1"), json={"spec": {"flow": {"settings": {"gracePeriodSeconds": 4}}}}
    )
    attempt = await attempts.claim(server)
    assert await attempts.read_condition(server) == (
        "Pending",
        "WaitingForWorker",
        "placed on here",
    )
    assignment = attempt.assignment
    assert (assignment["run_id"], assignment["attempt"], assignment["grace_s"]) == ("r1", 1, 4.0)
    assert assignment["run"]["spec"]["flow"]["settings"] == {"gracePeriodSeconds": 4}
    assert assignment["resume_checkpoint"] is None
    renewal = (await attempt.start()).json()
    assert (renewal["action"], renewal["lease_s"], renewal["grace_s"]) == ("continue", 15.0, 4.0)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Preparing")
    await attempt.checkpoint("epoch-1")
    assert (
        await attempt.finish(0, outcome="Succeeded", reason="Completed", message="done")
    ).status_code == 204
    assert await attempts.read_condition(server) == ("Succeeded", "Completed", "done")
    run = await run_of(server)
    assert [entry["condition"] for entry in run["status"]["conditions"]] == [
        "Pending",
        "Running",
        "Succeeded",
    ]
    assert run["status"]["observedGeneration"] == 1
    assert [
        (item["attempt"], item["exitCode"], item["cause"]) for item in run["status"]["attempts"]
    ] == [(1, 0, "exit code 0")]
    kill = await api.patch(server.path("runs/r1"), json={"spec": {"killedAt": 1}})
    assert (kill.status_code, kill.json()["code"]) == (409, "RunFinished")


async def test_repeated_claims_starts_and_reports_change_nothing(server: TestServer) -> None:
    api = await server.api()
    for run_id in ("r1", "r2"):
        await api.put(server.path(f"runs/{run_id}"), json={"spec": {}})
    first, again = await attempts.claim(server, "c1"), await attempts.claim(server, "c1")
    assert first.assignment["token"] == again.assignment["token"]
    other = await attempts.claim(server, "c2")
    assert {first.assignment["run_id"], other.assignment["run_id"]} == {"r1", "r2"}
    await first.start()
    await first.start()
    assert len((await run_of(server, first.assignment["run_id"]))["status"]["attempts"]) == 1
    assert [(await first.finish(75)).status_code for _ in range(2)] == [204, 204]
    assert await attempts.try_claim(server, "c1") is None  # that claim is used up


async def test_runs_are_claimed_by_priority_then_age_and_only_where_they_fit(
    server: TestServer,
) -> None:
    api = await server.api()
    flows = {
        "old": {},
        "new": {},
        "urgent": {"settings": {"priority": 5}},
        "gpu": {"settings": {"priority": 9}, "tolerations": {"accelerator": ["h100", "a100"]}},
    }
    for run_id, flow in flows.items():
        await api.put(server.path(f"runs/{run_id}"), json={"spec": {"flow": flow}})
        server.clock.forward(1)
    assert await attempts.try_claim(server, "c0", slots=0) is None
    taken = [
        (await attempts.claim(server, f"c{number}")).assignment["run_id"] for number in range(1, 4)
    ]
    assert taken == ["urgent", "old", "new"]
    assert await attempts.try_claim(server, "c4") is None
    assert (await attempts.claim(server, "c5", labels={"accelerator": ["a100"]})).assignment[
        "run_id"
    ] == "gpu"


async def test_runs_that_fit_no_machine_block_no_others_and_are_not_read(
    server: TestServer, monkeypatch: Any
) -> None:
    api = await server.api()
    unfit = {"settings": {"priority": 9}, "tolerations": {"accelerator": ["h100"]}}
    long = {
        "tolerations": {"accelerator": [f"{number:0250}" for number in range(9)]},
        "settings": {"priority": 9},
    }
    for number in range(250):
        await api.put(server.path(f"runs/unfit-{number}"), json={"spec": {"flow": unfit}})
    await api.put(server.path("runs/long"), json={"spec": {"flow": long}})
    for run_id in ("r1", "r2"):
        await api.put(server.path(f"runs/{run_id}"), json={"spec": {}})
    read: list[bytes] = []

    def read_and_decode(document: bytes) -> Run:
        read.append(document)
        return decode_run(document)

    monkeypatch.setattr(leases, "decode_run", read_and_decode)
    assert (await attempts.claim(server, "c1", labels={"accelerator": ["cpu"]})).assignment[
        "run_id"
    ] == "r1"
    assert len(read) < 10
    assert (await attempts.claim(server, "c2")).assignment["run_id"] == "r2"
    assert await attempts.try_claim(server, "c3") is None
    assert (await attempts.claim(server, "c4", labels={"accelerator": [f"{3:0250}"]})).assignment[
        "run_id"
    ] == "long"
    assert (await attempts.claim(server, "c5", labels={"accelerator": ["h100"]})).assignment[
        "run_id"
    ] == "unfit-0"


async def test_a_waiting_claim_is_woken_by_a_new_run(server: TestServer) -> None:
    waiting = asyncio.create_task(attempts.claim(server, "c1", wait_s=30))
    while not server.services.notifier._events:
        await asyncio.sleep(0)
    api = await server.api()
    await api.put(server.path("runs/r1"), json={"spec": {}})
    async with asyncio.timeout(5):
        attempt = await waiting
    assert attempt.assignment["run_id"] == "r1"


async def test_a_killed_run_is_cancelled_only_when_none_of_its_processes_is_alive(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    api = await server.api()
    killed = (await api.patch(server.path("runs/r1"), json={"spec": {"killedAt": 5}})).json()
    assert killed["spec"]["killedAt"] == server.clock.epoch_ms
    assert (await attempts.read_condition(server))[:2] == ("Running", "Stopping")
    assert killed["status"]["observedGeneration"] == 1
    again = await api.patch(server.path("runs/r1"), json={"spec": {"killedAt": 6}})
    assert (again.status_code, again.json()) == (200, killed)
    assert (await attempt.post("renew")).json()["action"] == "kill"
    assert (await run_of(server))["status"]["observedGeneration"] == 2
    await attempt.event("phase", phase="Saving", message="")
    assert (await attempts.read_condition(server))[:2] == ("Running", "Stopping")
    assert (await attempt.finish(75, empty=False)).status_code == 204
    assert (await attempts.read_condition(server))[:2] == ("Running", "Stopping")
    assert "still alive on here" in ((await attempts.read_condition(server))[2] or "")
    await attempt.finish(75)
    assert (await attempts.read_condition(server))[:2] == ("Cancelled", "KilledByUser")
    assert await attempts.try_claim(server, "c2") is None


async def test_a_run_killed_between_claim_and_start_never_trains(server: TestServer) -> None:
    api = await server.api()
    await api.put(server.path("runs/r1"), json={"spec": {}})
    attempt = await attempts.claim(server)
    await api.patch(server.path("runs/r1"), json={"spec": {"killedAt": 5}})
    assert (await attempts.read_condition(server))[:2] == ("Pending", "Stopping")
    assert (await attempt.start()).json()["action"] == "kill"
    await attempt.finish(75)
    assert (await attempts.read_condition(server))[:2] == ("Cancelled", "KilledByUser")


async def test_a_claim_that_never_started_is_not_charged(server: TestServer) -> None:
    api = await server.api()
    await api.put(server.path("runs/r1"), json={"spec": {"flow": {"settings": {"attempts": 1}}}})
    for number in range(3):
        attempt = await attempts.claim(server, f"c{number}")
        assert attempt.assignment["attempt"] == number + 1
        await tick(server, 16)
        assert (await attempts.read_condition(server))[:2] == ("Pending", "Retrying")
        late = await attempt.start()
        assert (late.status_code, late.json()["code"]) == (409, "LeaseLost")
    assert (await run_of(server))["status"]["attempts"] == []


async def test_crashes_use_up_the_attempts_and_then_count_as_a_platform_error(
    server: TestServer,
) -> None:
    api = await server.api()
    await api.put(server.path("runs/r1"), json={"spec": {"flow": {"settings": {"attempts": 2}}}})
    for number, expected in ((1, ("Pending", "Retrying")), (2, ("Error", "WorkerLost"))):
        attempt = await attempts.claim(server, f"c{number}")
        await attempt.start()
        await attempt.finish(139)
        assert (await attempts.read_condition(server))[:2] == expected
    assert "exit code 139" in ((await attempts.read_condition(server))[2] or "")
    assert [item["exitCode"] for item in (await run_of(server))["status"]["attempts"]] == [139, 139]


async def test_a_silent_attempt_is_reported_and_may_come_back(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await tick(server, 14)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Preparing")
    await attempt.post("renew")
    await tick(server, 14)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Preparing")
    await tick(server, 2)
    condition, reason, message = await attempts.read_condition(server)
    assert (condition, reason) == ("Running", "Stopping")
    assert "no report from here" in (message or "")
    # No second trainer while the first may be alive.
    assert await attempts.try_claim(server, "c9") is None
    back = await attempt.post("renew", phase="Training")
    assert back.json()["action"] == "continue"
    assert await attempts.read_condition(server) == ("Running", "Training", "reported again")
    await tick(server, 10)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Training")


async def test_the_controllers_report_closes_a_silent_attempt_and_its_result_counts(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    await attempt.checkpoint()
    await tick(server, 30)
    controller = await server.client(server.controller_key)
    placed = (await controller.get("/internal/v1/machines/m1")).json()["attempts"]
    assert [item["token"] for item in placed] == [attempt.assignment["token"]]
    assert placed[0]["resume_checkpoint"] == "epoch-1"
    assert (await controller.get("/internal/v1/machines/m2")).json() == {"attempts": []}
    await attempt.finish(None, outcome="Succeeded", reason="Completed", message="found on disk")
    assert await attempts.read_condition(server) == ("Succeeded", "Completed", "found on disk")
    assert (await controller.get("/internal/v1/machines/m1")).json() == {"attempts": []}


async def test_long_silence_allows_a_new_attempt_and_the_old_one_is_refused(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    await attempt.checkpoint("epoch-2")
    await tick(server, 15 + 1 + leases.RETRY_AFTER_S)
    assert (await attempts.read_condition(server))[:2] == ("Pending", "Retrying")
    second = await attempts.claim(server, "c2", machine_id="m2")
    assert (second.assignment["attempt"], second.assignment["resume_checkpoint"]) == (2, "epoch-2")
    for refused in (await attempt.post("renew"), await attempt.start()):
        assert (refused.status_code, refused.json()["code"]) == (409, "LeaseLost")
    assert (await attempt.ship("late")).json()["code"] == "LeaseLost"
    assert second.assignment["token"] != attempt.assignment["token"]


async def test_another_machine_takes_a_lost_run_at_once_and_the_same_one_waits(
    server: TestServer,
) -> None:
    api = await server.api()
    attempt = await attempts.start(server)
    await attempt.checkpoint("epoch-2")
    await tick(server, 14)
    assert await attempts.try_claim(server, "c2", machine_id="m2") is None  # it may only be slow
    await tick(server, 2)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Stopping")
    assert await attempts.try_claim(server, "c3") is None  # the same machine
    await api.put(server.path("runs/younger"), json={"spec": {}})
    second = await attempts.claim(server, "c4", machine_id="m2")
    assert (second.assignment["run_id"], second.assignment["attempt"]) == ("r1", 2)
    assert second.assignment["resume_checkpoint"] == "epoch-2"
    again = await attempts.claim(server, "c4", machine_id="m2")
    assert again.assignment["token"] == second.assignment["token"]
    refused = await attempt.post("renew")
    assert (refused.status_code, refused.json()["code"]) == (409, "LeaseLost")
    assert (await attempts.claim(server, "c5", machine_id="m2")).assignment["run_id"] == "younger"
    first = (await run_of(server))["status"]["attempts"][0]
    assert "no report from here" in first["cause"] and first["timeEnded"]


@pytest.mark.parametrize("is_proven", [True, False])
async def test_a_kill_waits_for_a_lost_attempt_only_until_it_has_reported_its_end(
    server: TestServer, is_proven: bool
) -> None:
    api = await server.api()
    first = await attempts.start(server)
    await tick(server, 16)
    second = await attempts.claim(server, "c2", machine_id="m2")
    await second.start()
    late = await first.finish(0, outcome="Succeeded", reason="Completed", empty=is_proven)
    assert late.status_code == (204 if is_proven else 409)
    assert (await attempts.read_condition(server))[0] == "Running"  # the second one trains on
    await api.patch(server.path("runs/r1"), json={"spec": {"killedAt": 1}})
    assert (await second.finish(75, outcome="Stopped", reason="Stopped")).status_code == 204
    assert (await attempts.read_condition(server))[0] == ("Cancelled" if is_proven else "Running")
    assert (await first.finish(0)).status_code == 204
    assert (await attempts.read_condition(server))[0] == "Cancelled"


async def test_a_lost_attempt_of_a_finished_and_deleted_run_does_not_stop_the_server(
    server: TestServer,
) -> None:
    """Its processes may still run, so the delete reopens it; all leases still expire in time."""
    api = await server.api()
    first = await attempts.start(server)
    await tick(server, 16)
    second = await attempts.claim(server, "c2", machine_id="m2")
    await second.start()
    await second.checkpoint()
    assert (await second.finish(0, outcome="Succeeded", reason="Completed")).status_code < 300
    assert (await attempts.read_condition(server))[0] == "Succeeded"
    assert (await api.delete(server.path("runs/r1"))).status_code == 204
    assert server.services.store.read(attempt_rows.count_open) == 1
    assert (await first.post("renew")).status_code == 200  # it was alive, and is silent from now on
    await tick(server, 16)
    await tick(server, 16)
    assert (
        server.services.store.read(attempt_rows.count_open) == 1
    )  # nothing proves that it has ended
    await api.put(server.path("runs/other"), json={"spec": {}})
    assert (await attempts.claim(server, "c3", machine_id="m2")).assignment["run_id"] == "other"


async def test_a_lost_run_moves_only_where_it_fits_is_not_killed_and_has_attempts_left(
    server: TestServer,
) -> None:
    api = await server.api()
    flows = {
        "picky": {"tolerations": {"accelerator": ["a10"]}},
        "last": {"settings": {"attempts": 1}},
        "killed": {},
        "deleted": {},
    }
    for run_id, flow in flows.items():
        await api.put(server.path(f"runs/{run_id}"), json={"spec": {"flow": flow}})
        attempt = await attempts.claim(server, f"claim-{run_id}", labels={"accelerator": ["a10"]})
        await attempt.start()
    await tick(server, 16)
    await api.patch(server.path("runs/killed"), json={"spec": {"killedAt": 1}})
    await api.delete(server.path("runs/deleted"))
    assert (
        await attempts.try_claim(server, "c1", machine_id="m2", labels={"accelerator": ["cpu"]})
        is None
    )
    taken = await attempts.claim(server, "c2", machine_id="m2", labels={"accelerator": ["a10"]})
    assert taken.assignment["run_id"] == "picky"
    assert (
        await attempts.try_claim(server, "c3", machine_id="m2", labels={"accelerator": ["a10"]})
        is None
    )


async def test_a_waiting_claim_is_woken_when_a_run_is_lost_elsewhere(server: TestServer) -> None:
    await attempts.start(server)
    waiting = asyncio.create_task(attempts.claim(server, "c2", machine_id="m2", wait_s=30))
    while notifications.QUEUE not in server.services.notifier._events:
        await asyncio.sleep(0)
    await tick(server, 16)
    async with asyncio.timeout(20):
        assert (await waiting).assignment["attempt"] == 2


async def test_an_assignment_names_the_boot_of_the_servers_machine(server: TestServer) -> None:
    attempt = await attempts.start(server)
    assert attempt.assignment["server_boot_id"] == processes.boot_id()
    controller = await server.client(server.controller_key)
    [placed] = (await controller.get("/internal/v1/machines/m1")).json()["attempts"]
    assert placed["server_boot_id"] == processes.boot_id()


async def test_a_silent_machine_must_settle_its_attempt_before_it_claims_the_run_again(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    await tick(server, 15 + 2 + leases.RETRY_AFTER_S)
    assert await attempts.try_claim(server, "c2") is None
    controller = await server.client(server.controller_key)
    placed = (await controller.get("/internal/v1/machines/m1")).json()["attempts"]
    assert [item["token"] for item in placed] == [attempt.assignment["token"]]
    assert (await attempt.ship("still here")).status_code == 200
    assert (await attempt.post("renew")).json()["action"] == "continue"
    assert (await attempts.read_condition(server))[0] == "Running"
    assert (await attempt.finish(1)).status_code == 204
    assert (await attempts.claim(server, "c3")).assignment["attempt"] == 2


async def test_a_machine_that_settled_a_lost_attempt_may_claim_the_run_again(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    await tick(server, 30)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Stopping")
    assert (await attempt.finish(None)).status_code == 204
    assert (await attempts.claim(server, "c2")).assignment["attempt"] == 2


async def test_a_killed_run_is_not_cancelled_before_its_silent_attempt_is_settled(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    await tick(server, 15 + 2 + leases.RETRY_AFTER_S)
    api = await server.api()
    await api.patch(server.path("runs/r1"), json={"spec": {"killedAt": 1}})
    assert (await attempts.read_condition(server))[:2] == ("Pending", "Stopping")
    assert (await attempt.post("renew")).json()["action"] == "kill"
    assert (await attempt.finish(75)).status_code == 204
    assert (await attempts.read_condition(server))[0] == "Cancelled"


async def test_a_renewal_counts_as_a_start_when_a_restore_has_undone_the_report(
    server: TestServer,
) -> None:
    await (await server.api()).put(server.path("runs/r1"), json={"spec": {}})
    attempt = await attempts.claim(server, "c1")
    assert (await attempt.post("renew")).json()["action"] == "continue"
    assert (await attempts.read_condition(server))[:2] == ("Running", "Preparing")
    await tick(server, 15 + 2)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Stopping")


async def test_a_result_after_long_silence_counts_unless_the_run_has_continued(
    server: TestServer,
) -> None:
    for run_id in ("r1", "r2"):
        attempt = await attempts.start(server, run_id)
        await attempt.checkpoint()
        await tick(server, 15 + 2 + leases.RETRY_AFTER_S)
        assert (await attempts.read_condition(server, run_id))[:2] == ("Pending", "Retrying")
        done: dict[str, Any] = {
            "outcome": "Succeeded",
            "reason": "Completed",
            "message": "found on disk",
        }
        if run_id == "r1":
            assert [(await attempt.finish(0, **done)).status_code for _ in range(2)] == [204, 204]
            assert await attempts.read_condition(server, run_id) == (
                "Succeeded",
                "Completed",
                "found on disk",
            )
        else:
            second = await attempts.claim(server, "c2", machine_id="m2")
            await second.start()
            assert (await attempt.finish(0, **done)).status_code == 204  # only proof of its end
            assert (await attempts.read_condition(server, run_id))[:2] == ("Running", "Preparing")


def test_the_servers_periodic_task_notices_a_lost_lease(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_server(tmp_path / "data", run_ticker=True, lease_s=0.5) as server:
            await attempts.start(server)
            event = server.services.notifier.watch(run_topic(server.org, "r1"))
            server.clock.is_racing = True
            assert await server.services.notifier.wait(event, timeout_s=20)
            assert (await attempts.read_condition(server))[:2] == ("Running", "Stopping")

    asyncio.run(scenario())


async def test_silence_alone_ends_no_run_for_a_long_time(
    server: TestServer, monkeypatch: Any
) -> None:
    assert leases.GIVE_UP_AFTER_S >= 30 * 60
    monkeypatch.setattr(leases, "GIVE_UP_AFTER_S", 30.0)
    monkeypatch.setattr(leases, "RETRY_AFTER_S", 10.0)
    await attempts.start(server, flow={"settings": {"attempts": 1}})
    await tick(server, 15 + 1 + leases.RETRY_AFTER_S + 5)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Stopping")
    await tick(server, leases.GIVE_UP_AFTER_S - leases.RETRY_AFTER_S)
    assert (await attempts.read_condition(server))[:2] == ("Error", "WorkerLost")


async def test_leases_do_not_age_while_the_server_is_down(server: TestServer) -> None:
    """After a stop or suspension a tick is late by hours; it counts as two seconds."""
    await attempts.start(server)
    for _ in range(3):
        server.clock.forward(3600)
        await leases.tick(server.services, 3600.0)
    assert (await attempts.read_condition(server))[:2] == ("Running", "Preparing")


async def test_fencing_numbers_grow_and_a_token_of_another_store_is_refused(
    server: TestServer,
) -> None:
    first = await attempts.start(server, "r1")
    second = await attempts.start(server, "r2")
    rows = server.services.store.read(
        lambda connection: [
            row
            for claim_id in ("claim-r1", "claim-r2")
            if (row := attempt_rows.find_by_claim(connection, claim_id=claim_id)) is not None
        ]
    )
    assert rows[0].token_number < rows[1].token_number
    assert (
        (await first.post("renew")).status_code == (await second.post("renew")).status_code == 200
    )
    forged = AttemptToken(server.org, "another", rows[0].token_number)
    other = await server.client(server.services.signer.sign_attempt_token(forged))
    answer = await other.post("/internal/v1/attempt/renew", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "LeaseLost")


async def test_deleting_a_running_run_hides_it_at_once_and_removes_it_when_it_has_ended(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    await attempt.ship("hello", stream="stdout")
    await attempt.checkpoint()
    folder = server.settings.runs_dir / server.org / "r1" / "attempts" / "1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    api = await server.api()
    assert (await api.delete(server.path("runs/r1"))).status_code == 204
    assert (await api.get(server.path("runs/r1"))).status_code == 404
    assert (await api.get(server.path("runs"))).json()["items"] == []
    assert folder.exists()
    assert (await attempt.post("renew")).json()["action"] == "kill"
    await attempt.finish(75)
    assert not folder.parent.parent.exists()
    for table in (
        tables.runs,
        tables.attempts,
        tables.log_lines,
        tables.outputs,
        tables.output_files,
    ):
        left = server.services.store.read(partial(read_rows, table))
        assert left == [], table.name
    assert list(server.services.blobs(server.org).hashes()) == []


async def test_an_interrupted_deletion_is_finished_by_the_sweep(
    server: TestServer, monkeypatch: Any
) -> None:
    attempt = await attempts.start(server)
    await attempt.checkpoint()
    await attempt.finish(64)
    api = await server.api()

    def cut(*_: Any) -> None:
        raise OSError("cut here")

    monkeypatch.setattr(deletion, "_remove_bytes", cut)
    assert (await api.delete(server.path("runs/r1"))).status_code == 204
    assert (await api.get(server.path("runs/r1"))).status_code == 404
    monkeypatch.undo()
    await deletion.sweep(server.services)
    assert list(server.services.blobs(server.org).hashes()) == []
    assert (
        server.services.store.read(
            lambda connection: outputs.list_by_run(connection, org=server.org, run_id="r1")
        )
        == []
    )


async def test_a_kill_may_set_the_grace_period(server: TestServer) -> None:
    attempt = await attempts.start(server)
    api = await server.api()
    bad = await api.patch(
        server.path("runs/r1"), json={"spec": {"killedAt": 1, "graceSeconds": -1}}
    )
    assert bad.status_code == 400
    killed = (
        await api.patch(server.path("runs/r1"), json={"spec": {"killedAt": 1, "graceSeconds": 2.5}})
    ).json()
    assert killed["spec"]["graceSeconds"] == 2.5
    renewal = (await attempt.post("renew")).json()
    assert (renewal["action"], renewal["grace_s"]) == ("kill", 2.5)


async def test_runs_wait_for_disk_space_and_continue_when_there_is_enough(
    server: TestServer,
) -> None:
    await (await server.api()).put(server.path("runs/r1"), json={"spec": {}})
    assert await attempts.try_claim(server, "c1", lacks_disk=True) is None
    assert (await attempts.read_condition(server))[:2] == ("Pending", "WaitingForDisk")
    assert (await attempts.claim(server, "c1")).assignment["run_id"] == "r1"
    assert (await attempts.read_condition(server))[:2] == ("Pending", "WaitingForWorker")


async def test_a_supervisors_note_is_the_conditions_message(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.post("renew", phase="Training", note="the trainer has said nothing for 600 s")
    assert (await attempts.read_condition(server))[2] == "the trainer has said nothing for 600 s"


SHRINK = [{"block": "vi-model", "settings": {}, "style": {}}]  # the default


def plan_with(size: int) -> dict[str, Any]:
    return {
        "microBatchSize": {"value": size, "reason": "flow"},
        "batchSize": {"value": 32, "reason": "flow"},
    }


async def test_a_run_that_may_shrink_halves_the_micro_batch_after_each_out_of_memory_kill(
    server: TestServer,
) -> None:
    """More kills than allowed attempts, each reported twice.

    The next assignment carries the limit to the trainer.
    """
    attempt = await attempts.start(server, flow={"blocks": SHRINK, "settings": {"attempts": 2}})
    size = 8
    for number in (1, 2, 3):
        assert (await attempt.event("plan", plan=plan_with(size))).status_code == 200
        assert (await run_of(server))["status"]["attempts"][-1]["microBatchSize"] == size
        assert [(await attempt.out_of_memory()).status_code for _ in range(2)] == [204, 204]
        item = (
            f"out of memory with microBatchSize {size} (the kernel ended the trainer); resuming "
            f"with {size // 2}"
        )
        assert await attempts.read_condition(server) == (
            "Pending",
            "Retrying",
            f"{item} at the same batch size",
        )
        size //= 2
        attempt = await attempts.claim(server, f"c{number}")
        assert attempt.assignment["run"]["status"]["microBatchLimit"] == size
        await attempt.start()
    await attempt.event("plan", plan=plan_with(1))
    await attempt.out_of_memory()
    kind, reason, message = await attempts.read_condition(server)
    assert (kind, reason) == ("Failed", "OutOfMemory")
    assert "with microBatchSize 1, the smallest" in (message or "")
    status = (await run_of(server))["status"]
    assert [item["microBatchSize"] for item in status["attempts"]] == [8, 4, 2, 1]
    assert all(item["cause"].startswith("out of memory") for item in status["attempts"])


async def test_without_a_plan_the_micro_batch_is_assumed_to_be_the_largest_possible(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server, flow={"blocks": SHRINK})
    await attempt.out_of_memory(
        "out of memory: the kernel ended the trainer while it was Preparing"
    )
    message = (await attempts.read_condition(server))[2]
    assert "with microBatchSize 32 (the kernel" in (message or "")
    assert (await run_of(server))["status"]["microBatchLimit"] == 16


async def test_without_shrink_an_out_of_memory_kill_is_final(server: TestServer) -> None:
    fail = [{"block": "vi-model", "settings": {"onOutOfMemory": "fail"}, "style": {}}]
    attempt = await attempts.start(server, flow={"blocks": fail})
    await attempt.event("plan", plan=plan_with(8))
    await attempt.out_of_memory()
    assert (await attempts.read_condition(server))[:2] == ("Failed", "OutOfMemory")
    assert (await run_of(server))["status"]["microBatchLimit"] is None


async def test_a_supervisor_lost_out_of_memory_shrinks_within_the_allowed_attempts(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server, flow={"blocks": SHRINK, "settings": {"attempts": 2}})
    await attempt.event("plan", plan=plan_with(8))
    lost = "the supervisor was lost, and the kernel has run out of memory since it began"
    await attempt.out_of_memory(lost)
    assert (await attempts.read_condition(server))[2] == (
        f"try 1 of 2 was lost: {lost}; resuming with microBatchSize 4 instead of 8"
    )
    attempt = await attempts.claim(server, "c1")
    assert attempt.assignment["run"]["status"]["microBatchLimit"] == 4
    await attempt.start()
    await attempt.out_of_memory(lost)
    assert (await attempts.read_condition(server))[:2] == ("Error", "WorkerLost")


async def test_a_trainer_that_waits_for_disk_space_is_running_with_that_reason(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    await attempt.event(
        "phase", phase="WaitingForDisk", message="epoch-1 needs 100 bytes, 7 are free"
    )
    assert await attempts.read_condition(server) == (
        "Running",
        "WaitingForDisk",
        "epoch-1 needs 100 bytes, 7 are free",
    )
    await attempt.event("phase", phase="Saving", message="epoch-1")
    assert await attempts.read_condition(server) == ("Running", "Saving", "epoch-1")


async def test_lost_ranks_are_free_as_long_as_each_attempt_gets_further(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server, flow={"settings": {"attempts": 2}})
    for number in (1, 2, 3):
        await attempt.checkpoint(f"step-{number}")
        await attempt.lose_rank()
        kind, reason, message = await attempts.read_condition(server)
        assert (kind, reason) == ("Pending", "Retrying")
        assert "does not count as a try" in (message or "")
        attempt = await attempts.claim(server, f"c{number}")
        await attempt.start()
    await attempt.lose_rank()
    message = (await attempts.read_condition(server))[2]
    assert message == "try 1 of 2 was lost: a rank was lost: rank 1, killed by SIGKILL"
    attempt = await attempts.claim(server, "last")
    await attempt.start()
    await attempt.lose_rank()
    assert (await attempts.read_condition(server))[:2] == ("Error", "WorkerLost")


async def report_accelerators(server: TestServer, count: int) -> None:
    controller = await server.client(server.controller_key)
    report = {
        "host": "here",
        "labels": {},
        "slots": count,
        "accelerators": [{"name": "h100", "count": count}],
    }
    answer = await controller.put("/internal/v1/machines/m1", json=report)
    assert answer.status_code == 200


def ask_for(accelerators: int, **settings: int) -> dict[str, Any]:
    flow = {"settings": {"resources": {"accelerators": accelerators}, **settings}}
    return {"spec": {"flow": flow}}


async def test_a_run_is_claimed_only_with_as_many_free_accelerators(server: TestServer) -> None:
    api = await server.api()
    await report_accelerators(server, 4)
    await api.put(server.path("runs/four"), json=ask_for(4))
    await api.put(server.path("runs/two"), json=ask_for(2))
    await api.put(server.path("runs/eight"), json=ask_for(8))
    assert await attempts.try_claim(server, "c1", accelerators=1) is None
    found = await attempts.claim(server, "c2", accelerators=3)
    assert found.assignment["run_id"] == "two"
    found = await attempts.claim(server, "c3", accelerators=4)
    assert found.assignment["run_id"] == "four"


def test_a_run_that_asks_for_more_accelerators_than_any_machine_has_says_so() -> None:
    offers = [Offer(host="gpu-3", labels={"accelerator": ["h100"]}, slots=4, accelerators=4)]
    reason = explain_waiting(Requirements(accelerators=8), offers)
    assert (reason.reason, reason.message) == (
        "WaitingForCapacity",
        "requests 8 accelerators of one machine; no connected machine can take it: gpu-3 offers "
        "4 x accelerator h100 (4 slots)",
    )
    reason = explain_waiting(Requirements(accelerators=4), offers)
    assert reason.message == "waiting for 4 free accelerators of one machine"


async def test_runs_of_lower_priority_do_not_take_accelerators_that_a_run_waits_for(
    server: TestServer,
) -> None:
    api = await server.api()
    await report_accelerators(server, 4)
    await api.put(server.path("runs/low"), json=ask_for(1))
    await api.put(server.path("runs/high"), json=ask_for(4, priority=5))
    await api.put(server.path("runs/equal"), json=ask_for(2, priority=5))
    found = await attempts.claim(server, "c1", accelerators=3)
    assert found.assignment["run_id"] == "equal"
    assert await attempts.try_claim(server, "c2", accelerators=3) is None
    found = await attempts.claim(server, "c3", accelerators=4)
    assert found.assignment["run_id"] == "high"
    found = await attempts.claim(server, "c4", accelerators=3)
    assert found.assignment["run_id"] == "low"
