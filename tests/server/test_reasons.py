"""Every reason in the table can occur: a story for each condition and reason, in which a run really comes to it."""

from collections.abc import Awaitable, Callable
from typing import Any, get_args

import pytest

from runyard import rundir
from runyard.server.services.runs import waiting_reasons
from runyard.server.services.runs.conditions import REASONS
from runyard.trainer import errors

Tell = Callable[[Any, Any], Awaitable[None]]
STORIES: dict[tuple[str, str], Tell] = {}


def story_of(condition: str, reason: str) -> Callable[[Tell], Tell]:
    def keep(tell: Tell) -> Tell:
        STORIES[condition, reason] = tell
        return tell

    return keep


async def create(house: Any, flow: dict[str, Any] | None = None, run_id: str = "r1") -> None:
    answer = await (await house.api()).put(house.path(f"runs/{run_id}"), json={"spec": {"flow": flow or {}}})
    assert answer.status_code == 201, answer.text


async def kill(house: Any, run_id: str = "r1") -> None:
    await (await house.api()).patch(house.path(f"runs/{run_id}"), json={"spec": {"killedAt": 1}})


async def report(house: Any, machine_id: str = "m1", *, accelerator: str = "cpu", slots: int = 1) -> None:
    controller = await house.client(house.controller_key)
    told = {"host": f"host-{machine_id}", "labels": {"accelerator": [accelerator]}, "accelerators": [], "slots": slots}
    assert (await controller.put(f"/internal/v1/machines/{machine_id}", json=told)).status_code == 204


async def wait_until_all_are_heard(house: Any) -> None:
    """Long enough after the start for every connected controller to have been heard."""
    await waiting_reasons.refresh(house.services)
    house.clock.forward(45)


@story_of("Pending", "Queued")
async def _(house: Any, acts: Any) -> None:
    await wait_until_all_are_heard(house)
    await report(house)
    await create(house)


@story_of("Pending", "WaitingForMachine")
async def _(house: Any, acts: Any) -> None:
    await create(house)
    await wait_until_all_are_heard(house)
    await waiting_reasons.refresh(house.services)


@story_of("Pending", "WaitingForCapacity")
async def _(house: Any, acts: Any) -> None:
    await wait_until_all_are_heard(house)
    await report(house)
    await create(house, {"tolerations": {"accelerator": ["h100"]}})


@story_of("Pending", "WaitingForWorker")
async def _(house: Any, acts: Any) -> None:
    await create(house)
    await acts.claim(house)


@story_of("Pending", "WaitingForDisk")
async def _(house: Any, acts: Any) -> None:
    await create(house)
    await acts.claim(house, lacks_disk=True)


@story_of("Pending", "Retrying")
async def _(house: Any, acts: Any) -> None:
    await (await acts.running(house)).finish(75, outcome="Stopped")


@story_of("Pending", "Stopping")
async def _(house: Any, acts: Any) -> None:
    await create(house)
    await acts.claim(house)
    await kill(house)


def in_phase(phase: str) -> Tell:
    async def tell(house: Any, acts: Any) -> None:
        await (await acts.running(house)).event("phase", phase=phase, message="")

    return tell


for phase in ("Training", "Evaluating", "Saving", "WaitingForDisk"):
    STORIES["Running", phase] = in_phase(phase)


@story_of("Running", "Preparing")
async def _(house: Any, acts: Any) -> None:
    await acts.running(house)


@story_of("Running", "Stopping")
async def _(house: Any, acts: Any) -> None:
    await acts.running(house)
    await kill(house)


def ended(outcome: str, reason: str, code: int) -> Tell:
    async def tell(house: Any, acts: Any) -> None:
        attempt = await acts.running(house)
        await attempt.checkpoint()
        await attempt.finish(code, outcome=outcome, reason=reason)

    return tell


for ending in get_args(rundir.Ending):
    if ending != "Stopped":
        STORIES["Succeeded", ending] = ended("Succeeded", ending, rundir.EXIT_DONE)
for failure in errors.TrainingFailed.__subclasses__():
    STORIES["Failed", failure.__name__] = ended("Failed", failure.__name__, rundir.EXIT_CANNOT_RUN)
STORIES["Failed", "TrainerError"] = ended("Failed", "TrainerError", 1)


@story_of("Error", "WorkerLost")
async def _(house: Any, acts: Any) -> None:
    await (await acts.running(house, flow={"settings": {"attempts": 1}})).finish(139)


@story_of("Error", "StorageUnavailable")
async def _(house: Any, acts: Any) -> None:
    await (await acts.running(house)).finish(0, outcome="Succeeded", reason="Completed")


@story_of("Cancelled", "KilledByUser")
async def _(house: Any, acts: Any) -> None:
    attempt = await acts.running(house)
    await kill(house)
    await attempt.finish(75)


PAIRS = [(kind.value, reason) for kind, reasons in REASONS.items() for reason in reasons]


def test_each_reason_has_a_story_and_each_story_a_reason() -> None:
    assert set(STORIES) == set(PAIRS)


@pytest.mark.parametrize(("condition", "reason"), PAIRS, ids=[f"{kind}-{reason}" for kind, reason in PAIRS])
def test_a_run_can_come_to_each_reason(in_house: Callable[..., None], acts: Any, condition: str, reason: str) -> None:
    async def story(house: Any) -> None:
        await STORIES[condition, reason](house, acts)
        found_condition, found_reason, message = await acts.status(house)
        assert (found_condition, found_reason) == (condition, reason)
        assert message != ""

    in_house(story)


@pytest.mark.parametrize(("condition", "reason"), PAIRS, ids=[f"{kind}-{reason}" for kind, reason in PAIRS])
def test_only_a_running_run_has_time_left(
    in_house: Callable[..., None], acts: Any, condition: str, reason: str
) -> None:
    """Time left is reported before the end of each story that has a trainer, and is gone after it."""

    async def story(house: Any) -> None:
        start, told = acts.running, []

        async def running(*given: Any, **named: Any) -> Any:
            attempt = await start(*given, **named)
            await attempt.event("step", step=1, epoch=0.1, totalSteps=9, secondsLeft=42.0, values={"loss": 1.0})
            told.append(attempt)
            return attempt

        acts.running = running
        await STORIES[condition, reason](house, acts)
        run = (await (await house.api()).get(house.path("runs/r1"))).json()
        left = (run["status"].get("progress") or {}).get("secondsLeft")
        assert left == (42.0 if told and condition == "Running" else None)

    in_house(story)


async def status_after_a_second(house: Any, acts: Any, run_id: str = "r1") -> Any:
    house.clock.forward(1)
    await waiting_reasons.refresh(house.services)
    return await acts.status(house, run_id)


def test_the_reason_of_a_waiting_run_follows_the_machines(in_house: Callable[..., None], acts: Any) -> None:
    async def story(house: Any) -> None:
        await create(house, {"tolerations": {"accelerator": ["h100", "a100"]}})
        await create(house, run_id="any")
        assert await status_after_a_second(house, acts) == ("Pending", "Queued", "waiting for a free slot")
        await wait_until_all_are_heard(house)
        condition, reason, message = await status_after_a_second(house, acts)
        assert (condition, reason) == ("Pending", "WaitingForMachine")
        assert message == (
            "requests accelerator a100 or h100; no machine is connected: it starts when a controller connects to this "
            "server"
        )
        assert (await acts.status(house, "any"))[1] == "WaitingForMachine"
        await report(house, slots=2)
        await report(house, "m2", accelerator="t4")
        condition, reason, message = await status_after_a_second(house, acts)
        assert reason == "WaitingForCapacity"
        assert message == (
            "requests accelerator a100 or h100; no connected machine can take it: "
            "host-m1 offers accelerator cpu (2 slots); host-m2 offers accelerator t4 (1 slot)"
        )
        assert await acts.status(house, "any") == ("Pending", "Queued", "waiting for a free slot")
        await report(house, "m3", accelerator="a100")
        assert await status_after_a_second(house, acts) == ("Pending", "Queued", "waiting for a free slot")
        house.clock.forward(121)  # every machine is gone
        assert (await status_after_a_second(house, acts))[1] == "WaitingForMachine"

    in_house(story)


def test_a_run_that_waits_for_its_turn_says_how_many_slots_are_busy(in_house: Callable[..., None], acts: Any) -> None:
    async def story(house: Any) -> None:
        await report(house)
        attempt = await acts.running(house, "first")
        await create(house)
        busy = ("Pending", "Queued", "waiting for a free slot: 1 of 1 slots are busy on here")
        assert await status_after_a_second(house, acts) == busy
        await attempt.finish(75)
        assert await status_after_a_second(house, acts) == busy  # it may be taken this moment
        house.clock.forward(3)
        assert await status_after_a_second(house, acts) == ("Pending", "Queued", "waiting for a free slot")
        assert (await acts.status(house, "first"))[1] == "Retrying"

    in_house(story)


def test_nothing_is_written_while_nothing_changes(in_house: Callable[..., None], acts: Any) -> None:
    async def story(house: Any) -> None:
        await wait_until_all_are_heard(house)
        await report(house)
        for number in range(3):
            await create(house, {"tolerations": {"accelerator": ["h100"]}}, run_id=f"r{number}")
        await create(house, run_id="any")
        await waiting_reasons.refresh(house.services)
        api = await house.api()
        before = [(await api.get(house.path(f"runs/{name}"))).headers["etag"] for name in ("r0", "r1", "r2", "any")]
        written: list[Any] = []
        write = house.services.store.write

        async def counted(work: Any) -> Any:
            written.append(work)
            return await write(work)

        house.services.store.write = counted
        for _ in range(20):
            await report(house)
            house.clock.forward(1)
            await waiting_reasons.refresh(house.services)
        after = [(await api.get(house.path(f"runs/{name}"))).headers["etag"] for name in ("r0", "r1", "r2", "any")]
        assert (written, after) == ([], before)

    in_house(story)


def test_all_of_many_runs_with_many_requirements_are_explained(in_house: Callable[..., None], acts: Any) -> None:
    async def story(house: Any) -> None:
        for number in range(waiting_reasons.KEYS_AT_ONCE + 5):
            await create(house, {"tolerations": {"accelerator": [f"a{number}"]}}, run_id=f"many-{number}")
        for number in range(waiting_reasons.RUNS_AT_ONCE + 5):
            await create(house, {"tolerations": {"accelerator": ["h100"]}}, run_id=f"alike-{number}")
        await wait_until_all_are_heard(house)
        await report(house)
        for _ in range(5):
            await waiting_reasons.refresh(house.services)
        page = (await (await house.api()).get(house.path("runs?s=1000"))).json()
        assert len(page["items"]) == waiting_reasons.KEYS_AT_ONCE + waiting_reasons.RUNS_AT_ONCE + 10
        reasons = {run["status"]["conditions"][-1]["reason"] for run in page["items"]}
        assert reasons == {"WaitingForCapacity"}

    in_house(story)


def test_a_run_that_is_tried_again_says_so_unless_no_machine_can_take_it(
    in_house: Callable[..., None], acts: Any
) -> None:
    async def story(house: Any) -> None:
        await report(house)
        await create(house, {"tolerations": {"accelerator": ["cpu"]}})
        attempt = await acts.claim(house, labels={"accelerator": ["cpu"]})
        await attempt.start()
        await attempt.finish(75)
        await wait_until_all_are_heard(house)
        await report(house)
        assert (await status_after_a_second(house, acts))[1] == "Retrying"
        await report(house, accelerator="h100")
        assert (await status_after_a_second(house, acts))[1] == "WaitingForCapacity"
        await report(house)
        assert await status_after_a_second(house, acts) == ("Pending", "Queued", "waiting for a free slot")

    in_house(story)


def test_a_server_that_has_just_started_misses_no_machine(in_house: Callable[..., None], acts: Any) -> None:
    async def story(house: Any) -> None:
        await acts.running(house, "first")  # its machine is busy, so it only reports every half minute
        house.services.machines._known.clear()
        house.services.machines._began_s = house.clock.lived_s
        await create(house)
        for _ in range(30):
            assert (await status_after_a_second(house, acts))[1] == "Queued"

    in_house(story)
