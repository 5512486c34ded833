"""Checks of options that need a package or a device: 4-bit weights, optimizers, answers, ranks."""

import importlib.util
import math
import os
import time
from pathlib import Path

from runyard.trainer.gpu_check.isolation import CheckReport, Unavailable
from runyard.trainer.gpu_check.runs import (
    CheckContext,
    fork_rank,
    prepare_training,
    read_events,
    read_losses,
    write_attempt,
)

STEPS = 4
OPTIMIZERS = ("muon", "adafactor", "sgd")  # the default one is part of other checks
CLOSE_RANKS = 1e-5  # of the loss
CLOSE_4_BIT = 0.2  # of the loss with random weights


def check_quantization(context: CheckContext) -> CheckReport:
    """Train an adapter on base weights in 4 bits."""
    require_package("bitsandbytes")
    with prepare_training(context, "quantization", {}) as reference:
        expected = reference.take_steps(STEPS)
    settings = {"quantization": {"enabled": True}}
    with prepare_training(context, "quantization", settings) as training:
        layers = {type(module).__name__ for module in training.state.model.module.modules()}
        if "Linear4bit" not in layers:
            raise RuntimeError("no layer is stored in 4 bits")
        found = training.take_steps(STEPS)
    difference = abs(found[0] - expected[0]) / expected[0]
    if not (difference <= CLOSE_4_BIT and found[-1] < found[0]):
        raise RuntimeError(f"losses {found}, in full precision {expected}")
    return CheckReport(
        f"loss {found[0]:.4f} to {found[-1]:.4f}; within {difference:.1e} of full precision",
        {"losses": found, "fullPrecision": expected},
    )


def check_optimizers(context: CheckContext) -> CheckReport:
    """Train for some steps with every optimizer that needs no package."""
    losses = {}
    for name in OPTIMIZERS:
        settings = {"hyperparameters": {"optimizer": {"name": name}}}
        with prepare_training(context, f"optimizer-{name}", settings) as training:
            losses[name] = training.take_steps(STEPS)
        if not all(math.isfinite(loss) for loss in losses[name]):
            raise RuntimeError(f"losses with {name}: {losses[name]}")
        if not losses[name][-1] < losses[name][0]:
            raise RuntimeError(f"the loss does not fall with {name}: {losses[name]}")
    return CheckReport(f"the loss falls with {', '.join(OPTIMIZERS)}", {"losses": losses})


def check_adapters(context: CheckContext) -> CheckReport:
    """Train an adapter with every option, and the whole projector with it."""
    lora = {"useDora": True, "useRslora": True, "trainProjector": True}
    with prepare_training(context, "adapters", {"training": {"lora": lora}}) as training:
        losses = training.take_steps(STEPS)
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"the loss does not fall: {losses}")
    return CheckReport(f"loss {losses[0]:.4f} to {losses[-1]:.4f}", {"losses": losses})


def check_evaluation(context: CheckContext) -> CheckReport:
    """Compare answers of a batch with answers one at a time, in float32."""
    import torch

    from runyard.trainer.evaluation.batches import BatchLimit
    from runyard.trainer.evaluation.evaluation import generate_answers

    with prepare_training(context, "evaluation", {}, validation_fraction=0.4) as training:
        state = training.state
        module, tokenizer = state.model.module.eval(), state.model.processor.tokenizer
        count, answers, seconds = state.plan.validation_samples, {}, {}
        generation = state.generation | {"max_new_tokens": 8 if context.is_dry else 32}
        for size in (count, 1, count):  # the first one warms up
            started_s = time.perf_counter()
            with torch.inference_mode():
                answers[size] = generate_answers(
                    module,
                    tokenizer,
                    state.validation,
                    count,
                    generation=generation,
                    device=state.device,
                    limit=BatchLimit(size),
                )
            seconds[size] = time.perf_counter() - started_s
    different = sum(a != b for a, b in zip(answers[1], answers[count], strict=True))
    if different:
        raise RuntimeError(f"{different} of {count} answers of a batch differ from those of one")
    speedup = seconds[1] / seconds[count]
    return CheckReport(
        f"{count} answers equal those of one at a time, {speedup:.1f} times as fast",
        {"samples": count, "secondsSingle": seconds[1], "secondsBatch": seconds[count]},
    )


def check_ranks(context: CheckContext, strategy: str) -> CheckReport:
    """Compare the losses of two ranks with those of one process."""
    if not context.is_dry and context.devices < 2:
        raise Unavailable(f"needs two devices, found {context.devices}")
    settings = {"hyperparameters": {"maxSteps": STEPS}}
    single = write_attempt(context, f"single-{strategy}", settings)
    wait_for([fork_rank(single, 0, 1)], single)
    resources = {"workers": 2, "strategy": strategy}
    pair = write_attempt(context, f"pair-{strategy}", settings, resources=resources)
    wait_for([fork_rank(pair, rank, 2) for rank in range(2)], pair)
    expected, found = (read_losses(read_events(folder)) for folder in (single, pair))
    if len(found) != STEPS or len(expected) != STEPS:
        raise RuntimeError(f"{len(found)} steps of two ranks, {len(expected)} of one")
    difference = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
    if not difference <= CLOSE_RANKS:
        raise RuntimeError(f"losses of two ranks {found} differ from those of one {expected}")
    return CheckReport(
        f"losses within {difference:.1e} of one process", {"losses": found, "single": expected}
    )


def wait_for(pids: list[int], folder: Path) -> None:
    """Wait for trainers; raise RuntimeError if one does not succeed."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        raise RuntimeError(f"the trainers of {folder.parent.parent.name} ended with {codes}")


def require_package(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise Unavailable(f"not installed: {name}")
