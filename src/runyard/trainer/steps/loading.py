"""Batches of the next step, prepared by a thread where steps would wait for them.

Most of the work of a batch is done by NumPy and Pillow, which let another thread run. On an
accelerator the step waits for its batch, so preparing it ahead helps; where the step itself needs
the processor, it may cost more than it saves. So it is measured: after some steps whose share of
waiting is worth it, the same number is taken with a thread, which stays if they are faster.

A batch depends only on its samples and its epoch, so nothing changes but the time.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from runyard.trainer.data.encode import Batch
from runyard.trainer.steps.autotune import BuildBatch

MIN_WAIT_SHARE = 0.02  # of a step; less is not worth a thread
WARM_UP_STEPS, PROBED_STEPS = 2, 5
STEPS_BETWEEN_PROBES = 500
_Key = tuple[int, tuple[int, ...]]


class BatchLoader:
    """Builds the batches of a step, and measures how long the step waits for them.

    Without ``may_prepare``, no batch is ever prepared ahead.
    """

    def __init__(
        self,
        build: BuildBatch,
        *,
        may_prepare: bool,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._build, self._clock = build, clock
        self._probe = _Probe() if may_prepare else None
        self._executor: ThreadPoolExecutor | None = None
        self._pending: dict[_Key, Future[Batch]] = {}
        self._began_s, self._waited_s = clock(), 0.0

    @property
    def is_preparing(self) -> bool:
        return self._executor is not None

    def begin_step(self) -> None:
        self._began_s, self._waited_s = self._clock(), 0.0

    def load(self, indices: Sequence[int], epoch: int) -> Batch:
        """Return a batch: the prepared one, if there is one."""
        began_s = self._clock()
        try:
            pending = self._pending.pop((epoch, tuple(indices)), None)
            if pending is not None and pending.exception() is None:
                return pending.result()
            return self._build(indices, epoch)
        finally:
            self._waited_s += self._clock() - began_s

    def prepare(self, micro_batches: Sequence[Sequence[int]], epoch: int) -> None:
        """Begin to build the batches of the next step; forget others that were not used."""
        if self._executor is None:
            return
        for pending in self._pending.values():
            pending.cancel()
        self._pending = {
            (epoch, tuple(indices)): self._executor.submit(self._build, indices, epoch)
            for indices in micro_batches
        }

    def end_step(self) -> float:
        """Return the share of the step that was spent waiting for its batches."""
        step_s = max(self._clock() - self._began_s, 1e-9)
        share = min(1.0, self._waited_s / step_s)
        if self._probe is not None:
            should_prepare = self._probe.note(step_s, share)
            if should_prepare != self.is_preparing:
                self._switch(should_prepare=should_prepare)
        return share

    def settle(self) -> None:
        """Wait for batches in work, before something else uses what they are made with."""
        for pending in self._pending.values():
            pending.exception()

    def close(self) -> None:
        self._switch(should_prepare=False)

    def _switch(self, *, should_prepare: bool) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor, self._pending = None, {}
        if should_prepare:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="batches")


class _Probe:
    """Decides from timed steps whether to prepare batches ahead."""

    def __init__(self) -> None:
        self._is_preparing, self._is_decided = False, False
        self._skipped = WARM_UP_STEPS
        self._steps: list[tuple[float, float]] = []
        self._before_s = 0.0

    def note(self, step_s: float, share: float) -> bool:
        """Note a step and its share of waiting; return whether to prepare those that follow."""
        if self._skipped:
            self._skipped -= 1
            return self._is_preparing
        if self._is_decided:  # to prepare, or the pause is over
            if self._is_preparing:
                return True
            self._is_decided = False
        self._steps.append((step_s, share))
        if len(self._steps) == PROBED_STEPS:
            self._decide()
        return self._is_preparing

    def _decide(self) -> None:
        median_s = statistics.median(seconds for seconds, _ in self._steps)
        share = statistics.median(share for _, share in self._steps)
        self._steps.clear()
        if not self._is_preparing and share >= MIN_WAIT_SHARE:
            # The next step prepares the one after it, which is the first to find its batches.
            self._is_preparing, self._before_s, self._skipped = True, median_s, 1
            return
        self._is_decided = True
        if not self._is_preparing or median_s >= self._before_s:
            self._is_preparing, self._skipped = False, STEPS_BETWEEN_PROBES
