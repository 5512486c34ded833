"""Every reason in the table occurs: a scenario for each condition and reason."""

from collections.abc import Awaitable, Callable
from typing import Any, get_args

import pytest

from runyard import rundir
from runyard.server.services.runs import waiting_reasons
from runyard.server.services.runs.conditions import REASONS
from runyard.trainer import errors
from tests.support import attempts
from tests.support.server import TestServer

Scenario = Callable[[TestServer], Awaitable[None]]
SCENARIOS: dict[tuple[str, str], Scenario] = {}


def register_scenario(condition: str, reason: str) -> Callable[[Scenario], Scenario]:
    def register(scenario: Scenario) -> Scenario:
        SCENARIOS[condition, reason] = scenario
        return scenario

    return register


async def create(
    server: TestServer, flow: dict[str, Any] | None = None, run_id: str = "r1"
) -> None:
    answer = await (await server.api()).put(
        server.path(f"runs/{run_id}"), json={"spec": {"flow": flow or {}}}
    )
    assert answer.status_code == 201, answer.text


async def kill(server: TestServer, run_id: str = "r1") -> None:
    await (await server.api()).patch(server.path(f"runs/{run_id}"), json={"spec": {"killedAt": 1}})


async def report(
    server: TestServer, machine_id: str = "m1", *, accelerator: str = "cpu", slots: int = 1
) -> None:
    controller = await server.client(server.controller_key)
    machine = {
        "host": f"host-{machine_id}",
        "labels": {"accelerator": [accelerator]},
        "accelerators": [],
        "slots": slots,
    }
    assert (
        await controller.put(f"/internal/v1/machines/{machine_id}", json=machine)
    ).status_code == 200


async def wait_until_all_are_heard(server: TestServer) -> None:
    """Advance the clock until every connected controller must have called."""
    await waiting_reasons.refresh(server.services)
    server.clock.forward(45)


@register_scenario("Pending", "Queued")
async def _(server: TestServer) -> None:
    await wait_until_all_are_heard(server)
    await report(server)
    await create(server)


@register_scenario("Pending", "WaitingForMachine")
async def _(server: TestServer) -> None:
    await create(server)
    await wait_until_all_are_heard(server)
    await waiting_reasons.refresh(server.services)


@register_scenario("Pending", "WaitingForCapacity")
async def _(server: TestServer) -> None:
    await wait_until_all_are_heard(server)
    await report(server)
    await create(server, {"tolerations": {"accelerator": ["h100"]}})


@register_scenario("Pending", "WaitingForWorker")
async def _(server: TestServer) -> None:
    await create(server)
    await attempts.claim(server)


@register_scenario("Pending", "WaitingForDisk")
async def _(server: TestServer) -> None:
    await create(server)
    await attempts.try_claim(server, lacks_disk=True)


@register_scenario("Pending", "Retrying")
async def _(server: TestServer) -> None:
    await (await attempts.start(server)).finish(75, outcome="Stopped")


@register_scenario("Pending", "Stopping")
async def _(server: TestServer) -> None:
    await create(server)
    await attempts.claim(server)
    await kill(server)


def in_phase(phase: str) -> Scenario:
    async def scenario(server: TestServer) -> None:
        await (await attempts.start(server)).event("phase", phase=phase, message="")

    return scenario


for phase in ("Training", "Evaluating", "Saving", "WaitingForDisk"):
    SCENARIOS["Running", phase] = in_phase(phase)


@register_scenario("Running", "Preparing")
async def _(server: TestServer) -> None:
    await attempts.start(server)


@register_scenario("Running", "Stopping")
async def _(server: TestServer) -> None:
    await attempts.start(server)
    await kill(server)


def ended(outcome: str, reason: str, code: int) -> Scenario:
    async def scenario(server: TestServer) -> None:
        attempt = await attempts.start(server)
        await attempt.checkpoint()
        await attempt.finish(code, outcome=outcome, reason=reason)

    return scenario


for ending in get_args(rundir.Ending):
    if ending != "Stopped":
        SCENARIOS["Succeeded", ending] = ended("Succeeded", ending, rundir.EXIT_DONE)
for failure in errors.TrainingFailed.__subclasses__():
    SCENARIOS["Failed", failure.__name__] = ended(
        "Failed", failure.__name__, rundir.EXIT_CANNOT_RUN
    )
SCENARIOS["Failed", "TrainerError"] = ended("Failed", "TrainerError", 1)


@register_scenario("Error", "WorkerLost")
async def _(server: TestServer) -> None:
    await (await attempts.start(server, flow={"settings": {"attempts": 1}})).finish(139)


@register_scenario("Error", "StorageUnavailable")
async def _(server: TestServer) -> None:
    await (await attempts.start(server)).finish(0, outcome="Succeeded", reason="Completed")


@register_scenario("Cancelled", "KilledByUser")
async def _(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await kill(server)
    await attempt.finish(75)


PAIRS = [(kind.value, reason) for kind, reasons in REASONS.items() for reason in reasons]


def test_each_reason_has_a_scenario_and_each_scenario_a_reason() -> None:
    assert set(SCENARIOS) == set(PAIRS)


@pytest.mark.parametrize(
    ("condition", "reason"), PAIRS, ids=[f"{kind}-{reason}" for kind, reason in PAIRS]
)
async def test_a_run_can_reach_each_reason(server: TestServer, condition: str, reason: str) -> None:
    await SCENARIOS[condition, reason](server)
    found_condition, found_reason, message = await attempts.read_condition(server)
    assert (found_condition, found_reason) == (condition, reason)
    assert message != ""


@pytest.mark.parametrize(
    ("condition", "reason"), PAIRS, ids=[f"{kind}-{reason}" for kind, reason in PAIRS]
)
async def test_only_a_running_run_has_time_left(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, condition: str, reason: str
) -> None:
    """Time left is reported until the end of each scenario with a trainer, and then removed."""
    start, started = attempts.start, []

    async def start_with_time_left(*given: Any, **named: Any) -> Any:
        attempt = await start(*given, **named)
        await attempt.event(
            "step", step=1, epoch=0.1, totalSteps=9, secondsLeft=42.0, values={"loss": 1.0}
        )
        started.append(attempt)
        return attempt

    monkeypatch.setattr(attempts, "start", start_with_time_left)
    await SCENARIOS[condition, reason](server)
    run = (await (await server.api()).get(server.path("runs/r1"))).json()
    left = (run["status"].get("progress") or {}).get("secondsLeft")
    assert left == (42.0 if started and condition == "Running" else None)


async def status_after_a_second(server: TestServer, run_id: str = "r1") -> Any:
    server.clock.forward(1)
    await waiting_reasons.refresh(server.services)
    return await attempts.read_condition(server, run_id)


async def test_the_reason_of_a_waiting_run_follows_the_machines(server: TestServer) -> None:
    await create(server, {"tolerations": {"accelerator": ["h100", "a100"]}})
    await create(server, run_id="any")
    assert await status_after_a_second(server) == ("Pending", "Queued", "waiting for a free slot")
    await wait_until_all_are_heard(server)
    condition, reason, message = await status_after_a_second(server)
    assert (condition, reason) == ("Pending", "WaitingForMachine")
    assert message == (
        "requests accelerator a100 or h100; no machine is connected: it starts when a controller "
        "connects to this server"
    )
    assert (await attempts.read_condition(server, "any"))[1] == "WaitingForMachine"
    await report(server, slots=2)
    await report(server, "m2", accelerator="t4")
    condition, reason, message = await status_after_a_second(server)
    assert reason == "WaitingForCapacity"
    assert message == (
        "requests accelerator a100 or h100; no connected machine can take it: "
        "host-m1 offers accelerator cpu (2 slots); host-m2 offers accelerator t4 (1 slot)"
    )
    assert await attempts.read_condition(server, "any") == (
        "Pending",
        "Queued",
        "waiting for a free slot",
    )
    await report(server, "m3", accelerator="a100")
    assert await status_after_a_second(server) == ("Pending", "Queued", "waiting for a free slot")
    server.clock.forward(121)  # every machine is gone
    assert (await status_after_a_second(server))[1] == "WaitingForMachine"


async def test_a_queued_run_reports_how_many_slots_are_busy(
    server: TestServer,
) -> None:
    await report(server)
    attempt = await attempts.start(server, "first")
    await create(server)
    busy = ("Pending", "Queued", "waiting for a free slot: 1 of 1 slots are busy on host-m1")
    assert await status_after_a_second(server) == busy
    await attempt.finish(75)
    assert await status_after_a_second(server) == busy  # it may be claimed at this moment
    server.clock.forward(3)
    assert await status_after_a_second(server) == ("Pending", "Queued", "waiting for a free slot")
    assert (await attempts.read_condition(server, "first"))[1] == "Retrying"


async def test_nothing_is_written_while_nothing_changes(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await wait_until_all_are_heard(server)
    await report(server)
    for number in range(3):
        await create(server, {"tolerations": {"accelerator": ["h100"]}}, run_id=f"r{number}")
    await create(server, run_id="any")
    await waiting_reasons.refresh(server.services)
    api = await server.api()
    before = [
        (await api.get(server.path(f"runs/{name}"))).headers["etag"]
        for name in ("r0", "r1", "r2", "any")
    ]
    written: list[Any] = []
    write = server.services.store.write

    async def counted(work: Any) -> Any:
        written.append(work)
        return await write(work)

    monkeypatch.setattr(server.services.store, "write", counted)
    for _ in range(20):
        await report(server)
        server.clock.forward(1)
        await waiting_reasons.refresh(server.services)
    after = [
        (await api.get(server.path(f"runs/{name}"))).headers["etag"]
        for name in ("r0", "r1", "r2", "any")
    ]
    assert (written, after) == ([], before)


async def test_all_of_many_runs_with_many_requirements_are_explained(server: TestServer) -> None:
    for number in range(waiting_reasons.KEYS_AT_ONCE + 5):
        await create(
            server, {"tolerations": {"accelerator": [f"a{number}"]}}, run_id=f"many-{number}"
        )
    for number in range(waiting_reasons.RUNS_AT_ONCE + 5):
        await create(server, {"tolerations": {"accelerator": ["h100"]}}, run_id=f"alike-{number}")
    await wait_until_all_are_heard(server)
    await report(server)
    for _ in range(5):
        await waiting_reasons.refresh(server.services)
    page = (await (await server.api()).get(server.path("runs?s=1000"))).json()
    assert len(page["items"]) == waiting_reasons.KEYS_AT_ONCE + waiting_reasons.RUNS_AT_ONCE + 10
    reasons = {run["status"]["conditions"][-1]["reason"] for run in page["items"]}
    assert reasons == {"WaitingForCapacity"}


async def test_a_retried_run_says_so_unless_no_machine_can_take_it(
    server: TestServer,
) -> None:
    await report(server)
    await create(server, {"tolerations": {"accelerator": ["cpu"]}})
    attempt = await attempts.claim(server, labels={"accelerator": ["cpu"]})
    await attempt.start()
    await attempt.finish(75)
    await wait_until_all_are_heard(server)
    await report(server)
    assert (await status_after_a_second(server))[1] == "Retrying"
    await report(server, accelerator="h100")
    assert (await status_after_a_second(server))[1] == "WaitingForCapacity"
    await report(server)
    assert await status_after_a_second(server) == ("Pending", "Queued", "waiting for a free slot")


async def test_a_newly_started_server_reports_no_machine_as_missing(server: TestServer) -> None:
    # Its machine is busy, so it only reports every half minute.
    await attempts.start(server, "first")
    server.services.machines._known.clear()
    server.services.machines._began_s = server.clock.monotonic_now_s
    await create(server)
    for _ in range(30):
        assert (await status_after_a_second(server))[1] == "Queued"
