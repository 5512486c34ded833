"""Events and actions: the messages between a supervisor's effects and its pure ``step`` function.

These classes are plain data. Events state what has happened; they come from ``main`` (the effects),
from its lanes (calls of ``api_client``), and from the clock. Actions state what to do; ``main``
carries them out in order.
"""

from dataclasses import dataclass
from typing import Literal

from runyard.protocol import DesiredState

Stream = Literal["events", "stdout", "stderr", "samples", "system"]
Lane = Literal["lease", "reports", "transfers"]
# ``stop``: the server asks for it, so that the run resumes on another machine
StopReason = Literal["kill", "stop", "leave", "refused", "unreachable"]
STREAMS: tuple[Stream, ...] = ("events", "stdout", "stderr", "samples", "system")
REPORT = "the report"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExitStatus:
    """How the trainer ended. ``cause`` is text for people."""

    exit_code: int | None = None
    signal: str | None = None
    group_empty: bool = True
    cause: str


# Events: what has happened.


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time has passed and nothing else happened."""


@dataclass(frozen=True, slots=True)
class TerminationRequested:
    """SIGTERM arrived: the machine asks to save this attempt and stop it, to resume later."""


@dataclass(frozen=True, slots=True)
class Announced:
    """The server has registered this supervisor process."""

    desired: DesiredState


@dataclass(frozen=True, slots=True)
class LeaseRenewed:
    """The server has renewed the lease."""

    desired: DesiredState


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """The server has refused a call because the attempt's lease is lost."""


@dataclass(frozen=True, slots=True)
class ServerUnreachable:
    """A call got no answer, or an error that says nothing about the attempt."""

    lane: Lane


@dataclass(frozen=True, slots=True)
class UploadRejected:
    """The server will never accept this item: a stream, a checkpoint, or the report."""

    lane: Lane
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class LockAcquired:
    """The run's lock is held."""


@dataclass(frozen=True, slots=True)
class AttemptPrepared:
    """The checkpoint to resume from, the weights, and the dataset are on this machine."""


@dataclass(frozen=True, slots=True)
class TrainerExited:
    """The trainer process has ended.

    ``memory_kills`` counts the kernel's out-of-memory kills since the trainer started.
    ``trainer_phase`` is the phase the trainer reported last, which may be in a line not read yet.
    ``rank`` is the rank that was lost first, if there are several; the status is then its own.
    """

    code: int | None
    signal: str | None
    memory_kills: int = 0
    trainer_phase: str | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class RankStalled:
    """A rank has not advanced for a while, and the others wait for it.

    ``is_final``: it will not advance by itself.
    """

    message: str
    is_final: bool


@dataclass(frozen=True, slots=True)
class ProcessesEnded:
    """No process of the attempt is alive."""


@dataclass(frozen=True, slots=True)
class LinesRead:
    """Complete lines were read from a stream; ``lines`` is empty when there is nothing new."""

    stream: Stream
    offset: int
    next_offset: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinesShipped:
    """The server has answered a shipment; ``offset`` is where its copy of the stream ends now."""

    stream: Stream
    offset: int


@dataclass(frozen=True, slots=True)
class CheckpointsFound:
    """The complete checkpoints in the attempt's folder were listed, oldest first.

    The trainer is still evaluating those in ``unevaluated``, unless it has ended.
    """

    names: tuple[str, ...]
    unevaluated: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CheckpointStored:
    """A checkpoint is stored on the server.

    ``kept`` has the attempt and name of every checkpoint of the run that the server lists now.
    """

    name: str
    kept: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ReportAccepted:
    """The server has accepted a report.

    ``is_last`` is false for a report that processes survive SIGKILL. Its answer may arrive when
    none survives any more, and must not be taken for the answer to the final report.
    """

    is_last: bool


Event = (
    TimePassed
    | TerminationRequested
    | Announced
    | LeaseRenewed
    | LeaseLost
    | ServerUnreachable
    | UploadRejected
    | LockAcquired
    | AttemptPrepared
    | TrainerExited
    | RankStalled
    | ProcessesEnded
    | LinesRead
    | LinesShipped
    | CheckpointsFound
    | CheckpointStored
    | ReportAccepted
)


# Actions: what to do.


@dataclass(frozen=True, slots=True)
class Announce:
    """Register this supervisor process with the server."""


@dataclass(frozen=True, slots=True)
class RenewLease:
    """Renew the lease. ``note`` is a message for people about the attempt's current state."""

    phase: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class AcquireLock:
    """Try once to acquire the run's lock; ``LockAcquired`` follows if it was free."""


@dataclass(frozen=True, slots=True)
class PrepareAttempt:
    """Find the checkpoint to resume from and fetch weights and dataset.

    ``AttemptPrepared`` follows, or ``ServerUnreachable`` while the server does not answer.
    """


@dataclass(frozen=True, slots=True)
class OpenGate:
    """Let the trainer start."""


@dataclass(frozen=True, slots=True)
class CloseGate:
    """End a trainer that has not started."""


@dataclass(frozen=True, slots=True)
class WriteStop:
    """Write ``stop.json``, which asks the trainer to save and stop."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class TerminateTrainer:
    """Send SIGTERM only to the trainer: it needs its children while it saves."""


@dataclass(frozen=True, slots=True)
class KillProcesses:
    """Send SIGKILL to every process of the attempt.

    ``ProcessesEnded`` follows once none is alive.
    """


@dataclass(frozen=True, slots=True)
class ReadLines:
    """Read new lines of a stream; ``LinesRead`` follows."""

    stream: Stream
    offset: int
    is_final: bool


@dataclass(frozen=True, slots=True)
class ShipLines:
    """Send lines to the server; ``LinesShipped`` follows. Without lines it requests the offset."""

    stream: Stream
    offset: int
    next_offset: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FindCheckpoints:
    """List the complete checkpoints; ``CheckpointsFound`` follows."""


@dataclass(frozen=True, slots=True)
class StoreCheckpoint:
    """Upload a checkpoint; ``CheckpointStored`` follows."""

    name: str


@dataclass(frozen=True, slots=True)
class WriteExit:
    """Write ``exit.json``."""

    exit: ExitStatus


@dataclass(frozen=True, slots=True)
class SendReport:
    """Report the end of the attempt; ``ReportAccepted`` follows."""

    exit: ExitStatus


@dataclass(frozen=True, slots=True)
class WriteClosed:
    """Write ``closed.json``: no report is due.

    ``how`` is ``reported``, ``refused`` or ``rejected``.
    """

    how: str


@dataclass(frozen=True, slots=True)
class Warn:
    """Log a warning."""

    message: str


@dataclass(frozen=True, slots=True)
class End:
    """End the supervisor."""


Action = (
    Announce
    | RenewLease
    | AcquireLock
    | PrepareAttempt
    | OpenGate
    | CloseGate
    | WriteStop
    | TerminateTrainer
    | KillProcesses
    | ReadLines
    | ShipLines
    | FindCheckpoints
    | StoreCheckpoint
    | WriteExit
    | SendReport
    | WriteClosed
    | Warn
    | End
)
