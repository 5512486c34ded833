"""Detectors for two problems of a running loop: a rising loss, and a step that hangs.

Both only warn. A loss may fall again, and on a busy machine a step may only be waiting for its
turn.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

SMOOTHING = 0.95  # of the running mean of the loss: about the last twenty steps
WARMUP_STEPS = 20  # steps before the running mean is meaningful
SPIKE_FACTOR = 2.0  # times the smallest running mean so far
SLOW_AFTER_S = 45.0
CHECKS = 9  # within that time
MAX_LISTED_SAMPLES = 8


@dataclass
class LossSpikeDetector:
    """The running mean of the loss; it reports once when the mean rises far above its minimum."""

    mean: float = 0.0
    least: float = float("inf")
    least_step: int = 0
    steps: int = 0
    is_reported: bool = False

    def update(self, step: int, loss: float) -> str | None:
        """Add the loss of a step; return a warning, or None."""
        self.mean = loss if self.steps == 0 else SMOOTHING * self.mean + (1 - SMOOTHING) * loss
        self.steps += 1
        if self.steps >= WARMUP_STEPS and self.mean < self.least:
            self.least, self.least_step = self.mean, step
        if self.is_reported or self.steps < WARMUP_STEPS or self.mean < SPIKE_FACTOR * self.least:
            return None
        self.is_reported = True
        return (
            f"training diverges: the loss was {self.least:.4g} near step {self.least_step} and is "
            f"{self.mean:.4g} near step {step}; "
            "try: a lower hyperparameters.learningRate or a smaller optimizer.maxGradNorm"
        )


class SlowStepDetector:
    """Warns once about a step that has been running for ``after_s`` seconds, while it runs.

    One thread polls, because a timer per step would cost a tenth of a short step. The thread ends
    when there has been no step for a while, and the next step starts a new one.
    """

    def __init__(self, warn: Callable[[str], None], *, after_s: float = SLOW_AFTER_S):
        self._warn, self._after_s = warn, after_s
        self._current: tuple[int, float, Callable[[], Sequence[str]]] | None = None
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self, step: int, samples: Callable[[], Sequence[str]]) -> Iterator[None]:
        """Watch the block as one step. ``samples`` returns its sample names for a warning."""
        self._current = (step, time.monotonic(), samples)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._poll, daemon=True)
            self._thread.start()
        try:
            yield
        finally:
            self._current = None

    def _poll(self) -> None:
        reported, idle_checks = 0, 0
        while idle_checks < CHECKS:
            time.sleep(self._after_s / CHECKS)
            current = self._current
            idle_checks = idle_checks + 1 if current is None else 0
            if (
                current is None
                or current[0] == reported
                or time.monotonic() - current[1] < self._after_s
            ):
                continue
            reported = current[0]
            names = format_names(current[2]())
            duration = f"{self._after_s:.0f} s"
            self._warn(f"step {reported} has been running for {duration}; its samples are {names}")


def format_names(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED_SAMPLES} more" if len(names) > MAX_LISTED_SAMPLES else ""
    return ", ".join(names[:MAX_LISTED_SAMPLES]) + more
