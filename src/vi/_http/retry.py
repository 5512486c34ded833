"""When to try again, and after how long: pure rules.

What may have happened on the server decides. ``BUSY`` (429) and ``UNREACHED`` (the connection was never made) are
failures before anything was done, so any request may be repeated. After ``UNKNOWN`` (5xx, 408, a connection lost on the
way) the request may or may not have been carried out, so only requests that can be repeated without harm are. The wait
before try n is random between nothing and ``base * 2**n`` (full jitter), because clients that all waited the same time
would come back all at once; a server that says how long to wait (``Retry-After`` on 429 and 503) is obeyed.
"""

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

REPEATABLE_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})


class Failure(enum.Enum):
    """What a failed try tells about the server."""

    BUSY = "busy"
    UNREACHED = "unreached"
    UNKNOWN = "unknown"
    REFUSED = "refused"


def failure_of(status: int) -> Failure:
    """How an answer of status 300 and above counts."""
    if status == 429:
        return Failure.BUSY
    return Failure.UNKNOWN if status >= 500 or status == 408 else Failure.REFUSED


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how long. ``max_rate_limit_retries`` counts the tries the server answered with 429."""

    max_retries: int = 3
    max_rate_limit_retries: int = 20
    base_delay_s: float = 1.0
    max_delay_s: float = 60.0

    def delay_s(
        self,
        failure: Failure,
        *,
        repeatable: bool,
        earlier: Counter[Failure],
        retry_after_s: float | None,
        random: Callable[[], float],
    ) -> float | None:
        """Seconds to wait before the next try, or None to give up. ``earlier`` counts the failures before this one."""
        if not self._allows(failure, repeatable=repeatable, earlier=earlier):
            return None
        if retry_after_s is not None:
            return min(retry_after_s, self.max_delay_s)
        return random() * min(self.base_delay_s * 2.0 ** min(earlier.total(), 30), self.max_delay_s)

    def _allows(self, failure: Failure, *, repeatable: bool, earlier: Counter[Failure]) -> bool:
        if failure is Failure.REFUSED or (failure is Failure.UNKNOWN and not repeatable):
            return False
        if failure is Failure.BUSY:
            return earlier[Failure.BUSY] < self.max_rate_limit_retries
        return earlier[Failure.UNREACHED] + earlier[Failure.UNKNOWN] < self.max_retries


NO_RETRY = RetryPolicy(max_retries=0, max_rate_limit_retries=0)
