"""What templates show: structs, and the words for times, sizes and conditions."""

import datetime
import re

import msgspec

SHAPES = {
    "Pending": "◷",
    "Running": "●",
    "Succeeded": "✓",
    "Failed": "✗",
    "Error": "!",
    "Cancelled": "⊘",
}
NOTHING = "\N{EN DASH}"  # instead of a value
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """Who looks at a page, and where.

    ``section`` is the second part of the path: ``runs``, ``flows``, ... ``event`` is the number of
    the newest event before the page was read.
    """

    section: str = ""
    org: str = ""
    name: str = ""
    role: str = ""
    now_ms: int = 0
    event: int = 0
    is_signed_in: bool = False

    @property
    def may_change(self) -> bool:
        """Return whether buttons that change something are shown."""
        return self.role in ("member", "admin")

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"


class TimeText(msgspec.Struct, frozen=True):
    """A time as ``<time>`` shows it: its age as text, the exact time in attribute and tooltip."""

    iso: str
    text: str
    title: str


def describe_moment(time_ms: int, now_ms: int) -> TimeText:
    """Return a time as text relative to now."""
    iso = format_iso(time_ms)
    return TimeText(iso=iso, text=format_age(now_ms - time_ms), title=iso.replace("T", " ")[:19])


def format_iso(time_ms: int) -> str:
    """Return a time as ISO 8601 in UTC."""
    time = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def format_clock(time_ms: int) -> str:
    """Return the time of day in UTC, to the second."""
    return format_iso(time_ms)[11:19]


def format_age(age_ms: float) -> str:
    """Return how long ago something was."""
    return "now" if age_ms < 5000 else f"{format_duration(age_ms / 1000)} ago"


def format_duration(seconds: float) -> str:
    """Return a duration in its largest unit, with one more below ten."""
    for index, (size, unit) in enumerate(_UNITS):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            smaller = (*_UNITS, (1, "s"))[index + 1]
            part = rest // smaller[0]
            return (
                f"{whole} {unit} {part} {smaller[1]}" if whole < 10 and part else f"{whole} {unit}"
            )
    return f"{int(seconds)} s"


def format_count(number: int) -> str:
    """Return a whole number with thousands separated."""
    return f"{number:,}"


def format_bytes(size_bytes: float) -> str:
    """Return a size in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def format_number(value: float | None) -> str:
    """Return a metric's value in four significant digits; a dash for none."""
    return NOTHING if value is None else f"{value:.4g}"


def split_words(name: str) -> str:
    """Return a name such as ``OutOfMemory`` as words: ``Out of memory``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return words[:1] + words[1:].lower() if " " in words else words
