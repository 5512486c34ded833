"""Output of commands: API documents as JSON, or plain aligned text.

JSON output is the API response, one object per line where a command prints many. Tables are
formatted here, because importing a table library takes longer than a response of the server.
"""

import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from runyard.cli.global_options import get_global_options


def _wants_json(ctx: click.Context, _parameter: click.Parameter, is_given: bool) -> bool:
    return is_given or get_global_options().format == "json"


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_wants_json,
    help="Print the API response as JSON; --json=FIELD,FIELD prints these fields, --json= lists "
    "them.",
)

_COLORS = {
    "Succeeded": "green",
    "Running": "cyan",
    "Failed": "red",
    "Error": "red",
    "Cancelled": "yellow",
}


def print_json(value: Any) -> None:
    """Print a document as one line of JSON, with its names on the wire.

    With ``--json=FIELDS`` only these fields, of each document in a list.
    """
    import msgspec

    fields = get_global_options().fields
    if fields is not None:
        from runyard.cli.fields import list_fields, select_fields

        if not fields:
            click.echo("\n".join(list_fields(value)))
            return
        value = select_fields(value, fields)
    click.echo(msgspec.json.encode(value, enc_hook=_encode_path).decode())


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], *, err: bool = False
) -> None:
    """Print aligned columns, with colored conditions on a terminal.

    The format ``agent`` prints tab-separated columns, ``quiet`` the first column, which is the id.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    format = "auto" if err else get_global_options().format
    if format == "quiet":
        click.echo("".join(f"{row[0]}\n" for row in cells), nl=False)
        return
    if format == "agent":
        click.echo("".join("\t".join(row) + "\n" for row in [list(headings), *cells]), nl=False)
        return
    widths = [
        max(len(line[index]) for line in [list(headings), *cells]) for index in range(len(headings))
    ]
    click.echo(click.style(_line(headings, widths, str), bold=True), err=err)
    for row in cells:
        click.echo(_line(row, widths, colorize), err=err)


def print_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Print one field per line; fields whose value is None or empty are omitted."""
    shown = [(name, _cell(value)) for name, value in fields if value not in (None, "", [], {})]
    format = get_global_options().format
    if format in ("quiet", "agent"):
        lines = [shown[0][1]] if format == "quiet" else ["\t".join(each) for each in shown]
        click.echo("\n".join(lines))
        return
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name:<{width}}  {colorize(value)}")


def colorize(text: str) -> str:
    """Return the name of a condition in its color, and any other text unchanged."""
    color = _COLORS.get(text.strip())
    return click.style(text, fg=color) if color else text


def format_time(epoch_ms: int | None) -> str:
    """Return epoch milliseconds in the local time zone; empty for None and 0."""
    if not epoch_ms:
        return ""
    return (
        datetime.datetime.fromtimestamp(epoch_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    )


def format_age(epoch_ms: int, *, now: Callable[[], float] = time.time) -> str:
    """Return the time since ``epoch_ms`` as a duration."""
    return format_duration(max(0.0, now() - epoch_ms / 1000))


def format_duration(seconds: float) -> str:
    """Return a duration in one or two units: ``9s``, ``1m 05s``, ``3h 20m``, ``4d 02h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02}h"


def format_size(size_bytes: int) -> str:
    """Return a number of bytes with a binary unit."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def format_number(value: float | None) -> str:
    """Return a number with four significant digits; empty for None."""
    return "" if value is None else f"{value:.4g}"


def to_single_line(text: str) -> str:
    """Return text without control characters, which could control the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _encode_path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot encode a {type(value).__name__} as JSON")


def _cell(value: object) -> str:
    return "" if value is None else to_single_line(str(value))


def _line(cells: Sequence[str], widths: Sequence[int], paint: Callable[[str], str]) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(cells[:-1], widths, strict=False)]
    return "  ".join([*(paint(cell) for cell in padded), paint(cells[-1])])
