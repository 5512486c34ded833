"""Parameter types for durations and points in time: ``90d``, ``12h``, ``2027-01-31T18:00``."""

import datetime
import re
import time

import click

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([0-9]{1,6})([smhd])")


class Duration(click.ParamType[int]):
    """Number with a unit (s, m, h, d), converted to seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        seconds = parse_duration_s(str(value))
        if seconds is None:
            self.fail(
                f"{value!r} is not a duration, expected: a number and s, m, h or d; try: 12h",
                param,
                ctx,
            )
        return seconds


class Moment(click.ParamType[int]):
    """Date, date and time, or duration from now, converted to epoch milliseconds.

    A duration is subtracted from now if ``is_past``, else added.
    """

    name = "moment"

    def __init__(self, *, is_past: bool) -> None:
        self._sign = -1 if is_past else 1

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        seconds = parse_duration_s(str(value))
        if seconds is not None:
            return round((time.time() + self._sign * seconds) * 1000)
        try:
            # Without a time zone, local time is meant, as everywhere on the command line.
            return round(
                datetime.datetime.fromisoformat(str(value)).astimezone().timestamp() * 1000
            )
        except (ValueError, OverflowError, OSError):
            self.fail(
                f"{value!r} is not a time, expected: a date or a duration; try: 2027-01-31, or 90d",
                param,
                ctx,
            )


def parse_duration_s(text: str) -> int | None:
    """Return the seconds of a duration; None when the text is not one."""
    found = _DURATION.fullmatch(text.strip())
    return int(found[1]) * _UNITS_S[found[2]] if found else None
