"""How commands print: a document as JSON, or plain aligned text.

JSON is exactly the document of the wire, one object a line where a command prints many. Tables are plain text made
here: a table library takes longer to import than the server takes to answer.
"""

import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print the documents of the wire as JSON.")

_COLOURS = {"Succeeded": "green", "Running": "cyan", "Failed": "red", "Error": "red", "Cancelled": "yellow"}


def print_json(value: Any) -> None:
    """Print one document on one line; structs keep the names and shapes they have on the wire."""
    import msgspec

    click.echo(msgspec.json.encode(value, enc_hook=_plain).decode())


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, err: bool = False) -> None:
    """Print aligned columns, and a condition in its colour when a person is reading; to stderr if asked for."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[index]) for line in [list(headings), *cells]) for index in range(len(headings))]
    click.echo(click.style(_line(headings, widths, str), bold=True), err=err)
    for row in cells:
        click.echo(_line(row, widths, coloured), err=err)


def print_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Print names and values below each other; a field whose value is None or empty is left out."""
    shown = [(name, _cell(value)) for name, value in fields if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name:<{width}}  {coloured(value)}")


def coloured(text: str) -> str:
    """A condition's name in its colour; anything else, and anything not going to a terminal, as it is."""
    colour = _COLOURS.get(text.strip())
    return click.style(text, fg=colour) if colour else text


def local_time(epoch_ms: int | None) -> str:
    """A time of the wire as people read it, in their own time zone."""
    if not epoch_ms:
        return ""
    return datetime.datetime.fromtimestamp(epoch_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age(epoch_ms: int, *, now: Callable[[], float] = time.time) -> str:
    """How long ago a time of the wire was, in the largest unit that fits."""
    return duration(max(0.0, now() - epoch_ms / 1000))


def duration(seconds: float) -> str:
    """A length of time in one or two units: ``9s``, ``1m 05s``, ``3h 20m``, ``4d 02h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02}h"


def size(size_bytes: int) -> str:
    """A number of bytes with a binary unit."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def number(value: float | None) -> str:
    """A measured number, short; nothing for one that is not there yet."""
    return "" if value is None else f"{value:.4g}"


def one_line(text: str) -> str:
    """Text from a run or a server as harmless text: control characters cannot steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"no JSON for {type(value).__name__}")


def _cell(value: object) -> str:
    return "" if value is None else one_line(str(value))


def _line(cells: Sequence[str], widths: Sequence[int], paint: Callable[[str], str]) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(cells[:-1], widths, strict=False)]
    return "  ".join([*(paint(cell) for cell in padded), paint(cells[-1])])
