"""The controller's reconciliation step: a pure function from the observed state to actions.

The controller compares and keeps no history. In each pass it observes every attempt it holds, the
warm parent, and its free slots, and ``decide`` returns what to do about the difference. A lost
event costs nothing, because the next pass observes the same state. A controller that has just
started decides the same as one that never stopped.

An attempt is held from its claim, or from the server's list at startup, until its folder is
*closed*: the server has accepted the final report, or needs none. An open attempt needs a living
supervisor. A supervisor started in a folder that already had one never trains: it stops the
remaining processes and reports the result found in the folder. So an attempt that is dead and not
closed always needs the same action, whatever killed it: start a supervisor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runyard.executors import Warmth
from runyard.ports import Liveness
from runyard.rundir import PERMIT_S

FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 30.0
# A cold start that competes with the warm parent's imports finishes later than one that waits for
# them. Waiting longer than this share of the lease risks losing the claim.
WAIT_FOR_WARM_LEASES = 0.5
WARM_UP_RETRY_S = 5.0
ADOPT_EVERY_S = 30.0
ADOPT_EVERY_WHEN_UNRESPONSIVE_S = 2.0
# A supervisor renews its permit every PERMIT_EVERY_S. One that has not done so for this long is
# stopped or stuck: the controller then carries out a kill itself. Once the trainer's permit has
# expired too, the supervisor is replaced by one that settles the attempt.
UNRESPONSIVE_AFTER_S = 6.0


@dataclass(frozen=True, slots=True, order=True)
class AttemptKey:
    """Identifies one attempt."""

    organization_id: str
    run_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.organization_id}/{self.run_id}/{self.attempt}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptView:
    """The observed state of one attempt. ``supervisor`` is None when none is known."""

    key: AttemptKey
    supervisor: Liveness | None
    is_closed: bool
    is_stop_requested: bool = False  # its supervisor was asked to save and stop
    starts: int = 0
    since_start_s: float = 0.0
    held_for_s: float = 0.0
    lease_s: float = 15.0
    grace_s: float = 30.0
    silent_for_s: float = 0.0  # since its supervisor last renewed its permit
    since_kill_s: float | None = None  # since the controller learned that the run was killed
    is_trainer_stop_requested: bool = False
    accelerators: int = 0  # reserved for it
    is_replacement_starting: bool = False  # replaces a dead supervisor; no permit written yet


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineView:
    """The observed state of the machine: everything that a decision depends on."""

    slots: int
    attempts: Sequence[AttemptView]
    accelerators: int = 0  # of the machine
    are_shared: bool = False  # several runs may use one accelerator
    since_adopted_s: float | None  # since the server last listed this machine's attempts
    is_adopting: bool = False  # that request is in flight
    is_report_due: bool = False  # the machine's report must not wait for the next regular one
    is_claiming: bool = False  # a claim is in flight
    since_shutdown_s: float | None = None  # since shutdown was requested
    shutdown_timeout_s: float = 60.0
    leave_running: bool = False  # supervisors keep running after the controller exits
    warmth: Warmth = "off"
    lacks_disk: bool = False
    since_warm_up_s: float | None = None  # None when the warm parent was never started


@dataclass(frozen=True, slots=True)
class Adopt:
    """Report this machine, and ask the server which attempts are placed on it."""


@dataclass(frozen=True, slots=True)
class ClaimRun:
    """Ask for work. With ``lacks_disk`` the server only records why the runs wait.

    ``accelerators`` are those that no attempt holds, or all if they are shared.
    """

    slots: int
    lacks_disk: bool = False
    accelerators: int = 0


@dataclass(frozen=True, slots=True)
class StartSupervisor:
    """Start a supervisor for an attempt."""

    key: AttemptKey


@dataclass(frozen=True, slots=True)
class StopSupervisor:
    """Ask a supervisor to save, stop, and exit."""

    key: AttemptKey


@dataclass(frozen=True, slots=True)
class StopTrainer:
    """Ask a trainer whose supervisor is unresponsive to save and stop."""

    key: AttemptKey


@dataclass(frozen=True, slots=True)
class KillSupervisor:
    """Send SIGKILL to an unresponsive supervisor.

    Its trainer dies with it, and the next supervisor settles the attempt.
    """

    key: AttemptKey


@dataclass(frozen=True, slots=True)
class Release:
    """Stop tracking a closed attempt and free its slot."""

    key: AttemptKey


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Start the warm parent."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Exit the controller."""


Action = (
    Adopt
    | ClaimRun
    | StartSupervisor
    | StopSupervisor
    | StopTrainer
    | KillSupervisor
    | Release
    | WarmUp
    | Shutdown
)


def decide(view: MachineView) -> list[Action]:
    """Return the actions to take now, in order."""
    if view.since_shutdown_s is not None:
        return _shut_down(view, view.since_shutdown_s)
    return [*_warm_up(view), *_supervise_attempts(view), *_claim_more(view)]


def _supervise_attempts(view: MachineView) -> list[Action]:
    actions: list[Action] = []
    for attempt in view.attempts:
        if attempt.supervisor == "alive":
            actions += _handle_unresponsive(attempt)
        if attempt.supervisor in ("alive", "unknown"):
            continue
        if attempt.is_closed:
            actions.append(Release(attempt.key))
        elif _may_start(view, attempt):
            actions.append(StartSupervisor(attempt.key))
    return actions


def _handle_unresponsive(attempt: AttemptView) -> list[Action]:
    if attempt.silent_for_s >= PERMIT_S + attempt.grace_s:
        return [KillSupervisor(attempt.key)]
    if attempt.since_kill_s is None or attempt.silent_for_s < UNRESPONSIVE_AFTER_S:
        return []
    if attempt.is_replacement_starting:
        # It has no trainer. Starting is slow on a busy machine: replaced again, none would ever
        # start.
        return []
    if not attempt.is_trainer_stop_requested:
        return [StopTrainer(attempt.key)]
    return [KillSupervisor(attempt.key)] if attempt.since_kill_s >= attempt.grace_s else []


def _may_start(view: MachineView, attempt: AttemptView) -> bool:
    if attempt.starts > 0:
        return attempt.since_start_s >= get_restart_backoff_s(attempt.starts)
    waits_for_warm = (
        view.warmth == "starting" and attempt.held_for_s < attempt.lease_s * WAIT_FOR_WARM_LEASES
    )
    return not waits_for_warm and not _has_older_attempt(view, attempt.key)


def _has_older_attempt(view: MachineView, key: AttemptKey) -> bool:
    """Return whether an earlier attempt of the same run is still open.

    That one is settled first, because the next attempt resumes from its folder.
    """
    return any(
        (other.key.organization_id, other.key.run_id) == (key.organization_id, key.run_id)
        and other.key.attempt < key.attempt
        and not other.is_closed
        for other in view.attempts
    )


def get_restart_backoff_s(starts: int) -> float:
    """Return the delay between the last start of a dead supervisor and its restart."""
    return min(FIRST_BACKOFF_S * 2.0 ** min(starts - 1, 10), MAX_BACKOFF_S)


def _claim_more(view: MachineView) -> list[Action]:
    is_unresponsive = any(
        attempt.supervisor == "alive" and attempt.silent_for_s >= UNRESPONSIVE_AFTER_S
        for attempt in view.attempts
    )
    every_s = ADOPT_EVERY_WHEN_UNRESPONSIVE_S if is_unresponsive else ADOPT_EVERY_S
    is_due = view.since_adopted_s is None or view.is_report_due or view.since_adopted_s >= every_s
    actions: list[Action] = [Adopt()] if is_due and not view.is_adopting else []
    if view.since_adopted_s is None:
        return actions  # attempts already on this machine may fill every slot
    held = [
        attempt
        for attempt in view.attempts
        if not (attempt.is_closed and attempt.supervisor in (None, "dead"))
    ]
    free, accelerators = view.slots - len(held), view.accelerators
    if accelerators and not view.are_shared:
        accelerators = max(0, accelerators - sum(attempt.accelerators for attempt in held))
        free = min(free, accelerators)
    return (
        [*actions, ClaimRun(free, view.lacks_disk, accelerators)]
        if free > 0 and not view.is_claiming
        else actions
    )


def _warm_up(view: MachineView) -> list[Action]:
    if view.warmth != "down":
        return []
    is_due = view.since_warm_up_s is None or view.since_warm_up_s >= WARM_UP_RETRY_S
    return [WarmUp()] if is_due else []


def _shut_down(view: MachineView, since_shutdown_s: float) -> list[Action]:
    """Start nothing new.

    Ask each supervisor once to stop, and wait for them unless requested otherwise.
    """
    living = [attempt for attempt in view.attempts if attempt.supervisor in ("alive", "unknown")]
    if view.leave_running or not living or since_shutdown_s >= view.shutdown_timeout_s:
        return [Shutdown()]
    return [StopSupervisor(attempt.key) for attempt in living if not attempt.is_stop_requested]
