"""The supervisor's decisions, event by event."""

import json
from dataclasses import replace
from typing import Any

import pytest

from runyard.protocol import DesiredState
from runyard.supervisor import messages as msg
from runyard.supervisor import step as st

CONTINUE = DesiredState(action="continue", lease_s=15, grace_s=30, store_id="e1")
KILL = DesiredState(action="kill", lease_s=15, grace_s=30, store_id="e1")


def apply_events(
    state: st.State, *events: msg.Event, now: float = 100.0
) -> tuple[st.State, list[msg.Action]]:
    """Return the state after these events, and the actions of the last one."""
    actions: list[msg.Action] = []
    for event in events:
        state, actions = st.step(state, event, now)
    return state, actions


def make_training_state(**changes: Any) -> st.State:
    state, _ = apply_events(
        st.State(),
        msg.TimePassed(),
        msg.Announced(CONTINUE),
        msg.LockAcquired(),
        msg.AttemptPrepared(),
    )
    assert state.phase == "training"
    return replace(state, **changes)


def make_reporting_state(**changes: Any) -> st.State:
    state, _ = apply_events(make_training_state(), msg.TrainerExited(0, None), msg.ProcessesEnded())
    assert state.phase == "reporting"
    return replace(state, **changes)


def drain_streams(state: st.State) -> st.State:
    nothing = [msg.LinesRead(stream, 0, 0, ()) for stream in msg.STREAMS]
    return apply_events(state, *nothing, msg.CheckpointsFound(()))[0]


def list_types(actions: list[msg.Action]) -> list[type]:
    return [type(action) for action in actions]


def test_it_announces_itself_first_and_once() -> None:
    state, actions = apply_events(st.State(), msg.TimePassed())
    assert actions == [msg.Announce()]
    assert apply_events(state, msg.TimePassed())[1] == []


def test_the_gate_opens_only_after_announcement_lock_and_preparation() -> None:
    state, actions = apply_events(st.State(), msg.TimePassed(), msg.Announced(CONTINUE))
    assert actions == [msg.AcquireLock()]
    state, actions = apply_events(state, msg.TimePassed())
    assert msg.AcquireLock() in actions and msg.OpenGate() not in actions
    state, actions = apply_events(state, msg.LockAcquired())
    assert actions == [msg.PrepareAttempt()]
    state, actions = apply_events(state, msg.AttemptPrepared())
    assert actions == [msg.OpenGate()]


def test_preparing_is_retried_until_the_server_answers_or_the_run_is_killed() -> None:
    state, actions = apply_events(
        st.State(), msg.TimePassed(), msg.Announced(CONTINUE), msg.LockAcquired()
    )
    assert msg.PrepareAttempt() not in apply_events(state, msg.TimePassed())[1]  # it is in flight
    state, _ = st.step(state, msg.ServerUnreachable("transfers"), 0.0)
    assert msg.PrepareAttempt() not in st.step(state, msg.TimePassed(), 0.9 * st.FIRST_BACKOFF_S)[1]
    state, actions = st.step(state, msg.TimePassed(), 1.1 * st.FIRST_BACKOFF_S)
    assert msg.PrepareAttempt() in actions and state.phase == "preparing"
    state, actions = st.step(state, msg.LeaseRenewed(KILL), 1.0)
    assert actions == [msg.WriteStop("kill"), msg.CloseGate()]
    assert msg.OpenGate() not in apply_events(state, msg.AttemptPrepared())[1]


def test_announcing_is_retried_with_growing_backoff() -> None:
    state, _ = st.step(st.State(), msg.TimePassed(), 0.0)
    state, _ = st.step(state, msg.ServerUnreachable("reports"), 0.0)
    first = st.FIRST_BACKOFF_S
    assert st.step(state, msg.TimePassed(), 0.9 * first)[1] == []
    state, actions = st.step(state, msg.TimePassed(), first)
    assert actions == [msg.Announce()]
    state, _ = st.step(state, msg.ServerUnreachable("reports"), first)
    assert st.step(state, msg.TimePassed(), 2.9 * first)[1] == []
    assert st.step(state, msg.TimePassed(), 3.0 * first)[1] == [msg.Announce()]


def test_a_run_killed_before_it_started_never_starts() -> None:
    state, actions = apply_events(st.State(), msg.TimePassed(), msg.Announced(KILL))
    assert actions == [msg.WriteStop("kill"), msg.CloseGate()]
    assert apply_events(state, msg.LockAcquired(), msg.AttemptPrepared())[1] == []


def test_a_lost_lease_before_the_gate_opened_kills_the_waiting_trainer() -> None:
    _, actions = apply_events(st.State(), msg.TimePassed(), msg.LeaseLost())
    assert actions == [msg.WriteStop("refused"), msg.KillProcesses()]


def test_renewing_does_not_wait_for_shipping() -> None:
    state = make_training_state(busy_lanes=frozenset({"reports", "transfers"}))
    _, actions = apply_events(state, msg.TimePassed(), now=103.0)
    assert msg.RenewLease(None) in actions


def test_one_renewal_is_in_flight_at_a_time() -> None:
    state, actions = apply_events(make_training_state(), msg.TimePassed(), now=103.0)
    assert msg.RenewLease(None) in actions
    assert not any(
        isinstance(action, msg.RenewLease)
        for action in apply_events(state, msg.TimePassed(), now=110.0)[1]
    )


def test_a_renewal_has_the_trainers_phase() -> None:
    line = json.dumps({"n": 1, "ev": "phase", "phase": "Evaluating", "message": ""})
    state, _ = apply_events(make_training_state(), msg.LinesRead("events", 0, 9, (line, "{torn")))
    assert msg.RenewLease("Evaluating") in apply_events(state, msg.TimePassed(), now=103.0)[1]


@pytest.mark.parametrize("lane", ["lease", "reports", "transfers"])
def test_an_unreachable_server_never_ends_training(lane: msg.Lane) -> None:
    state, actions = apply_events(make_training_state(), msg.ServerUnreachable(lane))
    assert (state.phase, actions) == ("training", [])
    assert apply_events(state, msg.TimePassed(), now=1e6)[0].phase == "training"


def test_a_kill_sends_sigterm_and_sigkill_after_the_grace_period() -> None:
    state, actions = apply_events(make_training_state(), msg.LeaseRenewed(KILL))
    assert actions == [msg.WriteStop("kill"), msg.TerminateTrainer()]
    assert apply_events(state, msg.LeaseRenewed(KILL))[1] == []
    assert msg.KillProcesses() not in apply_events(state, msg.TimePassed(), now=129.9)[1]
    assert msg.KillProcesses() in apply_events(state, msg.TimePassed(), now=130.0)[1]


def test_a_lost_lease_kills_at_once_and_reports_nothing() -> None:
    state, actions = apply_events(make_training_state(), msg.LeaseLost())
    assert actions == [msg.WriteStop("refused"), msg.KillProcesses()]
    state, actions = apply_events(state, msg.TrainerExited(None, "SIGKILL"), msg.ProcessesEnded())
    assert list_types(actions) == [msg.WriteExit, msg.WriteClosed, msg.End]
    assert (
        state.exit is not None
        and state.exit.cause == "killed because the attempt was closed (lease lost)"
    )


def test_a_kill_outranks_a_leave_and_nothing_outranks_the_first_deadline() -> None:
    state, _ = apply_events(make_training_state(), msg.TerminationRequested(), now=100.0)
    state, actions = apply_events(state, msg.LeaseRenewed(KILL), now=110.0)
    assert (state.stop_reason, state.kill_at, actions) == ("kill", 130.0, [])


def test_an_exit_is_written_only_when_no_process_is_alive() -> None:
    state, actions = apply_events(make_training_state(), msg.TrainerExited(0, None))
    assert actions == [msg.KillProcesses()]
    state, actions = apply_events(state, msg.TimePassed())
    assert msg.KillProcesses() in actions
    state, actions = apply_events(state, msg.ProcessesEnded())
    assert list_types(actions) == [msg.WriteExit]


def test_survivors_of_sigkill_are_reported_and_the_attempt_stays_open() -> None:
    state, _ = apply_events(make_training_state(), msg.TrainerExited(0, None))
    state, actions = st.step(state, msg.TimePassed(), 161.0)
    reports = [action for action in actions if isinstance(action, msg.SendReport)]
    assert [report.exit.group_empty for report in reports] == [False]
    state, actions = st.step(state, msg.ReportAccepted(is_last=False), 162.0)
    assert (state.phase, actions) == ("clearing", [])


def test_the_answer_to_a_survivor_report_is_not_taken_for_that_to_the_final_report() -> None:
    state, _ = apply_events(make_training_state(), msg.TrainerExited(0, None))
    state, actions = st.step(state, msg.TimePassed(), 161.0)
    assert msg.SendReport in list_types(actions)
    state, _ = st.step(state, msg.ProcessesEnded(), 161.0)
    state, actions = st.step(state, msg.ReportAccepted(is_last=False), 162.0)
    assert (state.phase, actions) == ("reporting", [])
    state, actions = st.step(drain_streams(state), msg.TimePassed(), 163.0)
    assert [
        action.exit.group_empty for action in actions if isinstance(action, msg.SendReport)
    ] == [True]
    assert list_types(apply_events(state, msg.ReportAccepted(is_last=True))[1]) == [
        msg.WriteClosed,
        msg.End,
    ]


def test_the_report_follows_all_lines_and_checkpoints() -> None:
    state = make_reporting_state()
    state, actions = apply_events(state, msg.TimePassed())
    assert msg.SendReport not in list_types(actions)
    state, _ = apply_events(
        state, msg.LinesRead("events", 0, 5, ("a",)), msg.CheckpointsFound(("epoch-1",))
    )
    state, actions = apply_events(state, msg.TimePassed(), now=101.0)
    assert msg.StoreCheckpoint("epoch-1") in actions
    state, _ = apply_events(state, msg.LinesShipped("events", 5), msg.CheckpointStored("epoch-1"))
    nothing = [msg.LinesRead(stream, 5, 5, ()) for stream in msg.STREAMS]
    state, actions = apply_events(state, *nothing, msg.TimePassed(), now=102.0)
    assert msg.SendReport in list_types(actions)
    assert list_types(apply_events(state, msg.ReportAccepted(is_last=True))[1]) == [
        msg.WriteClosed,
        msg.End,
    ]


def test_a_checkpoint_is_stored_after_its_evaluation_or_when_the_trainer_has_ended() -> None:
    found = msg.CheckpointsFound(("epoch-1", "epoch-2"), frozenset({"epoch-2"}))
    for make_state, expected in (
        (make_training_state, ["epoch-1"]),
        (make_reporting_state, ["epoch-1", "epoch-2"]),
    ):
        state, _ = apply_events(make_state(), found, msg.TimePassed())
        state, actions = apply_events(state, msg.CheckpointStored("epoch-1"), msg.TimePassed())
        stores = [action for action in actions if isinstance(action, msg.StoreCheckpoint)]
        assert ["epoch-1", *(action.name for action in stores)] == expected


def test_lines_continue_from_the_servers_offset() -> None:
    state = make_training_state(offsets=dict.fromkeys(msg.STREAMS, 0))
    state, _ = apply_events(state, msg.LinesRead("events", 0, 10, ("a", "b")))
    state, _ = apply_events(state, msg.LinesShipped("events", 4))
    assert msg.ReadLines("events", 4, is_final=False) in apply_events(state, msg.TimePassed())[1]


def test_lines_are_not_read_past_a_shipment_in_flight() -> None:
    state, actions = apply_events(make_training_state(), msg.LinesRead("events", 0, 10, ("a",)))
    assert list_types(actions) == [msg.ShipLines]
    assert apply_events(state, msg.LinesRead("stdout", 0, 10, ("b",)))[1] == []
    assert msg.ReadLines not in list_types(apply_events(state, msg.TimePassed(), now=200.0)[1])


def test_a_server_whose_offset_does_not_move_is_not_called_without_a_pause() -> None:
    state, _ = st.step(make_training_state(read_at=100.0), msg.TimePassed(), 100.0)
    state, _ = st.step(state, msg.LinesRead("events", 0, 10, ("a",)), 100.0)
    state, _ = st.step(state, msg.LinesShipped("events", 0), 100.01)
    assert msg.ReadLines not in list_types(st.step(state, msg.TimePassed(), 100.02)[1])


def test_a_torn_last_line_is_only_shipped_of_plain_text() -> None:
    _, actions = apply_events(make_reporting_state(), msg.TimePassed())
    assert {
        (action.stream, action.is_final) for action in actions if isinstance(action, msg.ReadLines)
    } == {
        ("events", False),
        ("stdout", True),
        ("stderr", True),
        ("samples", False),
        ("system", False),
    }


def test_a_rejected_checkpoint_does_not_block_the_report() -> None:
    state = drain_streams(make_reporting_state())
    state, _ = apply_events(state, msg.CheckpointsFound(("epoch-1",)), msg.TimePassed())
    state, actions = apply_events(
        state, msg.UploadRejected("transfers", "epoch-1", "no"), msg.TimePassed()
    )
    assert msg.SendReport in list_types(actions)


def test_a_settling_supervisor_first_requests_the_servers_offsets() -> None:
    state = st.make_settling_state(msg.ExitStatus(cause="lost"), lease_s=15, grace_s=30)
    state, actions = apply_events(state, msg.TimePassed())
    assert msg.KillProcesses() in actions
    state, _ = apply_events(state, msg.ProcessesEnded())
    state, actions = apply_events(state, msg.TimePassed())
    assert msg.ShipLines("events", 0, 0, ()) in actions
    state, _ = apply_events(state, msg.LinesShipped("events", 77))
    state, actions = apply_events(state, msg.TimePassed())
    assert msg.ReadLines("events", 77, is_final=False) in actions


def test_a_supervisor_asked_to_stop_does_not_wait_long_for_an_unreachable_server() -> None:
    state, _ = apply_events(
        drain_streams(make_reporting_state()),
        msg.TerminationRequested(),
        msg.TimePassed(),
        msg.ServerUnreachable("reports"),
    )
    assert apply_events(state, msg.TimePassed(), now=104.0)[0].phase == "reporting"
    state, actions = apply_events(state, msg.TimePassed(), now=106.0)
    assert (state.phase, actions) == ("ended", [msg.End()])


def test_a_supervisor_not_asked_to_stop_waits_for_the_server() -> None:
    state, _ = apply_events(
        drain_streams(make_reporting_state()), msg.TimePassed(), msg.ServerUnreachable("reports")
    )
    assert apply_events(state, msg.TimePassed(), now=3600.0)[0].phase == "reporting"


@pytest.mark.parametrize(
    ("exit", "stop", "was_killed", "cause"),
    [
        (msg.TrainerExited(0, None), None, False, "exit code 0"),
        (msg.TrainerExited(1, None), None, False, "exit code 1"),
        (msg.TrainerExited(75, None), "leave", False, "stopped on request"),
        (msg.TrainerExited(75, None), None, False, "stopped after saving"),
        (msg.TrainerExited(None, "SIGSEGV"), None, False, "killed by SIGSEGV"),
        (msg.TrainerExited(None, "SIGKILL"), None, False, "killed by SIGKILL"),
        (
            msg.TrainerExited(None, "SIGKILL", 1),
            None,
            False,
            "out of memory: the kernel ended the trainer",
        ),
        (
            msg.TrainerExited(None, "SIGKILL", 1),
            "kill",
            True,
            "killed with SIGKILL after the grace period",
        ),
        (msg.TrainerExited(None, "SIGTERM"), "kill", False, "killed by SIGTERM"),
        (
            msg.TrainerExited(None, "SIGKILL"),
            "refused",
            False,
            "killed because the attempt was closed (lease lost)",
        ),
    ],
)
def test_causes_of_trainer_exits(
    exit: msg.TrainerExited, stop: msg.StopReason | None, was_killed: bool, cause: str
) -> None:
    assert st.describe_cause(exit, stop_reason=stop, was_killed=was_killed) == cause


@pytest.mark.parametrize(
    "key", ["dtvi_0123456789abc", "hf_abcdefghijk", "ghp_0123456789", "AKIAIOSFODNN7EXAMPLE"]
)
def test_keys_are_masked_before_they_leave_the_machine(key: str) -> None:
    assert key not in st.mask_secrets(f"token={key}, and text")
    assert st.mask_secrets(f"token={key}, and text").endswith(", and text")
    assert st.mask_secrets("hf_hub is a library") == "hf_hub is a library"


def test_a_silent_trainer_causes_one_warning_and_is_not_stopped() -> None:
    state = make_training_state(hang_s=600.0, trainer_phase="Training")
    assert msg.Warn not in list_types(apply_events(state, msg.TimePassed(), now=699.0)[1])
    state, actions = apply_events(state, msg.TimePassed(), now=701.0)
    assert msg.Warn in list_types(actions)
    assert [action.note for action in actions if isinstance(action, msg.RenewLease)] == [state.note]
    assert "no output from the trainer for 601 s" in (state.note or "")
    state, actions = apply_events(state, msg.TimePassed(), now=800.0)
    assert not {msg.Warn, msg.TerminateTrainer, msg.KillProcesses} & set(list_types(actions))
    state, _ = apply_events(
        state, msg.LeaseRenewed(CONTINUE), msg.LinesRead("events", 0, 3, ("{}",)), now=801.0
    )
    state, actions = apply_events(state, msg.TimePassed(), now=810.0)
    assert [action.note for action in actions if isinstance(action, msg.RenewLease)] == [
        "the trainer writes output again"
    ]
    assert state.note is None


def test_silence_during_an_evaluation_causes_no_warning() -> None:
    state = make_training_state(hang_s=600.0, trainer_phase="Evaluating")
    assert msg.Warn not in list_types(apply_events(state, msg.TimePassed(), now=5000.0)[1])


@pytest.mark.parametrize(("limit_s", "is_stopped"), [(1800.0, True), (None, False)])
def test_an_unreachable_server_stops_training_only_on_another_machine(
    limit_s: float | None, is_stopped: bool
) -> None:
    state = make_training_state(max_unreachable_s=limit_s)
    state, _ = apply_events(state, msg.ServerUnreachable("lease"))
    assert apply_events(state, msg.TimePassed(), now=1899.0)[0].phase == "training"
    state, actions = apply_events(state, msg.TimePassed(), now=1901.0)
    assert (msg.TerminateTrainer() in actions) is is_stopped
    assert (state.phase == "stopping") is is_stopped


def test_an_out_of_memory_cause_names_the_trainers_phase() -> None:
    state, _ = apply_events(
        make_training_state(trainer_phase="Saving"), msg.TrainerExited(None, "SIGKILL", 1)
    )
    assert state.exit is not None
    assert state.exit.cause == "out of memory: the kernel ended the trainer while it was Saving"


def restore_store(state: st.State) -> st.State:
    """Return the state after the server has changed to another store incarnation."""
    return apply_events(
        state, msg.LeaseRenewed(continue_in_store("e1")), msg.LeaseRenewed(continue_in_store("e2"))
    )[0]


def continue_in_store(store_id: str) -> DesiredState:
    return DesiredState(action="continue", lease_s=15, grace_s=30, store_id=store_id)


def test_after_a_restore_offsets_are_requested_and_checkpoints_stored_again() -> None:
    state, _ = apply_events(
        make_training_state(), msg.LinesShipped("events", 77), msg.CheckpointsFound(("epoch-1",))
    )
    state, _ = apply_events(state, msg.CheckpointStored("epoch-1"))
    state, actions = apply_events(restore_store(state), msg.TimePassed())
    assert msg.ShipLines("events", 0, 0, ()) in actions
    assert msg.StoreCheckpoint("epoch-1") in actions
    state, _ = apply_events(state, msg.LinesShipped("events", 30))
    assert state.offsets["events"] == 30


def test_the_first_store_id_and_an_unchanged_one_have_no_effect() -> None:
    state = make_training_state(
        offsets=dict.fromkeys(msg.STREAMS, 77),
        stored_checkpoints=frozenset({"epoch-1"}),
        store_id="",
    )
    updated, _ = apply_events(
        state,
        msg.LeaseRenewed(continue_in_store("e1")),
        msg.LeaseRenewed(continue_in_store("e1")),
        msg.LeaseRenewed(CONTINUE),
    )
    assert (updated.offsets, updated.stored_checkpoints, updated.store_id) == (
        state.offsets,
        state.stored_checkpoints,
        "e1",
    )


def test_a_settling_supervisor_requests_offsets_again_with_its_first_store_id() -> None:
    state = st.make_settling_state(msg.ExitStatus(cause="lost"), lease_s=15, grace_s=30)
    state, _ = apply_events(
        state,
        msg.ProcessesEnded(),
        msg.LinesShipped("stdout", 77),
        msg.LeaseRenewed(continue_in_store("e2")),
    )
    assert (state.offsets["stdout"], state.store_id) == (None, "e2")


def test_no_report_is_sent_before_the_store_id_is_known() -> None:
    state, actions = apply_events(
        drain_streams(make_reporting_state(store_id="")), msg.TimePassed()
    )
    assert msg.SendReport not in list_types(actions)
    _, actions = apply_events(drain_streams(replace(state, store_id="e1")), msg.TimePassed())
    assert msg.SendReport in list_types(actions)


def test_answers_from_before_a_restore_are_ignored() -> None:
    state, _ = apply_events(
        drain_streams(make_reporting_state()), msg.CheckpointsFound(("epoch-1",)), msg.TimePassed()
    )
    assert state.busy_lanes >= {"transfers"}
    in_flight = replace(state, busy_lanes=state.busy_lanes | {"reports"})
    state, _ = apply_events(
        restore_store(in_flight), msg.CheckpointStored("epoch-1"), msg.LinesShipped("stdout", 99)
    )
    assert (state.stored_checkpoints, state.offsets["stdout"]) == (frozenset(), None)
    state, _ = apply_events(state, msg.CheckpointStored("epoch-1"), msg.LinesShipped("stdout", 12))
    assert (state.stored_checkpoints, state.offsets["stdout"]) == (frozenset({"epoch-1"}), 12)


def test_a_report_accepted_before_a_restore_is_sent_again() -> None:
    state, actions = apply_events(drain_streams(make_reporting_state()), msg.TimePassed())
    assert msg.SendReport in list_types(actions)
    state, actions = apply_events(restore_store(state), msg.ReportAccepted(is_last=True))
    assert (state.phase, state.drained) == ("reporting", frozenset())


def test_the_answer_after_a_call_that_failed_before_a_restore_counts() -> None:
    state = restore_store(make_training_state(busy_lanes=frozenset({"reports"})))
    state, _ = apply_events(state, msg.ServerUnreachable("reports"), msg.LinesShipped("stdout", 12))
    assert state.offsets["stdout"] == 12
