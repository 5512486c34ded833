"""Machines on which runs fail are suspected, tested, and excluded if they fail the test."""

from typing import Any

import httpx2
import pytest

from runyard.protocol import ExitReport
from runyard.server.services.machine_failures import FAILURES, RELAPSE_MS, WINDOW_MS, find_failure
from runyard.server.services.runs import leases
from runyard.server.services.runs.leases import AVOID_FOR_S
from tests.server.test_joining import (
    MACHINE,
    claim,
    create_run,
    join_machine,
    list_machines,
    start,
)
from tests.support.server import TestServer

pytestmark = pytest.mark.anyio

REPORT: dict[str, Any] = {"host": "here", "labels": {}, "accelerators": [], "slots": 1}


async def fail_run(
    server: TestServer, machine: httpx2.AsyncClient, run_id: str, **end: Any
) -> bool:
    """Let a run end on the machine in the way given; return whether the machine took it."""
    await create_run(server, run_id)
    attempt = await claim(server, machine, claim_id=f"of-{run_id}")
    if attempt is None:
        return False
    await start(attempt)
    report = {"exit_code": None, "signal": None, "group_empty": True, "cause": "", "time": 5}
    answer = await attempt.post("finish", **report | end)
    assert answer.status_code == 204, answer.text
    api = await server.api()
    await api.delete(server.path(f"runs/{run_id}"))  # else it would be the next one here
    return True


async def read_machine(server: TestServer) -> tuple[str, str]:
    """Return the state of the machine and why."""
    [found] = await list_machines(server)
    return found["status"]["state"], found["spec"]["note"] or ""


async def report_test(machine: httpx2.AsyncClient, **outcome: Any) -> bool:
    """Report with the outcome of a self-test; return whether another one is requested."""
    answer = await machine.put(
        f"/internal/v1/machines/{MACHINE}",
        json=REPORT | ({"self_test": outcome} if outcome else {}),
    )
    assert answer.status_code == 200, answer.text
    return bool(answer.json()["self_test"])


async def test_a_machine_that_fails_everything_gets_two_runs(server: TestServer) -> None:
    machine = await join_machine(server)
    taken = [await fail_run(server, machine, f"r{n}", signal="SIGSEGV") for n in range(6)]
    assert taken == [True] * FAILURES + [False] * (6 - FAILURES)
    state, note = await read_machine(server)
    assert state == "suspect"
    assert note == "2 runs failed there within an hour: killed by SIGSEGV"


async def test_a_run_that_always_fails_does_not_make_a_machine_suspect(server: TestServer) -> None:
    machine = await join_machine(server)
    await create_run(server)
    for number in range(3):
        attempt = await claim(server, machine, claim_id=f"c{number}")
        assert attempt is not None
        await start(attempt)
        await attempt.post(
            "finish", exit_code=None, signal="SIGSEGV", group_empty=True, cause="", time=5
        )
    assert (await read_machine(server))[0] == "joined"


async def test_old_failures_do_not_count(server: TestServer) -> None:
    machine = await join_machine(server)
    await fail_run(server, machine, "r1", signal="SIGBUS")
    server.clock.forward(WINDOW_MS / 1000 + 1)
    await fail_run(server, machine, "r2", signal="SIGBUS")
    assert (await read_machine(server))[0] == "joined"


async def test_a_suspect_machine_takes_runs_again_after_its_test(server: TestServer) -> None:
    machine = await join_machine(server)
    assert not await report_test(machine)
    for run_id in ("r1", "r2"):
        await fail_run(server, machine, run_id, signal="SIGBUS")
    assert await report_test(machine)
    assert not await report_test(machine, passed=True, message="all of it")
    assert (await read_machine(server))[0] == "joined"
    assert await fail_run(server, machine, "r3", exit_code=75)
    server.clock.forward(1)  # the failures before the test do not count again
    assert await fail_run(server, machine, "r4", signal="SIGBUS")
    assert (await read_machine(server))[0] == "joined"


async def test_a_machine_that_relapses_within_a_day_is_excluded(server: TestServer) -> None:
    machine = await join_machine(server)
    for run_id in ("r1", "r2"):
        await fail_run(server, machine, run_id, signal="SIGBUS")
    await report_test(machine, passed=True, message="all of it")
    server.clock.forward(RELAPSE_MS / 1000 / 2)
    for run_id in ("r3", "r4"):
        await fail_run(server, machine, run_id, signal="SIGBUS")
    state, note = await read_machine(server)
    assert state == "excluded" and "passed its self-test within a day" in note


async def test_two_failed_tests_exclude_a_machine(server: TestServer) -> None:
    machine = await join_machine(server)
    for run_id in ("r1", "r2"):
        await fail_run(server, machine, run_id, signal="SIGBUS")
    assert await report_test(machine, passed=False, message="cuda:0: a product is wrong")
    assert not await report_test(machine, passed=False, message="cuda:0: a product is wrong")
    assert await read_machine(server) == (
        "excluded",
        "failed its self-test 2 times: cuda:0: a product is wrong",
    )


async def test_a_failed_test_that_is_reported_again_counts_once(server: TestServer) -> None:
    """The response to its first report was lost."""
    machine = await join_machine(server)
    for run_id in ("r1", "r2"):
        await fail_run(server, machine, run_id, signal="SIGBUS")
    for _ in range(2):
        assert await report_test(machine, passed=False, message="broken", id="one")
    assert not await report_test(machine, passed=False, message="broken", id="two")
    assert (await read_machine(server))[0] == "excluded"


async def test_a_test_that_nobody_asked_for_changes_nothing(server: TestServer) -> None:
    machine = await join_machine(server)
    await report_test(machine, passed=False, message="broken")
    assert (await read_machine(server))[0] == "joined"


async def test_a_machine_that_falls_silent_with_two_runs_is_suspect(server: TestServer) -> None:
    machine = await join_machine(server)
    for run_id in ("r1", "r2"):
        await create_run(server, run_id)
        attempt = await claim(server, machine, claim_id=f"of-{run_id}", slots=2)
        assert attempt is not None
        await start(attempt)
    for _ in range(100):
        server.clock.forward(2)
        await leases.tick(server.services, 2.0)
    state, note = await read_machine(server)
    assert state == "suspect" and "fell silent" in note


@pytest.mark.parametrize(
    ("end", "failure"),
    [
        ({"signal": "SIGSEGV"}, "killed by SIGSEGV"),
        ({"signal": "SIGKILL"}, None),
        ({"exit_code": 1}, None),
        ({"exit_code": 1, "result": {"outcome": "Failed", "reason": "TrainerError"}}, None),
        (
            {"exit_code": 1, "result": {"outcome": "MachineFailure", "message": "NCCL error"}},
            "NCCL error",
        ),
    ],
)
async def test_what_points_at_the_machine(end: dict[str, Any], failure: str | None) -> None:
    report = {"exit_code": None, "signal": None, "group_empty": True, "cause": "", "time": 5}
    assert find_failure(ExitReport(**report | end)) == failure


async def test_a_run_whose_machine_failed_is_retried(server: TestServer) -> None:
    machine, api = await join_machine(server), await server.api()
    await create_run(server)
    attempt = await claim(server, machine)
    assert attempt is not None
    await start(attempt)
    message = "CUDA error: uncorrectable ECC error"
    await attempt.finish(1, outcome="MachineFailure", message=message)
    latest = (await api.get(server.path("runs/r1"))).json()["status"]["conditions"][-1]
    assert (latest["condition"], latest["reason"]) == ("Pending", "Retrying")
    assert "the machine failed: CUDA error: uncorrectable ECC error" in latest["message"]


OTHER = "machine-bb"


async def fail_on_first(server: TestServer) -> tuple[httpx2.AsyncClient, httpx2.AsyncClient]:
    """Let a run fail on one of two connected machines; return the clients of both."""
    first, second = await join_machine(server), await join_machine(server, OTHER)
    await claim(server, second, machine_id=OTHER, claim_id="nothing-yet")
    await create_run(server)
    attempt = await claim(server, first)
    assert attempt is not None
    await start(attempt)
    await attempt.finish(1, outcome="MachineFailure", message="NCCL error")
    return first, second


async def test_a_run_goes_to_another_machine_after_its_own_has_failed(server: TestServer) -> None:
    first, second = await fail_on_first(server)
    assert await claim(server, first, claim_id="again") is None
    moved = await claim(server, second, machine_id=OTHER)
    assert moved is not None and moved.assignment["attempt"] == 2


async def test_a_run_waits_a_minute_for_another_machine(server: TestServer) -> None:
    first, _ = await fail_on_first(server)
    assert await claim(server, first, claim_id="again") is None
    server.clock.forward(AVOID_FOR_S + 1)
    assert await claim(server, first, claim_id="later") is not None


async def test_a_run_returns_to_its_machine_if_no_other_fits(server: TestServer) -> None:
    first, _ = await fail_on_first(server)
    api = await server.api()
    await api.patch(server.path(f"machines/{OTHER}"), json={"spec": {"state": "excluded"}})
    assert await claim(server, first, claim_id="again") is not None
