"""The errors of the trainer, grouped by who can correct them.

    TrainingFailed      the flow or the data cannot run; a retry would fail again (exit code 64)
        InvalidFlow     the flow requests something that does not exist or does not fit
        InvalidData     the data cannot be read or does not fit the task
        OutOfMemory     the machine has too little memory
        Diverged        the loss or the gradient is not finite
    StopRequested       a stop request interrupted work in progress; never leaves the trainer
    LockHeld            another trainer of the same run is alive (exit code 1: infrastructure)
    PeerLost            another rank of the same attempt is gone (exit code 76: infrastructure)
    ExportFailed        exported files do not reproduce the checkpoint; none of them are kept

The class names are the reasons that ``result.json`` carries. Every other error that escapes is a
defect of Runyard or a failure of the machine: exit code 1, with the traceback on stderr.
"""

import re


class TrainingFailed(Exception):
    """A run that cannot succeed as it is; ``reason`` is the word that users see."""

    @property
    def reason(self) -> str:
        return type(self).__name__


class InvalidFlow(TrainingFailed):
    """The flow requests something that does not exist or does not fit."""


class InvalidData(TrainingFailed):
    """The data cannot be read or does not fit the task."""


class OutOfMemory(TrainingFailed):
    """The machine has too little memory."""


class Diverged(TrainingFailed):
    """The loss or the gradient is not finite."""


class StopRequested(Exception):
    """Work in progress was interrupted because a stop was requested."""


class LockHeld(Exception):
    """Another trainer of the same run is alive."""


class PeerLost(Exception):
    """Another rank of the same attempt is gone, so this one cannot train alone."""


class ExportFailed(Exception):
    """A checkpoint cannot be exported, and nothing was written; the message suggests a fix."""


# What CUDA, ROCm and NCCL say when a device, its memory or a link has failed. Errors that a program
# causes, such as an illegal address or a failed assertion, are not among them.
_DEVICE_FAILURE = re.compile(
    r"uncorrectable ECC|unspecified launch failure|illegal instruction|launch timed out"
    r"|(?:CUDA|HIP) error: unknown error|device (?:is )?lost|fallen off the bus|Xid"
    r"|NCCL error|nccl(?:System|Internal|Remote)Error|NVLink",
    re.IGNORECASE,
)


def is_device_failure(error: BaseException) -> bool:
    """Return whether an error points at a device of the machine and not at the training."""
    return isinstance(error, RuntimeError) and _DEVICE_FAILURE.search(str(error)) is not None
