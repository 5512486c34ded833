"""What may go wrong while training, by whose fault it is.

    TrainingFailed              the recipe or the data cannot run; trying again would fail again (exit code 64)
        InvalidFlow             the recipe asks for something that does not exist or does not fit
        InvalidData             the data cannot be read or is not what the task needs
        OutOfMemory             the machine has too little memory for it
        Diverged                the loss is no longer a number
    StopAsked                   what was under way is broken off because a stop was asked for; never leaves the trainer
    LockHeld                    another trainer of the same run is alive (exit code 1, the platform's affair)
    ExportFailed                exported files are not proven to say what the checkpoint said; nothing is left of them

Class names are the reasons that ``result.json`` carries. Everything else that escapes is a defect or the platform's
fault: exit code 1, the traceback on stderr.
"""


class TrainingFailed(Exception):
    """The run cannot succeed as it is; ``reason`` is the word people see."""

    @property
    def reason(self) -> str:
        return type(self).__name__


class InvalidFlow(TrainingFailed):
    """The recipe asks for something that does not exist or does not fit."""


class InvalidData(TrainingFailed):
    """The data cannot be read or is not what the task needs."""


class OutOfMemory(TrainingFailed):
    """The machine has too little memory."""


class Diverged(TrainingFailed):
    """The loss is no longer a number."""


class StopAsked(Exception):
    """What was under way is broken off because a stop was asked for."""


class LockHeld(Exception):
    """Another trainer of the same run is alive."""


class ExportFailed(Exception):
    """A checkpoint is not exported, and nothing is left of the try; the message has the remedy."""
