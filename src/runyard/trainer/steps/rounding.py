"""Optimizer steps for weights that are stored in bfloat16.

A bfloat16 number has 8 significant bits, and most updates of a fine-tuning are smaller than the
distance to its neighbors. Rounded to the nearest one, they are lost. So a step is computed in
float32, and each new weight becomes one of the two neighbors at random, the nearer one more likely,
so that its mean is exact (stochastic rounding, Gupta et al. 2015). The random numbers are a
function of seed and step, so that a resumed run draws the same ones, and so does every rank.

The optimizers are those of float32 weights. They get weights and gradients in float32, some
matrices at a time, and their own state stays in float32.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

CHUNK_NUMBERS = 16 << 20  # weights that are in float32 at once, or one larger matrix
SLICE_NUMBERS = 4 << 20  # weights that are rounded at once
_CUT_BITS = 16  # of a float32, which bfloat16 lacks

_Optimizers = Sequence[torch.optim.Optimizer]


class RoundedSteps:
    """Takes the steps of a training with bfloat16 weights."""

    def __init__(self, seed: int):
        self._seed = seed

    def take(self, optimizers: _Optimizers, *, step: int, scale: float) -> None:
        """Take the optimizers' step with gradients multiplied by ``scale``, and drop them."""
        generators: dict[torch.device, torch.Generator] = {}
        digest = hashlib.sha256(f"rounding {self._seed} {step}".encode()).digest()
        for optimizer in optimizers:
            for chunk in _split(optimizer):
                for device in {parameter.device for parameter in chunk} - generators.keys():
                    generator = torch.Generator(device)
                    generators[device] = generator.manual_seed(int.from_bytes(digest[:8]) >> 1)
                _step_chunk(optimizer, chunk, scale, generators)


def measure_norm(parameters: Sequence[torch.nn.Parameter]) -> float:
    """Return the norm of all gradients, computed in float32."""
    norms = [
        torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        for parameter in parameters
        if parameter.grad is not None
    ]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def get_clip_scale(norm: float, limit: float) -> float:
    """Return the factor of gradients with this norm that keeps it below the limit."""
    return min(1.0, limit / (norm + 1e-6)) if math.isfinite(limit) else 1.0


def estimate_rounding_numbers(numels: Sequence[int]) -> int:
    """Return how many float32 numbers a step has in memory for parameters of these sizes.

    They are weights and gradients of a chunk, and random numbers and results of a slice.
    """
    largest = max(numels, default=0)
    chunk = min(sum(numels), max(CHUNK_NUMBERS, largest))
    return 2 * chunk + 2 * min(largest, SLICE_NUMBERS)


def round_stochastically(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round float32 to bfloat16 at random: up with the probability that keeps the mean."""
    bits = torch.randint(
        1 << _CUT_BITS,
        values.shape,
        generator=generator,
        dtype=torch.int32,
        device=values.device,
    )
    # Numbers with a larger magnitude have larger bits. The sum carries into the kept bits as often
    # as the cut ones are a share of the distance between two neighbors.
    bits.add_(values.view(torch.int32))
    bits.bitwise_right_shift_(_CUT_BITS).bitwise_left_shift_(_CUT_BITS)
    return bits.view(torch.float32).to(torch.bfloat16)


def _split(optimizer: torch.optim.Optimizer) -> Iterator[list[torch.nn.Parameter]]:
    """Return the parameters that have a gradient, in order, up to the size of a chunk."""
    chunk: list[torch.nn.Parameter] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if chunk and sum(p.numel() for p in chunk) + parameter.numel() > CHUNK_NUMBERS:
                yield chunk
                chunk = []
            chunk.append(parameter)
    if chunk:
        yield chunk


def _step_chunk(
    optimizer: torch.optim.Optimizer,
    chunk: list[torch.nn.Parameter],
    scale: float,
    generators: dict[torch.device, torch.Generator],
) -> None:
    """Let the optimizer take a step with some of its parameters, which are float32 meanwhile."""
    chosen = {id(parameter) for parameter in chunk}
    groups: list[list[Any]] = [group["params"] for group in optimizer.param_groups]
    stored = [parameter.data for parameter in chunk]
    try:
        for parameter, weights in zip(chunk, stored, strict=True):
            gradient = parameter.grad
            parameter.grad = None
            parameter.data = widen(weights)
            if gradient is not None:
                parameter.grad = gradient.to(torch.float32).mul_(scale)
        for group, members in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [p for p in members if id(p) in chosen]
        optimizer.step()
        for parameter, weights in zip(chunk, stored, strict=True):
            narrow(parameter.data, weights, generators[parameter.device])
    finally:
        for group, members in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = members
        for parameter, weights in zip(chunk, stored, strict=True):
            parameter.grad = None
            parameter.data = weights


def widen(weights: torch.Tensor) -> torch.Tensor:
    """Return the float32 weights that a step begins with."""
    return weights.to(torch.float32)


def narrow(updated: torch.Tensor, weights: torch.Tensor, generator: torch.Generator) -> None:
    """Store updated float32 weights in ``weights``, rounded at random."""
    pairs = zip(
        weights.view(-1).split(SLICE_NUMBERS), updated.view(-1).split(SLICE_NUMBERS), strict=True
    )
    for target, source in pairs:
        target.copy_(round_stochastically(source, generator))
