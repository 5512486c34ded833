"""A larger micro-batch than the cautious one, where memory suffices for it and it is faster.

Micro-batches of both sizes are timed with copies of the longest sample, in turns. Gradients are
zeroed and the random state is restored, so nothing remains of the trial.
"""

import time
from collections.abc import Callable

import torch

from runyard.trainer.steps.autotune import BuildBatch
from runyard.trainer.steps.losses import TokenLosses
from runyard.trainer.steps.memory import is_out_of_memory

MIN_SPEEDUP = 1.05  # less is noise, and not worth the memory
ROUNDS = 2


def measure_growth(
    build_batch: BuildBatch,
    losses: TokenLosses,
    *,
    longest: int,
    size: int,
    larger: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Return how many times as fast samples pass in micro-batches of ``larger`` as of ``size``.

    None if memory runs out.
    """

    def time_sample(count: int) -> float:
        started_s = clock()
        batch = build_batch([longest] * count, 0).to(device)
        (losses(batch) / max(1, batch.label_count)).backward()
        losses.zero_gradients()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (clock() - started_s) / count

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            # The largest first: memory runs out at once or never.
            pairs = [(time_sample(larger), time_sample(size)) for _ in range(ROUNDS)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            pairs = []
    losses.zero_gradients()
    if not pairs:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return None
    return min(before for _, before in pairs) / min(after for after, _ in pairs)
