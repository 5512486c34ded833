"""Reading of runs in a thread, so that a slow server never delays a key.

A server that is unavailable for a while is reported and asked again: training continues without it.
"""

import threading
from collections.abc import Callable, Sequence
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
MAX_POINTS = 20_000  # per metric; older ones are thinned out
MAX_RUNS = 200
_JOIN_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class RunState:
    """A run with its curves and the end of its log, as read at one time."""

    run: "Run"
    curves: dict[str, list[Point]] = field(default_factory=dict)
    lines: "Sequence[LogLine]" = ()


@dataclass(frozen=True)
class RunsState:
    """The running runs, then the pending ones, each oldest first."""

    runs: "Sequence[Run]"


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
    """Reads one run; metrics and log lines that were read before are not requested again."""

    def __init__(self, client: "vi.Client", run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._points_read = 0
        self._curves: dict[str, list[Point]] = {}
        self._lines: list[LogLine] = []

    def read(self) -> RunState:
        """Return the current state.

        Raises:
            ViNotFoundError: The run was deleted.
        """
        run = self._client.runs.get(self._run_id)
        for point in self._client.runs.metrics(self._run_id, since=self._points_read):
            self._points_read += 1
            for name, value in point.values.items():
                self._curves.setdefault(name, []).append((point.step, value))
        for name, points in self._curves.items():
            if len(points) > MAX_POINTS:
                self._curves[name] = points[: -MAX_POINTS // 2 : 2] + points[-MAX_POINTS // 2 :]
        since = self._lines[-1].number if self._lines else 0
        tail = None if self._lines else MAX_LINES
        self._lines.extend(self._client.runs.logs(self._run_id, since=since, tail=tail))
        del self._lines[:-MAX_LINES]
        curves = {name: list(points) for name, points in sorted(self._curves.items())}
        return RunState(run=run, curves=curves, lines=tuple(self._lines))


def read_runs(client: "vi.Client") -> RunsState:
    """Return the runs that have not ended."""
    from vi.api.types import PaginationParams

    page = PaginationParams(page_size=MAX_RUNS)
    found: list[Run] = []
    for condition in ("Running", "Pending"):
        runs = client.runs.list(page, condition=condition).items
        found += [run for run in reversed(runs) if run.run_id not in {it.run_id for it in found}]
    return RunsState(runs=tuple(found))
