"""The words between a supervisor's rim and its deciding part: what has happened, and what to do.

Data and nothing else, so that ``step`` reads as one story. Inputs come from the rim (``main``), from its lanes
(``server``) and from the clock; actions go back to the rim, which carries them out in order.
"""

from dataclasses import dataclass
from typing import Literal

from runyard.protocol import Wanted

Stream = Literal["events", "stdout", "stderr"]
Lane = Literal["lease", "words", "bytes"]
StopReason = Literal["kill", "leave", "refused", "unreachable"]
STREAMS: tuple[Stream, ...] = ("events", "stdout", "stderr")
REPORT = "the report"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """How the trainer ended. ``cause`` is for people."""

    exit_code: int | None = None
    signal: str | None = None
    group_empty: bool = True
    cause: str


# Inputs: what has happened.


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but time has passed."""


@dataclass(frozen=True, slots=True)
class Told:
    """SIGTERM: the machine wants this attempt saved and stopped, to go on another time."""


@dataclass(frozen=True, slots=True)
class Announced:
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Renewed:
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Refused:
    """The server said that this attempt is not ours any more."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No answer, or one that says nothing about the attempt."""

    lane: Lane


@dataclass(frozen=True, slots=True)
class Rejected:
    """The server will never take this: a stream, a checkpoint, or the report."""

    lane: Lane
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class LockTaken:
    pass


@dataclass(frozen=True, slots=True)
class Prepared:
    pass


@dataclass(frozen=True, slots=True)
class TrainerExited:
    """``memory_kills`` counts the kernel's kills for want of memory since the trainer began.

    ``phase_word`` is the last that the trainer said it was doing, which may not have been read yet otherwise.
    """

    code: int | None
    signal: str | None
    memory_kills: int = 0
    phase_word: str | None = None


@dataclass(frozen=True, slots=True)
class GroupEmpty:
    pass


@dataclass(frozen=True, slots=True)
class LinesRead:
    """Whole lines of a stream; empty when there is nothing new."""

    stream: Stream
    offset: int
    next_offset: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinesAccepted:
    """Where the server stands in the stream now."""

    stream: Stream
    offset: int


@dataclass(frozen=True, slots=True)
class CheckpointsFound:
    """Every complete checkpoint in the folder, oldest first."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckpointStored:
    """``kept`` are attempt and name of every checkpoint of the run that the server lists now."""

    name: str
    kept: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ReportAccepted:
    """``is_last`` is false for the word that something survives, whose answer may come when nothing does any more."""

    is_last: bool


Input = (
    Tick
    | Told
    | Announced
    | Renewed
    | Refused
    | Unreachable
    | Rejected
    | LockTaken
    | Prepared
    | TrainerExited
    | GroupEmpty
    | LinesRead
    | LinesAccepted
    | CheckpointsFound
    | CheckpointStored
    | ReportAccepted
)


# Actions: what to do.


@dataclass(frozen=True, slots=True)
class Announce:
    pass


@dataclass(frozen=True, slots=True)
class Renew:
    """``note`` is something people should know about the attempt as it is now."""

    phase: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class TakeLock:
    """Try once; ``LockTaken`` follows if it was free."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Find what to resume from and bring the dataset; ``Prepared`` follows, or ``Unreachable`` while nobody answers."""


@dataclass(frozen=True, slots=True)
class OpenGate:
    pass


@dataclass(frozen=True, slots=True)
class CloseGate:
    """End the trainer that has not begun."""


@dataclass(frozen=True, slots=True)
class WriteStop:
    reason: StopReason


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM to the trainer alone: its children are needed while it saves."""


@dataclass(frozen=True, slots=True)
class KillAll:
    """SIGKILL to everything that belongs to the attempt; ``GroupEmpty`` follows once nothing of it lives."""


@dataclass(frozen=True, slots=True)
class ReadLines:
    stream: Stream
    offset: int
    is_final: bool


@dataclass(frozen=True, slots=True)
class ShipLines:
    stream: Stream
    offset: int
    next_offset: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FindCheckpoints:
    pass


@dataclass(frozen=True, slots=True)
class StoreCheckpoint:
    name: str


@dataclass(frozen=True, slots=True)
class WriteExit:
    exit: Exit


@dataclass(frozen=True, slots=True)
class Report:
    exit: Exit


@dataclass(frozen=True, slots=True)
class WriteClosed:
    """Nothing is left to report; ``how`` is ``reported``, ``refused`` or ``rejected``."""

    how: str


@dataclass(frozen=True, slots=True)
class Warn:
    message: str


@dataclass(frozen=True, slots=True)
class End:
    pass


Action = (
    Announce
    | Renew
    | TakeLock
    | Prepare
    | OpenGate
    | CloseGate
    | WriteStop
    | Terminate
    | KillAll
    | ReadLines
    | ShipLines
    | FindCheckpoints
    | StoreCheckpoint
    | WriteExit
    | Report
    | WriteClosed
    | Warn
    | End
)
