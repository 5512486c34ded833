"""The supervisor's state machine: a pure function from a state and one event to the next state and
actions.

The phases of a supervisor:

    announcing   the trainer is forked and waits at its gate; the supervisor registers its process
                 with the server, and from then on the attempt counts
    locking      wait for the run's lock, which a trainer of an earlier attempt may still hold
    preparing    find and verify the checkpoint to resume from, or fetch it; fetch weights and
                 dataset; wait for the server as long as that takes
    training     the gate is open
    stopping     stop.json is written and SIGTERM sent; SIGKILL follows after the grace period
    clearing     the trainer has ended; kill its remaining processes until none is alive
    reporting    exit.json is written; ship the remaining lines and checkpoints, then the report
    ended

A supervisor that finds another's ``process.json`` in its folder replaces one that died. It never
starts a trainer. It starts in ``clearing`` and settles the attempt, so that a result on disk is
reported and the work is not repeated.

Three calls may be in flight at once, each in a lane of its own: ``lease`` (renewals, which
therefore never wait behind uploads), ``reports`` (lines and reports), and ``transfers``
(checkpoints, datasets).

``LeaseLost`` and ``ServerUnreachable`` are different events. After ``LeaseLost`` the attempt is
closed and another may start, so the trainer is killed at once. While the server is unreachable,
training continues; its output stays in the folder and is shipped later, by offset.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from runyard.protocol import OUT_OF_MEMORY, RANK_LOST, DesiredState
from runyard.supervisor.messages import (
    REPORT,
    STREAMS,
    AcquireLock,
    Action,
    Announce,
    Announced,
    AttemptPrepared,
    CheckpointsFound,
    CheckpointStored,
    CloseGate,
    End,
    Event,
    ExitStatus,
    FindCheckpoints,
    KillProcesses,
    Lane,
    LeaseLost,
    LeaseRenewed,
    LinesRead,
    LinesShipped,
    LockAcquired,
    OpenGate,
    PrepareAttempt,
    ProcessesEnded,
    RankStalled,
    ReadLines,
    RenewLease,
    ReportAccepted,
    SendReport,
    ServerUnreachable,
    ShipLines,
    StopReason,
    StoreCheckpoint,
    Stream,
    TerminateTrainer,
    TerminationRequested,
    TimePassed,
    TrainerExited,
    UploadRejected,
    Warn,
    WriteClosed,
    WriteExit,
    WriteStop,
)

Phase = Literal[
    "announcing", "locking", "preparing", "training", "stopping", "clearing", "reporting", "ended"
]

RENEWALS_PER_LEASE = 6
# A kill is noticed at a renewal, so renew more often than the lease needs
MAX_RENEW_INTERVAL_S = 2.0
READ_EVERY_S = 0.25
RECOVERED = "the trainer writes output again"
FIND_CHECKPOINTS_EVERY_S = 1.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.25, 10.0
# Processes that survive SIGKILL this long are reported, and again after as long
CLEARING_TIMEOUT_S = 60.0
# How long a supervisor that was asked to stop waits for an unreachable server
LEAVE_TIMEOUT_S = 5.0
# Without a trainer there is nothing to guard: the controller settles later
SERVER_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Everything a supervisor knows. Times are readings of the monotonic clock."""

    phase: Phase = "announcing"
    lease_s: float = 15.0
    grace_s: float = 30.0
    max_unreachable_s: float | None = None  # None where the run's lock keeps two trainers apart
    hang_s: float | None = None
    trainer_phase: str | None = None  # the phase that the trainer reported last
    stop_reason: StopReason | None = None
    kill_at: float | None = None
    exit: ExitStatus | None = None
    clearing_until: float | None = None
    unanswered_since: float | None = None  # since when calls have gone unanswered
    last_line_at: float | None = None  # when the trainer last wrote an event
    stall: str | None = None  # why the trainer was killed: one of its ranks hung
    note: str | None = None  # a message for people about the attempt's current state
    renew_at: float = 0.0
    read_at: float = 0.0
    find_at: float = 0.0
    is_leaving: bool = False
    store_id: str = ""  # of the server's store; empty until the server has answered
    # Whose call in flight may be answered from before a restore
    stale_lanes: frozenset[Lane] = frozenset()
    busy_lanes: frozenset[Lane] = frozenset()
    retry_at: Mapping[Lane, float] = field(default_factory=dict)
    backoff_s: Mapping[Lane, float] = field(default_factory=dict)
    offsets: Mapping[Stream, int | None] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    drained: frozenset[Stream] = frozenset()  # streams read to their end since the trainer ended
    given_up: frozenset[str] = frozenset()  # streams and checkpoints the server will never accept
    found_checkpoints: tuple[str, ...] = ()
    has_final_listing: bool = False  # checkpoints were listed after the trainer ended
    stored_checkpoints: frozenset[str] = frozenset()

    @property
    def has_trainer(self) -> bool:
        return self.phase in ("announcing", "locking", "preparing", "training", "stopping")

    @property
    def is_before_training(self) -> bool:
        return self.phase in ("announcing", "locking", "preparing")


def make_settling_state(exit: ExitStatus, *, lease_s: float, grace_s: float) -> State:
    """Return the initial state of a supervisor that settles an attempt whose supervisor died.

    It kills the remaining processes, then reports the result found in the folder. The server's
    offset in each stream is unknown, so it is requested first.
    """
    offsets: dict[Stream, int | None] = dict.fromkeys(STREAMS)
    return State(phase="clearing", exit=exit, lease_s=lease_s, grace_s=grace_s, offsets=offsets)


def step(state: State, event: Event, now: float) -> tuple[State, list[Action]]:
    """Return the state after ``event``, and the actions to carry out, in order."""
    if state.phase == "ended":
        return state, []
    is_stale = (
        isinstance(event, LinesShipped | CheckpointStored | ReportAccepted)
        and _get_lane(event) in state.stale_lanes
    )
    state = _update_lanes(state, event, now)
    if is_stale:
        return state, []
    match event:
        case TimePassed():
            return _on_time_passed(state, now)
        case TerminationRequested():
            return _stop_trainer(replace(state, is_leaving=True), "leave", now)
        case LockAcquired() if state.phase == "locking":
            actions: list[Action] = []
            return _submit(
                replace(state, phase="preparing"), "transfers", PrepareAttempt(), actions, now
            ), actions
        case AttemptPrepared() if state.phase == "preparing":
            return replace(state, phase="training", last_line_at=now), [OpenGate()]
        case TrainerExited():
            return _on_exit(state, event, now)
        case RankStalled() if state.phase == "training" and state.stall is None:
            return _on_stall(state, event)
        case ProcessesEnded() if state.phase == "clearing":
            return _on_processes_ended(state)
        case LinesRead():
            return _on_lines_read(state, event, now)
        case CheckpointsFound(names, unevaluated):
            is_final = state.phase == "reporting"
            # Once stored, a checkpoint is not stored again; its measured values are to come.
            found = tuple(name for name in names if is_final or name not in unevaluated)
            return replace(state, found_checkpoints=found, has_final_listing=is_final), []
        case _:
            return _on_answer(state, event, now)


def _on_answer(state: State, event: Event, now: float) -> tuple[State, list[Action]]:
    """Apply an answer of the server."""
    match event:
        case Announced(desired):
            return _on_announced(state, desired, now)
        case LeaseRenewed(desired):
            state = _apply_desired_state(state, desired)
            action = desired.action
            return (state, []) if action == "continue" else _stop_trainer(state, action, now)
        case LeaseLost():
            return _on_lease_lost(state, now)
        case UploadRejected():
            return _on_upload_rejected(state, event)
        case LinesShipped(stream, offset):
            # Read on at once if the offset moved. Otherwise wait, or the same request would repeat
            # without a pause.
            read_at = now if offset != state.offsets[stream] else state.read_at
            return replace(state, offsets={**state.offsets, stream: offset}, read_at=read_at), []
        case CheckpointStored(name):
            return replace(state, stored_checkpoints=state.stored_checkpoints | {name}), []
        case ReportAccepted(is_last=True) if state.phase == "reporting":
            return replace(state, phase="ended"), [WriteClosed("reported"), End()]
        case _:
            return state, []


def _update_lanes(state: State, event: Event, now: float) -> State:
    """Free the lane whose call has ended, and back off after a failure."""
    match event:
        case ServerUnreachable(lane):
            backoff_s = min(state.backoff_s.get(lane, FIRST_BACKOFF_S / 2) * 2, MAX_BACKOFF_S)
            return replace(
                state,
                busy_lanes=state.busy_lanes - {lane},
                stale_lanes=state.stale_lanes - {lane},
                retry_at={**state.retry_at, lane: now + backoff_s},
                backoff_s={**state.backoff_s, lane: backoff_s},
                unanswered_since=now if state.unanswered_since is None else state.unanswered_since,
            )
        case LeaseRenewed():
            return _mark_answered(state, "lease")
        case Announced():
            return _mark_answered(state, "reports")
        case AttemptPrepared():
            return _mark_answered(state, "transfers")
        case LinesShipped() | ReportAccepted() | CheckpointStored():
            return _mark_answered(state, _get_lane(event))
        case UploadRejected(lane):
            return _mark_answered(state, lane)
        case _:
            return state


def _mark_answered(state: State, lane: Lane) -> State:
    others_backoff = {other: value for other, value in state.backoff_s.items() if other != lane}
    return replace(
        state,
        busy_lanes=state.busy_lanes - {lane},
        stale_lanes=state.stale_lanes - {lane},
        backoff_s=others_backoff,
        unanswered_since=None,
    )


def _get_lane(event: LinesShipped | ReportAccepted | CheckpointStored) -> Lane:
    return "transfers" if isinstance(event, CheckpointStored) else "reports"


def _on_announced(state: State, desired: DesiredState, now: float) -> tuple[State, list[Action]]:
    state = replace(
        _apply_desired_state(state, desired), renew_at=now + get_renew_interval_s(desired.lease_s)
    )
    if state.phase != "announcing":
        return state, []
    if desired.action != "continue":
        return _stop_trainer(state, desired.action, now)
    return replace(state, phase="locking"), [AcquireLock()]


def _apply_desired_state(state: State, desired: DesiredState) -> State:
    is_new = desired.store_id not in ("", state.store_id)
    # A settling supervisor may have requested offsets before it knew the id of the store they
    # belong to.
    is_restored = is_new and (state.store_id != "" or not state.has_trainer)
    state = replace(
        state,
        lease_s=desired.lease_s,
        grace_s=desired.grace_s,
        store_id=desired.store_id or state.store_id,
    )
    return _restart_shipping(state) if is_restored else state


def _restart_shipping(state: State) -> State:
    """Ship everything again: a backup was restored, so the server may lack lines and checkpoints.

    Answers to calls in flight may come from before the restore, so they are ignored.
    """
    return replace(
        state,
        offsets=dict.fromkeys(STREAMS),
        drained=frozenset(),
        stored_checkpoints=frozenset(),
        has_final_listing=False,
        stale_lanes=state.busy_lanes & {"reports", "transfers"},
        read_at=0.0,
        find_at=0.0,
    )


def _stop_trainer(state: State, reason: StopReason, now: float) -> tuple[State, list[Action]]:
    """Start to stop the trainer.

    The first reason stands, except that a user's kill outranks the others.
    """
    if state.stop_reason is not None or not state.has_trainer:
        is_stronger = reason == "kill" and state.stop_reason in ("stop", "leave", "unreachable")
        return (
            replace(state, stop_reason=reason)
            if state.stop_reason is None or is_stronger
            else state
        ), []
    actions: list[Action] = [WriteStop(reason)]
    actions += [CloseGate()] if state.is_before_training else [TerminateTrainer()]
    return replace(
        state, phase="stopping", stop_reason=reason, kill_at=now + state.grace_s
    ), actions


def _on_lease_lost(state: State, now: float) -> tuple[State, list[Action]]:
    """Kill the trainer without saving: the lease is lost, and another attempt may start."""
    if state.has_trainer:
        return replace(state, phase="stopping", stop_reason="refused", kill_at=now), [
            WriteStop("refused"),
            KillProcesses(),
        ]
    if state.phase == "clearing":
        return replace(state, stop_reason="refused"), []
    return replace(state, phase="ended", stop_reason="refused"), [WriteClosed("refused"), End()]


def _on_upload_rejected(state: State, event: UploadRejected) -> tuple[State, list[Action]]:
    warning = Warn(f"The server rejects {event.what}: {event.why}; it is not sent again")
    if event.what == REPORT and state.phase == "reporting":
        return replace(state, phase="ended"), [warning, WriteClosed("rejected"), End()]
    return replace(state, given_up=state.given_up | {event.what}), [warning]


def _on_exit(state: State, event: TrainerExited, now: float) -> tuple[State, list[Action]]:
    if not state.has_trainer:
        return state, []
    was_killed = event.signal == "SIGKILL" and state.kill_at is not None and now >= state.kill_at
    trainer_phase = event.trainer_phase or state.trainer_phase
    cause = describe_cause(
        event, stop_reason=state.stop_reason, was_killed=was_killed, trainer_phase=trainer_phase
    )
    if state.stop_reason is None and state.stall is not None:
        cause = f"{RANK_LOST}: {state.stall}"
    elif event.rank is not None:
        is_known = state.stop_reason is not None or cause.startswith(OUT_OF_MEMORY)
        suffix = f"{cause} (rank {event.rank})"
        cause = suffix if is_known else f"{RANK_LOST}: rank {event.rank}, {cause}"
    ended = ExitStatus(exit_code=event.code, signal=event.signal, cause=cause)
    return replace(
        state, phase="clearing", exit=ended, clearing_until=now + CLEARING_TIMEOUT_S, kill_at=None
    ), [KillProcesses()]


def _on_stall(state: State, event: RankStalled) -> tuple[State, list[Action]]:
    """Name the rank that hangs, and end the attempt if waiting is in vain."""
    if event.is_final:
        return replace(state, stall=event.message), [Warn(event.message), KillProcesses()]
    actions: list[Action] = [] if state.note == event.message else [Warn(event.message)]
    return replace(state, note=event.message), actions


def _on_processes_ended(state: State) -> tuple[State, list[Action]]:
    ended = state.exit
    assert ended is not None  # noqa: S101 - set when clearing starts
    if state.stop_reason == "refused":
        return replace(state, phase="ended"), [WriteExit(ended), WriteClosed("refused"), End()]
    state = replace(
        state,
        phase="reporting",
        drained=frozenset(),
        has_final_listing=False,
        read_at=0.0,
        find_at=0.0,
    )
    return state, [WriteExit(ended)]


def _on_lines_read(state: State, event: LinesRead, now: float) -> tuple[State, list[Action]]:
    if not event.lines:
        is_end = state.phase == "reporting"
        return replace(state, drained=state.drained | {event.stream}) if is_end else state, []
    # One call at a time; the lines are read again when the lane is free
    if "reports" in state.busy_lanes:
        return state, []
    if event.stream == "events":
        state = replace(state, last_line_at=now, note=RECOVERED if state.note else None)
    trainer_phase = find_last_phase(event.lines) if event.stream == "events" else None
    state = replace(
        state,
        busy_lanes=state.busy_lanes | {"reports"},
        trainer_phase=trainer_phase or state.trainer_phase,
    )
    lines = tuple(mask_secrets(line) for line in event.lines)
    return state, [ShipLines(event.stream, event.offset, event.next_offset, lines)]


def _on_time_passed(state: State, now: float) -> tuple[State, list[Action]]:
    if _gives_up_on_server(state, now):
        return replace(state, phase="ended"), [End()]
    actions: list[Action] = []
    if state.kill_at is not None and now >= state.kill_at:
        actions.append(KillProcesses())
    if state.phase == "clearing":
        return _continue_clearing(state, actions, now)
    state = _warn_about_silence(state, actions, now)
    if _is_cut_off(state, now):
        return _stop_trainer(state, "unreachable", now)
    state = _renew_if_due(state, actions, now)
    if state.phase == "locking":
        actions.append(AcquireLock())
    elif state.phase == "announcing":
        state = _submit(state, "reports", Announce(), actions, now)
    elif state.phase == "preparing":
        state = _submit(state, "transfers", PrepareAttempt(), actions, now)
    elif not state.is_before_training:
        state = _ship_output(state, actions, now)
    return state, actions


def _continue_clearing(
    state: State, actions: list[Action], now: float
) -> tuple[State, list[Action]]:
    until = now + CLEARING_TIMEOUT_S if state.clearing_until is None else state.clearing_until
    state = _renew_if_due(replace(state, clearing_until=until), actions, now)
    actions.append(KillProcesses())
    if now >= until and state.exit is not None:
        # Reported once a minute, and not as final: the attempt is closed only when no process is
        # alive.
        actions.append(Warn("processes of this attempt survive SIGKILL"))
        survives = replace(state.exit, group_empty=False)
        state = _submit(
            replace(state, clearing_until=now + CLEARING_TIMEOUT_S),
            "reports",
            SendReport(survives),
            actions,
            now,
        )
    return state, actions


def _warn_about_silence(state: State, actions: list[Action], now: float) -> State:
    """Warn that the trainer is silent.

    It is not stopped for that: a step may be long, or the disk slow.
    """
    if (
        state.hang_s is None
        or state.last_line_at is None
        or state.note not in (None, RECOVERED)
        or state.phase != "training"
    ):
        return state
    if state.trainer_phase != "Training" or now - state.last_line_at < state.hang_s:
        return state
    note = (
        f"no output from the trainer for {round(now - state.last_line_at)} s; try: kill the run if "
        "it stays silent"
    )
    actions.append(Warn(note))
    return replace(state, note=note)


def _is_cut_off(state: State, now: float) -> bool:
    """Return whether the server may have given the run to another machine after such a long
    silence.
    """
    limit_s, unanswered_since = state.max_unreachable_s, state.unanswered_since
    is_training = state.phase == "training"
    return (
        is_training
        and limit_s is not None
        and unanswered_since is not None
        and now - unanswered_since > limit_s
    )


def _renew_if_due(state: State, actions: list[Action], now: float) -> State:
    if state.phase == "announcing" or state.stop_reason == "refused" or now < state.renew_at:
        return state
    renewed = _submit(state, "lease", RenewLease(state.trainer_phase, state.note), actions, now)
    if renewed is state:
        return state
    # Sent once; the trainer's own messages follow
    note = None if state.note == RECOVERED else state.note
    return replace(renewed, renew_at=now + get_renew_interval_s(state.lease_s), note=note)


def _ship_output(state: State, actions: list[Action], now: float) -> State:
    """Read new lines, upload checkpoints, and send the report when everything else is shipped."""
    if state.stop_reason == "refused":
        return state
    if now >= state.find_at:
        state = replace(state, find_at=now + FIND_CHECKPOINTS_EVERY_S)
        actions.append(FindCheckpoints())
    if (
        now >= state.read_at
        and "reports" not in state.busy_lanes
        and now >= state.retry_at.get("reports", 0.0)
    ):
        state = replace(state, read_at=now + READ_EVERY_S)
        actions += _list_reads(state)
        unknown = next(
            (stream for stream in _list_open_streams(state) if state.offsets[stream] is None), None
        )
        if unknown is not None:
            state = _submit(state, "reports", ShipLines(unknown, 0, 0, ()), actions, now)
    pending = next(
        (
            name
            for name in state.found_checkpoints
            if name not in state.stored_checkpoints | state.given_up
        ),
        None,
    )
    if pending is not None:
        state = _submit(state, "transfers", StoreCheckpoint(pending), actions, now)
    elif _is_ready_to_report(state) and state.exit is not None:
        state = _submit(state, "reports", SendReport(state.exit), actions, now)
    return state


def _is_ready_to_report(state: State) -> bool:
    """Return whether only the report is left to send.

    Without a store id the server could not detect that a restore has undone earlier shipments.
    """
    return (
        state.phase == "reporting"
        and state.has_final_listing
        and not _list_open_streams(state)
        and state.store_id != ""
    )


def _list_reads(state: State) -> list[Action]:
    is_final = state.phase == "reporting"
    return [
        # The last line of these two may be text without an end; of the others it is torn.
        ReadLines(stream, offset, is_final and stream in ("stdout", "stderr"))
        for stream in _list_open_streams(state)
        if (offset := state.offsets[stream]) is not None
    ]


def _list_open_streams(state: State) -> list[Stream]:
    return [
        stream for stream in STREAMS if stream not in state.drained and stream not in state.given_up
    ]


def _submit(state: State, lane: Lane, action: Action, actions: list[Action], now: float) -> State:
    """Give a lane its next call, unless it is busy or backs off after a failure."""
    if lane in state.busy_lanes or now < state.retry_at.get(lane, 0.0):
        return state
    actions.append(action)
    return replace(state, busy_lanes=state.busy_lanes | {lane})


def _gives_up_on_server(state: State, now: float) -> bool:
    if state.phase != "reporting" or state.unanswered_since is None:
        return False
    return now - state.unanswered_since > (
        LEAVE_TIMEOUT_S if state.is_leaving else SERVER_TIMEOUT_S
    )


def get_renew_interval_s(lease_s: float) -> float:
    return min(lease_s / RENEWALS_PER_LEASE, MAX_RENEW_INTERVAL_S)


def describe_cause(
    exit: TrainerExited,
    *,
    stop_reason: StopReason | None,
    was_killed: bool,
    trainer_phase: str | None = None,
) -> str:
    """Return why the trainer ended, as text for people."""
    if stop_reason == "refused":
        return "killed because the attempt was closed (lease lost)"
    if was_killed:
        return "killed with SIGKILL after the grace period"
    if exit.signal == "SIGKILL" and exit.memory_kills > 0:
        doing = f" while it was {trainer_phase}" if trainer_phase else ""
        return f"{OUT_OF_MEMORY}: the kernel ended the trainer{doing}"
    if exit.signal is not None:
        return f"killed by {exit.signal}"
    if exit.code == 75:
        if stop_reason == "unreachable":
            return "stopped because the server could not be reached"
        return "stopped on request" if stop_reason is not None else "stopped after saving"
    return f"exit code {exit.code}"


def find_last_phase(lines: tuple[str, ...]) -> str | None:
    """Return the phase in the newest ``phase`` event among these lines; None without one."""
    for line in reversed(lines):
        if '"phase"' in line:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if (
                isinstance(event, dict)
                and event.get("ev") == "phase"
                and isinstance(event.get("phase"), str)
            ):
                return str(event["phase"])
    return None


_SECRETS = re.compile(r"\b(dtvi_|whsec_|hf_|ghp_|AKIA)[A-Za-z0-9+/=_-]{8,}")


def mask_secrets(line: str) -> str:
    """Mask what looks like a key: a trainer's output has more readers than the key has users."""
    return _SECRETS.sub(lambda match: match[1] + "…", line)
