"""Reading of runs in a thread, so that a slow server never delays a key.

A server that is unavailable for a while is reported and asked again: training continues without it.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from runyard.cli.live.curve import Point

if TYPE_CHECKING:
    import vi
    from vi.api.resources.runs.responses import LogLine, Run

T = TypeVar("T")

INTERVAL_S = 1.0
MAX_LINES = 500
MAX_POINTS = 240  # of a curve; more than a terminal has columns of dots
MAX_RUNS = 200
MAX_USAGES = 20  # runs in one request for series
USAGE_EVERY_READS = 5  # machines are measured every 5 s
FIRST_METRICS = ("loss", "training/loss", "train/loss")
SYSTEM = "system/"
USAGE_KEYS = tuple(
    SYSTEM + name
    for name in ("cpuPercent", "memoryBytes", "acceleratorPercent", "acceleratorPercent/0")
)
Usage = dict[str, float]
_JOIN_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class RunState:
    """A run with one of its curves and the end of its log, as read at one time.

    ``metrics`` are the names of all its metrics, ``usage`` what it uses of its machine.
    """

    run: "Run"
    metric: str | None = None
    curve: Sequence[Point] = ()
    metrics: Sequence[str] = ()
    lines: "Sequence[LogLine]" = ()
    usage: Usage = field(default_factory=dict)


@dataclass(frozen=True)
class RunsState:
    """The running runs, then the pending ones, each oldest first, and what each run uses."""

    runs: "Sequence[Run]"
    usage: Mapping[str, Usage] = field(default_factory=dict)


class Feed(Generic[T]):
    """Thread that reads a state again and again; ``latest`` is None until the first one.

    ``problem`` says why the last reading failed, ``failure`` ended the thread. Use it in a ``with``
    block.
    """

    def __init__(self, read: Callable[[], T], *, interval_s: float = INTERVAL_S) -> None:
        self.latest: T | None = None
        self.problem = ""
        self.failure: Exception | None = None
        self._read, self._interval_s = read, interval_s
        self._is_stopped = False
        self._wakes, self._has_read = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def refresh(self) -> None:
        """Read again now."""
        self._wakes.set()

    def wait(self) -> T:
        """Return the latest state; wait for the first one.

        Raises:
            Exception: What ended the feed.
        """
        self._has_read.wait()
        if self.failure is not None:
            raise self.failure
        return cast("T", self.latest)

    def __enter__(self) -> "Feed[T]":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_stopped = True
        self._wakes.set()
        self._thread.join(_JOIN_TIMEOUT_S)

    def _repeat(self) -> None:
        import vi

        unavailable = (
            vi.ViNetworkError,
            vi.ViTimeoutError,
            vi.ViServerError,
            vi.ViRateLimitError,
        )
        while not self._is_stopped:
            self._wakes.clear()
            try:
                self.latest, self.problem = self._read(), ""
                self._has_read.set()
            except unavailable as error:
                self.problem = error.message
            except Exception as error:  # raised again by the thread that draws
                self.failure = error
                self._is_stopped = True
                self._has_read.set()
            self._wakes.wait(self._interval_s)


class RunReader:
    """Reads one run: of its metrics the selected one, at first the loss, of its log what is new."""

    def __init__(self, client: "vi.Client", run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._metric: str | None = None
        self._lines: list[LogLine] = []
        self._usage: Usage = {}
        self._reads = 0

    def select(self, metric: str) -> None:
        """Read this metric from now on."""
        self._metric = metric

    def read(self) -> RunState:
        """Return the current state.

        Raises:
            ViNotFoundError: The run was deleted.
        """
        run = self._client.runs.get(self.run_id)
        metrics, metric, curve = self._read_curve()
        if self._reads % USAGE_EVERY_READS == 0:
            self._usage = read_usage(self._client, [self.run_id], metrics).get(self.run_id, {})
        self._reads += 1
        since = self._lines[-1].number if self._lines else 0
        tail = None if self._lines else MAX_LINES
        self._lines.extend(self._client.runs.logs(self.run_id, since=since, tail=tail))
        del self._lines[:-MAX_LINES]
        return RunState(
            run=run,
            metric=metric,
            curve=curve,
            metrics=metrics,
            lines=tuple(self._lines),
            usage=self._usage,
        )

    def _read_curve(self) -> tuple[list[str], str | None, list[Point]]:
        """Return the names of all metrics, the one to show, and its curve."""
        asked = self._metric or FIRST_METRICS[0]
        found = self._client.runs.series(self.run_id, keys=[asked], points=MAX_POINTS)
        if not found.items:
            asked = choose_metric(found.keys) or asked
            found = self._client.runs.series(self.run_id, keys=[asked], points=MAX_POINTS)
        curve: list[Point] = []
        for one in found.items[:1]:
            for step, low, high, last in zip(one.step, one.min, one.max, one.last, strict=True):
                # The last value comes last, since the view shows it as the current one.
                curve += [(step, low), (step, high), (step, last)]
        return found.keys, asked if found.items else None, curve


def choose_metric(names: Sequence[str]) -> str | None:
    """Return the metric to show first: a loss, else any; None without metrics."""
    own = [name for name in names if not name.startswith(SYSTEM)]
    losses = [name for name in own if name.endswith("loss")]
    return next((name for name in (*FIRST_METRICS, *losses, *own, *names) if name in names), None)


def read_runs(client: "vi.Client") -> RunsState:
    """Return the runs that have not ended."""
    from vi.api.types import PaginationParams

    page = PaginationParams(page_size=MAX_RUNS)
    found: list[Run] = []
    for condition in ("Running", "Pending"):
        runs = client.runs.list(page, condition=condition).items
        found += [run for run in reversed(runs) if run.run_id not in {it.run_id for it in found}]
    running = [run.run_id for run in found if run.status.attempts][:MAX_USAGES]
    return RunsState(runs=tuple(found), usage=read_usage(client, running, USAGE_KEYS))


def read_usage(
    client: "vi.Client", run_ids: Sequence[str], metrics: Sequence[str]
) -> dict[str, Usage]:
    """Return the newest ``system/`` values of runs, without the prefix.

    ``metrics`` are the names that the runs may have. A run that was deleted meanwhile has none.
    """
    import vi

    keys = [name for name in metrics if name.startswith(SYSTEM)]
    if not keys or not run_ids:
        return {}
    try:
        found = client.runs.series(ids=list(run_ids), keys=keys, points=1)
    except vi.ViNotFoundError:
        return {}
    usage: dict[str, Usage] = {}
    for one in found.items:
        if one.count:
            usage.setdefault(one.run_id, {})[one.key.removeprefix(SYSTEM)] = one.last[-1]
    return usage
