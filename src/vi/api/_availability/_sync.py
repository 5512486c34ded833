# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""Repetition of a request while the server is unavailable, as during its restart."""

from collections.abc import Callable
from typing import TypeVar

from vi._http._sync import Http
from vi.errors import ViNetworkError, ViRateLimitError, ViServerError, ViTimeoutError

T = TypeVar("T")

UNAVAILABLE_ERRORS = (ViNetworkError, ViTimeoutError, ViServerError, ViRateLimitError)
UNAVAILABLE_TIMEOUT_S = 120.0
PAUSE_S = 1.0


def retry_while_unavailable(
    http: Http,
    request: Callable[[], T],
    *,
    clock: Callable[[], float],
    deadline_s: float = float("inf"),
) -> T:
    """Repeat a request until it succeeds, or the server was unavailable for too long."""
    give_up_s = min(clock() + UNAVAILABLE_TIMEOUT_S, deadline_s)
    while True:
        try:
            return request()
        except UNAVAILABLE_ERRORS:
            if clock() >= give_up_s:
                raise
        http.sleep(PAUSE_S)
