"""The memory verdict: known estimates, the three actions, and suggestions that really fit."""

import re
from typing import Any

import msgspec
import pytest

from runyard.flows import ResolvedFlow, memory, resolve
from runyard.flows.memory import (
    GIB,
    MeasuredPeak,
    RunAccelerator,
    count_parameters,
    estimate,
    predict_fit,
)
from vi.api.resources.flows.responses import FlowBlock, FlowSpec

SEVEN = 7_000_000_000


def resolve_blocks(size: str = "7B", mode: str = "full", **settings: Any) -> ResolvedFlow:
    model = {
        "architecture": {"name": "qwen25vl", "size": size},
        "training": {"mode": mode, "freeze": []},
    } | settings
    return resolve(FlowSpec(blocks=[FlowBlock(block="vi-model", settings=model)]))


def accelerator(gib: float | None, name: str = "a100") -> RunAccelerator:
    return RunAccelerator(name=name, memory_bytes=None if gib is None else round(gib * GIB))


def measured(gib: float, *, micro_batch_size: int = 8, is_cpu: bool = False) -> MeasuredPeak:
    return MeasuredPeak(
        peak_bytes=round(gib * GIB),
        run_id="r9",
        is_cpu=is_cpu,
        micro_batch_size=micro_batch_size,
        parameters=SEVEN,
    )


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        ({}, memory.TINY_PARAMETERS),
        ({"name": "qwen25vl", "size": "7B"}, SEVEN),
        ({"name": "smolvlm", "size": "2.2B"}, 2_200_000_000),
        ({"name": "smolvlm", "size": "256M"}, 256_000_000),
        ({"weights": "Qwen/Qwen3-VL-8B-Instruct"}, 8_000_000_000),
        ({"name": "gemma4", "size": "E2B"}, None),
        ({"name": "florence2"}, None),
        ({"weights": "/models/shelf-7B"}, None),
        ({"weights": "/models/shelf", "size": "7B"}, SEVEN),
        ({"weights": "/models/shelf", "size": "0B"}, None),
        ({"weights": "run:r1/epoch-1"}, None),
    ],
)
def test_parameter_counts_match_the_model_names(
    architecture: dict[str, Any], parameters: int | None
) -> None:
    resolved = resolve(
        FlowSpec(blocks=[FlowBlock(block="vi-model", settings={"architecture": architecture})])
    )
    assert count_parameters(resolved) == parameters


def test_a_full_training_keeps_weights_a_copy_gradients_and_two_moments() -> None:
    found = estimate(resolve_blocks(), parameters=SEVEN, accelerator=accelerator(80))
    assert (found.weights, found.gradients, found.optimizer) == (6 * SEVEN, 4 * SEVEN, 8 * SEVEN)
    whole = estimate(
        resolve_blocks(compute={"precisionType": "float32"}),
        parameters=SEVEN,
        accelerator=accelerator(80),
    )
    assert whole.weights == 4 * SEVEN, "float32 needs no copy"
    assert 1 < whole.activations / found.activations < 2


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    [
        ({"name": "adamw8bit"}, 2),
        ({"name": "muon"}, 5),
        ({"name": "adafactor"}, 0.1),
        ({"name": "sgd"}, 4),
        ({"name": "sgd", "betas": [0, 0]}, 0),
    ],
)
def test_each_optimizer_has_its_own_state_size(
    optimizer: dict[str, Any], bytes_each: float
) -> None:
    resolved = resolve_blocks(hyperparameters={"optimizer": optimizer})
    found = estimate(resolved, parameters=SEVEN, accelerator=accelerator(80))
    assert found.optimizer == pytest.approx(bytes_each * SEVEN)


def test_frozen_parts_have_no_gradients_and_an_adapter_few() -> None:
    frozen = resolve_blocks(training={"mode": "full", "freeze": ["language"]})
    share = 1 - memory.PART_FRACTIONS["language"]
    assert estimate(
        frozen, parameters=SEVEN, accelerator=accelerator(80)
    ).gradients == pytest.approx(4 * share * SEVEN)
    adapted = estimate(resolve_blocks(mode="lora"), parameters=SEVEN, accelerator=accelerator(80))
    # The adapter of rank 16 on all linear layers of a language model of 7 B has 40 to 50 million
    # parameters.
    assert 40e6 < adapted.gradients / 4 < 50e6
    assert adapted.weights == pytest.approx(2 * SEVEN + adapted.gradients)
    quantized = resolve_blocks(mode="lora", quantization={"enabled": True})
    whole = estimate(quantized, parameters=SEVEN, accelerator=accelerator(80))
    assert whole.weights == pytest.approx(adapted.weights - 0.87 * SEVEN)  # the language model


def test_activations_grow_with_samples_and_tokens_and_shrink_with_checkpointing() -> None:
    def activations(**settings: Any) -> float:
        return estimate(
            resolve_blocks(**settings), parameters=SEVEN, accelerator=accelerator(80)
        ).activations

    one = activations(hyperparameters={"microBatchSize": 1})
    assert activations(hyperparameters={"microBatchSize": 4}) == pytest.approx(4 * one)
    kept = activations(
        hyperparameters={"microBatchSize": 1}, compute={"gradientCheckpointing": False}
    )
    assert kept > 5 * one
    large = activations(hyperparameters={"microBatchSize": 1}, images={"maxPixels": 4096 * 28 * 28})
    assert large == pytest.approx(one * (4096 + 256) / (1024 + 256))


def test_auto_precision_has_16_bits_on_every_gpu() -> None:
    resolved = resolve_blocks(mode="lora")
    on = {
        name: estimate(resolved, parameters=SEVEN, accelerator=accelerator(80, name)).weights
        for name in ("a100", "t4", "cpu")
    }
    assert on["cpu"] > 1.9 * on["a100"]
    assert on["t4"] == on["a100"]  # in float16


def test_the_tiny_model_fits_on_a_small_cpu() -> None:
    fit = predict_fit(resolve(FlowSpec()), accelerator(2, "cpu"))
    assert fit.action == "Allow"
    assert fit.reason.startswith("0.8 GiB needed, estimated from 200K parameters")
    assert "2.0 GiB available, the memory of the machine or its cgroup" in fit.reason


def test_a_full_training_of_7b_is_denied_on_24_gib_with_a_fitting_alternative() -> None:
    fit = predict_fit(resolve_blocks(), accelerator(24, "a10"))
    assert fit.action == "Deny"
    advice = re.search(
        r"training\.mode lora and microBatchSize (\d) would fit, with ([\d.]+) GiB$", fit.reason
    )
    assert advice is not None, fit.reason
    changed = resolve_blocks(mode="lora", hyperparameters={"microBatchSize": int(advice[1])})
    again = predict_fit(changed, accelerator(24, "a10"))
    assert (again.action, again.reason.partition(" GiB")[0]) == ("Allow", advice[2])


def test_a_flow_that_fits_nowhere_names_the_nearest_setting() -> None:
    fit = predict_fit(resolve_blocks(), accelerator(6, "p4"))
    assert fit.action == "Deny"
    least = "size 3B and training.mode lora and quantization.enabled true and microBatchSize 1"
    assert f"no setting keeps it below 70% of that: even {least} would need" in fit.reason


def test_a_smaller_model_is_the_last_suggestion() -> None:
    fit = predict_fit(resolve_blocks(size="72B", mode="lora"), accelerator(24, "a10"))
    assert fit.reason.endswith("size 7B and microBatchSize 1 would fit, with 16.0 GiB")
    own = resolve_blocks(
        architecture={"name": "qwen25vl", "size": "72B", "weights": "/models/mine"}, mode="lora"
    )
    reason = predict_fit(own, accelerator(24, "a10")).reason
    assert (
        "no setting keeps it below 70% of that: even quantization.enabled true and microBatchSize 1"
        in reason
    )


@pytest.mark.parametrize(
    ("share", "action"), [(0.69, "Allow"), (0.71, "Warn"), (0.99, "Warn"), (1.01, "Deny")]
)
def test_an_estimate_is_trusted_up_to_70_percent(share: float, action: str) -> None:
    resolved = resolve_blocks(mode="lora")
    needed = predict_fit(resolved, accelerator(1000)).needed_bytes or 0
    fit = predict_fit(resolved, RunAccelerator(name="a100", memory_bytes=round(needed / share)))
    assert fit.action == action
    assert ("would fit" in fit.reason) is (action != "Allow")


@pytest.mark.parametrize(
    ("share", "action"), [(0.84, "Allow"), (0.86, "Warn"), (0.99, "Warn"), (1.01, "Deny")]
)
def test_a_prediction_of_an_earlier_run_is_trusted_up_to_85_percent(
    share: float, action: str
) -> None:
    fit = predict_fit(resolve_blocks(mode="lora"), accelerator(10 / share), measured=measured(10))
    assert fit.action == action
    assert fit.reason.startswith("10.0 GiB needed, predicted by run r9 with the same flow")


def test_a_prediction_with_smaller_micro_batches_is_accepted_in_proportion() -> None:
    resolved = resolve_blocks(mode="lora", hyperparameters={"batchSize": 8, "microBatchSize": 8})
    halved = msgspec.structs.replace(
        resolved, model=resolve_blocks(mode="lora", hyperparameters={"microBatchSize": 4}).model
    )
    larger, smaller = (
        estimate(each, parameters=SEVEN, accelerator=accelerator(80)).total
        for each in (resolved, halved)
    )
    fit = predict_fit(resolved, accelerator(80), measured=measured(10, micro_batch_size=4))
    assert fit.needed_bytes == pytest.approx(10 * GIB * larger / smaller)


def test_a_prediction_from_a_cpu_is_used_only_for_the_model_size() -> None:
    unknown = resolve_blocks(architecture={"weights": "/models/mine"}, mode="lora")
    fit = predict_fit(unknown, accelerator(80), measured=measured(30, is_cpu=True))
    assert "estimated from 7B parameters" in fit.reason
    assert fit.action == "Allow"


def test_an_unknown_memory_need_is_a_warning() -> None:
    fit = predict_fit(resolve_blocks(architecture={"weights": "/models/mine"}), accelerator(80))
    assert (fit.action, fit.needed_bytes) == ("Warn", None)
    assert "'/models/mine' needs is not known before a machine has opened it" in fit.reason
    fit = predict_fit(resolve_blocks(), accelerator(None))
    assert fit.action == "Warn"
    assert "how much memory a100 has could not be determined" in fit.reason


def test_four_bits_are_recommended_where_an_adapter_alone_does_not_fit() -> None:
    reason = predict_fit(resolve_blocks(), accelerator(15)).reason
    assert (
        "training.mode lora and quantization.enabled true and microBatchSize 1 would fit" in reason
    )
    quantized = resolve_blocks(
        mode="lora", quantization={"enabled": True}, hyperparameters={"microBatchSize": 1}
    )
    assert predict_fit(quantized, accelerator(15)).action == "Allow"
    assert "quantization" not in predict_fit(quantized, accelerator(4)).reason


def test_bfloat16_weights_and_gradients_take_half() -> None:
    training = {"mode": "full", "freeze": []}
    card = accelerator(80)
    usual = estimate(resolve_blocks(training=training), parameters=SEVEN, accelerator=card)
    training |= {"weightsPrecision": "bfloat16"}
    low = estimate(resolve_blocks(training=training), parameters=SEVEN, accelerator=card)
    assert low.gradients == usual.gradients / 2 == 2 * SEVEN
    assert low.weights == 2 * SEVEN < usual.weights / 2
    assert low.optimizer == usual.optimizer  # in float32
