"""The controller's decisions, view by view."""

from typing import Any

import pytest

from runyard.controller.decide import (
    ADOPT_EVERY_S,
    Action,
    Adopt,
    Break,
    Claim,
    End,
    Forget,
    Key,
    Seen,
    Start,
    Tell,
    TellTrainer,
    View,
    WarmUp,
    decide,
    pause_s,
)

KEY = Key("org", "run", 1)


def seen(key: Key = KEY, **changes: Any) -> Seen:
    return Seen(**{"key": key, "supervisor": "alive", "is_closed": False, **changes})


def view(*attempts: Seen, **changes: Any) -> View:
    return View(**{"slots": 1, "attempts": attempts, "since_adopted_s": 1.0, **changes})


def test_nothing_is_claimed_before_it_is_known_what_lives_here() -> None:
    assert decide(view(since_adopted_s=None)) == [Adopt()]
    assert decide(view(since_adopted_s=None, is_adopting=True)) == []


def test_free_slots_are_claimed_one_claim_at_a_time() -> None:
    assert decide(view(slots=2)) == [Claim(2)]
    assert decide(view(slots=2, is_claiming=True)) == []
    assert decide(view(seen(), slots=2)) == [Claim(1)]
    assert decide(view(seen(), slots=1)) == []


@pytest.mark.parametrize("liveness", ["alive", "unknown"])
def test_a_supervisor_that_lives_or_may_live_is_left_alone(liveness: str) -> None:
    assert decide(view(seen(supervisor=liveness))) == []


def test_a_claimed_attempt_gets_a_supervisor() -> None:
    assert decide(view(seen(supervisor=None))) == [Start(KEY)]


def test_a_dead_supervisor_of_an_open_attempt_is_followed_by_another() -> None:
    assert decide(view(seen(supervisor="dead", starts=1, since_start_s=60.0))) == [Start(KEY)]


def test_a_supervisor_that_keeps_dying_is_started_with_growing_pauses() -> None:
    assert decide(view(seen(supervisor="dead", starts=3, since_start_s=3.9))) == []
    assert decide(view(seen(supervisor="dead", starts=3, since_start_s=4.0))) == [Start(KEY)]
    assert [pause_s(starts) for starts in (1, 2, 3, 20)] == [1.0, 2.0, 4.0, 30.0]


def test_a_closed_attempt_is_forgotten_and_its_slot_is_free() -> None:
    assert decide(view(seen(supervisor="dead", is_closed=True))) == [Forget(KEY), Claim(1)]
    assert decide(view(seen(supervisor=None, is_closed=True))) == [Forget(KEY), Claim(1)]


def test_an_unsettled_attempt_keeps_its_slot() -> None:
    assert decide(view(seen(supervisor="dead", starts=1, since_start_s=0.1))) == []


def test_an_earlier_attempt_is_settled_before_the_next_begins() -> None:
    older = seen(supervisor="dead", starts=1, since_start_s=9.0)
    newer = seen(Key("org", "run", 2), supervisor=None)
    other = seen(Key("org", "other", 1), supervisor=None)
    assert decide(view(older, newer, other, slots=3)) == [Start(KEY), Start(other.key)]


def test_what_this_machine_should_hold_is_asked_for_again_and_again() -> None:
    assert Adopt() in decide(view(seen(), since_adopted_s=ADOPT_EVERY_S))
    assert Adopt() not in decide(view(seen(), since_adopted_s=ADOPT_EVERY_S, is_adopting=True))


def test_a_start_waits_for_a_warm_parent_that_is_coming_but_not_for_ever() -> None:
    assert decide(view(seen(supervisor=None, held_for_s=1.0), warmth="starting")) == []
    assert decide(view(seen(supervisor=None, held_for_s=8.0), warmth="starting")) == [Start(KEY)]
    assert Start(KEY) in decide(view(seen(supervisor=None), warmth="down"))
    assert decide(view(seen(supervisor=None), warmth="ready")) == [Start(KEY)]


def test_a_warm_parent_that_died_is_started_again_after_a_pause() -> None:
    assert decide(view(seen(), warmth="down")) == [WarmUp()]
    assert decide(view(seen(), warmth="down", since_warm_up_s=1.0)) == []
    assert decide(view(seen(), warmth="down", since_warm_up_s=5.0)) == [WarmUp()]
    assert decide(view(seen(), warmth="off")) == []


ENDINGS: list[tuple[View, list[Action]]] = [
    (view(ending_for_s=0.0, warmth="down"), [End()]),
    (view(seen(), ending_for_s=0.0), [Tell(KEY)]),
    (view(seen(is_told=True), ending_for_s=1.0), []),
    (view(seen(is_told=True), ending_for_s=61.0), [End()]),
    (view(seen(supervisor="dead"), ending_for_s=1.0), [End()]),
    (view(seen(), ending_for_s=0.0, leaves_running=True), [End()]),
]


@pytest.mark.parametrize(("look", "actions"), ENDINGS)
def test_on_ending_supervisors_are_told_once_and_waited_for(look: View, actions: list[Action]) -> None:
    assert decide(look) == actions


def test_a_kill_whose_supervisor_does_not_answer_is_carried_out_here() -> None:
    killed: dict[str, Any] = {"killed_for_s": 0.0, "quiet_for_s": 6.0, "grace_s": 30.0}
    assert decide(view(seen(**killed))) == [TellTrainer(KEY)]
    assert decide(view(seen(**killed, is_trainer_told=True))) == []
    assert decide(view(seen(**{**killed, "killed_for_s": 30.0}, is_trainer_told=True))) == [Break(KEY)]


def test_a_supervisor_that_answers_is_left_to_carry_out_the_kill_itself() -> None:
    assert decide(view(seen(killed_for_s=300.0, quiet_for_s=2.0))) == []


def test_a_replacement_that_starts_slowly_is_not_replaced_again_for_a_kill() -> None:
    slow = {"killed_for_s": 300.0, "is_trainer_told": True, "is_replacement_starting": True, "grace_s": 30.0}
    assert decide(view(seen(quiet_for_s=20.0, **slow))) == []
    assert decide(view(seen(quiet_for_s=90.0, **slow))) == [Break(KEY)]


def test_a_supervisor_that_is_silent_beyond_its_trainers_permit_and_grace_is_replaced() -> None:
    assert decide(view(seen(quiet_for_s=89.9, grace_s=30.0))) == []
    assert decide(view(seen(quiet_for_s=90.0, grace_s=30.0))) == [Break(KEY)]


def test_a_silent_supervisor_makes_the_controller_ask_more_often_what_is_wanted() -> None:
    assert decide(view(seen(quiet_for_s=6.0), since_adopted_s=2.0)) == [Adopt()]
    assert decide(view(seen(quiet_for_s=5.0), since_adopted_s=2.0)) == []


def test_without_disk_only_the_reason_is_told() -> None:
    assert decide(view(lacks_disk=True)) == [Claim(1, lacks_disk=True)]


def test_an_attempt_that_survives_sigkill_keeps_its_slot_out_of_offer() -> None:
    """Its supervisor lives as long as something of it does, so the slot stays held."""
    assert decide(view(seen(), slots=1, since_adopted_s=29.0)) == []
