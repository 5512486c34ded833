"""How long a run took, as one number that can be sorted although running runs take ever longer.

A run that has ended has its milliseconds from the start of the first attempt to the end. One that
has started and not ended has ``UNENDED`` minus the time of its start. So it comes after all that
have ended, longest first in descending order, and its row need not change while time passes. A run
that never started has 0.
"""

UNENDED = 1 << 53
SPLIT = 1 << 52  # every running run is above, every ended one below


def encode_duration(*, started_ms: int | None, ended_ms: int | None) -> int:
    """Return the number of a run, from the times of its start and its end."""
    if not started_ms:
        return 0
    if ended_ms is None:
        return UNENDED - started_ms
    return max(1, min(ended_ms - started_ms, SPLIT - 1))


def encode_running(duration_ms: int, *, now_ms: int) -> int:
    """Return the number of a run that has been running for a duration."""
    return UNENDED - now_ms + duration_ms
