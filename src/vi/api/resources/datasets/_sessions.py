"""Outcome of sessions (imports, exports, deletions, uploads): pure functions of their conditions.

A session has all its conditions from the start, newest first. It has ended when none of them is
waiting, or one has failed.
"""

from collections.abc import Sequence

from vi.api.resources.datasets.responses import SessionCondition
from vi.api.responses import ConditionStatus
from vi.errors import ViOperationError

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0


def is_finished(conditions: Sequence[SessionCondition]) -> bool:
    """Return True if the session has ended."""
    statuses = {condition.status for condition in conditions}
    has_ended = ConditionStatus.FAILED_REACH in statuses or ConditionStatus.WAITING not in statuses
    return bool(statuses) and has_ended


def find_failure(conditions: Sequence[SessionCondition]) -> str | None:
    """Return the server's message for the failure of a session; None if it did not fail."""
    failed = [
        condition for condition in conditions if condition.status is ConditionStatus.FAILED_REACH
    ]
    if not failed:
        return None
    return next((condition.message for condition in failed if condition.message), "no reason given")


def check_reached(
    conditions: Sequence[SessionCondition], *, what: str, reason: str | None = None
) -> None:
    """Check that the session succeeded.

    Raises:
        ViOperationError: It failed.
    """
    why = find_failure(conditions)
    if why is not None:
        raise ViOperationError(f"{what} failed: {reason or why}")


def next_pause_s(pause_s: float) -> float:
    """Return the next polling pause in seconds: growing, at most one second."""
    return min(pause_s * 1.5, MAX_PAUSE_S)
