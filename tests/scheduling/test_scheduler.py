"""Decisions of the queue in small, exact situations."""

from dataclasses import replace
from typing import Any

import pytest

from runyard.server.scheduling.scheduler import Scheduler, schedule
from runyard.server.scheduling.view import (
    Explain,
    MachineCapacity,
    Place,
    Preempt,
    Reserve,
    RunKey,
    RunningAttempt,
    Share,
    View,
    WaitingRun,
)

NOW_MS = 10_000_000
MINUTE_MS = 60_000


def machine(name: str, accelerators: int = 1, **changes: Any) -> MachineCapacity:
    return MachineCapacity(id=name, slots=8, accelerators=accelerators, **changes)


def waiting(run_id: str, accelerators: int = 1, **changes: Any) -> WaitingRun:
    values = {"org": "o", "project": "p", "created_ms": 1, **changes}
    return WaitingRun(run_id=run_id, accelerators=accelerators, **values)


def running(run_id: str, *machines: str, accelerators: int = 1, **changes: Any) -> RunningAttempt:
    values = {"org": "o", "project": "q", "started_ms": NOW_MS - 60 * MINUTE_MS, **changes}
    return RunningAttempt(run_id=run_id, machines=machines, accelerators=accelerators, **values)


def decide(**view: Any) -> list[Any]:
    return schedule(View(now_ms=NOW_MS, **view))


def list_placed(decisions: list[Any]) -> list[str]:
    return [found.run.run_id for found in decisions if isinstance(found, Place)]


def list_preempted(decisions: list[Any]) -> list[str]:
    return [found.run.run_id for found in decisions if isinstance(found, Preempt)]


def test_priority_comes_before_use_and_use_before_age() -> None:
    runs = [
        waiting("old", project="busy", created_ms=1),
        waiting("older", project="idle", created_ms=3),
        waiting("newer", project="idle", created_ms=4),
        waiting("urgent", project="busy", created_ms=5, priority=1),
    ]
    shares = [Share(org="o", project="busy", used_s=99_999.0, at_ms=NOW_MS)]
    placed = list_placed(decide(machines=[machine("m", 3)], waiting=runs, shares=shares))
    assert placed == ["urgent", "older", "newer"]


def test_twice_the_weight_is_given_twice_the_machines() -> None:
    runs = [waiting(f"{project}{n}", project=project) for project in "ab" for n in range(9)]
    shares = [Share(org="o", project="a", weight=2.0)]
    machines = [MachineCapacity(id="m", slots=9, accelerators=9)]
    placed = list_placed(decide(machines=machines, waiting=runs, shares=shares))
    assert [sum(run.startswith(project) for run in placed) for project in "ab"] == [6, 3]


def test_runs_that_nothing_can_take_block_no_other() -> None:
    never = [waiting(f"never{n}", 8, priority=9) for n in range(200)]
    decisions = decide(machines=[machine("m")], waiting=[*never, waiting("fits")])
    assert list_placed(decisions) == ["fits"]
    assert [found.reason for found in decisions if isinstance(found, Explain)] == [
        "WaitingForMachine"
    ]


def test_only_short_or_preemptible_runs_use_a_reserved_machine() -> None:
    busy = running("busy", "m", ends_ms=NOW_MS + 30 * MINUTE_MS)
    runs = [
        waiting("wide", 2, created_ms=1),
        waiting("long", created_ms=2, limit_s=3600.0),
        waiting("unlimited", created_ms=3),
        waiting("short", created_ms=4, limit_s=1700.0),
    ]
    machines = [machine("m", 2)]
    decisions = decide(machines=machines, waiting=runs, running=[busy])
    assert list_placed(decisions) == ["short"]
    assert Reserve(RunKey("o", "wide"), ("m",), busy.ends_ms) in decisions
    runs[3] = waiting("preemptible", preemptible=True, created_ms=4)
    placed = [
        found
        for found in decide(machines=machines, waiting=runs, running=[busy])
        if isinstance(found, Place)
    ]
    assert placed == [Place(RunKey("o", "preemptible"), ("m",), borrows=True)]


def test_preemptible_run_cannot_start_ten_minutes_before_a_reservation() -> None:
    busy = running("busy", "m", ends_ms=NOW_MS + 9 * MINUTE_MS)
    runs = [waiting("wide", 2), waiting("preemptible", preemptible=True, created_ms=4)]
    assert list_placed(decide(machines=[machine("m", 2)], waiting=runs, running=[busy])) == []


def test_members_start_together_on_few_machines_of_one_fabric() -> None:
    machines = [machine(f"m{n}", 4, fabric="xy"[n % 2]) for n in range(4)]
    wide = waiting("wide", 3, members=3)
    assert list_placed(decide(machines=machines, waiting=[wide])) == []
    placed = decide(machines=machines, waiting=[waiting("wide", 2, members=3)])[0]
    assert placed == Place(RunKey("o", "wide"), ("m0", "m0", "m2"))
    single = decide(machines=[*machines, machine("z", 6)], waiting=[waiting("w", 2, members=3)])[0]
    assert single == Place(RunKey("o", "w"), ("z", "z", "z"))


@pytest.mark.parametrize("state", ["draining", "suspect", "excluded"])
def test_machines_that_are_not_joined_take_nothing(state: Any) -> None:
    decisions = decide(machines=[machine("m", state=state)], waiting=[waiting("r")])
    assert [type(found) for found in decisions] == [Explain]
    assert decisions[0].reason == "WaitingForMachine"


@pytest.mark.parametrize("project", ["p", ""])
def test_limits_of_project_and_organization_are_hard(project: str) -> None:
    shares = [Share(org="o", project=project, limit=2)]
    runs = [waiting(f"r{n}") for n in range(3)]
    decisions = decide(machines=[machine("m", 8)], waiting=runs, shares=shares)
    assert list_placed(decisions) == ["r0", "r1"]
    assert decisions[-1].reason == "QuotaReached"
    assert "uses 2 of at most 2" in decisions[-1].message


def test_higher_priority_preempts_the_least_work_and_not_more_than_needed() -> None:
    attempts = [
        running(f"v{n}", "m", checkpoint_ms=NOW_MS - n * MINUTE_MS, started_ms=NOW_MS - age)
        for n, age in enumerate((9 * MINUTE_MS, 600_000, 3_600_000, 3_600_000))
    ]
    view = {"machines": [machine("m", 4)], "running": attempts}
    assert list_preempted(decide(**view, waiting=[waiting("r", priority=1)])) == ["v1"]
    assert list_preempted(decide(**view, waiting=[waiting("r", 2, priority=1)])) == ["v1", "v2"]
    assert list_preempted(decide(**view, waiting=[waiting("r", 4, priority=1)])) == []
    assert list_preempted(decide(**view, waiting=[waiting("r", priority=0)])) == []


def test_a_larger_victim_spares_the_smaller_ones_before_it() -> None:
    attempts = [
        running("small", "m", checkpoint_ms=NOW_MS - MINUTE_MS),
        running("large", "m", accelerators=3, checkpoint_ms=NOW_MS - 2 * MINUTE_MS),
    ]
    view = {"machines": [machine("m", 4)], "running": attempts}
    assert list_preempted(decide(**view, waiting=[waiting("r", 3, priority=1)])) == ["large"]


def test_no_second_set_of_victims_while_the_first_is_stopping() -> None:
    scheduler = Scheduler()
    attempts = [running(f"v{n}", f"m{n}") for n in range(3)]
    machines = [machine(f"m{n}") for n in range(3)]
    view = View(now_ms=NOW_MS, machines=machines, running=attempts)
    scheduler.load(replace(view, waiting=[waiting("r", priority=1)]))
    assert len(list_preempted(scheduler.schedule(NOW_MS))) == 1
    assert scheduler.schedule(NOW_MS + 1000) == []


def test_few_waiting_runs_preempt_at_the_same_time() -> None:
    count = 21
    decisions = decide(
        machines=[machine(f"m{n:02}") for n in range(count)],
        running=[running(f"v{n}", f"m{n:02}") for n in range(count)],
        waiting=[waiting(f"r{n}", priority=1) for n in range(count)],
    )
    assert len(list_preempted(decisions)) == 16


def test_guaranteed_share_is_lent_and_reclaimed_from_borrowers_only() -> None:
    shares = [
        Share(org="o", project="p", guaranteed=2),
        Share(org="o", project="q", guaranteed=1),
    ]
    scheduler = Scheduler()
    view = View(now_ms=NOW_MS, machines=[machine(name) for name in "klmn"], shares=shares)
    scheduler.load(replace(view, waiting=[waiting(f"q{n}", project="q") for n in range(4)]))
    lent = [found for found in scheduler.schedule(NOW_MS) if isinstance(found, Place)]
    assert [found.borrows for found in lent] == [False, True, True, True]
    later_ms = NOW_MS + 10 * MINUTE_MS
    for number in range(3):
        scheduler.add_run(waiting(f"p{number}"))
    reclaimed = list_preempted(scheduler.schedule(later_ms))
    assert len(reclaimed) == 2 and "q0" not in reclaimed
    for run_id in reclaimed:
        scheduler.end_attempt(RunKey("o", run_id), now_ms=later_ms)
    assert list_placed(scheduler.schedule(later_ms)) == ["p0", "p1"]
    assert list_preempted(scheduler.schedule(later_ms + 60 * MINUTE_MS)) == []


def test_borrower_of_equal_priority_makes_way_for_a_guaranteed_run_only() -> None:
    view = {
        "machines": [machine("m")],
        "running": [running("v", "m", project="q", borrows=True)],
        "waiting": [waiting("r")],
    }
    for guaranteed, expected in (("s", []), ("p", ["v"])):
        shares = [Share(org="o", project=guaranteed, guaranteed=1)]
        assert list_preempted(decide(**view, shares=shares)) == expected


def test_lower_priority_within_its_guarantee_is_not_preempted_by_a_borrower() -> None:
    view = {
        "machines": [machine("m")],
        "running": [running("v", "m", project="q")],
        "waiting": [waiting("r", priority=5)],
    }
    assert list_preempted(decide(**view)) == ["v"]
    assert list_preempted(decide(**view, shares=[Share(org="o", project="q", guaranteed=1)])) == []


def test_lost_run_avoids_its_machine_for_a_minute_while_another_fits() -> None:
    lost = waiting("r", lost_on=("m",), waiting_since_ms=NOW_MS - 59_000)
    other = [machine("m"), machine("n")]
    attempts = [running("busy", "n")]
    assert list_placed(decide(machines=other, waiting=[lost], running=attempts)) == []
    assert list_placed(decide(machines=[machine("m")], waiting=[lost])) == ["r"]
    drained = [machine("m"), machine("n", state="draining")]
    assert list_placed(decide(machines=drained, waiting=[lost])) == ["r"]
    late = replace(lost, waiting_since_ms=NOW_MS - 60_000)
    assert list_placed(decide(machines=other, waiting=[late], running=attempts)) == ["r"]
    assert decide(machines=other, waiting=[late])[0] == Place(RunKey("o", "r"), ("n",))


def test_a_machine_that_left_is_forgotten() -> None:
    scheduler = Scheduler()
    scheduler.load(View(now_ms=NOW_MS, machines=[machine("m")], waiting=[waiting("r")]))
    scheduler.remove_machine("m")
    assert scheduler.schedule(NOW_MS) == []
    assert scheduler.explain_run(RunKey("o", "r"), NOW_MS)[0] == "WaitingForMachine"


def test_explanation_says_what_is_free_where_and_what_is_reserved() -> None:
    scheduler = Scheduler()
    busy = running("busy", "gpu-3", accelerators=2, ends_ms=NOW_MS + 20 * MINUTE_MS)
    runs = [waiting(f"r{n}", 4, created_ms=n, labels={"gpu": ["h100"]}) for n in range(3)]
    machines = [machine("gpu-3", 4, labels={"gpu": ["h100"]}), machine("cpu", 0)]
    scheduler.load(View(now_ms=NOW_MS, machines=machines, waiting=runs, running=[busy]))
    scheduler.schedule(NOW_MS)
    assert scheduler.explain_run(RunKey("o", "r0"), NOW_MS) == (
        "WaitingForCapacity",
        "needs 4 accelerators of one machine with gpu h100; gpu-3 has 2 of 4 accelerators and 7 of "
        "8 slots free (reserved for run r0 from about 03:06 UTC); reserved gpu-3 from about "
        "03:06 UTC; next in line",
    )
    assert scheduler.explain_run(RunKey("o", "r2"), NOW_MS)[1].endswith("; behind 2 runs")
