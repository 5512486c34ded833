"""The verdict on memory: known sums, the three words, and changes that are tried and not merely listed."""

import re
from typing import Any

import msgspec
import pytest

from runyard.flows import Recipe, memory, resolve
from runyard.flows.memory import GIB, Accelerator, Measured, estimate, judge, parameters_of
from vi.api.resources.flows.responses import FlowBlock, FlowSpec

SEVEN = 7_000_000_000


def recipe_of(size: str = "7B", mode: str = "full", **settings: Any) -> Recipe:
    model = {"architecture": {"name": "qwen25vl", "size": size}, "training": {"mode": mode, "freeze": []}} | settings
    return resolve(FlowSpec(blocks=[FlowBlock(block="vi-model", settings=model)]))


def accelerator(gib: float | None, name: str = "a100") -> Accelerator:
    return Accelerator(name=name, memory_bytes=None if gib is None else round(gib * GIB))


def measured(gib: float, *, micro_batch_size: int = 8, is_cpu: bool = False) -> Measured:
    return Measured(
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
def test_the_number_of_parameters_is_what_the_names_say(architecture: dict[str, Any], parameters: int | None) -> None:
    recipe = resolve(FlowSpec(blocks=[FlowBlock(block="vi-model", settings={"architecture": architecture})]))
    assert parameters_of(recipe) == parameters


def test_a_full_training_keeps_weights_a_copy_gradients_and_two_moments() -> None:
    found = estimate(recipe_of(), parameters=SEVEN, accelerator=accelerator(80))
    assert (found.weights, found.gradients, found.optimizer) == (6 * SEVEN, 4 * SEVEN, 8 * SEVEN)
    whole = estimate(recipe_of(compute={"precisionType": "float32"}), parameters=SEVEN, accelerator=accelerator(80))
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
def test_each_optimizer_keeps_its_own_numbers(optimizer: dict[str, Any], bytes_each: float) -> None:
    recipe = recipe_of(hyperparameters={"optimizer": optimizer})
    found = estimate(recipe, parameters=SEVEN, accelerator=accelerator(80))
    assert found.optimizer == pytest.approx(bytes_each * SEVEN)


def test_frozen_parts_have_no_gradients_and_an_adapter_few() -> None:
    frozen = recipe_of(training={"mode": "full", "freeze": ["language"]})
    share = 1 - memory.PART_SHARES["language"]
    assert estimate(frozen, parameters=SEVEN, accelerator=accelerator(80)).gradients == pytest.approx(4 * share * SEVEN)
    adapted = estimate(recipe_of(mode="lora"), parameters=SEVEN, accelerator=accelerator(80))
    # The adapter of rank 16 on all linear layers of a language model of 7 B has 40 to 50 million parameters.
    assert 40e6 < adapted.gradients / 4 < 50e6
    assert adapted.weights == pytest.approx(2 * SEVEN + adapted.gradients)
    quantized = recipe_of(mode="lora", quantization={"enabled": True})
    whole = estimate(quantized, parameters=SEVEN, accelerator=accelerator(80))
    assert whole.weights == pytest.approx(adapted.weights - SEVEN)


def test_activations_grow_with_samples_and_tokens_and_are_fewer_when_computed_twice() -> None:
    def activations(**settings: Any) -> float:
        return estimate(recipe_of(**settings), parameters=SEVEN, accelerator=accelerator(80)).activations

    one = activations(hyperparameters={"microBatchSize": 1})
    assert activations(hyperparameters={"microBatchSize": 4}) == pytest.approx(4 * one)
    kept = activations(hyperparameters={"microBatchSize": 1}, compute={"gradientCheckpointing": False})
    assert kept > 5 * one
    large = activations(hyperparameters={"microBatchSize": 1}, images={"maxPixels": 4096 * 28 * 28})
    assert large == pytest.approx(one * (4096 + 256) / (1024 + 256))


def test_auto_numbers_are_float32_where_there_is_no_fast_bfloat16() -> None:
    recipe = recipe_of(mode="lora")
    on = {
        name: estimate(recipe, parameters=SEVEN, accelerator=accelerator(80, name)).weights
        for name in ("a100", "t4", "cpu")
    }
    assert on["t4"] == on["cpu"] > 1.9 * on["a100"]


def test_the_tiny_model_fits_on_a_small_processor() -> None:
    outlook = judge(resolve(FlowSpec()), accelerator(2, "cpu"))
    assert outlook.action == "Allow"
    assert outlook.reason.startswith("0.8 GiB needed, estimated from 200K parameters")
    assert "2.0 GiB available, the memory of the machine or its cgroup" in outlook.reason


def test_a_full_training_of_7b_is_denied_on_24_gib_with_what_would_fit() -> None:
    outlook = judge(recipe_of(), accelerator(24, "a10"))
    assert outlook.action == "Deny"
    advice = re.search(r"training\.mode lora and microBatchSize (\d) would fit, with ([\d.]+) GiB$", outlook.reason)
    assert advice is not None, outlook.reason
    changed = recipe_of(mode="lora", hyperparameters={"microBatchSize": int(advice[1])})
    again = judge(changed, accelerator(24, "a10"))
    assert (again.action, again.reason.partition(" GiB")[0]) == ("Allow", advice[2])


def test_what_fits_nowhere_says_so_and_how_near_it_comes() -> None:
    outlook = judge(recipe_of(), accelerator(6, "p4"))
    assert outlook.action == "Deny"
    least = "size 3B and training.mode lora and quantization.enabled true and microBatchSize 1"
    assert f"no setting keeps it below 70% of that: even {least} would need" in outlook.reason


def test_a_smaller_model_is_the_last_that_is_tried() -> None:
    outlook = judge(recipe_of(size="72B", mode="lora"), accelerator(24, "a10"))
    assert outlook.reason.endswith("size 7B and microBatchSize 1 would fit, with 16.0 GiB")
    own = recipe_of(architecture={"name": "qwen25vl", "size": "72B", "weights": "/models/mine"}, mode="lora")
    reason = judge(own, accelerator(24, "a10")).reason
    assert "no setting keeps it below 70% of that: even quantization.enabled true and microBatchSize 1" in reason


@pytest.mark.parametrize(("share", "action"), [(0.69, "Allow"), (0.71, "Warn"), (0.99, "Warn"), (1.01, "Deny")])
def test_an_estimate_is_trusted_up_to_70_percent(share: float, action: str) -> None:
    recipe = recipe_of(mode="lora")
    needed = judge(recipe, accelerator(1000)).needed_bytes or 0
    outlook = judge(recipe, Accelerator(name="a100", memory_bytes=round(needed / share)))
    assert outlook.action == action
    assert ("would fit" in outlook.reason) is (action != "Allow")


@pytest.mark.parametrize(("share", "action"), [(0.84, "Allow"), (0.86, "Warn"), (0.99, "Warn"), (1.01, "Deny")])
def test_a_prediction_of_an_earlier_run_is_trusted_up_to_85_percent(share: float, action: str) -> None:
    outlook = judge(recipe_of(mode="lora"), accelerator(10 / share), measured=measured(10))
    assert outlook.action == action
    assert outlook.reason.startswith("10.0 GiB needed, predicted by run r9 with the same recipe")


def test_a_prediction_with_smaller_micro_batches_is_taken_in_proportion() -> None:
    recipe = recipe_of(mode="lora", hyperparameters={"batchSize": 8, "microBatchSize": 8})
    halved = msgspec.structs.replace(recipe, model=recipe_of(mode="lora", hyperparameters={"microBatchSize": 4}).model)
    larger, smaller = (estimate(each, parameters=SEVEN, accelerator=accelerator(80)).total for each in (recipe, halved))
    outlook = judge(recipe, accelerator(80), measured=measured(10, micro_batch_size=4))
    assert outlook.needed_bytes == pytest.approx(10 * GIB * larger / smaller)


def test_a_prediction_from_the_processor_says_only_how_large_the_model_is_elsewhere() -> None:
    unknown = recipe_of(architecture={"weights": "/models/mine"}, mode="lora")
    outlook = judge(unknown, accelerator(80), measured=measured(30, is_cpu=True))
    assert "estimated from 7B parameters" in outlook.reason
    assert outlook.action == "Allow"


def test_what_nobody_can_know_is_warned_of() -> None:
    outlook = judge(recipe_of(architecture={"weights": "/models/mine"}), accelerator(80))
    assert (outlook.action, outlook.needed_bytes) == ("Warn", None)
    assert "'/models/mine' takes is not known before a machine has opened it" in outlook.reason
    outlook = judge(recipe_of(), accelerator(None))
    assert outlook.action == "Warn"
    assert "how much memory a100 has could not be found out there" in outlook.reason


def test_four_bits_are_recommended_where_an_adapter_alone_does_not_fit() -> None:
    reason = judge(recipe_of(), accelerator(14)).reason
    assert "training.mode lora and quantization.enabled true and microBatchSize 1 would fit" in reason
    quantized = recipe_of(mode="lora", quantization={"enabled": True}, hyperparameters={"microBatchSize": 1})
    assert judge(quantized, accelerator(14)).action == "Allow"
    assert "quantization" not in judge(quantized, accelerator(4)).reason
