"""What a controller does next: a pure function from what it sees to what to do.

The controller compares and does not remember: each time it looks at every attempt it holds, at the warm parent and at
its free slots, and ``decide`` says what is missing. A lost event costs nothing, since the next look finds the same
again; and a controller that was just started does the same as one that never stopped.

An attempt is held from the claim, or from the server's list at the start, until its folder is *closed*: its last word
has been taken, or nobody wants one. While it is open it needs a living supervisor. A supervisor that is started in a
folder that had one before does not train; it ends what is left and reports what lies there. So "dead and not closed"
has one answer, whatever killed it and whenever: start a supervisor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runyard.executors import Warmth
from runyard.ports import Liveness
from runyard.rundir import PERMIT_S

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
# A cold start beside the warm parent's own imports would be later than waiting for these; a claim that nothing was
# started for runs out with its lease.
WAIT_FOR_WARM_LEASES = 0.5
WARM_AGAIN_AFTER_S = 5.0
ADOPT_EVERY_S = 30.0
ADOPT_EVERY_WHEN_QUIET_S = 2.0
# A supervisor says every PERMIT_EVERY_S that it is well. One that has not for so long is stopped or stuck: a kill is
# then carried out here, and when its trainer's permit has run out as well, it is replaced by one that settles.
QUIET_AFTER_S = 6.0


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Which attempt."""

    organization_id: str
    run_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.organization_id}/{self.run_id}/{self.attempt}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One attempt as it looks now. ``supervisor`` is None when we know of none."""

    key: Key
    supervisor: Liveness | None
    is_closed: bool
    is_told: bool = False  # to save and stop
    starts: int = 0
    since_start_s: float = 0.0
    held_for_s: float = 0.0
    lease_s: float = 15.0
    grace_s: float = 30.0
    quiet_for_s: float = 0.0  # since its supervisor last said that it is well
    killed_for_s: float | None = None  # since we learnt that somebody killed the run
    is_trainer_told: bool = False
    is_replacement_starting: bool = False  # it follows a supervisor that died, and has not said yet that it is well


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Everything a decision goes by."""

    slots: int
    attempts: Sequence[Seen]
    since_adopted_s: float | None  # since the server told what this machine should hold; None before
    is_adopting: bool = False  # it is being asked
    is_claiming: bool = False  # a claim is under way
    ending_for_s: float | None = None  # since we were asked to end
    end_within_s: float = 60.0
    leaves_running: bool = False  # on ending, supervisors go on by themselves
    warmth: Warmth = "off"
    lacks_disk: bool = False
    since_warm_up_s: float | None = None  # None when the warm parent was never started


@dataclass(frozen=True, slots=True)
class Adopt:
    """Ask the server what this machine should hold."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Ask for work; without disk for it, only let the server say why the runs wait."""

    slots: int
    lacks_disk: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    key: Key


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell a supervisor to save, stop and end."""

    key: Key


@dataclass(frozen=True, slots=True)
class TellTrainer:
    """Tell a trainer whose supervisor does not answer to save and stop."""

    key: Key


@dataclass(frozen=True, slots=True)
class Break:
    """SIGKILL to a supervisor that does not answer; its trainer ends with it, and another supervisor settles."""

    key: Key


@dataclass(frozen=True, slots=True)
class Forget:
    key: Key


@dataclass(frozen=True, slots=True)
class WarmUp:
    pass


@dataclass(frozen=True, slots=True)
class End:
    pass


Action = Adopt | Claim | Start | Tell | TellTrainer | Break | Forget | WarmUp | End


def decide(view: View) -> list[Action]:
    """Everything to do now."""
    if view.ending_for_s is not None:
        return _end(view, view.ending_for_s)
    return [*_warm_up(view), *_look_after(view), *_take_more(view)]


def _look_after(view: View) -> list[Action]:
    actions: list[Action] = []
    for seen in view.attempts:
        if seen.supervisor == "alive":
            actions += _look_after_quiet(seen)
        if seen.supervisor in ("alive", "unknown"):
            continue
        if seen.is_closed:
            actions.append(Forget(seen.key))
        elif _may_start(view, seen):
            actions.append(Start(seen.key))
    return actions


def _look_after_quiet(seen: Seen) -> list[Action]:
    if seen.quiet_for_s >= PERMIT_S + seen.grace_s:
        return [Break(seen.key)]
    if seen.killed_for_s is None or seen.quiet_for_s < QUIET_AFTER_S:
        return []
    if seen.is_replacement_starting:
        return []  # it has no trainer, and starting takes long on a busy machine; replaced anew, none would ever start
    if not seen.is_trainer_told:
        return [TellTrainer(seen.key)]
    return [Break(seen.key)] if seen.killed_for_s >= seen.grace_s else []


def _may_start(view: View, seen: Seen) -> bool:
    if seen.starts > 0:
        return seen.since_start_s >= pause_s(seen.starts)
    waits_for_warm = view.warmth == "starting" and seen.held_for_s < seen.lease_s * WAIT_FOR_WARM_LEASES
    return not waits_for_warm and not _has_older_attempt(view, seen.key)


def _has_older_attempt(view: View, key: Key) -> bool:
    """An earlier attempt of the same run is settled first: its folder is what the next one resumes from."""
    return any(
        (other.key.organization_id, other.key.run_id) == (key.organization_id, key.run_id)
        and other.key.attempt < key.attempt
        and not other.is_closed
        for other in view.attempts
    )


def pause_s(starts: int) -> float:
    """How long after its last start a supervisor that died is started again."""
    return min(FIRST_PAUSE_S * 2.0 ** min(starts - 1, 10), LONGEST_PAUSE_S)


def _take_more(view: View) -> list[Action]:
    is_quiet = any(seen.supervisor == "alive" and seen.quiet_for_s >= QUIET_AFTER_S for seen in view.attempts)
    every_s = ADOPT_EVERY_WHEN_QUIET_S if is_quiet else ADOPT_EVERY_S
    is_due = view.since_adopted_s is None or view.since_adopted_s >= every_s
    actions: list[Action] = [Adopt()] if is_due and not view.is_adopting else []
    if view.since_adopted_s is None:
        return actions  # what is here already may fill every slot
    held = sum(not (seen.is_closed and seen.supervisor in (None, "dead")) for seen in view.attempts)
    free = view.slots - held
    return [*actions, Claim(free, view.lacks_disk)] if free > 0 and not view.is_claiming else actions


def _warm_up(view: View) -> list[Action]:
    if view.warmth != "down":
        return []
    is_due = view.since_warm_up_s is None or view.since_warm_up_s >= WARM_AGAIN_AFTER_S
    return [WarmUp()] if is_due else []


def _end(view: View, ending_for_s: float) -> list[Action]:
    """Nothing new begins. Supervisors are told once and waited for, unless they shall go on without us."""
    living = [seen for seen in view.attempts if seen.supervisor in ("alive", "unknown")]
    if view.leaves_running or not living or ending_for_s >= view.end_within_s:
        return [End()]
    return [Tell(seen.key) for seen in living if not seen.is_told]
