"""Stored features of a frozen vision encoder: equal steps, shared by runs, used where faster."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import runyard.trainer.steps.batching as batching_module
import runyard.trainer.train as train_module
from runyard.trainer.data.encode import Encoder, InMemoryEncodings, Layout
from runyard.trainer.data.packing import get_position_function, pack, use_packed_attention
from runyard.trainer.families import PARTS
from runyard.trainer.main import train_attempt
from runyard.trainer.models.model import LoadedModel, freeze_parts, load_model
from runyard.trainer.steps.features import FeatureEncoder, FeaturesNotReusable, FrozenTower
from runyard.trainer.steps.features_on_use import FeaturesOnUse
from runyard.trainer.steps.losses import TokenLosses
from tests.support.slow import mark_slow
from tests.trainer.test_cache import BLOCKS, assign_version, images
from tests.trainer.test_packing import loss_and_gradients, samples

# These assemble images from tiles after the projector, or their projector is a part of the encoder.
WITH_PROJECTOR_ONLY = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava_next", "llava_onevision")


def tower_of(model: LoadedModel) -> tuple[FrozenTower, TokenLosses]:
    cpu = torch.device("cpu")
    losses = TokenLosses(model.module, precision="float32", device=cpu, label_smoothing=0.0)
    return FrozenTower(model.module, model.parts, losses, cpu), losses


FROZEN = {"whole": ("vision", "projector"), "tower": ("vision",)}
FAMILIES = [name for name in PARTS if name != "florence2"]  # which takes pixels only


def is_quick(case: tuple[str, str]) -> bool:
    """Take each family with one of both by default, in turn."""
    return list(FROZEN)[FAMILIES.index(case[0]) % 2] == case[1]


@pytest.mark.parametrize(
    ("model_type", "reach"), mark_slow(itertools.product(FAMILIES, FROZEN), unless=is_quick)
)
def test_a_step_with_stored_features_is_the_step_with_pixels(
    model_type: str, reach: str, miniature: Callable[[str], Path]
) -> None:
    frozen = FROZEN[reach]
    model = load_model(miniature(model_type), dtype=torch.float32)
    freeze_parts(model, frozen)
    module = model.module.train()
    encoder = Encoder(model.processor, model.parts, system_prompt="", task="vqa")
    layout = Layout(pad_id=0, answer_token_type=model.parts.answer_token_type)
    tower, losses = tower_of(model)
    whole = InMemoryEncodings([encoder.encode(sample) for sample in samples()], layout)
    try:
        tower.check(encoder.encode(samples()[0]).images)
    except FeaturesNotReusable:
        assert frozen == ("vision",)
        assert model_type in WITH_PROJECTOR_ONLY
        return
    losses.expand_features = tower.expand
    features = FeatureEncoder(encoder, tower)
    kept = InMemoryEncodings([features.encode(sample) for sample in samples()], layout)

    expected, gradients = loss_and_gradients(losses, module, whole.make_batch([2, 0, 3]))
    batch = kept.make_batch([2, 0, 3])
    assert not any("pixel" in name for name in batch.inputs)
    loss, found = loss_and_gradients(losses, module, batch)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name

    module.eval()
    first_tokens = [
        module.generate(
            **losses.replace_features(encodings.make_prompts([2, 0, 3])),
            max_new_tokens=2,
            do_sample=False,
        )
        for encodings in (whole, kept)
    ]
    assert torch.equal(*first_tokens)
    module.train()

    if model.parts.packing_obstacle is None:
        use_packed_attention(module)
        packed, _ = loss_and_gradients(
            losses, module, pack(batch, get_position_function(module.model))
        )
        assert packed == pytest.approx(expected, rel=1e-6)


def make_blocks(folder: Path, **compute: Any) -> dict[str, dict[str, Any]]:
    return BLOCKS | {
        "vi-model": {
            "architecture": {"weights": str(folder)},
            "training": {"mode": "full", "freeze": ["vision", "projector"]},
            "compute": compute,
            "hyperparameters": {"epochs": 3, "batchSize": 8, "learningRate": 0.01},
            "validation": {"maxSamples": 2},
            "evaluation": {"max_new_tokens": 2},
        }
    }


def test_runs_share_features_and_learn_what_they_would_learn_from_pixels(
    miniature: Callable[[str], Path], make_attempt: Any, make_version: Any, png: Any, events_of: Any
) -> None:
    version, weights = make_version(images(png, range(30))), miniature("llava")
    losses: dict[str, list[float]] = {}
    built: dict[str, set[Path]] = {}
    for run, kept in (("pixels", False), ("features", True), ("again", True)):
        folder = assign_version(
            make_attempt(make_blocks(weights, featureCache=kept), run=run, cache_bytes=1 << 30),
            version,
        )
        assert train_attempt(folder) == 0
        losses[run] = [event["values"]["loss"] for event in events_of(folder, "step")]
        built[run] = set((version.parents[2] / "cache").glob("*/*/*"))
        (plan,) = (event["plan"] for event in events_of(folder, "plan"))
        assert plan["featureCache"] == {"value": kept, "reason": "flow"}
    assert len(losses["pixels"]) >= 6
    assert losses["features"] == pytest.approx(losses["pixels"], rel=1e-4)
    assert losses["again"] == losses["features"]
    assert built["pixels"] < built["features"] == built["again"]


def test_slow_features_are_kept_without_a_measurement(
    miniature: Callable[[str], Path],
    make_attempt: Any,
    make_version: Any,
    png: Any,
    events_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None but those of held-out samples and of the longest one are computed before the first
    step, and each only once: the check's own are kept.
    """
    compute, computed = FrozenTower.compute_features, []

    def count(tower: Any, pixels: Any) -> Any:
        computed.append(1)
        return compute(tower, pixels)

    before: list[int] = []
    run_step = train_module.TrainLoop.run_step

    def note_and_run(loop: Any) -> None:
        before.append(len(computed))
        run_step(loop)

    monkeypatch.setattr(FrozenTower, "compute_features", count)
    monkeypatch.setattr(train_module.TrainLoop, "run_step", note_and_run)
    monkeypatch.setattr(batching_module, "SLOW_SAMPLE_S", 0.0)
    version, blocks = make_version(images(png, range(30))), make_blocks(miniature("llava"))
    folder = assign_version(make_attempt(blocks, cache_bytes=1 << 30), version)
    assert train_attempt(folder) == 0
    (plan,) = (event["plan"] for event in events_of(folder, "plan"))
    assert plan["featureCache"]["value"] is True
    assert re.search("; one sample takes 0.. s .measured.$", plan["featureCache"]["reason"])
    samples, per_epoch = plan["trainingSamples"]["value"], plan["stepsPerEpoch"]["value"]
    held_out = plan["validationSamples"]["value"]
    assert before[0] <= held_out  # the estimate of memory uses those that the check computed
    assert before[per_epoch] == before[-1] == len(computed) == samples - 1 + held_out > samples
    # Computed again, or read from the cache, they give the same bits.
    resume, ends = folder / "checkpoints" / "epoch-1", [events_of(folder, "step")[per_epoch:]]
    for run, cache_bytes in (("computed", 0), ("read", 1 << 30)):
        again = make_attempt(blocks, run=run, resume=resume, cache_bytes=cache_bytes)
        assert train_attempt(assign_version(again, version)) == 0
        ends.append(events_of(again, "step"))
    assert len({str([step["values"]["loss"] for step in steps]) for steps in ends}) == 1


def test_features_that_the_disk_refuses_are_computed_again(
    miniature: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(miniature("llava"), dtype=torch.float32)
    freeze_parts(loaded, ["vision", "projector"])
    tower, _ = tower_of(loaded)
    encoder = Encoder(loaded.processor, loaded.parts, system_prompt="", task="vqa")
    some = samples()
    encoded = InMemoryEncodings([encoder.encode(sample) for sample in some], Layout(0))
    features = FeaturesOnUse(
        FeatureEncoder(encoder, tower), encoded, some, Layout(0), tmp_path, share=None
    )
    before = features.make_batch([2, 0]).inputs["features"]
    assert torch.equal(features.make_batch([2, 0]).inputs["features"], before)
    kept_bytes = features.size_bytes

    def refuse(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", refuse)
    for _ in range(2):
        batch = features.make_batch([2, 1, 0]).inputs["features"]
        assert torch.equal(batch.chunk(3)[0], before.chunk(2)[0])
        assert torch.equal(batch.chunk(3)[2], before.chunk(2)[1])
    assert features.size_bytes == kept_bytes > 0
    assert not list(tmp_path.iterdir())


def test_auto_measures_once_and_a_resumed_run_makes_the_same_choice(
    miniature: Callable[[str], Path], make_attempt: Any, make_version: Any, png: Any, events_of: Any
) -> None:
    version, weights = make_version(images(png, range(30))), miniature("llava")
    first = assign_version(
        make_attempt(make_blocks(weights), run="first", cache_bytes=1 << 30), version
    )
    assert train_attempt(first) == 0
    (plan,) = (event["plan"] for event in events_of(first, "plan"))
    assert "times as fast (measured)" in plan["featureCache"]["reason"]
    checkpoint = first / "checkpoints" / "epoch-2"
    state = json.loads((checkpoint / "training_state" / "state.json").read_text())
    assert state["progress"]["choices"]["featureCache"] is plan["featureCache"]["value"]

    second = assign_version(
        make_attempt(make_blocks(weights), run="second", resume=checkpoint, cache_bytes=1 << 30),
        version,
    )
    assert train_attempt(second) == 0
    (again,) = (event["plan"] for event in events_of(second, "plan"))
    assert again["featureCache"]["value"] == plan["featureCache"]["value"]
    assert again["featureCache"]["reason"] == "as measured when this training started"
    ends = [events_of(folder, "step")[-1]["values"]["loss"] for folder in (first, second)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"training": {"mode": "full", "freeze": []}}, "the vision encoder is trained"),
        ({"hyperparameters": {"maxSteps": 1, "batchSize": 8}}, "images are seen only 0."),
    ],
)
def test_features_are_not_stored_where_they_change_or_are_not_faster(
    change: dict[str, Any],
    reason: str,
    miniature: Callable[[str], Path],
    make_attempt: Any,
    make_version: Any,
    png: Any,
    events_of: Any,
) -> None:
    asked = make_blocks(miniature("llava"))
    folder = assign_version(
        make_attempt(asked | {"vi-model": asked["vi-model"] | change}, run="run"),
        make_version(images(png, range(30))),
    )
    assert train_attempt(folder) == 0
    (plan,) = (event["plan"] for event in events_of(folder, "plan"))
    assert plan["featureCache"]["value"] is False
    assert plan["featureCache"]["reason"].startswith(reason)


def test_requested_features_that_cannot_be_stored_are_refused(
    miniature: Callable[[str], Path], make_attempt: Any, make_version: Any, png: Any
) -> None:
    asked = make_blocks(miniature("llava"), featureCache=True)
    asked["vi-model"]["training"] = {"mode": "full", "freeze": []}
    folder = assign_version(make_attempt(asked), make_version(images(png, range(30))))
    assert train_attempt(folder) == 64
    result = json.loads((folder / "result.json").read_text())
    assert (
        "compute.featureCache true is not possible: the vision encoder is trained"
        in result["message"]
    )
