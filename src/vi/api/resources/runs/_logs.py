"""Which lines of a log are requested: arguments of ``client.runs.logs`` as query parameters."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from vi._http.requests import QueryValue
from vi._text import shorten_repr
from vi.api._arguments import to_epoch_ms
from vi.errors import ViInvalidParameterError

Stream: TypeAlias = Literal["events", "stdout", "stderr"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Point: TypeAlias = int | datetime | timedelta
LEVELS = ("debug", "info", "warning", "error")
MAX_LINES = 1000  # of one request


@dataclass(frozen=True)
class LogRequest:
    """The lines to read: a range of numbers, and the filters of every request."""

    since: int
    limit: int | None
    tail: int | None
    filters: dict[str, QueryValue]


def make_log_request(
    *,
    since: Point,
    until: Point | None,
    limit: int | None,
    tail: int | None,
    stream: Stream | None,
    search: str | None,
    regex: bool,
    case_sensitive: bool,
    level: Level | None,
    attempt: int | None,
    now_s: Callable[[], float] = time.time,
) -> LogRequest:
    """Return the request of these arguments; see ``client.runs.logs``.

    Raises:
        ViInvalidParameterError: An argument is malformed.
    """
    if tail is not None and (isinstance(tail, bool) or not isinstance(tail, int) or tail < 1):
        raise ViInvalidParameterError(
            f"tail is {shorten_repr(tail)}, expected: a number of lines, at least 1",
            suggestion="try: tail=100, or omit it for the whole log",
        )
    if level is not None and level not in LEVELS:
        raise ViInvalidParameterError(
            f"level is {shorten_repr(level)}, expected: one of {', '.join(LEVELS)}",
            suggestion="try: level='warning'",
        )
    since_number, after_ms = _split_point(since, name="since", now_s=now_s)
    until_number, to_ms = (
        (None, None) if until is None else _split_point(until, name="until", now_s=now_s)
    )
    is_searched = bool(search)
    filters: dict[str, QueryValue] = {
        "until": until_number,
        "block": stream,
        "attempt": attempt,
        "search": search or None,
        "regex": "true" if is_searched and regex else None,
        "case": "true" if is_searched and case_sensitive else None,
        "level": level,
        "after": after_ms,
        "to": to_ms,
    }
    for name in [name for name, value in filters.items() if value is None]:
        del filters[name]
    return LogRequest(since_number or 0, limit, tail, filters)


def _split_point(
    point: Point, *, name: str, now_s: Callable[[], float]
) -> tuple[int | None, int | None]:
    """Return the number of a line, or the time in epoch milliseconds that a point stands for."""
    if isinstance(point, timedelta):
        return None, round((now_s() - point.total_seconds()) * 1000)
    if isinstance(point, datetime):
        return None, to_epoch_ms(point, name=name)
    if isinstance(point, int) and not isinstance(point, bool):
        return point, None
    raise ViInvalidParameterError(
        f"{name} is {shorten_repr(point)}, expected: the number of a line, a datetime, or a "
        "timedelta before now",
        suggestion=f"try: {name}=timedelta(minutes=10)",
    )
