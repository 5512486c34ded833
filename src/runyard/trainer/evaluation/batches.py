"""Batches of an evaluation: as large as memory allows, and halved whenever it runs out.

An evaluation begins with ``MAX_BATCH`` samples at once. On the CPU, where the kernel would kill the
process, it begins with as many as are measured to fit. A batch that runs out of memory is repeated
in two halves. Later batches and later evaluations are no larger than the halves.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from runyard.trainer.devices import find_device, return_memory
from runyard.trainer.steps.memory import (
    WARN_SHARE,
    AvailableMemory,
    LiveBytesRecorder,
    MemoryTimeline,
    is_out_of_memory,
)

MAX_BATCH = 64


def ignore_warning(_message: str) -> None:
    pass


@dataclass
class BatchLimit:
    """How many samples are evaluated at once; shared by all evaluations of an attempt.

    ``estimate_peak`` returns the bytes that a batch takes, as measured; None where no memory is
    measured.
    """

    size: int = MAX_BATCH
    warn: Callable[[str], None] = field(default=ignore_warning)
    estimate_peak: Callable[[int], int] | None = None

    def fit(self, available: AvailableMemory) -> None:
        """Lower the limit to what the free memory allows, at least 1."""
        while (
            self.estimate_peak is not None
            and self.size > 1
            and self.estimate_peak(self.size) > WARN_SHARE * available.free
        ):
            self.size //= 2

    def halve(self, failed: int) -> None:
        """Lower the limit below a batch that ran out of memory."""
        self.size = failed // 2
        self.warn(
            f"out of memory while evaluating {failed} samples at once; continuing with {self.size}"
        )


def run_in_batches(
    order: Sequence[int],
    limit: BatchLimit,
    run: Callable[[list[int]], Any],
    *,
    fits_with: Callable[[int, int], bool] = lambda first, other: True,
) -> Iterator[tuple[list[int], Any]]:
    """Yield batches of ``order`` with what ``run`` returned for them, halving them as needed.

    A batch ends before the first sample that ``fits_with`` says does not belong with its first one.

    Raises:
        RuntimeError, MemoryError: there is too little memory for a single sample.
    """
    start = 0
    while start < len(order):
        batch = list(order[start : start + limit.size])
        end = next(
            (at for at, other in enumerate(batch) if not fits_with(batch[0], other)), len(batch)
        )
        batch = batch[:end]
        try:
            result = run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
        else:
            start += len(batch)
            yield batch, result
            continue
        # Not inside the handler: until the error is released, its traceback keeps tensors alive.
        return_memory(find_device())
        limit.halve(len(batch))


def measure_peak(run: Callable[[list[int]], Any], longest: int) -> Callable[[int], int]:
    """Run the longest sample once and twice in a batch; return how the peak grows with the size."""

    def record(count: int) -> list[int]:
        with LiveBytesRecorder() as live:
            run([longest] * count)
        timeline: list[int] = live.timeline
        return timeline

    return MemoryTimeline(record(1), record(2)).peak
