"""Loss scaling for float16: small gradients would vanish without it (Micikevicius et al. 2018).

The loss is multiplied by a scale, and the gradients are divided by it before they are used. A scale
that is too large makes them overflow. Such a step is skipped and the scale is halved. After 2,000
steps without one it is doubled.

The scaler of torch decides for each optimizer on its own. Here a step is taken by all optimizers or
by none, and a loss that is not finite skips it too.
"""

import math

import torch

MAX_SKIPPED_STEPS = 20  # in a row; from its initial value, the scale is then below 0.1


def unscale(scaler: torch.amp.GradScaler, optimizers: list[torch.optim.Optimizer]) -> None:
    """Divide the gradients by the scale."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)


def take_scaled_step(
    scaler: torch.amp.GradScaler, optimizers: list[torch.optim.Optimizer], *, norm: float
) -> None:
    """Take a step with unscaled gradients, or skip it if their norm is not finite."""
    if not math.isfinite(norm):
        skip_step(scaler)
        return
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()


def skip_step(scaler: torch.amp.GradScaler) -> None:
    """Lower the scale, and count the steps until it grows from the beginning."""
    scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
    scaler.load_state_dict(scaler.state_dict() | {"_growth_tracker": 0})
