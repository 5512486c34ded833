"""Text for people: durations, local times, counts, and a table of fields. Knows no documents.

rich is loaded only when something is printed.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

# Shown with the word, so that color never stands alone.
CONDITION_SHAPES = {
    "Pending": "◷",
    "Running": "●",
    "Succeeded": "✓",
    "Failed": "✗",
    "Error": "!",
    "Cancelled": "⊘",
}


def format_duration(duration_s: float) -> str:
    """Return a duration as ``42 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole_s = max(0, round(duration_s))
    if whole_s < 60:
        return f"{whole_s} s"
    if whole_s < 3600:
        return f"{whole_s // 60} min {whole_s % 60} s"
    return f"{whole_s // 3600} h {whole_s % 3600 // 60} min"


def format_local_time(time_ms: int) -> str:
    """Return epoch milliseconds in the local time zone; ``-`` for 0."""
    if not time_ms:
        return "-"
    return datetime.fromtimestamp(time_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def format_count(number: int, noun: str) -> str:
    """Return a count with its noun: ``1 row``, ``1,200 rows``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_rows(kept: int, total: int) -> str:
    """Return the rows of an import, such as ``3 of 4 rows accepted, 1 rejected``."""
    text = f"{kept:,} of {format_count(total, 'row')} accepted"
    return text if kept == total else f"{text}, {total - kept:,} rejected"


def print_fields(title: str, fields: Iterable[tuple[str, str, str]]) -> None:
    """Print a table of names, values and the styles of the values.

    Values come from servers and users, so they are printed as plain text and never parsed as
    markup.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title), title_justify="left", show_header=False, box=None, pad_edge=False
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value, style in fields:
        table.add_row(Text(name), Text(value, style=style))
    Console().print(table)
