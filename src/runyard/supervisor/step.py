"""What a supervisor does next: a pure function from its state and one input to the next state and what to do.

The life of a supervisor, phase by phase:

    announcing   the trainer is forked and waits behind a gate; the server is told who we are: now the attempt counts
    locking      the run's lock is waited for: a trainer of an earlier attempt may still hold it
    preparing    the checkpoint to resume from and the dataset are looked for and proven, or fetched from the server,
                 which is waited for
    training     the gate is open
    stopping     stop.json and SIGTERM are out; SIGKILL follows when the grace is over
    clearing     the trainer has ended; whatever it left behind is killed until nothing is left
    reporting    exit.json is written; the rest of lines and checkpoints is shipped, then the last word is said
    ended

A supervisor that finds another's ``process.json`` in its folder came after one that died. It never starts a trainer: it
begins in ``clearing`` and settles what is left, so that a result on disk is reported and never tried again.

Three things may be under way at once, each in a lane of its own: renewing the lease (which therefore never waits behind
shipping), words (lines and reports), bytes (checkpoints). *Refused* and *unreachable* are different inputs: refused
means that the attempt is somebody else's now, so the trainer is killed at once; unreachable means that it goes on, and
its words wait in the folder, from where they are shipped later by offset.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from runyard.protocol import OUT_OF_MEMORY, Wanted
from runyard.supervisor.messages import (
    REPORT,
    STREAMS,
    Action,
    Announce,
    Announced,
    CheckpointsFound,
    CheckpointStored,
    CloseGate,
    End,
    Exit,
    FindCheckpoints,
    GroupEmpty,
    Input,
    KillAll,
    Lane,
    LinesAccepted,
    LinesRead,
    LockTaken,
    OpenGate,
    Prepare,
    Prepared,
    ReadLines,
    Refused,
    Rejected,
    Renew,
    Renewed,
    Report,
    ReportAccepted,
    ShipLines,
    StopReason,
    StoreCheckpoint,
    Stream,
    TakeLock,
    Terminate,
    Tick,
    Told,
    TrainerExited,
    Unreachable,
    Warn,
    WriteClosed,
    WriteExit,
    WriteStop,
)

Phase = Literal["announcing", "locking", "preparing", "training", "stopping", "clearing", "reporting", "ended"]

RENEWALS_PER_LEASE = 6
RENEW_AT_MOST_EVERY_S = 2.0  # a kill is noticed at a renewal, so they come more often than the lease needs
LOOK_EVERY_S = 0.25
GOES_ON = "the trainer goes on"
LOOK_FOR_CHECKPOINTS_EVERY_S = 1.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.25, 10.0
CLEAR_FOR_S = 60.0  # what survives SIGKILL that long is reported as alive, and again every so often
LEAVE_AFTER_S = 5.0  # how long a supervisor that was told to end waits for a server that does not answer
WAIT_FOR_SERVER_S = 3600.0  # with the trainer gone there is nothing to guard: the controller will settle later


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Everything a supervisor knows. Times are those of the monotonic clock."""

    phase: Phase = "announcing"
    lease_s: float = 15.0
    grace_s: float = 30.0
    max_unreachable_s: float | None = None  # without limit where the run's lock keeps two trainers apart
    hang_s: float | None = None
    phase_word: str | None = None  # what the trainer last said it was doing
    stop: StopReason | None = None
    kill_at: float | None = None
    exit: Exit | None = None
    clear_until: float | None = None
    quiet_since: float | None = None  # since when no call has been answered
    heard_at: float | None = None  # when the trainer last said something, since it began
    note: str | None = None  # for people: what seems wrong with the attempt now
    renew_at: float = 0.0
    look_at: float = 0.0
    find_at: float = 0.0
    is_leaving: bool = False
    epoch: str = ""  # the store's, once it has said so
    stale: frozenset[Lane] = frozenset()  # whose answer under way may come from before a restore
    busy: frozenset[Lane] = frozenset()
    retry_at: Mapping[Lane, float] = field(default_factory=dict)
    backoff_s: Mapping[Lane, float] = field(default_factory=dict)
    offsets: Mapping[Stream, int | None] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    drained: frozenset[Stream] = frozenset()  # streams read to their end since the trainer ended
    given_up: frozenset[str] = frozenset()  # streams and checkpoints the server will never take
    found: tuple[str, ...] = ()
    has_looked: bool = False  # for checkpoints, since the trainer ended
    stored: frozenset[str] = frozenset()

    @property
    def has_trainer(self) -> bool:
        return self.phase in ("announcing", "locking", "preparing", "training", "stopping")

    @property
    def is_before_training(self) -> bool:
        return self.phase in ("announcing", "locking", "preparing")


def settling(exit: Exit, *, lease_s: float, grace_s: float) -> State:
    """The first state of a supervisor whose forerunner died: end what is left, then report what lies there.

    Where the server stands in each stream is unknown and asked for first.
    """
    offsets: dict[Stream, int | None] = dict.fromkeys(STREAMS)
    return State(phase="clearing", exit=exit, lease_s=lease_s, grace_s=grace_s, offsets=offsets)


def step(state: State, event: Input, now: float) -> tuple[State, list[Action]]:
    """Take one input in; answer the next state and what to do, in order."""
    if state.phase == "ended":
        return state, []
    is_stale = isinstance(event, LinesAccepted | CheckpointStored | ReportAccepted) and _lane_of(event) in state.stale
    state = _hear(state, event, now)
    if is_stale:
        return state, []
    match event:
        case Tick():
            return _on_tick(state, now)
        case Told():
            return _stop(replace(state, is_leaving=True), "leave", now)
        case Announced(wanted):
            return _on_announced(state, wanted, now)
        case Renewed(wanted):
            state = _go_by(state, wanted)
            return _stop(state, "kill", now) if wanted.action == "kill" else (state, [])
        case Refused():
            return _on_refused(state, now)
        case Rejected():
            return _on_rejected(state, event)
        case LockTaken() if state.phase == "locking":
            actions: list[Action] = []
            return _send(replace(state, phase="preparing"), "bytes", Prepare(), actions, now), actions
        case Prepared() if state.phase == "preparing":
            return replace(state, phase="training", heard_at=now), [OpenGate()]
        case TrainerExited():
            return _on_exit(state, event, now)
        case GroupEmpty() if state.phase == "clearing":
            return _on_cleared(state)
        case LinesRead():
            return _on_lines(state, event, now)
        case LinesAccepted(stream, offset):
            # Go on at once, unless the server stands still: then it would be asked the same thing without a pause.
            look_at = now if offset != state.offsets[stream] else state.look_at
            return replace(state, offsets={**state.offsets, stream: offset}, look_at=look_at), []
        case CheckpointsFound(names):
            return replace(state, found=names, has_looked=state.phase == "reporting"), []
        case CheckpointStored(name):
            return replace(state, stored=state.stored | {name}), []
        case ReportAccepted(is_last=True) if state.phase == "reporting":
            return replace(state, phase="ended"), [WriteClosed("reported"), End()]
        case _:
            return state, []


def _hear(state: State, event: Input, now: float) -> State:
    """Keep the books of the lanes: which is free again, and when one that failed may try again."""
    match event:
        case Unreachable(lane):
            backoff_s = min(state.backoff_s.get(lane, FIRST_BACKOFF_S / 2) * 2, LONGEST_BACKOFF_S)
            return replace(
                state,
                busy=state.busy - {lane},
                stale=state.stale - {lane},
                retry_at={**state.retry_at, lane: now + backoff_s},
                backoff_s={**state.backoff_s, lane: backoff_s},
                quiet_since=now if state.quiet_since is None else state.quiet_since,
            )
        case Renewed():
            return _answered(state, "lease")
        case Announced():
            return _answered(state, "words")
        case Prepared():
            return _answered(state, "bytes")
        case LinesAccepted() | ReportAccepted() | CheckpointStored():
            return _answered(state, _lane_of(event))
        case Rejected(lane):
            return _answered(state, lane)
        case _:
            return state


def _answered(state: State, lane: Lane) -> State:
    others_backoff = {other: value for other, value in state.backoff_s.items() if other != lane}
    return replace(
        state, busy=state.busy - {lane}, stale=state.stale - {lane}, backoff_s=others_backoff, quiet_since=None
    )


def _lane_of(event: LinesAccepted | ReportAccepted | CheckpointStored) -> Lane:
    return "bytes" if isinstance(event, CheckpointStored) else "words"


def _on_announced(state: State, wanted: Wanted, now: float) -> tuple[State, list[Action]]:
    state = replace(_go_by(state, wanted), renew_at=now + renew_every_s(wanted.lease_s))
    if state.phase != "announcing":
        return state, []
    if wanted.action == "kill":
        return _stop(state, "kill", now)
    return replace(state, phase="locking"), [TakeLock()]


def _go_by(state: State, wanted: Wanted) -> State:
    is_news = wanted.epoch not in ("", state.epoch)
    # One that settles may have asked where the server stands before it has heard of which epoch that was.
    is_restored = is_news and (state.epoch != "" or not state.has_trainer)
    state = replace(state, lease_s=wanted.lease_s, grace_s=wanted.grace_s, epoch=wanted.epoch or state.epoch)
    return _say_again(state) if is_restored else state


def _say_again(state: State) -> State:
    """A backup was restored: the server may stand further back in each stream, and lack checkpoints it once had.

    Answers that are under way may still speak of the world before, so they count for nothing.
    """
    return replace(
        state,
        offsets=dict.fromkeys(STREAMS),
        drained=frozenset(),
        stored=frozenset(),
        has_looked=False,
        stale=state.busy & {"words", "bytes"},
        look_at=0.0,
        find_at=0.0,
    )


def _stop(state: State, reason: StopReason, now: float) -> tuple[State, list[Action]]:
    """Begin to end the trainer; the first reason stands, except that a kill outranks what is no wish of a user."""
    if state.stop is not None or not state.has_trainer:
        is_stronger = reason == "kill" and state.stop in ("leave", "unreachable")
        return (replace(state, stop=reason) if state.stop is None or is_stronger else state), []
    actions: list[Action] = [WriteStop(reason)]
    actions += [CloseGate()] if state.is_before_training else [Terminate()]
    return replace(state, phase="stopping", stop=reason, kill_at=now + state.grace_s), actions


def _on_refused(state: State, now: float) -> tuple[State, list[Action]]:
    """Nothing we say counts any more, and another attempt may begin: the trainer goes at once, unsaved."""
    if state.has_trainer:
        return replace(state, phase="stopping", stop="refused", kill_at=now), [WriteStop("refused"), KillAll()]
    if state.phase == "clearing":
        return replace(state, stop="refused"), []
    return replace(state, phase="ended", stop="refused"), [WriteClosed("refused"), End()]


def _on_rejected(state: State, event: Rejected) -> tuple[State, list[Action]]:
    warning = Warn(f"The server will not take {event.what}: {event.why}")
    if event.what == REPORT and state.phase == "reporting":
        return replace(state, phase="ended"), [warning, WriteClosed("rejected"), End()]
    return replace(state, given_up=state.given_up | {event.what}), [warning]


def _on_exit(state: State, event: TrainerExited, now: float) -> tuple[State, list[Action]]:
    if not state.has_trainer:
        return state, []
    was_killed = event.signal == "SIGKILL" and state.kill_at is not None and now >= state.kill_at
    phase_word = event.phase_word or state.phase_word
    cause = cause_of(event, stop=state.stop, was_killed=was_killed, phase_word=phase_word)
    ended = Exit(exit_code=event.code, signal=event.signal, cause=cause)
    return replace(state, phase="clearing", exit=ended, clear_until=now + CLEAR_FOR_S, kill_at=None), [KillAll()]


def _on_cleared(state: State) -> tuple[State, list[Action]]:
    ended = state.exit
    assert ended is not None  # noqa: S101 - clearing begins with an exit
    if state.stop == "refused":
        return replace(state, phase="ended"), [WriteExit(ended), WriteClosed("refused"), End()]
    state = replace(state, phase="reporting", drained=frozenset(), has_looked=False, look_at=0.0, find_at=0.0)
    return state, [WriteExit(ended)]


def _on_lines(state: State, event: LinesRead, now: float) -> tuple[State, list[Action]]:
    if not event.lines:
        is_end = state.phase == "reporting"
        return replace(state, drained=state.drained | {event.stream}) if is_end else state, []
    if "words" in state.busy:  # one call at a time; what was read is read again when the lane is free
        return state, []
    if event.stream == "events":
        state = replace(state, heard_at=now, note=GOES_ON if state.note else None)
    word = said_phase(event.lines) if event.stream == "events" else None
    state = replace(state, busy=state.busy | {"words"}, phase_word=word or state.phase_word)
    lines = tuple(masked(line) for line in event.lines)
    return state, [ShipLines(event.stream, event.offset, event.next_offset, lines)]


def _on_tick(state: State, now: float) -> tuple[State, list[Action]]:
    if _gives_up_on_server(state, now):
        return replace(state, phase="ended"), [End()]
    actions: list[Action] = []
    if state.kill_at is not None and now >= state.kill_at:
        actions.append(KillAll())
    if state.phase == "clearing":
        return _tick_while_clearing(state, actions, now)
    state = _look_for_hang(state, actions, now)
    if _is_cut_off(state, now):
        return _stop(state, "unreachable", now)
    state = _renew_if_due(state, actions, now)
    if state.phase == "locking":
        actions.append(TakeLock())
    elif state.phase == "announcing":
        state = _send(state, "words", Announce(), actions, now)
    elif state.phase == "preparing":
        state = _send(state, "bytes", Prepare(), actions, now)
    elif not state.is_before_training:
        state = _look_and_ship(state, actions, now)
    return state, actions


def _tick_while_clearing(state: State, actions: list[Action], now: float) -> tuple[State, list[Action]]:
    until = now + CLEAR_FOR_S if state.clear_until is None else state.clear_until
    state = _renew_if_due(replace(state, clear_until=until), actions, now)
    actions.append(KillAll())
    if now >= until and state.exit is not None:
        # Said once a minute and no last word: the attempt is closed only when nothing of it lives.
        actions.append(Warn("Something of this attempt survives SIGKILL"))
        survives = replace(state.exit, group_empty=False)
        state = _send(replace(state, clear_until=now + CLEAR_FOR_S), "words", Report(survives), actions, now)
    return state, actions


def _look_for_hang(state: State, actions: list[Action], now: float) -> State:
    """Say that a trainer is silent while it trains. It is not ended for that: a step may be long, a disk slow."""
    if state.hang_s is None or state.heard_at is None or state.note not in (None, GOES_ON) or state.phase != "training":
        return state
    if state.phase_word != "Training" or now - state.heard_at < state.hang_s:
        return state
    note = f"the trainer has said nothing for {round(now - state.heard_at)} s; kill the run if it does not go on"
    actions.append(Warn(note))
    return replace(state, note=note)


def _is_cut_off(state: State, now: float) -> bool:
    """Whether another machine may take the run by now, because the server has not heard from us for so long."""
    limit_s, quiet_since = state.max_unreachable_s, state.quiet_since
    is_free = state.phase == "training"
    return is_free and limit_s is not None and quiet_since is not None and now - quiet_since > limit_s


def _renew_if_due(state: State, actions: list[Action], now: float) -> State:
    if state.phase == "announcing" or state.stop == "refused" or now < state.renew_at:
        return state
    renewed = _send(state, "lease", Renew(state.phase_word, state.note), actions, now)
    if renewed is state:
        return state
    note = None if state.note == GOES_ON else state.note  # said once: the trainer's own words come next
    return replace(renewed, renew_at=now + renew_every_s(state.lease_s), note=note)


def _look_and_ship(state: State, actions: list[Action], now: float) -> State:
    """Read what is new, most important stream first, and send what has been found; at the very end, report."""
    if state.stop == "refused":
        return state
    if now >= state.find_at:
        state = replace(state, find_at=now + LOOK_FOR_CHECKPOINTS_EVERY_S)
        actions.append(FindCheckpoints())
    if now >= state.look_at and "words" not in state.busy and now >= state.retry_at.get("words", 0.0):
        state = replace(state, look_at=now + LOOK_EVERY_S)
        actions += _readings(state)
        unknown = next((stream for stream in _open_streams(state) if state.offsets[stream] is None), None)
        if unknown is not None:
            state = _send(state, "words", ShipLines(unknown, 0, 0, ()), actions, now)
    waiting = next((name for name in state.found if name not in state.stored | state.given_up), None)
    if waiting is not None:
        state = _send(state, "bytes", StoreCheckpoint(waiting), actions, now)
    elif _has_said_all(state) and state.exit is not None:
        state = _send(state, "words", Report(state.exit), actions, now)
    return state


def _has_said_all(state: State) -> bool:
    """Whether the last word is next. Without an epoch the server could not tell that a restore has undone the rest."""
    return state.phase == "reporting" and state.has_looked and not _open_streams(state) and state.epoch != ""


def _readings(state: State) -> list[Action]:
    is_final = state.phase == "reporting"
    return [
        ReadLines(stream, offset, is_final and stream != "events")
        for stream in _open_streams(state)
        if (offset := state.offsets[stream]) is not None
    ]


def _open_streams(state: State) -> list[Stream]:
    return [stream for stream in STREAMS if stream not in state.drained and stream not in state.given_up]


def _send(state: State, lane: Lane, action: Action, actions: list[Action], now: float) -> State:
    """Give a lane its next call, unless it is busy or has to wait after a failure."""
    if lane in state.busy or now < state.retry_at.get(lane, 0.0):
        return state
    actions.append(action)
    return replace(state, busy=state.busy | {lane})


def _gives_up_on_server(state: State, now: float) -> bool:
    if state.phase != "reporting" or state.quiet_since is None:
        return False
    return now - state.quiet_since > (LEAVE_AFTER_S if state.is_leaving else WAIT_FOR_SERVER_S)


def renew_every_s(lease_s: float) -> float:
    return min(lease_s / RENEWALS_PER_LEASE, RENEW_AT_MOST_EVERY_S)


def cause_of(exit: TrainerExited, *, stop: StopReason | None, was_killed: bool, phase_word: str | None = None) -> str:
    """Why the trainer ended, in words."""
    if stop == "refused":
        return "killed because the attempt was no longer ours"
    if was_killed:
        return "killed with SIGKILL after the grace period"
    if exit.signal == "SIGKILL" and exit.memory_kills > 0:
        doing = f" while it was {phase_word}" if phase_word else ""
        return f"{OUT_OF_MEMORY}: the kernel ended the trainer{doing}"
    if exit.signal is not None:
        return f"killed by {exit.signal}"
    if exit.code == 75:
        if stop == "unreachable":
            return "stopped because the server could not be reached"
        return "stopped on request" if stop is not None else "stopped after saving"
    return f"exit code {exit.code}"


def said_phase(lines: tuple[str, ...]) -> str | None:
    """What the newest ``phase`` event among these lines says."""
    for line in reversed(lines):
        if '"phase"' in line:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("ev") == "phase" and isinstance(event.get("phase"), str):
                return str(event["phase"])
    return None


_SECRETS = re.compile(r"\b(dtvi_|whsec_|hf_|ghp_|AKIA)[A-Za-z0-9+/=_-]{8,}")


def masked(line: str) -> str:
    """The line without what looks like a key: a trainer's output is read by more people than may use the key."""
    return _SECRETS.sub(lambda found: found[1] + "…", line)
