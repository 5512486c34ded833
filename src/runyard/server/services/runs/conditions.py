"""The state machine of a run. Pure: every function takes what it needs and returns data.

    Pending  -> Running | Cancelled | Failed
    Running  -> Pending (attempt lost or stopped) | Succeeded | Failed | Error | Cancelled
    Succeeded, Failed, Error, Cancelled are final: the first one is kept.

A change of reason inside a state updates the newest entry in place, so the history has one entry
per transition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from runyard.limits import clean_text
from runyard.protocol import LOST_OUT_OF_MEMORY, OUT_OF_MEMORY, RANK_LOST, ExitReport
from runyard.rundir import EXIT_CANNOT_RUN, EXIT_STOPPED
from vi.api.responses import ConditionKind, ResourceCondition

PENDING, RUNNING = ConditionKind.PENDING, ConditionKind.RUNNING
SUCCEEDED, FAILED, ERROR = ConditionKind.SUCCEEDED, ConditionKind.FAILED, ConditionKind.ERROR
CANCELLED = ConditionKind.CANCELLED

LEGAL = {
    PENDING: {RUNNING, CANCELLED, FAILED},
    RUNNING: {PENDING, SUCCEEDED, FAILED, ERROR, CANCELLED},
}

# Every reason of a run, with its meaning; docs/run-lifecycle.md has the same table.
MEANINGS: dict[ConditionKind, dict[str, str]] = {
    PENDING: {
        "Queued": "can run on a connected machine and waits for its turn",
        "WaitingForMachine": "no machine is connected",
        "WaitingForCapacity": "machines are connected, but none of them offers what the run "
        "requests",
        "WaitingForWorker": "placed on a machine, whose supervisor has not reported yet",
        "WaitingForDisk": "the machines that could take it have too little free disk space",
        "Retrying": "an attempt was lost or stopped; the next resumes from the newest checkpoint",
        "Stopping": "killed; waits for its processes to exit",
    },
    RUNNING: {
        "Preparing": "reads data and model, resolves the plan",
        "Training": "trains",
        "Evaluating": "evaluates on held-out data",
        "Saving": "writes a checkpoint while training continues",
        "WaitingForDisk": "has no disk space for its next checkpoint; continues when there is "
        "enough",
        "Stopping": "killed, or its lease ran out; saves and stops, or is being ended",
    },
    SUCCEEDED: {
        "Completed": "trained to the end of its plan; the last checkpoint can be downloaded",
        "EarlyStopped": "ended because the validation metric stopped improving",
        "TimeLimit": "ended because settings.timeLimitMinutes was reached; the last checkpoint can "
        "be downloaded",
    },
    FAILED: {
        "InvalidFlow": "the flow requests what does not exist or does not fit together",
        "InvalidData": "the data cannot be read, or is not what the task needs",
        "OutOfMemory": "the machine has too little memory for it",
        "Diverged": "the loss is no longer a finite number",
        "TrainerError": "the trainer ended with an error that another try would repeat",
    },
    ERROR: {
        "WorkerLost": "all allowed tries were lost to infrastructure failures",
        "StorageUnavailable": "training finished, but no checkpoint reached the server",
    },
    CANCELLED: {"KilledByUser": "killed, and none of its processes is left"},
}
REASONS: dict[ConditionKind, tuple[str, ...]] = {
    kind: tuple(reasons) for kind, reasons in MEANINGS.items()
}
# Reasons of a run without an attempt, which follow from the connected machines.
WAITING = ("Queued", "WaitingForMachine", "WaitingForCapacity", "WaitingForDisk")


MEMORY_FIX = (
    "try: give the machine more memory or fewer slots, or use a smaller "
    "hyperparameters.microBatchSize or hyperparameters.batchSize, onOutOfMemory 'shrink', "
    "training.mode 'lora', dataset.maxSamples, a smaller model"
)


class IllegalTransition(Exception):
    """A transition that the table does not have: a defect of the server."""


@dataclass(frozen=True)
class Transition:
    """The condition that a run enters, or a new reason and message for the current one."""

    kind: ConditionKind
    reason: str
    message: str | None = None


def apply_transition(
    history: Sequence[ResourceCondition], transition: Transition, *, now_ms: int
) -> list[ResourceCondition]:
    """Return the history after a transition.

    A history that has reached a final condition is returned unchanged.

    Raises:
        IllegalTransition: the table has no such transition, or no such reason.
    """
    latest = history[-1] if history else None
    # First: an attempt of a deleted run is reopened, and may be lost, after its run has ended.
    if latest is not None and latest.condition.is_final:
        return list(history)
    if transition.reason not in REASONS[transition.kind]:
        raise IllegalTransition(f"{transition.kind.value} has no reason {transition.reason!r}")
    message = None if transition.message is None else clean_text(transition.message)
    if latest is not None and latest.condition is transition.kind:
        return [
            *history[:-1],
            msgspec.structs.replace(latest, reason=transition.reason, message=message),
        ]
    if transition.kind not in (LEGAL[latest.condition] if latest else {PENDING}):
        raise IllegalTransition(
            f"{latest.condition.value if latest else 'nothing'} -> {transition.kind.value}"
        )
    entry = ResourceCondition(
        condition=transition.kind,
        last_transition_time=now_ms,
        reason=transition.reason,
        message=message,
    )
    return [*history, entry]


@dataclass(frozen=True, kw_only=True)
class AttemptEnd:
    """The facts that decide what follows the end of an attempt.

    ``micro_batch_size`` is what the attempt trained with, where the flow lets it shrink when memory
    runs out. ``is_charged``: it has used up a try.
    """

    killed: bool
    tries_used: int
    tries_allowed: int
    has_checkpoint: bool
    micro_batch_size: int | None = None
    is_charged: bool = True


def is_charged(
    report: ExitReport, *, micro_batch_size: int | None = None, has_progress: bool = False
) -> bool:
    """Return whether an ended attempt uses up a try. Stopping on request does not.

    An attempt whose run resumes with a smaller micro-batch does not either: tries cover failures of
    the platform, and halving ends by itself. Where nobody saw which process the kernel ended, the
    attempt counts as a lost try.

    With several ranks, one is lost more often than a single process would be. That is not charged
    either if the attempt has saved a later checkpoint than those before (``has_progress``), so that
    a rank that always fails at the same step does not fail for ever.
    """
    shrinks = (
        report.cause.startswith(OUT_OF_MEMORY)
        and halve_micro_batch(report, micro_batch_size) is not None
    )
    is_free_loss = has_progress and report.cause.startswith(RANK_LOST)
    return report.exit_code != EXIT_STOPPED and not shrinks and not is_free_loss


def is_out_of_memory(report: ExitReport) -> bool:
    """Return whether the machine's memory ended the attempt, or may have."""
    return report.cause.startswith((OUT_OF_MEMORY, LOST_OUT_OF_MEMORY))


def halve_micro_batch(report: ExitReport, micro_batch_size: int | None) -> int | None:
    """Return the micro-batch size to resume with after running out of memory.

    Return None if memory was not the cause, or if there is nothing to halve. The phase does not
    matter: the kernel ends the trainer for all its memory, not for the last page that it allocated.
    """
    if micro_batch_size is None or micro_batch_size < 2 or not is_out_of_memory(report):
        return None
    return micro_batch_size // 2


def decide_after_exit(report: ExitReport, end: AttemptEnd) -> Transition:
    """Return the transition of a run whose attempt is proven closed.

    The trainer's result counts before the exit code: what it left on disk is complete, however its
    process ended.
    """
    result = report.result or {}
    if result.get("outcome") == "Succeeded":
        return _decide_success(result, end)
    if end.killed:
        return Transition(
            CANCELLED, "KilledByUser", f"killed; {report.cause}" if report.cause else "killed"
        )
    if result.get("outcome") == "Failed" or report.exit_code == EXIT_CANNOT_RUN:
        reason = str(result.get("reason"))
        message = str(result.get("message") or report.cause)
        return Transition(FAILED, reason if reason in REASONS[FAILED] else "TrainerError", message)
    if report.cause.startswith(OUT_OF_MEMORY):
        return _decide_after_out_of_memory(report, end)
    if report.exit_code == EXIT_STOPPED:
        how = result.get("message") or "stopped after saving"
        return Transition(PENDING, "Retrying", f"{how}; resumes from the newest checkpoint")
    cause = report.cause or "the trainer ended without a result"
    if result.get("outcome") == "MachineFailure":
        cause = f"the machine failed: {result.get('message')}"
    if (size := halve_micro_batch(report, end.micro_batch_size)) is not None:
        cause = f"{cause}; resuming with microBatchSize {size} instead of {end.micro_batch_size}"
    return decide_after_loss(cause, end)


def _decide_after_out_of_memory(report: ExitReport, end: AttemptEnd) -> Transition:
    phase = report.cause.removeprefix(OUT_OF_MEMORY).removeprefix(": ")
    size = end.micro_batch_size
    if (smaller := halve_micro_batch(report, size)) is not None:
        message = (
            f"out of memory with microBatchSize {size} ({phase}); resuming with {smaller} at the "
            "same batch size"
        )
        return Transition(PENDING, "Retrying", message)
    with_one = ", with microBatchSize 1, the smallest" if size is not None else ""
    return Transition(FAILED, "OutOfMemory", f"{report.cause}{with_one}; {MEMORY_FIX}")


def decide_after_loss(cause: str, end: AttemptEnd) -> Transition:
    """Return the transition of a run whose attempt was lost through no defect of its flow."""
    if end.killed:
        return Transition(CANCELLED, "KilledByUser", f"killed; {cause}")
    if not end.is_charged:
        message = f"{cause}; it had saved a later checkpoint, so it does not count as a try"
        return Transition(PENDING, "Retrying", message)
    if end.tries_used < end.tries_allowed:
        return Transition(
            PENDING, "Retrying", f"try {end.tries_used} of {end.tries_allowed} was lost: {cause}"
        )
    return Transition(
        ERROR, "WorkerLost", f"all {end.tries_allowed} tries are used up; the last one: {cause}"
    )


def _decide_success(result: dict[str, object], end: AttemptEnd) -> Transition:
    if not end.has_checkpoint:
        return Transition(
            ERROR, "StorageUnavailable", "training finished, but no checkpoint reached the server"
        )
    reason = str(result.get("reason"))
    message = str(result.get("message") or "training finished")
    return Transition(SUCCEEDED, reason if reason in REASONS[SUCCEEDED] else "Completed", message)
