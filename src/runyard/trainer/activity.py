"""What the trainer is doing before its first step, reported every few seconds.

Reading data, loading weights and the first step are single calls that may take minutes. Meanwhile
a thread repeats the current activity as a phase event, with the seconds it has taken. The thread
ends with the block, so that none is left when a process forks afterwards.
"""

import threading
import time
from collections.abc import Callable
from typing import Self

from runyard.rundir import EventWriter

REPEAT_AFTER_S = 3.0  # without another report
TICK_S = 1.0  # so that at most their sum passes between two reports


class ActivityReporter:
    """A context in which the current activity is reported at least every few seconds.

    ``begin`` names the next activity; it is reported only if it takes a while. ``report`` writes a
    message at once.
    """

    def __init__(
        self,
        events: EventWriter,
        activity: str,
        *,
        phase: str = "Preparing",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._events, self._phase, self._activity = events, phase, activity
        self._clock = clock
        self._began_s = self._reported_s = clock()
        self._lock, self._is_ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="activity", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ended.set()
        self._thread.join()

    def begin(self, activity: str) -> None:
        """Name what follows; reported once it has taken a few seconds."""
        with self._lock:
            self._activity, self._began_s = activity, self._clock()

    def report(self, activity: str) -> None:
        """Write what follows at once."""
        self.begin(activity)
        self._write(activity)

    def _repeat(self) -> None:
        while not self._is_ended.wait(TICK_S):
            with self._lock:
                now_s = self._clock()
                is_due = now_s - self._reported_s >= REPEAT_AFTER_S
                message = f"{self._activity} ({now_s - self._began_s:.0f} s)"
            if is_due:
                self._write(message)

    def _write(self, message: str) -> None:
        with self._lock:
            self._reported_s = self._clock()
            self._events.write("phase", phase=self._phase, message=message)
