"""From gradients to steps: which parameters move how fast, by which rule, on which curve.

Parameters are grouped by part of the model (vision, projector, language), as each may have its own rate, and by whether
they decay: matrices do, gains and biases do not. The curve is a pure function of the step, so there is nothing about
it to save.
"""

import math
from typing import Any

import torch

from runyard.extras import install_command
from runyard.flows.blocks import LearningRates, Schedule
from runyard.flows.blocks import Optimizer as OptimizerSettings
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.families import Parts, part_of

# Muon's steps have unit spectral norm, so its rates are larger than AdamW's; 5 was found best on the tiny model.
MUON_RATE_FACTOR = 5.0
STABLE_SHARE = 0.8  # of wsd: the share of the run before the rate falls
Named = list[tuple[str, torch.nn.Parameter]]


def make_optimizers(
    parameters: Named,
    settings: OptimizerSettings,
    *,
    learning_rate: float,
    rates: LearningRates | None,
    parts: Parts,
    device: torch.device,
) -> list[torch.optim.Optimizer]:
    """One optimizer, or two with muon (which takes hidden matrices only; AdamW takes the rest).

    Every group carries ``base_lr``, which the schedule multiplies.

    Raises:
        InvalidFlow: the optimizer is not available here.
    """
    decay, betas = settings.weight_decay, settings.betas

    def groups(chosen: Named, factor: float = 1.0) -> list[dict[str, Any]]:
        return _groups(chosen, learning_rate=learning_rate, rates=rates, parts=parts, decay=decay, factor=factor)

    match settings.name:
        case "adamw":
            return [torch.optim.AdamW(groups(parameters), betas=betas, fused=True)]
        case "sgd":
            return [torch.optim.SGD(groups(parameters), momentum=betas[0], nesterov=betas[0] > 0)]
        case "adafactor":
            return [torch.optim.Adafactor(groups(parameters))]
        case "muon":
            hidden = [(n, p) for n, p in parameters if p.dim() == 2 and not _is_table(n)]
            chosen = {name for name, _ in hidden}
            rest = [(n, p) for n, p in parameters if n not in chosen]
            optimizers: list[torch.optim.Optimizer] = []
            if hidden:
                optimizers.append(torch.optim.Muon(groups(hidden, MUON_RATE_FACTOR), momentum=betas[0]))
            if rest:
                optimizers.append(torch.optim.AdamW(groups(rest), betas=betas, fused=True))
            return optimizers
        case "adamw8bit":
            return [_adamw8bit(groups(parameters), betas, device)]
    raise InvalidFlow(f"optimizer {settings.name!r} is not known here")


def rate_factor(step: int, *, total: int, warmup: int, schedule: Schedule) -> float:
    """What the base rates are multiplied by at ``step`` (from 0)."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    low = schedule.min_factor
    match schedule.name:
        case "cosine":
            return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return low + (1 - low) * (1 - progress)
        case "wsd":
            return 1.0 if progress < STABLE_SHARE else low + (1 - low) * (1 - progress) / (1 - STABLE_SHARE)
    return 1.0


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> float:
    """Set every group's rate; returns the highest, for the record."""
    highest = 0.0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
            highest = max(highest, group["lr"])
    return highest


def _groups(
    parameters: Named, *, learning_rate: float, rates: LearningRates | None, parts: Parts, decay: float, factor: float
) -> list[dict[str, Any]]:
    found: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters:
        own = getattr(rates, part_of(name, parts)) if rates is not None else None
        rate = (learning_rate if own is None else own) * factor
        found.setdefault((rate, decay if parameter.dim() >= 2 else 0.0), []).append(parameter)
    return [
        {"params": members, "lr": rate, "base_lr": rate, "weight_decay": weight_decay}
        for (rate, weight_decay), members in found.items()
    ]


def _is_table(name: str) -> bool:
    """Embeddings and output layers: matrices whose rows are words, which muon is not for."""
    return "embed" in name or "lm_head" in name


def _adamw8bit(groups: list[dict[str, Any]], betas: tuple[float, float], device: torch.device) -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise InvalidFlow(
            f"optimizer 'adamw8bit' needs the package bitsandbytes; {install_command('quantization')}, or use 'adamw'"
        ) from error
    if device.type != "cuda":
        raise InvalidFlow("optimizer 'adamw8bit' needs CUDA; use 'adamw'")
    return bitsandbytes.optim.AdamW8bit(groups, betas=betas)
