"""Checks that a setting changes speed or memory, but not what is computed.

Each compares the loss and all gradients of one batch with those of a reference in float32: padded
rows, the library's own attention, nothing compiled and nothing recomputed.
"""

import contextlib
import importlib.util
import math
from collections.abc import Iterator
from functools import partial

import torch

from runyard.trainer.errors import InvalidFlow
from runyard.trainer.gpu_check.isolation import CheckReport, Unavailable
from runyard.trainer.gpu_check.runs import (
    CheckContext,
    PreparedTraining,
    Settings,
    prepare_training,
)

STEPS = 4
CLOSE = 1e-5  # of the largest gradient, for another order of the same sums
CLOSE_KERNEL = 1e-4  # likewise, for other kernels
CLOSE_16_BIT = 5e-2  # of the loss
FULL: Settings = {"training": {"mode": "full", "freeze": []}}


def check_precision(context: CheckContext, precision: str) -> CheckReport:
    """Train for some steps in a precision; compare the losses of others with float32."""
    settings = {"compute": {"precisionType": precision}}
    with prepare_or_skip(context, f"precision-{precision}", settings) as training:
        found = training.take_steps(STEPS)
        detail = f"{STEPS} steps, loss {found[0]:.4f} to {found[-1]:.4f}"
        if training.state.scaler.is_enabled():
            check_overflow(training)
            detail += "; a step that overflows is skipped"
    if not found[-1] < found[0]:
        raise RuntimeError(f"the loss does not fall: {found}")
    if precision == "float32":
        return CheckReport(detail, {"losses": found})
    with prepare_training(context, f"precision-{precision}-reference", {}) as reference:
        expected = reference.take_steps(STEPS)
    difference = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
    if not difference <= CLOSE_16_BIT:
        raise RuntimeError(f"losses {found} differ from those in float32, {expected}")
    return CheckReport(
        f"{detail}; within {difference:.1e} of float32", {"losses": found, "float32": expected}
    )


def check_low_weights(context: CheckContext) -> CheckReport:
    """Train weights in bfloat16 for some steps; compare the losses with float32 weights."""
    compute = {"precisionType": "bfloat16"}
    training = FULL["training"] | {"weightsPrecision": "bfloat16"}
    losses = []
    for name, settings in (("low", {"training": training}), ("usual", FULL)):
        with prepare_or_skip(context, f"weights-{name}", settings | {"compute": compute}) as state:
            losses.append(state.take_steps(STEPS))
    found, expected = losses
    difference = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
    if not (difference <= CLOSE_16_BIT and found[-1] < found[0]):
        raise RuntimeError(f"losses {found}, with float32 weights {expected}")
    return CheckReport(
        f"loss {found[0]:.4f} to {found[-1]:.4f}; within {difference:.1e} of float32 weights",
        {"losses": found, "float32": expected},
    )


def check_overflow(training: PreparedTraining) -> None:
    """Check that a step whose scaled gradients overflow leaves the weights as they are."""
    state = training.state
    scaler = state.scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**60})
    before = [parameter.detach().clone() for parameter in state.parameters]
    training.take_steps(1)
    if not all(torch.equal(a, b) for a, b in zip(state.parameters, before, strict=True)):
        raise RuntimeError("a step with gradients that are not finite changed the weights")
    if scaler.get_scale() >= 2.0**60:
        raise RuntimeError("the loss scale was not lowered after an overflow")


def check_attention(context: CheckContext) -> CheckReport:
    """Compare the default attention with one written out."""
    default, changed = ({"compute": {"attention": name}} for name in ("eager", "sdpa"))
    return compare_settings(context, "attention", default, changed, close=CLOSE_KERNEL)


def check_flash_attention(context: CheckContext, *, is_packed: bool = False) -> CheckReport:
    """Compare flash attention, in packed rows or not, with the default one in 16 bits."""
    if importlib.util.find_spec("flash_attn") is None:
        raise Unavailable("not installed: flash-attn")
    compute = {"precisionType": "bfloat16"}
    default: Settings = {"compute": compute}
    changed: Settings = {"compute": compute | {"attention": "flash_attention_2"}}
    changed |= {"packing": is_packed}
    return compare_settings(context, "flash", default, changed, close=CLOSE_16_BIT)


def check_packed_flash(context: CheckContext) -> CheckReport:
    """Compare flash attention in packed rows with the default one in padded rows."""
    return check_flash_attention(context, is_packed=True)


def check_packing(context: CheckContext) -> CheckReport:
    """Compare packed with padded rows."""
    return compare_settings(context, "packing", FULL, FULL | {"packing": True}, close=CLOSE)


def check_recomputing(context: CheckContext) -> CheckReport:
    """Compare recomputed with stored activations."""
    changed = FULL | {"compute": {"gradientCheckpointing": True}}
    return compare_settings(context, "recomputing", FULL, changed, close=CLOSE)


def check_compile(context: CheckContext) -> CheckReport:
    """Compare a compiled model with one that is not."""
    changed: Settings = {"compute": {"compile": True}}
    if context.is_dry:  # on a processor, generating code takes minutes
        torch.compile = partial(torch.compile, backend="eager")
    return compare_settings(context, "compile", {}, changed, close=CLOSE_KERNEL)


def compare_settings(
    context: CheckContext, name: str, default: Settings, changed: Settings, *, close: float
) -> CheckReport:
    """Compare loss and gradients of the first batch with two settings."""
    with prepare_or_skip(context, name, changed) as training:
        loss, found = compute_gradients(training)
    with prepare_training(context, f"{name}-reference", default) as training:
        expected, reference = compute_gradients(training)
    worst = compare_gradients(found, reference)
    numbers = {"loss": loss, "expected": expected, "difference": worst}
    if not (worst <= close and abs(loss - expected) <= close * expected):
        raise RuntimeError(
            f"gradients differ by {worst:.1e} of the largest, the loss is {loss} and not {expected}"
        )
    return CheckReport(f"gradients within {worst:.1e} of the largest", numbers)


def compute_gradients(training: PreparedTraining) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of the first batch, and its gradients by parameter."""
    from runyard.trainer.train import accumulate_gradients

    state = training.state
    size = state.plan.micro_batch_size
    loss = accumulate_gradients(state, list(range(state.plan.batch_size)), 0, size)
    return loss, take_gradients(training)


def take_gradients(training: PreparedTraining) -> dict[str, torch.Tensor]:
    """Return the gradients by parameter, and clear them."""
    from runyard.trainer.train import clear_gradients

    gradients = {
        name: parameter.grad.float().cpu().clone()
        for name, parameter in training.state.model.trainable_parameters()
        if parameter.grad is not None
    }
    clear_gradients(training.state)
    return gradients


def compare_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest gradient."""
    if found.keys() != expected.keys():
        raise RuntimeError(f"other parameters have gradients: {found.keys() ^ expected.keys()}")
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    worst = max(float((found[name] - value).abs().max()) for name, value in expected.items())
    return worst / largest if largest else math.inf


@contextlib.contextmanager
def prepare_or_skip(
    context: CheckContext, name: str, settings: Settings
) -> Iterator[PreparedTraining]:
    """Prepare a training, and skip the check where this device does not offer a setting."""
    with contextlib.ExitStack() as stack:
        try:
            training = stack.enter_context(prepare_training(context, name, settings))
        except InvalidFlow as error:
            raise Unavailable(f"not offered: {error}") from error
        yield training
