"""Which way of making batches is faster, measured before the first step on a few batches of the
actual data.

The candidates take turns, so that a machine that is busy for a while slows both. Nothing remains of
the measurement: gradients are zeroed and the random state is restored.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from runyard.trainer.data.encode import Batch
from runyard.trainer.devices import keep_random_states, synchronize
from runyard.trainer.steps.losses import TokenLosses
from runyard.trainer.steps.memory import is_out_of_memory

ROUNDS, MAX_S = 3, 4.0
BuildBatch = Callable[[Sequence[int], int], Batch]
"""Builds the batch of samples with these indices in that epoch."""


def measure_speedup(
    new: BuildBatch,
    old: BuildBatch,
    batches: Sequence[Sequence[int]],
    losses: TokenLosses,
    *,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Return how many times as fast steps with batches from ``new`` are as with batches from
    ``old``.

    It is the median over a few rounds. None when memory did not suffice for a single round.
    """
    timings: list[tuple[float, float]] = []
    started = clock()

    def time_step(build: BuildBatch, indices: Sequence[int]) -> float:
        start = clock()
        batch = build(indices, 0).to(device)
        (losses(batch) / max(1, batch.label_count)).backward()
        losses.zero_gradients()
        synchronize(device)
        return clock() - start

    with keep_random_states(device):
        try:
            warm_up = time_step(new, batches[0]), time_step(old, batches[0])
            if clock() - started > MAX_S:  # next to such long steps, one-time work matters little
                timings.append(warm_up)
            for number in range(0 if timings else ROUNDS):
                indices = batches[number % len(batches)]
                timings.append((time_step(new, indices), time_step(old, indices)))
                if clock() - started > MAX_S:
                    break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            losses.zero_gradients()
    return statistics.median(before / after for after, before in timings) if timings else None
