"""Noticing what goes wrong in the loop: a loss that grows instead of falling, a step that does not end.

Both are told as warnings and end nothing: a loss may fall again, and a step may only be waiting for its turn on a busy
machine.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

SMOOTHING = 0.95  # of the running mean of the loss: about the last twenty steps
LEAST_STEPS = 20
RISE = 2.0  # times the least running mean seen
STUCK_AFTER_S = 45.0
LOOKS = 9  # in that time
NAMED_SAMPLES = 8


@dataclass
class LossWatch:
    """Looks at the loss of every step and says once that training moves away from what it had reached."""

    mean: float = 0.0
    least: float = float("inf")
    least_step: int = 0
    steps: int = 0
    is_told: bool = False

    def see(self, step: int, loss: float) -> str | None:
        """What is to be told after this step, if anything."""
        self.mean = loss if self.steps == 0 else SMOOTHING * self.mean + (1 - SMOOTHING) * loss
        self.steps += 1
        if self.steps >= LEAST_STEPS and self.mean < self.least:
            self.least, self.least_step = self.mean, step
        if self.is_told or self.steps < LEAST_STEPS or self.mean < RISE * self.least:
            return None
        self.is_told = True
        return (
            f"training diverges: the loss was {self.least:.4g} about step {self.least_step} and is {self.mean:.4g} "
            f"about step {step}; a lower hyperparameters.learningRate or a smaller optimizer.maxGradNorm may help"
        )


class StepWatch:
    """Tells of a step that has been running for ``after_s`` seconds, once, while it is still running.

    One thread looks from time to time, for a timer of its own for every step would cost a tenth of a short one. It ends
    when there has been no step for a while, and begins anew with the next.
    """

    def __init__(self, warn: Callable[[str], None], *, after_s: float = STUCK_AFTER_S):
        self._warn, self._after_s = warn, after_s
        self._now: tuple[int, float, Callable[[], Sequence[str]]] | None = None
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, step: int, samples: Callable[[], Sequence[str]]) -> Iterator[None]:
        """Watch what is done inside. ``samples`` names those of the step when they are asked for."""
        self._now = (step, time.monotonic(), samples)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        try:
            yield
        finally:
            self._now = None

    def _look(self) -> None:
        told, idle_looks = 0, 0
        while idle_looks < LOOKS:
            time.sleep(self._after_s / LOOKS)
            now = self._now
            idle_looks = idle_looks + 1 if now is None else 0
            if now is None or now[0] == told or time.monotonic() - now[1] < self._after_s:
                continue
            told = now[0]
            self._warn(f"step {told} has been running for {self._after_s:.0f} s; its samples are {listed(now[2]())}")


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED_SAMPLES} more" if len(names) > NAMED_SAMPLES else ""
    return ", ".join(names[:NAMED_SAMPLES]) + more
