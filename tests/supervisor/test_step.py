"""The supervisor's decisions, input by input."""

import json
from dataclasses import replace
from typing import Any

import pytest

from runyard.protocol import Wanted
from runyard.supervisor import messages as mv
from runyard.supervisor import step as st

GO_ON = Wanted(action="continue", lease_s=15, grace_s=30, epoch="e1")
KILL = Wanted(action="kill", lease_s=15, grace_s=30, epoch="e1")


def follow(state: st.State, *events: mv.Input, now: float = 100.0) -> tuple[st.State, list[mv.Action]]:
    """The state after these inputs, and what the last of them asked for."""
    actions: list[mv.Action] = []
    for event in events:
        state, actions = st.step(state, event, now)
    return state, actions


def training(**changes: Any) -> st.State:
    state, _ = follow(st.State(), mv.Tick(), mv.Announced(GO_ON), mv.LockTaken(), mv.Prepared())
    assert state.phase == "training"
    return replace(state, **changes)


def reporting(**changes: Any) -> st.State:
    state, _ = follow(training(), mv.TrainerExited(0, None), mv.GroupEmpty())
    assert state.phase == "reporting"
    return replace(state, **changes)


def drained(state: st.State) -> st.State:
    nothing = [mv.LinesRead(stream, 0, 0, ()) for stream in mv.STREAMS]
    return follow(state, *nothing, mv.CheckpointsFound(()))[0]


def kinds(actions: list[mv.Action]) -> list[type]:
    return [type(action) for action in actions]


def test_it_announces_itself_first_and_once() -> None:
    state, actions = follow(st.State(), mv.Tick())
    assert actions == [mv.Announce()]
    assert follow(state, mv.Tick())[1] == []


def test_the_gate_opens_only_after_announcement_lock_and_preparation() -> None:
    state, actions = follow(st.State(), mv.Tick(), mv.Announced(GO_ON))
    assert actions == [mv.TakeLock()]
    state, actions = follow(state, mv.Tick())
    assert mv.TakeLock() in actions and mv.OpenGate() not in actions
    state, actions = follow(state, mv.LockTaken())
    assert actions == [mv.Prepare()]
    state, actions = follow(state, mv.Prepared())
    assert actions == [mv.OpenGate()]


def test_what_to_resume_from_is_asked_for_until_the_server_answers_and_a_kill_ends_the_asking() -> None:
    state, actions = follow(st.State(), mv.Tick(), mv.Announced(GO_ON), mv.LockTaken())
    assert mv.Prepare() not in follow(state, mv.Tick())[1]  # it is under way
    state, _ = st.step(state, mv.Unreachable("bytes"), 0.0)
    assert mv.Prepare() not in st.step(state, mv.Tick(), 0.9 * st.FIRST_BACKOFF_S)[1]
    state, actions = st.step(state, mv.Tick(), 1.1 * st.FIRST_BACKOFF_S)
    assert mv.Prepare() in actions and state.phase == "preparing"
    state, actions = st.step(state, mv.Renewed(KILL), 1.0)
    assert actions == [mv.WriteStop("kill"), mv.CloseGate()]
    assert mv.OpenGate() not in follow(state, mv.Prepared())[1]


def test_an_unreachable_server_is_announced_to_again_after_a_growing_pause() -> None:
    state, _ = st.step(st.State(), mv.Tick(), 0.0)
    state, _ = st.step(state, mv.Unreachable("words"), 0.0)
    first = st.FIRST_BACKOFF_S
    assert st.step(state, mv.Tick(), 0.9 * first)[1] == []
    state, actions = st.step(state, mv.Tick(), first)
    assert actions == [mv.Announce()]
    state, _ = st.step(state, mv.Unreachable("words"), first)
    assert st.step(state, mv.Tick(), 2.9 * first)[1] == []
    assert st.step(state, mv.Tick(), 3.0 * first)[1] == [mv.Announce()]


def test_a_run_killed_before_it_began_never_begins() -> None:
    state, actions = follow(st.State(), mv.Tick(), mv.Announced(KILL))
    assert actions == [mv.WriteStop("kill"), mv.CloseGate()]
    assert follow(state, mv.LockTaken(), mv.Prepared())[1] == []


def test_a_refusal_before_the_gate_opened_kills_the_waiting_trainer() -> None:
    _, actions = follow(st.State(), mv.Tick(), mv.Refused())
    assert actions == [mv.WriteStop("refused"), mv.KillAll()]


def test_renewing_does_not_wait_for_shipping() -> None:
    state = training(busy=frozenset({"words", "bytes"}))
    _, actions = follow(state, mv.Tick(), now=103.0)
    assert mv.Renew(None) in actions


def test_one_renewal_is_under_way_at_a_time() -> None:
    state, actions = follow(training(), mv.Tick(), now=103.0)
    assert mv.Renew(None) in actions
    assert not any(isinstance(action, mv.Renew) for action in follow(state, mv.Tick(), now=110.0)[1])


def test_a_renewal_says_what_the_trainer_is_doing() -> None:
    said = json.dumps({"n": 1, "ev": "phase", "phase": "Evaluating", "message": ""})
    state, _ = follow(training(), mv.LinesRead("events", 0, 9, (said, "{torn")))
    assert mv.Renew("Evaluating") in follow(state, mv.Tick(), now=103.0)[1]


@pytest.mark.parametrize("lane", ["lease", "words", "bytes"])
def test_an_unreachable_server_never_ends_training(lane: mv.Lane) -> None:
    state, actions = follow(training(), mv.Unreachable(lane))
    assert (state.phase, actions) == ("training", [])
    assert follow(state, mv.Tick(), now=1e6)[0].phase == "training"


def test_a_kill_stops_politely_and_kills_when_the_grace_is_over() -> None:
    state, actions = follow(training(), mv.Renewed(KILL))
    assert actions == [mv.WriteStop("kill"), mv.Terminate()]
    assert follow(state, mv.Renewed(KILL))[1] == []
    assert mv.KillAll() not in follow(state, mv.Tick(), now=129.9)[1]
    assert mv.KillAll() in follow(state, mv.Tick(), now=130.0)[1]


def test_a_refused_renewal_kills_at_once_and_says_nothing_more() -> None:
    state, actions = follow(training(), mv.Refused())
    assert actions == [mv.WriteStop("refused"), mv.KillAll()]
    state, actions = follow(state, mv.TrainerExited(None, "SIGKILL"), mv.GroupEmpty())
    assert kinds(actions) == [mv.WriteExit, mv.WriteClosed, mv.End]
    assert state.exit is not None and state.exit.cause == "killed because the attempt was no longer ours"


def test_a_kill_outranks_a_leave_and_nothing_outranks_the_first_deadline() -> None:
    state, _ = follow(training(), mv.Told(), now=100.0)
    state, actions = follow(state, mv.Renewed(KILL), now=110.0)
    assert (state.stop, state.kill_at, actions) == ("kill", 130.0, [])


def test_an_exit_is_written_only_when_nothing_lives_any_more() -> None:
    state, actions = follow(training(), mv.TrainerExited(0, None))
    assert actions == [mv.KillAll()]
    state, actions = follow(state, mv.Tick())
    assert mv.KillAll() in actions
    state, actions = follow(state, mv.GroupEmpty())
    assert kinds(actions) == [mv.WriteExit]


def test_what_survives_sigkill_is_told_and_the_attempt_stays_open() -> None:
    state, _ = follow(training(), mv.TrainerExited(0, None))
    state, actions = st.step(state, mv.Tick(), 161.0)
    reports = [action for action in actions if isinstance(action, mv.Report)]
    assert [report.exit.group_empty for report in reports] == [False]
    state, actions = st.step(state, mv.ReportAccepted(is_last=False), 162.0)
    assert (state.phase, actions) == ("clearing", [])


def test_the_answer_to_what_survived_is_not_taken_for_one_to_the_last_word() -> None:
    state, _ = follow(training(), mv.TrainerExited(0, None))
    state, actions = st.step(state, mv.Tick(), 161.0)
    assert mv.Report in kinds(actions)
    state, _ = st.step(state, mv.GroupEmpty(), 161.0)
    state, actions = st.step(state, mv.ReportAccepted(is_last=False), 162.0)
    assert (state.phase, actions) == ("reporting", [])
    state, actions = st.step(drained(state), mv.Tick(), 163.0)
    assert [action.exit.group_empty for action in actions if isinstance(action, mv.Report)] == [True]
    assert kinds(follow(state, mv.ReportAccepted(is_last=True))[1]) == [mv.WriteClosed, mv.End]


def test_the_last_word_comes_after_all_lines_and_checkpoints() -> None:
    state = reporting()
    state, actions = follow(state, mv.Tick())
    assert mv.Report not in kinds(actions)
    state, _ = follow(state, mv.LinesRead("events", 0, 5, ("a",)), mv.CheckpointsFound(("epoch-1",)))
    state, actions = follow(state, mv.Tick(), now=101.0)
    assert mv.StoreCheckpoint("epoch-1") in actions
    state, _ = follow(state, mv.LinesAccepted("events", 5), mv.CheckpointStored("epoch-1"))
    nothing = [mv.LinesRead(stream, 5, 5, ()) for stream in mv.STREAMS]
    state, actions = follow(state, *nothing, mv.Tick(), now=102.0)
    assert mv.Report in kinds(actions)
    assert kinds(follow(state, mv.ReportAccepted(is_last=True))[1]) == [mv.WriteClosed, mv.End]


def test_lines_go_on_from_where_the_server_stands() -> None:
    state = training(offsets={"events": 0, "stdout": 0, "stderr": 0})
    state, _ = follow(state, mv.LinesRead("events", 0, 10, ("a", "b")))
    state, _ = follow(state, mv.LinesAccepted("events", 4))
    assert mv.ReadLines("events", 4, is_final=False) in follow(state, mv.Tick())[1]


def test_lines_are_not_read_past_a_shipment_that_is_under_way() -> None:
    state, actions = follow(training(), mv.LinesRead("events", 0, 10, ("a",)))
    assert kinds(actions) == [mv.ShipLines]
    assert follow(state, mv.LinesRead("stdout", 0, 10, ("b",)))[1] == []
    assert mv.ReadLines not in kinds(follow(state, mv.Tick(), now=200.0)[1])


def test_a_server_that_stands_still_is_not_asked_without_a_pause() -> None:
    state, _ = st.step(training(look_at=100.0), mv.Tick(), 100.0)
    state, _ = st.step(state, mv.LinesRead("events", 0, 10, ("a",)), 100.0)
    state, _ = st.step(state, mv.LinesAccepted("events", 0), 100.01)
    assert mv.ReadLines not in kinds(st.step(state, mv.Tick(), 100.02)[1])


def test_the_torn_last_line_of_the_events_is_never_shipped() -> None:
    _, actions = follow(reporting(), mv.Tick())
    assert {(action.stream, action.is_final) for action in actions if isinstance(action, mv.ReadLines)} == {
        ("events", False),
        ("stdout", True),
        ("stderr", True),
    }


def test_a_checkpoint_the_server_will_never_take_does_not_hold_up_the_end() -> None:
    state = drained(reporting())
    state, _ = follow(state, mv.CheckpointsFound(("epoch-1",)), mv.Tick())
    state, actions = follow(state, mv.Rejected("bytes", "epoch-1", "no"), mv.Tick())
    assert mv.Report in kinds(actions)


def test_a_settling_supervisor_asks_first_where_the_server_stands() -> None:
    state = st.settling(mv.Exit(cause="lost"), lease_s=15, grace_s=30)
    state, actions = follow(state, mv.Tick())
    assert mv.KillAll() in actions
    state, _ = follow(state, mv.GroupEmpty())
    state, actions = follow(state, mv.Tick())
    assert mv.ShipLines("events", 0, 0, ()) in actions
    state, _ = follow(state, mv.LinesAccepted("events", 77))
    state, actions = follow(state, mv.Tick())
    assert mv.ReadLines("events", 77, is_final=False) in actions


def test_one_told_to_leave_does_not_wait_long_for_a_server_that_is_gone() -> None:
    state, _ = follow(drained(reporting()), mv.Told(), mv.Tick(), mv.Unreachable("words"))
    assert follow(state, mv.Tick(), now=104.0)[0].phase == "reporting"
    state, actions = follow(state, mv.Tick(), now=106.0)
    assert (state.phase, actions) == ("ended", [mv.End()])


def test_without_being_told_it_waits_for_the_server() -> None:
    state, _ = follow(drained(reporting()), mv.Tick(), mv.Unreachable("words"))
    assert follow(state, mv.Tick(), now=3600.0)[0].phase == "reporting"


@pytest.mark.parametrize(
    ("exit", "stop", "was_killed", "cause"),
    [
        (mv.TrainerExited(0, None), None, False, "exit code 0"),
        (mv.TrainerExited(1, None), None, False, "exit code 1"),
        (mv.TrainerExited(75, None), "leave", False, "stopped on request"),
        (mv.TrainerExited(75, None), None, False, "stopped after saving"),
        (mv.TrainerExited(None, "SIGSEGV"), None, False, "killed by SIGSEGV"),
        (mv.TrainerExited(None, "SIGKILL"), None, False, "killed by SIGKILL"),
        (mv.TrainerExited(None, "SIGKILL", 1), None, False, "out of memory: the kernel ended the trainer"),
        (mv.TrainerExited(None, "SIGKILL", 1), "kill", True, "killed with SIGKILL after the grace period"),
        (mv.TrainerExited(None, "SIGTERM"), "kill", False, "killed by SIGTERM"),
        (mv.TrainerExited(None, "SIGKILL"), "refused", False, "killed because the attempt was no longer ours"),
    ],
)
def test_causes(exit: mv.TrainerExited, stop: mv.StopReason | None, was_killed: bool, cause: str) -> None:
    assert st.cause_of(exit, stop=stop, was_killed=was_killed) == cause


@pytest.mark.parametrize("key", ["dtvi_0123456789abc", "hf_abcdefghijk", "ghp_0123456789", "AKIAIOSFODNN7EXAMPLE"])
def test_keys_are_masked_before_they_leave_the_machine(key: str) -> None:
    assert key not in st.masked(f"token={key}, and text")
    assert st.masked(f"token={key}, and text").endswith(", and text")
    assert st.masked("hf_hub is a library") == "hf_hub is a library"


def test_a_trainer_that_falls_silent_is_warned_about_once_and_not_ended() -> None:
    state = training(hang_s=600.0, phase_word="Training")
    assert mv.Warn not in kinds(follow(state, mv.Tick(), now=699.0)[1])
    state, actions = follow(state, mv.Tick(), now=701.0)
    assert mv.Warn in kinds(actions)
    assert [action.note for action in actions if isinstance(action, mv.Renew)] == [state.note]
    assert "said nothing for 601 s" in (state.note or "")
    state, actions = follow(state, mv.Tick(), now=800.0)
    assert not {mv.Warn, mv.Terminate, mv.KillAll} & set(kinds(actions))
    state, _ = follow(state, mv.Renewed(GO_ON), mv.LinesRead("events", 0, 3, ("{}",)), now=801.0)
    state, actions = follow(state, mv.Tick(), now=810.0)
    assert [action.note for action in actions if isinstance(action, mv.Renew)] == ["the trainer goes on"]
    assert state.note is None


def test_silence_while_it_evaluates_is_no_news() -> None:
    state = training(hang_s=600.0, phase_word="Evaluating")
    assert mv.Warn not in kinds(follow(state, mv.Tick(), now=5000.0)[1])


@pytest.mark.parametrize(("limit_s", "is_stopped"), [(1800.0, True), (None, False)])
def test_only_away_from_the_servers_machine_a_cut_line_ends_the_training(
    limit_s: float | None, is_stopped: bool
) -> None:
    state = training(max_unreachable_s=limit_s)
    state, _ = follow(state, mv.Unreachable("lease"))
    assert follow(state, mv.Tick(), now=1899.0)[0].phase == "training"
    state, actions = follow(state, mv.Tick(), now=1901.0)
    assert (mv.Terminate() in actions) is is_stopped
    assert (state.phase == "stopping") is is_stopped


def test_a_lack_of_memory_is_named_with_what_was_being_done() -> None:
    state, _ = follow(training(phase_word="Saving"), mv.TrainerExited(None, "SIGKILL", 1))
    assert state.exit is not None
    assert state.exit.cause == "out of memory: the kernel ended the trainer while it was Saving"


def restored(state: st.State) -> st.State:
    """The state after the server has said that its store is another one."""
    return follow(state, mv.Renewed(replace_epoch("e1")), mv.Renewed(replace_epoch("e2")))[0]


def replace_epoch(epoch: str) -> Wanted:
    return Wanted(action="continue", lease_s=15, grace_s=30, epoch=epoch)


def test_after_a_restore_it_asks_where_the_server_stands_and_stores_checkpoints_again() -> None:
    state, _ = follow(training(), mv.LinesAccepted("events", 77), mv.CheckpointsFound(("epoch-1",)))
    state, _ = follow(state, mv.CheckpointStored("epoch-1"))
    state, actions = follow(restored(state), mv.Tick())
    assert mv.ShipLines("events", 0, 0, ()) in actions
    assert mv.StoreCheckpoint("epoch-1") in actions
    state, _ = follow(state, mv.LinesAccepted("events", 30))
    assert state.offsets["events"] == 30


def test_the_first_epoch_it_hears_and_the_same_again_change_nothing() -> None:
    state = training(offsets=dict.fromkeys(mv.STREAMS, 77), stored=frozenset({"epoch-1"}), epoch="")
    heard, _ = follow(state, mv.Renewed(replace_epoch("e1")), mv.Renewed(replace_epoch("e1")), mv.Renewed(GO_ON))
    assert (heard.offsets, heard.stored, heard.epoch) == (state.offsets, state.stored, "e1")


def test_one_that_settles_asks_again_when_its_first_epoch_may_be_that_of_a_restore() -> None:
    state = st.settling(mv.Exit(cause="lost"), lease_s=15, grace_s=30)
    state, _ = follow(state, mv.GroupEmpty(), mv.LinesAccepted("stdout", 77), mv.Renewed(replace_epoch("e2")))
    assert (state.offsets["stdout"], state.epoch) == (None, "e2")


def test_no_last_word_is_said_before_an_epoch_is_known() -> None:
    state, actions = follow(drained(reporting(epoch="")), mv.Tick())
    assert mv.Report not in kinds(actions)
    _, actions = follow(drained(replace(state, epoch="e1")), mv.Tick())
    assert mv.Report in kinds(actions)


def test_answers_of_before_a_restore_count_for_nothing() -> None:
    state, _ = follow(drained(reporting()), mv.CheckpointsFound(("epoch-1",)), mv.Tick())
    assert state.busy >= {"bytes"}
    asked = replace(state, busy=state.busy | {"words"})
    state, _ = follow(restored(asked), mv.CheckpointStored("epoch-1"), mv.LinesAccepted("stdout", 99))
    assert (state.stored, state.offsets["stdout"]) == (frozenset(), None)
    state, _ = follow(state, mv.CheckpointStored("epoch-1"), mv.LinesAccepted("stdout", 12))
    assert (state.stored, state.offsets["stdout"]) == ({"epoch-1"}, 12)


def test_a_report_that_was_taken_before_a_restore_is_made_again() -> None:
    state, actions = follow(drained(reporting()), mv.Tick())
    assert mv.Report in kinds(actions)
    state, actions = follow(restored(state), mv.ReportAccepted(is_last=True))
    assert (state.phase, state.drained) == ("reporting", frozenset())


def test_a_failed_call_of_before_a_restore_leaves_the_next_answer_its_word() -> None:
    state = restored(training(busy=frozenset({"words"})))
    state, _ = follow(state, mv.Unreachable("words"), mv.LinesAccepted("stdout", 12))
    assert state.offsets["stdout"] == 12
