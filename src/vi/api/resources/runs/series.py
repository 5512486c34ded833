"""Metric series of runs: curves of any length, which the server reduces to the requested number of
points.

A point is a bucket of steps, with the minimum, the maximum and the last of its values, so that no
peak is lost. Numbers arrive packed and become arrays when they are first used. pandas, polars and
matplotlib are imported when a method needs them.
"""

import sys
from array import array
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from vi._http.requests import QueryValue
from vi._text import shorten_repr, to_single_line
from vi.api._arguments import check_id
from vi.api._frames import import_library, to_datetime
from vi.api.responses import Document
from vi.errors import ViInvalidParameterError

if TYPE_CHECKING:
    import pandas
    import polars
    from matplotlib.axes import Axes

Axis = Literal["step", "epoch", "time"]
COLUMNS = ("step", "time", "epoch", "min", "max", "last")
MAX_RUNS, MAX_POINTS = 20, 5000


class SeriesColumns(Document):
    """Columns of a series: each is base64 of little-endian numbers, one for each bucket.

    ``step`` (float64) is the last step in the bucket; ``time`` (float32) is in seconds after
    ``timeStart``; ``epoch``, ``min``, ``max`` and ``last`` are float32.
    """

    step: str
    time: str
    epoch: str
    min: str
    max: str
    last: str


class MetricSeries(Document, dict=True):
    """One metric of one run as buckets of steps.

    Buckets begin at multiples of ``bucket_steps``, which is a power of two; with 1 they are the
    points themselves. ``count`` is the number of buckets; ``total``, ``first_step`` and
    ``last_step`` are those of the whole series. For keys that begin with ``system/`` a step is a
    second since the run was created.

    The buckets replace all that a reader has from ``from_step`` on. ``next`` is the number to pass
    as ``since`` for what is new or has changed.
    """

    run_id: str
    key: str
    bucket_steps: int
    count: int
    total: int
    first_step: int
    last_step: int
    from_step: int
    next: int
    time_start: int
    columns: SeriesColumns

    @cached_property
    def step(self) -> "array[float]":
        """Last step of each bucket."""
        return _decode(self.columns.step, "d")

    @cached_property
    def time(self) -> "array[float]":
        """Time of the last value of each bucket, in seconds since 1970."""
        start_s = self.time_start / 1000
        return array("d", [start_s + offset_s for offset_s in _decode(self.columns.time, "f")])

    @cached_property
    def epoch(self) -> "array[float]":
        """Epoch of the last value of each bucket."""
        return _decode(self.columns.epoch, "f")

    @cached_property
    def min(self) -> "array[float]":
        """Minimum of each bucket."""
        return _decode(self.columns.min, "f")

    @cached_property
    def max(self) -> "array[float]":
        """Maximum of each bucket."""
        return _decode(self.columns.max, "f")

    @cached_property
    def last(self) -> "array[float]":
        """Last value of each bucket."""
        return _decode(self.columns.last, "f")

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        text = f"MetricSeries({self.key!r}, run_id={self.run_id!r}, {self.total:,} steps"
        text += f", last={self.last[-1]:.6g})" if self.count else ")"
        return to_single_line(text)

    def _repr_html_(self) -> str:
        return MetricSeriesList([self], [self.key])._repr_html_()

    def to_dict(self) -> dict[str, list[float]]:
        """Return the columns as lists: step, time, epoch, min, max, last."""
        return {name: getattr(self, name).tolist() for name in COLUMNS}

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a data frame with one row per bucket. Times are in UTC.

        Raises:
            ImportError: pandas is not installed.
        """
        return import_library("pandas").DataFrame(_build_rows([self]))

    def to_polars(self) -> "polars.DataFrame":
        """Return a polars data frame with one row per bucket. Times are in UTC.

        Raises:
            ImportError: polars is not installed.
        """
        return import_library("polars").DataFrame(_build_rows([self]))

    def plot(self, ax: "Axes | None" = None, *, x: Axis = "step") -> "Axes":
        """Draw the last values, and the range from minimum to maximum behind them.

        Nothing is shown; ``ax.figure.savefig("loss.png")`` writes an image.

        Args:
            ax: Axes to draw on; None for those of a new figure.
            x: What the horizontal axis shows.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return _plot([self], ax, x)


@dataclass(frozen=True)
class MetricSeriesList(Sequence[MetricSeries]):
    """Series of one or several runs, by key and run.

    ``list["loss"]`` is the first series of that key. ``keys`` has every key of the runs.
    """

    items: list[MetricSeries]
    keys: list[str]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[MetricSeries]:
        return iter(self.items)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, str):
            return self.items[index]
        found = next((item for item in self.items if item.key == index), None)
        if found is None:
            raise KeyError(f"no series {index!r}; the runs have {', '.join(self.keys) or 'none'}")
        return found

    def __repr__(self) -> str:
        return to_single_line(f"MetricSeriesList({', '.join(map(repr, self.items[:20]))})")

    def _repr_html_(self) -> str:
        from vi.api._html import render_table

        rows = [_build_html_row(item) for item in self.items]
        return render_table(rows, title=f"{len(rows):,} series")

    def to_dict(self) -> dict[str, dict[str, dict[str, list[float]]]]:
        """Return the columns of each series as lists, by run id and key."""
        found: dict[str, dict[str, dict[str, list[float]]]] = {}
        for item in self.items:
            found.setdefault(item.run_id, {})[item.key] = item.to_dict()
        return found

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a data frame with one row per bucket, and columns run_id and key.

        Raises:
            ImportError: pandas is not installed.
        """
        return import_library("pandas").DataFrame(_build_rows(self.items))

    def to_polars(self) -> "polars.DataFrame":
        """Return a polars data frame with one row per bucket, and columns run_id and key.

        Raises:
            ImportError: polars is not installed.
        """
        return import_library("polars").DataFrame(_build_rows(self.items))

    def plot(self, ax: "Axes | None" = None, *, x: Axis = "step") -> "Axes":
        """Draw all series on the same axes; see ``MetricSeries.plot``.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return _plot(self.items, ax, x)


class SeriesAnswer(Document):
    """What the server answers."""

    items: list[MetricSeries] = []
    keys: list[str] = []


def build_series_query(
    *,
    points: object,
    keys: object,
    from_step: object,
    to_step: object,
    bucket_steps: object = None,
    since: object = None,
) -> list[tuple[str, QueryValue]]:
    """Return the query parameters of the arguments.

    Raises:
        ViInvalidParameterError: An argument is malformed.
    """
    names = [keys] if isinstance(keys, str) else keys
    if names is not None and not (
        isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names)
    ):
        raise ViInvalidParameterError(
            f"keys is {shorten_repr(keys)}, expected: names of metrics, such as ['loss']"
        )
    comma = next((name for name in names or () if "," in str(name)), None)
    if comma is not None:
        raise ViInvalidParameterError(
            f"the key {shorten_repr(comma)} has a comma, which separates keys",
            suggestion="try: request all keys, and select from the answer",
        )
    return [
        ("keys", None if names is None else ",".join(names)),
        ("points", _check_count(points, name="points", minimum=1)),
        ("from", _check_count(from_step, name="from_step")),
        ("to", _check_count(to_step, name="to_step")),
        ("bucketSteps", _check_count(bucket_steps, name="bucket_steps", minimum=1)),
        ("since", _check_count(since, name="since")),
    ]


def list_run_ids(run_id: object, ids: object) -> list[str]:
    """Return the runs that are requested: by ``run_id`` or by ``ids``.

    Raises:
        ViInvalidParameterError: Not exactly one of the two is given, or an id is malformed.
    """
    if (run_id is None) == (ids is None):
        given = "None" if run_id is None else f"{shorten_repr(run_id)}, and ids is given as well"
        raise ViInvalidParameterError(
            f"run_id is {given}, expected: either run_id or ids",
            suggestion="try: ids=['a', 'b'] for several runs",
        )
    if ids is None:
        return [check_id(run_id, name="run_id")]
    if isinstance(ids, str) or not isinstance(ids, Sequence) or not 1 <= len(ids) <= MAX_RUNS:
        raise ViInvalidParameterError(
            f"ids is {shorten_repr(ids)}, expected: a list of 1 to {MAX_RUNS} run ids"
        )
    return [check_id(one, name="ids") for one in ids]


def _check_count(value: object, *, name: str, minimum: int = 0) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
    if value is not None and not is_count:
        raise ViInvalidParameterError(
            f"{name} is {shorten_repr(value)}, expected: an integer of at least {minimum}"
        )
    return value  # type: ignore[return-value]


def _decode(text: str, kind: Literal["d", "f"]) -> "array[float]":
    numbers = array(kind)
    numbers.frombytes(b64decode(text))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _build_rows(items: Sequence[MetricSeries]) -> dict[str, list[Any]]:
    """Return the buckets of all series as columns."""
    columns: dict[str, list[Any]] = {name: [] for name in ("run_id", "key", *COLUMNS)}
    for item in items:
        columns["run_id"] += [item.run_id] * item.count
        columns["key"] += [item.key] * item.count
        columns["step"] += map(int, item.step)
        columns["time"] += [to_datetime(round(1000 * time_s)) for time_s in item.time]
        for name in ("epoch", "min", "max", "last"):
            columns[name] += getattr(item, name)
    return columns


def _build_html_row(series: MetricSeries) -> dict[str, Any]:
    """Return a series as a row of a table of HTML, with its curve."""
    from vi.api._html import render_sparkline

    last = f"{series.last[-1]:.6g}" if series.count else ""
    label = f"{series.key}, {series.total:,} steps, last value {last}"
    # Minimum and maximum of each bucket, so that no peak is lost.
    ends = [value for pair in zip(series.min, series.max, strict=True) for value in pair]
    values = list(series.last) if series.bucket_steps == 1 else ends
    return {
        "metric": series.key,
        "run": series.run_id,
        "steps": f"{series.first_step:,} to {series.last_step:,}",
        "last": last,
        "curve": render_sparkline(values, label=label),
    }


def _plot(items: Sequence[MetricSeries], ax: "Axes | None", x: Axis) -> "Axes":
    if ax is None:
        # A figure of its own rather than one of pyplot, which shows and keeps what it makes.
        ax = import_library("matplotlib.figure").Figure(layout="constrained").subplots()
    has_several_runs = len({item.run_id for item in items}) > 1
    for item in items:
        along: Any = getattr(item, x).tolist()
        if x == "time":
            along = [to_datetime(round(1000 * at_s)) for at_s in along]
        label = f"{item.key}, {item.run_id}" if has_several_runs else item.key
        [line] = ax.plot(along, item.last.tolist(), label=label, linewidth=1.2)
        if item.bucket_steps > 1:
            low, high = item.min.tolist(), item.max.tolist()
            ax.fill_between(along, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set_xlabel({"step": "step", "epoch": "epoch", "time": "time (UTC)"}[x])
    if items:
        ax.legend()
    return ax
