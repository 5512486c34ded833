"""What the scheduler sees and decides: plain data, with every time as milliseconds.

A view is complete: equal views give equal decisions. The scheduler reads no clock, no file and no
database. Capacity has two dimensions, slots and accelerators; each member of a run takes one slot
and ``accelerators`` accelerators of one machine. Shares, limits and use count *units*: the
accelerators of all members, and one per member for a run that names none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MachineState = Literal["joined", "draining", "suspect", "excluded"]
Labels = Mapping[str, Sequence[str]]


class RunKey(NamedTuple):
    """Organization and ID of a run."""

    org: str
    run_id: str


class ProjectKey(NamedTuple):
    """Organization and ID of a training project; an empty ID is the organization itself."""

    org: str
    project: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineCapacity:
    """A machine and all that it has, busy or not. Only a ``joined`` one takes new runs.

    The members of a run on several machines share one ``fabric``; machines without one count as a
    fabric of their own.
    """

    id: str
    host: str = ""
    labels: Labels = field(default_factory=dict)
    slots: int = 1
    accelerators: int = 0
    state: MachineState = "joined"
    fabric: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRun:
    """A run that waits, and what it needs.

    Of each label, one of the listed values is enough. ``lost_on`` names the machines where the run
    was lost; ``waiting_since_ms`` is when it began to wait, which for a new run is its creation.
    """

    org: str
    run_id: str
    project: str = ""
    priority: int = 0
    created_ms: int = 0
    labels: Labels = field(default_factory=dict)
    accelerators: int = 0
    members: int = 1
    preemptible: bool = False
    limit_s: float | None = None
    lost_on: Sequence[str] = ()
    waiting_since_ms: int = 0
    was_preempted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAttempt:
    """An attempt that holds machines, one entry of ``machines`` for each member.

    ``ends_ms`` is when it will have ended by the trainer's estimate or its time limit, whichever is
    earlier; None if nothing predicts it. ``borrows`` is as its placement said. ``preempted_for``
    names the run for which it was asked to stop.
    """

    org: str
    run_id: str
    project: str = ""
    priority: int = 0
    machines: tuple[str, ...] = ()
    accelerators: int = 0
    started_ms: int = 0
    ends_ms: int | None = None
    checkpoint_ms: int = 0
    preemptible: bool = False
    borrows: bool = False
    preempted_for: RunKey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a project may use, and has used; with an empty ``project``, a whole organization.

    ``used_s`` is its use in unit-seconds at ``at_ms``, decayed with a half-life of 24 h, running
    attempts included. ``guaranteed`` and ``limit`` are units. An organization has no weight.
    """

    org: str
    project: str = ""
    weight: float = 1.0
    guaranteed: int = 0
    limit: int | None = None
    used_s: float = 0.0
    at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Machines kept for a waiting run, one entry for each member.

    ``from_ms`` is when they are expected to be free; None if nothing predicts it.
    """

    org: str
    run_id: str
    machines: tuple[str, ...]
    from_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that a decision depends on.

    After a search for attempts to preempt that found none, ``victims_from_ms`` is when there may be
    the next search.
    """

    now_ms: int
    machines: Sequence[MachineCapacity] = ()
    waiting: Sequence[WaitingRun] = ()
    running: Sequence[RunningAttempt] = ()
    shares: Sequence[Share] = ()
    reservations: Sequence[Reservation] = ()
    victims_from_ms: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Start a run on these machines, one entry for each member."""

    run: RunKey
    machines: tuple[str, ...]
    borrows: bool = False


@dataclass(frozen=True, slots=True)
class Preempt:
    """Ask an attempt to save and stop, to make way for ``wanted_by``."""

    run: RunKey
    wanted_by: RunKey


@dataclass(frozen=True, slots=True)
class Reserve:
    """Keep machines for a run that does not fit now."""

    run: RunKey
    machines: tuple[str, ...]
    from_ms: int | None


@dataclass(frozen=True, slots=True)
class Unreserve:
    """Give up the reservation of a run, because it started, left or has to wait for another."""

    run: RunKey


@dataclass(frozen=True, slots=True)
class Explain:
    """Why the waiting runs of a project with equal needs wait; ``first`` is the next of them."""

    first: RunKey
    waiting: int
    reason: str
    message: str


Action = Place | Preempt | Reserve | Unreserve
Decision = Action | Explain


def count_units(accelerators: int, members: int) -> int:
    """Return what a run counts against shares and limits."""
    return max(1, accelerators) * members
