"""How sessions end: imports, exports, deletions, uploads. Pure functions from conditions to a value or an error.

A session knows its conditions from the start, the newest first; it is over when none of them waits, or one has failed.
"""

from collections.abc import Sequence

from vi.api.resources.datasets.responses import SessionCondition
from vi.api.responses import ConditionStatus
from vi.errors import ViOperationError

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


def is_over(conditions: Sequence[SessionCondition]) -> bool:
    """Whether nothing more will come."""
    statuses = {condition.status for condition in conditions}
    has_ended = ConditionStatus.FAILED_REACH in statuses or ConditionStatus.WAITING not in statuses
    return bool(statuses) and has_ended


def failure_of(conditions: Sequence[SessionCondition]) -> str | None:
    """Why the session failed, in the server's words; None when it did not."""
    failed = [condition for condition in conditions if condition.status is ConditionStatus.FAILED_REACH]
    if not failed:
        return None
    return next((condition.message for condition in failed if condition.message), "it does not say why")


def check_reached(conditions: Sequence[SessionCondition], *, what: str, reason: str | None = None) -> None:
    """See that the session ended well.

    Raises:
        ViOperationError: it did not.
    """
    why = failure_of(conditions)
    if why is not None:
        raise ViOperationError(f"{what} failed: {reason or why}")


def next_pause_s(pause_s: float) -> float:
    """How long to wait after having waited so long: soon at first, once a second later."""
    return min(pause_s * 1.5, LONGEST_PAUSE_S)
