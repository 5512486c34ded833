"""The controller's decisions for single observed states."""

from typing import Any

import pytest

from runyard.controller.decide import (
    ADOPT_EVERY_S,
    Action,
    Adopt,
    AttemptKey,
    AttemptView,
    ClaimRun,
    KillSupervisor,
    MachineView,
    Release,
    Shutdown,
    StartSupervisor,
    StopSupervisor,
    StopTrainer,
    WarmUp,
    decide,
    get_restart_backoff_s,
)

KEY = AttemptKey("org", "run", 1)


def attempt(key: AttemptKey = KEY, **changes: Any) -> AttemptView:
    return AttemptView(**{"key": key, "supervisor": "alive", "is_closed": False, **changes})


def view(*attempts: AttemptView, **changes: Any) -> MachineView:
    return MachineView(**{"slots": 1, "attempts": attempts, "since_adopted_s": 1.0, **changes})


def test_nothing_is_claimed_before_placements_are_known() -> None:
    assert decide(view(since_adopted_s=None)) == [Adopt()]
    assert decide(view(since_adopted_s=None, is_adopting=True)) == []


def test_free_slots_are_claimed_one_claim_at_a_time() -> None:
    assert decide(view(slots=2)) == [ClaimRun(2)]
    assert decide(view(slots=2, is_claiming=True)) == []
    assert decide(view(attempt(), slots=2)) == [ClaimRun(1)]
    assert decide(view(attempt(), slots=1)) == []


def test_only_accelerators_that_no_attempt_holds_are_offered() -> None:
    four = {"slots": 4, "accelerators": 4}
    assert decide(view(**four)) == [ClaimRun(4, accelerators=4)]
    assert decide(view(attempt(accelerators=3), **four)) == [ClaimRun(1, accelerators=1)]
    assert decide(view(attempt(accelerators=4), **four)) == []
    shared = view(attempt(accelerators=4), are_shared=True, **four)
    assert decide(shared) == [ClaimRun(3, accelerators=4)]
    closed = attempt(accelerators=4, supervisor="dead", is_closed=True)
    assert ClaimRun(4, accelerators=4) in decide(view(closed, **four))


@pytest.mark.parametrize("liveness", ["alive", "unknown"])
def test_a_supervisor_that_is_or_may_be_alive_is_left_alone(liveness: str) -> None:
    assert decide(view(attempt(supervisor=liveness))) == []


def test_a_claimed_attempt_gets_a_supervisor() -> None:
    assert decide(view(attempt(supervisor=None))) == [StartSupervisor(KEY)]


def test_a_dead_supervisor_of_an_open_attempt_is_replaced() -> None:
    assert decide(view(attempt(supervisor="dead", starts=1, since_start_s=60.0))) == [
        StartSupervisor(KEY)
    ]


def test_a_supervisor_that_keeps_dying_is_restarted_with_growing_backoff() -> None:
    assert decide(view(attempt(supervisor="dead", starts=3, since_start_s=3.9))) == []
    assert decide(view(attempt(supervisor="dead", starts=3, since_start_s=4.0))) == [
        StartSupervisor(KEY)
    ]
    assert [get_restart_backoff_s(starts) for starts in (1, 2, 3, 20)] == [1.0, 2.0, 4.0, 30.0]


def test_a_closed_attempt_is_released_and_its_slot_is_free() -> None:
    assert decide(view(attempt(supervisor="dead", is_closed=True))) == [Release(KEY), ClaimRun(1)]
    assert decide(view(attempt(supervisor=None, is_closed=True))) == [Release(KEY), ClaimRun(1)]


def test_an_unsettled_attempt_keeps_its_slot() -> None:
    assert decide(view(attempt(supervisor="dead", starts=1, since_start_s=0.1))) == []


def test_an_earlier_attempt_is_settled_before_the_next_starts() -> None:
    older = attempt(supervisor="dead", starts=1, since_start_s=9.0)
    newer = attempt(AttemptKey("org", "run", 2), supervisor=None)
    other = attempt(AttemptKey("org", "other", 1), supervisor=None)
    assert decide(view(older, newer, other, slots=3)) == [
        StartSupervisor(KEY),
        StartSupervisor(other.key),
    ]


def test_placements_are_fetched_again_after_an_interval() -> None:
    assert Adopt() in decide(view(attempt(), since_adopted_s=ADOPT_EVERY_S))
    assert Adopt() not in decide(view(attempt(), since_adopted_s=ADOPT_EVERY_S, is_adopting=True))
    assert Adopt() in decide(view(attempt(), since_adopted_s=1.0, is_report_due=True))


def test_a_start_waits_for_a_starting_warm_parent_but_not_forever() -> None:
    assert decide(view(attempt(supervisor=None, held_for_s=1.0), warmth="starting")) == []
    assert decide(view(attempt(supervisor=None, held_for_s=8.0), warmth="starting")) == [
        StartSupervisor(KEY)
    ]
    assert StartSupervisor(KEY) in decide(view(attempt(supervisor=None), warmth="down"))
    assert decide(view(attempt(supervisor=None), warmth="ready")) == [StartSupervisor(KEY)]


def test_a_dead_warm_parent_is_restarted_after_a_delay() -> None:
    assert decide(view(attempt(), warmth="down")) == [WarmUp()]
    assert decide(view(attempt(), warmth="down", since_warm_up_s=1.0)) == []
    assert decide(view(attempt(), warmth="down", since_warm_up_s=5.0)) == [WarmUp()]
    assert decide(view(attempt(), warmth="off")) == []


SHUTDOWNS: list[tuple[MachineView, list[Action]]] = [
    (view(since_shutdown_s=0.0, warmth="down"), [Shutdown()]),
    (view(attempt(), since_shutdown_s=0.0), [StopSupervisor(KEY)]),
    (view(attempt(is_stop_requested=True), since_shutdown_s=1.0), []),
    (view(attempt(is_stop_requested=True), since_shutdown_s=61.0), [Shutdown()]),
    (view(attempt(supervisor="dead"), since_shutdown_s=1.0), [Shutdown()]),
    (view(attempt(), since_shutdown_s=0.0, leave_running=True), [Shutdown()]),
]


@pytest.mark.parametrize(("state", "actions"), SHUTDOWNS)
def test_on_shutdown_supervisors_are_asked_once_to_stop_and_waited_for(
    state: MachineView, actions: list[Action]
) -> None:
    assert decide(state) == actions


def test_the_controller_carries_out_a_kill_when_the_supervisor_is_unresponsive() -> None:
    killed: dict[str, Any] = {"since_kill_s": 0.0, "silent_for_s": 6.0, "grace_s": 30.0}
    assert decide(view(attempt(**killed))) == [StopTrainer(KEY)]
    assert decide(view(attempt(**killed, is_trainer_stop_requested=True))) == []
    assert decide(
        view(attempt(**{**killed, "since_kill_s": 30.0}, is_trainer_stop_requested=True))
    ) == [KillSupervisor(KEY)]


def test_a_responsive_supervisor_carries_out_the_kill_itself() -> None:
    assert decide(view(attempt(since_kill_s=300.0, silent_for_s=2.0))) == []


def test_a_slowly_starting_replacement_is_not_replaced_again_for_a_kill() -> None:
    slow: dict[str, Any] = {
        "since_kill_s": 300.0,
        "is_trainer_stop_requested": True,
        "is_replacement_starting": True,
        "grace_s": 30.0,
    }
    assert decide(view(attempt(silent_for_s=20.0, **slow))) == []
    assert decide(view(attempt(silent_for_s=90.0, **slow))) == [KillSupervisor(KEY)]


def test_a_supervisor_silent_beyond_its_trainers_permit_and_grace_is_replaced() -> None:
    assert decide(view(attempt(silent_for_s=89.9, grace_s=30.0))) == []
    assert decide(view(attempt(silent_for_s=90.0, grace_s=30.0))) == [KillSupervisor(KEY)]


def test_placements_are_fetched_more_often_while_a_supervisor_is_unresponsive() -> None:
    assert decide(view(attempt(silent_for_s=6.0), since_adopted_s=2.0)) == [Adopt()]
    assert decide(view(attempt(silent_for_s=5.0), since_adopted_s=2.0)) == []


def test_without_disk_space_only_the_reason_is_reported() -> None:
    assert decide(view(lacks_disk=True)) == [ClaimRun(1, lacks_disk=True)]


def test_an_attempt_that_survives_sigkill_keeps_its_slot() -> None:
    """The supervisor lives as long as any process of the attempt, so the slot stays in use."""
    assert decide(view(attempt(), slots=1, since_adopted_s=29.0)) == []
