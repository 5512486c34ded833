"""Moments and durations as people type them: ``90d``, ``12h``, ``2027-01-31``, ``2027-01-31T18:00``."""

import datetime
import re
import time

import click

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([0-9]{1,6})([smhd])")


class Duration(click.ParamType[int]):
    """A number and a unit; converts to seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        seconds = parse_duration_s(str(value))
        if seconds is None:
            self.fail(f"{value!r} is not a duration; give a number and s, m, h or d, such as 12h", param, ctx)
        return seconds


class Moment(click.ParamType[int]):
    """A date, a date and time, or a duration from now; converts to epoch milliseconds.

    A duration counts into the past with ``is_past``, and into the future without it.
    """

    name = "moment"

    def __init__(self, *, is_past: bool) -> None:
        self._sign = -1 if is_past else 1

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        seconds = parse_duration_s(str(value))
        if seconds is not None:
            return round((time.time() + self._sign * seconds) * 1000)
        try:
            # Without a zone it is the time zone of this machine, as everywhere on the command line.
            return round(datetime.datetime.fromisoformat(str(value)).astimezone().timestamp() * 1000)
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r} is not a moment; give a date such as 2027-01-31, or 12h or 90d from now", param, ctx)


def parse_duration_s(text: str) -> int | None:
    """Return the seconds of a duration; None when the text is not one."""
    found = _DURATION.fullmatch(text.strip())
    return int(found[1]) * _UNITS_S[found[2]] if found else None
