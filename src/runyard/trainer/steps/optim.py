"""From gradients to updates: parameter groups, optimizers and the learning-rate schedule.

Parameters are grouped by part of the model (vision, projector, language), since each may have its
own learning rate, and by weight decay: matrices decay, biases and normalization gains do not. The
schedule is a pure function of the step, so it has no state to save.
"""

import logging
import math
from typing import Any

import torch

from runyard.extras import install_command
from runyard.flows.blocks import LearningRates, Schedule
from runyard.flows.blocks import Optimizer as OptimizerSettings
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.families import FamilyParts, find_part

# Muon's updates have unit spectral norm, so its rates are larger than AdamW's; 5 was best on the
# tiny model (measured).
MUON_RATE_FACTOR = 5.0
STABLE_SHARE = 0.8  # of wsd: the share of the run before the rate decays
Named = list[tuple[str, torch.nn.Parameter]]


def make_optimizers(
    parameters: Named,
    settings: OptimizerSettings,
    *,
    learning_rate: float,
    rates: LearningRates | None,
    parts: FamilyParts,
) -> list[torch.optim.Optimizer]:
    """Return one optimizer, or two with muon (for hidden matrices; AdamW takes the rest).

    Every group has ``base_lr``, which the schedule multiplies. Sources: AdamW (Loshchilov & Hutter
    2019), SGD with Nesterov momentum (Sutskever et al. 2013), Adafactor (Shazeer & Stern 2018),
    Muon (Jordan et al. 2024), 8-bit AdamW (Dettmers et al. 2022).

    Raises:
        InvalidFlow: the optimizer is not available here.
    """
    decay, betas = settings.weight_decay, settings.betas

    def groups(chosen: Named, factor: float = 1.0) -> list[dict[str, Any]]:
        return _make_groups(
            chosen,
            learning_rate=learning_rate,
            rates=rates,
            parts=parts,
            decay=decay,
            factor=factor,
        )

    match settings.name:
        case "adamw":
            return [torch.optim.AdamW(groups(parameters), betas=betas, fused=True)]
        case "sgd":
            return [torch.optim.SGD(groups(parameters), momentum=betas[0], nesterov=betas[0] > 0)]
        case "adafactor":
            return [torch.optim.Adafactor(groups(parameters))]
        case "muon":
            hidden = [(n, p) for n, p in parameters if p.dim() == 2 and not _is_embedding(n)]
            chosen = {name for name, _ in hidden}
            rest = [(n, p) for n, p in parameters if n not in chosen]
            optimizers: list[torch.optim.Optimizer] = []
            if hidden:
                optimizers.append(
                    torch.optim.Muon(groups(hidden, MUON_RATE_FACTOR), momentum=betas[0])
                )
            if rest:
                optimizers.append(torch.optim.AdamW(groups(rest), betas=betas, fused=True))
            return optimizers
        case "adamw8bit":
            return [_make_adamw8bit(groups(parameters), betas)]
    raise InvalidFlow(f"unknown optimizer {settings.name!r}")


def rate_factor(step: int, *, total: int, warmup: int, schedule: Schedule) -> float:
    """Return the factor of the base learning rates at ``step`` (from 0), after a linear warm-up.

    ``cosine``: Loshchilov & Hutter 2017 (SGDR), without restarts. ``wsd``: warm-up, stable, decay
    (Hu et al. 2024, MiniCPM), with a linear decay.
    """
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
            return (
                1.0
                if progress < STABLE_SHARE
                else low + (1 - low) * (1 - progress) / (1 - STABLE_SHARE)
            )
    return 1.0


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> float:
    """Set every group's learning rate and return the highest, for logging."""
    highest = 0.0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
            highest = max(highest, group["lr"])
    return highest


def _make_groups(
    parameters: Named,
    *,
    learning_rate: float,
    rates: LearningRates | None,
    parts: FamilyParts,
    decay: float,
    factor: float,
) -> list[dict[str, Any]]:
    found: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters:
        own = getattr(rates, find_part(name, parts)) if rates is not None else None
        rate = (learning_rate if own is None else own) * factor
        found.setdefault((rate, decay if parameter.dim() >= 2 else 0.0), []).append(parameter)
    return [
        {"params": members, "lr": rate, "base_lr": rate, "weight_decay": weight_decay}
        for (rate, weight_decay), members in found.items()
    ]


def _is_embedding(name: str) -> bool:
    """Return whether a matrix is an embedding or output layer, which Muon is not meant for."""
    return "embed" in name or "lm_head" in name


def _make_adamw8bit(groups: list[dict[str, Any]], betas: tuple[float, float]) -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it recommends other packages
    try:
        import bitsandbytes
    except ImportError as error:
        raise InvalidFlow(
            "optimizer 'adamw8bit' needs the package bitsandbytes; "
            f"{install_command('quantization')}, or use 'adamw'"
        ) from error
    return bitsandbytes.optim.AdamW8bit(groups, betas=betas)
