"""Metrics of a run as tables, curves of characters, or JSON; for ``runyard runs metrics``."""

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.output import format_number, print_json, print_table

if TYPE_CHECKING:
    from vi.api.resources.runs.responses import MetricPoint
    from vi.api.resources.runs.series import MetricSeries

CURVE_LINES, PLOTTED_POINTS = 12, 200
HEADINGS = ("STEP", "EPOCH", "MIN", "MAX", "LAST")


def print_points(points: Sequence["MetricPoint"], names: Sequence[str], *, last: int) -> None:
    """Print the newest points, with a column for each name or for every metric."""
    shown = [point for point in points if not names or any(name in point.values for name in names)]
    shown = shown[-last:]
    columns = list(names) or sorted({name for point in shown for name in point.values})
    rows = [
        [
            point.step,
            format_number(point.epoch),
            *(format_number(point.values.get(name)) for name in columns),
        ]
        for point in shown
    ]
    print_table(["STEP", "EPOCH", *columns], rows)


def print_series(items: Sequence["MetricSeries"], *, plots: bool) -> None:
    """Print each series as a table, or as a curve."""
    for number, item in enumerate(items):
        if number:
            click.echo()
        title = f"{item.key}: {item.total:,} steps, {item.first_step:,} to {item.last_step:,}"
        click.echo(title if item.bucket_steps == 1 else f"{title}; {item.bucket_steps:,} per row")
        if plots:
            _print_curve(item)
        else:
            columns = (item.epoch, item.min, item.max, item.last)
            rows = [
                [int(step), *map(format_number, numbers)]
                for step, *numbers in zip(item.step, *columns, strict=True)
            ]
            print_table(HEADINGS, rows)


def print_series_json(items: Sequence["MetricSeries"]) -> None:
    """Print one object per series, with its columns as lists of numbers."""
    import msgspec

    for item in items:
        document: dict[str, Any] = msgspec.to_builtins(item)
        print_json(document | {"columns": item.to_dict()})


def _print_curve(item: "MetricSeries") -> None:
    from runyard.cli.live.curve import draw_curve
    from runyard.cli.live.screen import has_plain_encoding

    points = [*zip(item.step, item.min, strict=True), *zip(item.step, item.max, strict=True)]
    width = min(shutil.get_terminal_size().columns, 100)
    is_plain = has_plain_encoding()
    for line in draw_curve(points, width=width, height=CURVE_LINES, is_plain=is_plain):
        click.echo(line)
