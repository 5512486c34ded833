"""The speed of a model with 3 billion parameters: ours, transformers' Trainer and TRL in turn.

All train the same LoRA adapter on the same base weights and samples, with the same batch, precision
and gradient checkpointing, each time in a new process. Rounds alternate, so that a device which
becomes slower affects all of them. Model FLOPs are counted in our forward and backward pass of one
sample, without recomputation; the utilization of the other loops is computed from the same count.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from runyard.trainer.gpu_check.isolation import Check, CheckReport, CheckRow, Result, Unavailable
from runyard.trainer.gpu_check.machine import GIB, find_peak_flops
from runyard.trainer.gpu_check.runs import (
    LARGE_MODEL,
    CheckContext,
    PreparedTraining,
    Settings,
    prepare_training,
)
from runyard.trainer.gpu_check.timing import StepTimer

LOOPS = ("ours", "transformers Trainer", "TRL")
ROUNDS = {True: 1, False: 2}  # dry, and on a device
LIMIT_S = {True: 40.0, False: 120.0}
SPARE_TIME = 1.2  # a round is repeated if as much time is left as it took, times this
AMPLE_BYTES = 48 * GIB  # with less memory, activations are recomputed

Run = Callable[[Check], CheckRow]


def measure_speed(
    context: CheckContext, run: Run, seconds_left: Callable[[], float]
) -> Iterator[CheckRow]:
    """Run every loop in turn; yield a row for each."""
    found: dict[str, list[CheckRow]] = {name: [] for name in LOOPS}
    for number in range(ROUNDS[context.is_dry]):
        started_s = time.monotonic()
        for name in LOOPS if number % 2 == 0 else reversed(LOOPS):
            if number == 0 or found[name][0].result == "ok":
                found[name].append(run(make_check(context, name)))
        if seconds_left() < SPARE_TIME * (time.monotonic() - started_s):
            break
    ours = [row.numbers for row in found["ours"] if row.result == "ok"]
    flops = statistics.median(item["flopsPerToken"] for item in ours) if ours else None
    for name, rows in found.items():
        yield summarize(name, rows, ours, flops, context.device_name)


def make_check(context: CheckContext, loop: str) -> Check:
    function = run_ours if loop == "ours" else run_peer
    arguments = (context,) if loop == "ours" else (context, loop)
    return Check(
        name=f"speed, {loop}",
        function=function,
        arguments=arguments,
        limit_s=LIMIT_S[context.is_dry],
    )


def summarize(
    loop: str,
    rows: list[CheckRow],
    ours: list[dict[str, Any]],
    flops: float | None,
    device_name: str,
) -> CheckRow:
    """Return the row of a loop: medians over its rounds, and how ours compares."""
    seconds = round(sum(row.seconds for row in rows), 1)
    good = [row.numbers for row in rows if row.result == "ok"]
    if not good:
        first = rows[0]
        # That another program fails is not a fault of this machine.
        result: Result = first.result if loop == "ours" else "skipped"
        detail, log = first.detail, first.log
        return CheckRow(
            check=f"speed, {loop}", result=result, detail=detail, seconds=seconds, log=log
        )
    speed = statistics.median(item["tokensPerSecond"] for item in good)
    peak = find_peak_flops(device_name)
    numbers: dict[str, Any] = {
        "tokensPerSecond": speed,
        "peakBytes": max(item["peakBytes"] for item in good),
        "rounds": good,
        "flopsPerToken": flops,
        "flopsUtilization": None if peak is None or flops is None else speed * flops / peak,
    }
    parts = [f"{speed:,.0f} tokens/s"]
    if loop != "ours" and ours:
        pairs = zip(ours, good, strict=False)
        ratio = statistics.median(a["tokensPerSecond"] / b["tokensPerSecond"] for a, b in pairs)
        numbers["oursOverThis"] = ratio
        parts.append(f"ours is {ratio:.2f} times as fast")
    parts.append(describe_utilization(numbers, device_name))
    parts.append(f"peak {numbers['peakBytes'] / GIB:.1f} GiB")
    return CheckRow(
        check=f"speed, {loop}",
        result="ok",
        detail=", ".join(parts),
        seconds=seconds,
        numbers=numbers,
    )


def describe_utilization(numbers: dict[str, Any], device_name: str) -> str:
    share, flops = numbers["flopsUtilization"], numbers["flopsPerToken"]
    if share is not None:
        return f"{share:.0%} of the peak FLOP/s"
    if flops is None:
        return "FLOPs not counted"
    rate = numbers["tokensPerSecond"] * flops / 1e12
    return f"{rate:.3g} TFLOP/s ({device_name or 'CPU'}: unknown peak)"


def make_settings(context: CheckContext) -> Settings:
    """Return the flow's settings: its defaults, apart from cached features, which skip work."""
    precision = "float32" if context.is_dry else "auto"
    return {
        "compute": {
            "precisionType": precision,
            "gradientCheckpointing": recomputes(context),
            "featureCache": False,
        },
        "packing": "auto",
    }


def recomputes(context: CheckContext) -> bool:
    return not context.is_dry and context.memory_bytes < AMPLE_BYTES


def run_ours(context: CheckContext) -> CheckReport:
    """Time our steps."""
    from runyard.trainer.train import BatchOrder, begin_step, compute_gradients, update_weights

    settings = make_settings(context)
    with prepare_training(context, "speed", settings, model=LARGE_MODEL) as training:
        flow, state = training.job.flow, training.state
        order, losses = BatchOrder(flow, state), []
        timer = StepTimer(state.device, context.is_dry)
        norm = flow.model.hyperparameters.optimizer.max_grad_norm
        while not timer.is_done:
            epoch, indices, _ = begin_step(flow, state, order)
            loss = compute_gradients(state, indices, epoch, flow.model, training.events)
            update_weights(state, loss, norm)
            state.progress.step += 1
            timer.record_step(int(state.lengths[indices].sum()))
            losses.append(loss)
        numbers = timer.summarize() | {"meanLoss": statistics.mean(losses)}
        numbers["flopsPerToken"] = count_flops(training)
        numbers["plan"] = {
            name: state.plan.document[name]["value"]
            for name in ("precision", "microBatchSize", "packing", "gradientCheckpointing")
        }
    return CheckReport("", numbers)


def run_peer(context: CheckContext, loop: str) -> CheckReport:
    """Time the steps of another loop."""
    from runyard.trainer.gpu_check import peers

    package = "trl" if loop == "TRL" else "accelerate"
    if importlib.util.find_spec(package) is None:
        raise Unavailable(f"not installed: {package}")
    train = peers.train_with_trl if loop == "TRL" else peers.train_with_transformers
    timer, loss = train(context, recomputes=recomputes(context))
    return CheckReport("", timer.summarize() | {"meanLoss": loss})


def count_flops(training: PreparedTraining) -> float:
    """Return the FLOPs of forward and backward per token, counted with one sample."""
    from torch.utils.flop_counter import FlopCounterMode

    from runyard.trainer.train import clear_gradients

    state, index = training.state, training.state.longest_index
    if state.plan.gradient_checkpointing:
        state.model.module.gradient_checkpointing_disable()
    batch = state.build_batch([index], 0).to(state.device)
    with FlopCounterMode(display=False) as counter:
        state.losses(batch).backward()
    clear_gradients(state)
    return float(counter.get_total_flops()) / float(state.lengths[index])
