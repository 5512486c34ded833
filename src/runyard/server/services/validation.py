"""Checks of what clients, controllers and supervisors name or count, before anything is created
from it.
"""

from runyard import ids, limits
from runyard.protocol import CheckpointReport
from runyard.server.services.errors import Refusal

LARGEST_FILE_BYTES = 1 << 44  # of a checkpoint: larger than any model today
MOST_FILES, LONGEST_HOST = limits.CHECKPOINT_FILES.value, limits.HOST.value


def check_id(kind: str, id: object) -> str:
    """Return the id, if it is valid.

    Raises:
        Refusal: InvalidId (see ``runyard.ids``).
    """
    try:
        return ids.check_id(kind, id)
    except ids.InvalidId as error:
        raise Refusal("InvalidId", str(error)) from None


def check_count(name: str, value: int, *, most: int) -> None:
    """Raise Refusal (InvalidBody) unless 0 <= ``value`` <= ``most``."""
    if not 0 <= value <= most:
        raise Refusal("InvalidBody", f"{name} is {value}; expected a whole number from 0 to {most}")


def check_text(name: str, value: str, *, most: int) -> None:
    """Raise Refusal (InvalidBody) for a text longer than ``most`` or with control characters."""
    if len(value) > most or any(ord(character) < 32 for character in value):
        raise Refusal(
            "InvalidBody",
            f"{name} is {ids.shorten(value)}; expected at most {most} characters without control "
            "characters",
        )


def check_checkpoint(report: CheckpointReport) -> None:
    """Check everything that a supervisor reports about a checkpoint, without reading its bytes.

    Raises:
        Refusal: InvalidId (the checkpoint's id), InvalidBody (a path, a hash or a number).
    """
    check_id("checkpoint", report.checkpoint_id)
    for name, value, most in (("step", report.step, 2**53), ("epoch", report.epoch, 2**31 - 1)):
        check_count(name, value, most=most)
    check_count("time", report.time, most=2**53)
    if not 0 < len(report.files) <= MOST_FILES:
        raise Refusal(
            "InvalidBody",
            f"the checkpoint has {len(report.files)} files; expected 1 to {MOST_FILES}",
        )
    try:
        ids.check_paths(file.path for file in report.files)
    except ids.InvalidId as error:
        raise Refusal("InvalidBody", str(error)) from None
    for file in report.files:
        if not ids.is_id("blob", file.sha256):
            what = f"sha256 of file {file.path!r} is {ids.shorten(file.sha256)}"
            raise Refusal("InvalidBody", f"{what}; expected 64 lower-case hexadecimal digits")
        check_count(f"size_bytes of file {file.path!r}", file.size_bytes, most=LARGEST_FILE_BYTES)
