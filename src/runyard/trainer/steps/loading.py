"""Batches of the next step, prepared by a thread where steps would wait for them.

Most of the work of a batch is done by NumPy and Pillow, which let another thread run. On an
accelerator the step waits for its batch, so preparing it ahead helps; where the step itself needs
the processor, it may cost more than it saves. So it is measured: after some steps whose share of
waiting is worth it, the same number is taken with a thread, which stays if they are faster. If
steps then still wait for samples that are decoded each time, worker processes are tried next.

A batch depends only on its samples and its epoch, so nothing changes but the time.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from runyard.trainer.data.encode import Batch
from runyard.trainer.data.workers import SamplesAhead
from runyard.trainer.steps.autotune import BuildBatch

MIN_WAIT_SHARE = 0.02  # of a step; less is not worth a thread
WARM_UP_STEPS, PROBED_STEPS = 2, 5
STEPS_BETWEEN_PROBES = 500
WITHOUT, WITH_THREAD, WITH_PROCESSES = range(3)  # ways to prepare batches
_Key = tuple[int, tuple[int, ...]]


class BatchLoader:
    """Builds the batches of a step, and measures how long the step waits for them.

    Without ``may_prepare``, no batch is ever prepared ahead. ``ahead`` encodes the samples of
    batches in processes.
    """

    def __init__(
        self,
        build: BuildBatch,
        *,
        may_prepare: bool,
        ahead: SamplesAhead | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._build, self._clock = build, clock
        self._ahead = ahead if ahead is not None and ahead.processes > 1 else None
        highest = WITH_THREAD if self._ahead is None else WITH_PROCESSES
        self._probe = _Probe(highest) if may_prepare else None
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
            if self._executor is not None:  # what batches are made with belongs to its thread
                return self._executor.submit(self._build, indices, epoch).result()
            return self._build(indices, epoch)
        finally:
            self._waited_s += self._clock() - began_s

    def prepare(self, micro_batches: Sequence[Sequence[int]], epoch: int) -> None:
        """Begin to build the batches of the next step; forget others that were not used."""
        if self._executor is None:
            return
        for pending in self._pending.values():
            pending.cancel()
        if self._ahead is not None:
            samples = [index for indices in micro_batches for index in indices]
            self._executor.submit(self._ahead.expect, samples, epoch)
        self._pending = {
            (epoch, tuple(indices)): self._executor.submit(self._build, indices, epoch)
            for indices in micro_batches
        }

    def end_step(self) -> float:
        """Return the share of the step that was spent waiting for its batches."""
        step_s = max(self._clock() - self._began_s, 1e-9)
        share = min(1.0, self._waited_s / step_s)
        if self._probe is not None:
            self._switch(self._probe.note(step_s, share))
        return share

    def settle(self) -> None:
        """Wait for batches in work, before something else uses what they are made with."""
        for pending in self._pending.values():
            pending.exception()

    def close(self) -> None:
        self._switch(WITHOUT)

    def _switch(self, way: int) -> None:
        if self._executor is None and way >= WITH_THREAD:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="batches")
        if self._ahead is not None and self._ahead.is_started != (way >= WITH_PROCESSES):
            self.settle()  # forked while the thread holds no lock
            if way >= WITH_PROCESSES:
                self._ahead.start()
            else:
                self._ahead.stop()
        if self._executor is not None and way < WITH_THREAD:
            self._executor.shutdown(cancel_futures=True)
            self._executor, self._pending = None, {}


class _Probe:
    """Decides from timed steps how to prepare batches ahead, up to the way ``highest``."""

    def __init__(self, highest: int) -> None:
        self._highest, self._way, self._is_decided = highest, WITHOUT, False
        self._skipped = WARM_UP_STEPS
        self._steps: list[tuple[float, float]] = []
        self._before_s = 0.0

    def note(self, step_s: float, share: float) -> int:
        """Note a step and its share of waiting; return the way to take from now on."""
        if self._skipped:
            self._skipped -= 1
        elif not self._is_decided or self._way == WITHOUT:  # or the pause is over
            self._is_decided = False
            self._steps.append((step_s, share))
            if len(self._steps) == PROBED_STEPS:
                self._decide()
        return self._way

    def _decide(self) -> None:
        median_s = statistics.median(seconds for seconds, _ in self._steps)
        share = statistics.median(share for _, share in self._steps)
        self._steps.clear()
        is_better = self._way == WITHOUT or median_s < self._before_s
        if is_better and share >= MIN_WAIT_SHARE and self._way < self._highest:
            # The next step prepares the one after it, which is the first to find its batches.
            self._way, self._before_s, self._skipped = self._way + 1, median_s, 1
            return
        self._is_decided = True
        if not is_better:
            self._way -= 1
        if self._way == WITHOUT:
            self._skipped = STEPS_BETWEEN_PROBES
