"""The time that memory trials may take before the first step.

What a pass costs is known once the first one has been timed. From then on a trial that would
exceed the budget is skipped, and the plan says so: a run whose samples take long starts with less
knowledge of its memory instead of minutes later.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

MAX_S = 60.0
FREE_S = 10.0  # allowed in runs of any length
SHARE_OF_RUN = 0.05


class NoTimeLeft(Exception):
    """The budget does not suffice for the trials that a measurement needs."""


class TrialBudget:
    """Times trials and decides on the next one.

    ``samples_of_run`` are those that the run still trains on, counted as longest samples.
    """

    def __init__(self, samples_of_run: float, *, clock: Callable[[], float] = time.perf_counter):
        self._samples_of_run, self._clock = samples_of_run, clock
        self.spent_s = 0.0
        self.sample_s: float | None = None  # of the longest sample; None before the first trial
        self.skipped: list[str] = []  # what was skipped, for the plan

    @property
    def limit_s(self) -> float:
        run_s = self._samples_of_run * (self.sample_s or 0.0)
        return min(MAX_S, max(FREE_S, SHARE_OF_RUN * run_s))

    def permits(self, samples: int, name: str) -> bool:
        """Return whether a trial with so many of the longest sample is worth its time.

        If not, it is noted as skipped.
        """
        cost_s = samples * (self.sample_s or 0.0)
        if self.spent_s + cost_s <= self.limit_s:
            return True
        self.skipped.append(f"{name} (about {cost_s:.0f} s)")
        return False

    @contextlib.contextmanager
    def time(self, samples: int) -> Iterator[None]:
        """Time a trial with so many samples."""
        started_s = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - started_s
            self.spent_s += seconds
            self.sample_s = seconds / samples

    def __str__(self) -> str:
        """Describe what was skipped; empty if nothing was."""
        if not self.skipped:
            return ""
        return (
            f"{' and '.join(self.skipped)} skipped: trials may take {self.limit_s:.0f} s and took "
            f"{self.spent_s:.0f}"
        )
