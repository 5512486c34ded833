"""Retry policy: which failures are retried, and after which delay. Pure rules.

The decision depends on what may have happened on the server. After ``BUSY`` (429) and ``UNREACHED``
(no connection) nothing was executed, so any request may be retried. After ``UNKNOWN`` (5xx, 408, a
lost connection) the request may have been executed, so only idempotent requests are retried. The
delay before retry n is random between 0 and ``base * 2**n`` (full jitter), because clients with
equal delays would return at the same time. ``Retry-After`` on 429 and 503 takes precedence.
"""

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

REPEATABLE_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})


class Failure(enum.Enum):
    """What a failed request implies about its execution on the server."""

    BUSY = "busy"
    UNREACHED = "unreached"
    UNKNOWN = "unknown"
    REFUSED = "refused"


def classify_status(status: int) -> Failure:
    """Return the kind of failure for a status of 300 or above."""
    if status == 429:
        return Failure.BUSY
    return Failure.UNKNOWN if status >= 500 or status == 408 else Failure.REFUSED


def draw_random() -> float:
    """Return a random number from 0 to 1; the module is loaded only when a delay is needed."""
    import random

    return random.random()  # noqa: S311 - spreads retries, protects nothing


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Limits and delays of retries.

    ``max_rate_limit_retries`` applies to responses with status 429.
    """

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
        """Return the seconds to wait before the next retry, or None to give up.

        ``earlier`` counts the failures before this one.
        """
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
