"""How a run's state moves. Pure: every function takes what it needs and returns data.

    Pending  -> Running | Cancelled | Failed
    Running  -> Pending (attempt lost or stopped) | Succeeded | Failed | Error | Cancelled
    Succeeded, Failed, Error, Cancelled are final: the first one stands.

A change of reason inside a state updates the newest entry in place, so the history has one entry per transition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from runyard.limits import clean_text
from runyard.protocol import LOST_OUT_OF_MEMORY, OUT_OF_MEMORY, ExitReport
from runyard.rundir import EXIT_CANNOT_RUN, EXIT_STOPPED
from vi.api.responses import ConditionKind, ResourceCondition

PENDING, RUNNING = ConditionKind.PENDING, ConditionKind.RUNNING
SUCCEEDED, FAILED, ERROR = ConditionKind.SUCCEEDED, ConditionKind.FAILED, ConditionKind.ERROR
CANCELLED = ConditionKind.CANCELLED

LEGAL = {PENDING: {RUNNING, CANCELLED, FAILED}, RUNNING: {PENDING, SUCCEEDED, FAILED, ERROR, CANCELLED}}

# Every reason a run can have, and what it means; docs/run-lifecycle.md has the same table.
MEANINGS: dict[ConditionKind, dict[str, str]] = {
    PENDING: {
        "Queued": "can run on a connected machine and waits for its turn",
        "WaitingForMachine": "no machine is connected",
        "WaitingForCapacity": "machines are connected, and none of them offers what the run requests",
        "WaitingForWorker": "placed on a machine, whose supervisor has not reported yet",
        "WaitingForDisk": "the machines that could take it have too little free disk space",
        "Retrying": "an attempt was lost or stopped; the next continues from the newest checkpoint",
        "Stopping": "killed; waits for the proof that no process of it is left",
    },
    RUNNING: {
        "Preparing": "reads data and model, makes the plan",
        "Training": "takes steps",
        "Evaluating": "measures itself on held-out data",
        "Saving": "writes a checkpoint while training continues",
        "WaitingForDisk": "has no space for its next checkpoint; continues by itself when there is some",
        "Stopping": "killed or not heard from; saves and stops, or is being ended",
    },
    SUCCEEDED: {
        "Completed": "trained to the end of its plan; the last checkpoint can be downloaded",
        "EarlyStopped": "ended because validation stopped improving",
        "TimeLimit": "ended because settings.timeLimitMinutes was reached; the last checkpoint can be downloaded",
    },
    FAILED: {
        "InvalidFlow": "the recipe requests what does not exist or does not fit together",
        "InvalidData": "the data cannot be read, or is not what the task needs",
        "OutOfMemory": "the machine has too little memory for it",
        "Diverged": "the loss is no longer a number",
        "TrainerError": "the trainer ended by an error that another try would repeat",
    },
    ERROR: {
        "WorkerLost": "the platform lost every try it was allowed",
        "StorageUnavailable": "it was trained, but no checkpoint reached the server",
    },
    CANCELLED: {"KilledByUser": "somebody killed it, and no process of it is left"},
}
REASONS: dict[ConditionKind, tuple[str, ...]] = {kind: tuple(reasons) for kind, reasons in MEANINGS.items()}
# Those of a run that nobody holds, which follow from the machines there are.
WAITING = ("Queued", "WaitingForMachine", "WaitingForCapacity", "WaitingForDisk")


LESS_MEMORY = (
    "Give the machine more memory or fewer slots, or ask for less: a smaller hyperparameters.microBatchSize or "
    "hyperparameters.batchSize, onOutOfMemory 'shrink', training.mode 'lora', dataset.maxSamples, a smaller model"
)


class IllegalMove(Exception):
    """A transition the table does not have: a mistake in the server."""


@dataclass(frozen=True)
class Move:
    """Where a run shall go, or the new reason and message where it is."""

    kind: ConditionKind
    reason: str
    message: str | None = None


def moved(history: Sequence[ResourceCondition], move: Move, *, now_ms: int) -> list[ResourceCondition]:
    """The history after a move; unchanged when it has ended already, since the first final word stands.

    Raises:
        IllegalMove: the table has no such transition, or no such reason.
    """
    if move.reason not in REASONS[move.kind]:
        raise IllegalMove(f"{move.kind.value} has no reason {move.reason!r}")
    latest = history[-1] if history else None
    if latest is not None and latest.condition.is_final:
        return list(history)
    message = None if move.message is None else clean_text(move.message)
    if latest is not None and latest.condition is move.kind:
        return [*history[:-1], msgspec.structs.replace(latest, reason=move.reason, message=message)]
    if move.kind not in (LEGAL[latest.condition] if latest else {PENDING}):
        raise IllegalMove(f"{latest.condition.value if latest else 'nothing'} -> {move.kind.value}")
    entry = ResourceCondition(condition=move.kind, last_transition_time=now_ms, reason=move.reason, message=message)
    return [*history, entry]


@dataclass(frozen=True, kw_only=True)
class AttemptEnd:
    """What counts when an attempt has ended: was the run killed, which try was it, is there a checkpoint.

    ``micro_batch_size`` is what the attempt trained with, where the recipe lets it shrink for want of memory.
    """

    killed: bool
    tries_used: int
    tries_allowed: int
    has_checkpoint: bool
    micro_batch_size: int | None = None


def is_charged(report: ExitReport, *, micro_batch_size: int | None = None) -> bool:
    """Whether an ended attempt uses up a try. Stopping on request does not.

    Nor does one that goes on with a smaller micro-batch: tries are for faults of the platform, and halving ends by
    itself. Where nobody saw whom the kernel ended, it is a lost try like any other.
    """
    shrinks = report.cause.startswith(OUT_OF_MEMORY) and shrunk(report, micro_batch_size) is not None
    return report.exit_code != EXIT_STOPPED and not shrinks


def names_memory(report: ExitReport) -> bool:
    """Whether the machine's memory ended the attempt, or may have."""
    return report.cause.startswith((OUT_OF_MEMORY, LOST_OUT_OF_MEMORY))


def shrunk(report: ExitReport, micro_batch_size: int | None) -> int | None:
    """The micro-batch to go on with after want of memory; None when there is no such want, or nothing to halve.

    Whatever it was doing: the kernel ends the trainer for all that it holds, not for the last page it asked for.
    """
    if micro_batch_size is None or micro_batch_size < 2 or not names_memory(report):
        return None
    return micro_batch_size // 2


def after_exit(report: ExitReport, end: AttemptEnd) -> Move:
    """What becomes of a run whose attempt is proven closed.

    The trainer's result counts before the exit code: what it left on disk is done, however its process ended.
    """
    result = report.result or {}
    if result.get("outcome") == "Succeeded":
        return _succeeded(result, end)
    if end.killed:
        return Move(CANCELLED, "KilledByUser", f"killed; {report.cause}" if report.cause else "killed")
    if result.get("outcome") == "Failed" or report.exit_code == EXIT_CANNOT_RUN:
        reason = str(result.get("reason"))
        message = str(result.get("message") or report.cause)
        return Move(FAILED, reason if reason in REASONS[FAILED] else "TrainerError", message)
    if report.cause.startswith(OUT_OF_MEMORY):
        return _after_want_of_memory(report, end)
    if report.exit_code == EXIT_STOPPED:
        how = result.get("message") or "stopped after saving"
        return Move(PENDING, "Retrying", f"{how}; goes on from the newest checkpoint")
    cause = report.cause or "the trainer ended without a result"
    if (size := shrunk(report, end.micro_batch_size)) is not None:
        cause = f"{cause}; going on with microBatchSize {size} instead of {end.micro_batch_size}"
    return after_loss(cause, end)


def _after_want_of_memory(report: ExitReport, end: AttemptEnd) -> Move:
    doing = report.cause.removeprefix(OUT_OF_MEMORY).removeprefix(": ")
    size = end.micro_batch_size
    if (smaller := shrunk(report, size)) is not None:
        message = f"out of memory with microBatchSize {size} ({doing}); going on with {smaller} at the same batch size"
        return Move(PENDING, "Retrying", message)
    with_one = ", with microBatchSize 1, the smallest" if size is not None else ""
    return Move(FAILED, "OutOfMemory", f"{report.cause}{with_one}. {LESS_MEMORY}")


def after_loss(cause: str, end: AttemptEnd) -> Move:
    """What becomes of a run whose attempt was lost through no fault of its recipe."""
    if end.killed:
        return Move(CANCELLED, "KilledByUser", f"killed; {cause}")
    if end.tries_used < end.tries_allowed:
        return Move(PENDING, "Retrying", f"try {end.tries_used} of {end.tries_allowed} was lost: {cause}")
    return Move(ERROR, "WorkerLost", f"all {end.tries_allowed} tries are used up; the last one: {cause}")


def _succeeded(result: dict[str, object], end: AttemptEnd) -> Move:
    if not end.has_checkpoint:
        return Move(ERROR, "StorageUnavailable", "training finished, but no checkpoint reached the server")
    reason = str(result.get("reason"))
    message = str(result.get("message") or "training finished")
    return Move(SUCCEEDED, reason if reason in REASONS[SUCCEEDED] else "Completed", message)
