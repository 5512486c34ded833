"""What is faster here is measured, on a few batches of the very data, before the first step.

Ways of making a batch are tried in turn, forwards and backwards, so that a machine that is busy for a while is busy for
all of them. Nothing is left of it: gradients are forgotten and the random state is as before.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from runyard.trainer.data.encode import Batch
from runyard.trainer.steps.losses import TokenLosses
from runyard.trainer.steps.memory import is_out_of_memory

ROUNDS, LONGEST_S = 3, 4.0
Draw = Callable[[Sequence[int], int], Batch]


def gain_of(
    new: Draw,
    old: Draw,
    batches: Sequence[Sequence[int]],
    losses: TokenLosses,
    *,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """How many times as fast steps are with batches from ``new`` as with those from ``old``, over these batches.

    None where memory did not suffice for a single round.
    """
    took: list[tuple[float, float]] = []
    began = clock()

    def seconds(draw: Draw, indices: Sequence[int]) -> float:
        start = clock()
        batch = draw(indices, 0).to(device)
        (losses(batch) / max(1, batch.learnt_tokens)).backward()
        losses.forget_gradients()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            seconds(new, batches[0]), seconds(old, batches[0])  # whatever is done only once
            for number in range(ROUNDS):
                indices = batches[number % len(batches)]
                took.append((seconds(new, indices), seconds(old, indices)))
                if clock() - began > LONGEST_S:
                    break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            losses.forget_gradients()
    return statistics.median(before / after for after, before in took) if took else None
