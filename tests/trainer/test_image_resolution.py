"""Resolution limits reach the model through the processor.

Samples that are too long are shrunk or left out.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runyard.datasets.records import Interaction, Vqa
from runyard.datasets.splits import is_held_out
from runyard.flows.blocks import Images
from runyard.rundir import read_json
from runyard.trainer.answers import Answer
from runyard.trainer.data import image_resolution
from runyard.trainer.data.cache import hash_settings
from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.encode import AugmentedSamples, Encoder, InMemoryEncodings, Layout
from runyard.trainer.data.image_resolution import (
    AUTO_MAX_PIXELS,
    RESOLUTION_SETTINGS,
    MaxPixels,
    ResolutionLimits,
    TokenBudget,
    TooLong,
    choose_max_pixels,
    get_resolution_settings,
    limit_resolution,
    with_settings,
)
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.families import get_family_parts
from runyard.trainer.main import train_attempt
from tests.support.slow import mark_slow
from tests.trainer import miniatures

MakeVersion = Callable[..., Path]
Png = Callable[..., bytes]
EventsOf = Callable[[Path, str], list[dict[str, Any]]]
FIXED = sorted(miniatures.MINIATURES.keys() - RESOLUTION_SETTINGS.keys())
# Those of the default suite: one for each way in which a processor takes a limit.
QUICK = ("idefics3", "qwen3_vl", "internvl", "llava_next", "gemma4")
SIZE = (200, 120)
# Fewer and more pixels than the defaults of the miniatures below; all other limits depend on
# tokens.
FEWER, MORE = (
    {"gemma4": 5000, "llava_next": 3000, "llava_onevision": 3000},
    {"llava_next": 5000, "llava_onevision": 5000},
)


def some_families(families: Iterable[str]) -> list[Any]:
    return mark_slow(families, unless=QUICK.__contains__)


def opened(model_type: str) -> tuple[Any, Any]:
    """Return a miniature with images of medium size, which can become smaller and larger."""
    model, processor = miniatures.make(model_type)
    images = processor.image_processor
    match model_type:
        case "idefics3" | "smolvlm":
            images.do_image_splitting, images.size = True, {"longest_edge": 96}
        case "qwen2_5_vl" | "qwen3_vl" | "qwen3_5":
            images.size = {"shortest_edge": 256, "longest_edge": 4096}
        case "internvl":
            images.min_patches, images.max_patches = 1, 6
        case "llava_next" | "llava_onevision":
            images.image_grid_pinpoints = [[32, 64], [64, 32], [64, 64], [64, 96]]
            model.config.image_grid_pinpoints = images.image_grid_pinpoints
        case "gemma4":
            images.max_soft_tokens = 140
    return model, processor


def limited(model_type: str, **images: Any) -> tuple[Any, Any]:
    """Return the same with limits of a flow."""
    model, processor = opened(model_type)
    requested = Images(
        **{"min_pixels": "auto", "max_pixels": "auto", "patch_budget": None} | images
    )
    limit_resolution(model, processor, model_type, requested, is_tiny=False)
    return model, processor


def image_token(model: Any) -> int:
    config = model.config
    return int(getattr(config, "image_token_id", None) or config.image_token_index)


def encoder_of(model_type: str, model: Any, processor: Any, **budget: Any) -> Encoder:
    limits = TokenBudget(
        **{"context": None, "image_token_id": image_token(model), "model_type": model_type} | budget
    )
    return Encoder(
        processor, get_family_parts(model_type), system_prompt="Look.", task="vqa", budget=limits
    )


def tokens(model_type: str, model: Any, processor: Any, size: tuple[int, int] = SIZE) -> int:
    made = encoder_of(model_type, model, processor).encode_question(
        Image.new("RGB", size), "Which?"
    )
    return int(np.count_nonzero(made.prompt == image_token(model)))


def sample(answer: str = "seven", size: tuple[int, int] = SIZE) -> Sample:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Sample(Image.fromarray(pixels), "Which?", Answer(answer))


@pytest.mark.parametrize("model_type", some_families(RESOLUTION_SETTINGS))
def test_images_take_fewer_tokens_with_fewer_pixels_and_more_with_more(model_type: str) -> None:
    own = tokens(model_type, *opened(model_type))
    fewer = tokens(model_type, *limited(model_type, max_pixels=FEWER.get(model_type, 2100)))
    budget = tokens(model_type, *limited(model_type, patch_budget=own - 1))
    more = tokens(model_type, *limited(model_type, min_pixels=MORE.get(model_type, 12_000)))
    assert fewer < own
    assert budget < own
    if model_type in MORE:  # these choose from a list, and this image already has the largest
        small = (60, 28)
        more, own = (
            tokens(model_type, *made, small)
            for made in (limited(model_type, min_pixels=MORE[model_type]), opened(model_type))
        )
    assert more > own


@pytest.mark.parametrize("model_type", RESOLUTION_SETTINGS)
def test_auto_limits_large_images_and_says_why(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = FEWER.get(model_type, 2100)
    monkeypatch.setattr(image_resolution, "AUTO_MAX_PIXELS", limit)
    _, processor = opened(model_type)
    chosen = choose_max_pixels(processor, model_type, Images())
    assert chosen.value == limit
    assert chosen.reason.startswith("auto: a photo of 4,000 x 3,000 takes ")
    _, limited_processor = limited(model_type, max_pixels=limit)
    setting = RESOLUTION_SETTINGS[model_type]
    assert setting.get_max_pixels(limited_processor) <= limit < setting.get_max_pixels(processor)
    monkeypatch.setattr(image_resolution, "AUTO_MAX_PIXELS", setting.get_max_pixels(processor))
    assert choose_max_pixels(processor, model_type, Images()).value is None


def test_a_twelve_megapixel_photo_takes_a_tenth_of_the_tokens() -> None:
    import transformers

    _, processor = opened("qwen2_5_vl")
    processor.image_processor = transformers.Qwen2VLImageProcessorPil(
        max_pixels=12_845_056, min_pixels=3136
    )
    setting = RESOLUTION_SETTINGS["qwen2_5_vl"]
    assert setting.count_tokens(processor, 4000, 3000) == 15_301
    chosen = choose_max_pixels(processor, "qwen2_5_vl", Images())
    fitted = setting.fit_limits(processor, ResolutionLimits(max_pixels=chosen.value))
    tokens = setting.count_tokens(with_settings(processor, fitted), 4000, 3000)
    assert 1400 < tokens <= AUTO_MAX_PIXELS // 28**2
    assert f"takes {tokens:,} tokens instead of 15,301" in chosen.reason


def test_an_explicit_limit_replaces_auto_and_a_resumed_run_keeps_its_own() -> None:
    _, processor = opened("qwen3_vl")
    processor.image_processor.size = {"shortest_edge": 256, "longest_edge": 4_000_000}

    def choose(recorded: MaxPixels | None = None, **images: Any) -> int | None:
        return choose_max_pixels(processor, "qwen3_vl", Images(**images), recorded=recorded).value

    assert choose() == AUTO_MAX_PIXELS
    assert choose(max_pixels=3_000_000) == 3_000_000
    assert choose(max_pixels=None) is None
    assert choose(patch_budget=5000) is None
    assert choose(min_pixels=2_000_000) is None
    for value in (None, 900_000):
        assert choose(MaxPixels(value=value, reason="as before")) == value
    assert choose(MaxPixels(value=900_000, reason="flow")) == AUTO_MAX_PIXELS


def test_auto_leaves_processors_that_do_not_split_images_alone() -> None:
    _, processor = opened("smolvlm")
    processor.image_processor.do_image_splitting = False
    processor.image_processor.max_image_size = {"longest_edge": 1536}
    assert choose_max_pixels(processor, "smolvlm", Images()).value is None


@pytest.mark.parametrize("model_type", RESOLUTION_SETTINGS)
def test_counted_tokens_are_those_of_the_processor(model_type: str) -> None:
    model, processor = opened(model_type)
    for size in (SIZE, (60, 60), (50, 140)):
        assert RESOLUTION_SETTINGS[model_type].count_tokens(processor, *size) == tokens(
            model_type, model, processor, size
        )


@pytest.mark.parametrize("model_type", RESOLUTION_SETTINGS)
def test_a_limit_that_changes_nothing_leaves_the_settings_alone(model_type: str) -> None:
    _, before = opened(model_type)
    _, after = limited(model_type, patch_budget=5000)
    assert get_resolution_settings(after, model_type) == get_resolution_settings(before, model_type)


@pytest.mark.parametrize("model_type", RESOLUTION_SETTINGS)
def test_a_limit_that_cannot_be_met_is_refused_with_the_possible_range(model_type: str) -> None:
    with pytest.raises(
        InvalidFlow, match=r"images.maxPixels 10 cannot be met: .* pixels.*; try: another limit"
    ):
        limited(model_type, max_pixels=10)


@pytest.mark.parametrize("model_type", FIXED)
def test_families_with_one_size_refuse_every_limit(model_type: str) -> None:
    for name, value in (("max_pixels", 500), ("min_pixels", 500), ("patch_budget", 5)):
        with pytest.raises(
            InvalidFlow,
            match=rf"images.\w+ {value} cannot be set: family '{model_type}' takes images of",
        ):
            limited(model_type, **{name: value})


def test_a_processor_that_does_not_split_images_is_refused() -> None:
    model, processor = miniatures.make("smolvlm")
    with pytest.raises(InvalidFlow, match="does not split images, so each has 32 x 32 pixels"):
        limit_resolution(model, processor, "smolvlm", Images(max_pixels=5000), is_tiny=False)


def test_limits_that_leave_no_step_between_them_are_refused() -> None:
    with pytest.raises(
        InvalidFlow, match=r"images.minPixels 1,100 with images.maxPixels 4,000 cannot be met"
    ):
        # One tile has 1,024 pixels, four have 4,096.
        limited("idefics3", min_pixels=1100, max_pixels=4000)


@pytest.mark.parametrize("model_type", some_families(RESOLUTION_SETTINGS))
def test_a_sample_that_is_too_long_gets_the_largest_image_that_fits(model_type: str) -> None:
    model, processor = opened(model_type)
    free = encoder_of(model_type, model, processor).encode(sample())
    own = int(np.count_nonzero(free.prompt == image_token(model)))
    shrunk = encoder_of(model_type, model, processor, context=free.length - 1).encode(sample())
    image_tokens = int(np.count_nonzero(shrunk.prompt == image_token(model)))
    assert (free.is_shrunk, shrunk.is_shrunk) == (False, True)
    assert 0 < image_tokens < own
    assert shrunk.length <= free.length - 1
    assert shrunk.answer.tolist() == free.answer.tolist()
    words = [row.prompt[row.prompt != image_token(model)].tolist() for row in (shrunk, free)]
    if "row" not in processor.tokenizer.decode(words[1]):  # some families name each tile
        assert words[0] == words[1]  # no text is lost
    # In one batch with others, the model's logits are the same as alone.
    data = InMemoryEncodings([free, shrunk], Layout(pad_id=0, image_token_id=image_token(model)))
    model.eval()
    with torch.no_grad():
        together = model(**data.make_batch([0, 1]).inputs).logits[1, : shrunk.length]
        alone = model(
            **InMemoryEncodings([shrunk], Layout(pad_id=0)).make_batch([0]).inputs
        ).logits[0]
    assert torch.allclose(together, alone, atol=1e-4)


def test_an_elongated_image_stays_within_the_budget_too() -> None:
    """Its processor makes no side shorter than one token, so a limit on pixels is not enough."""
    model, processor = limited("qwen3_vl", patch_budget=6)
    strip = sample(size=(900, 45))
    assert tokens("qwen3_vl", model, processor, (900, 45)) > 6
    made = encoder_of("qwen3_vl", model, processor, image_budget=6).encode(strip)
    assert made.is_shrunk
    assert 0 < np.count_nonzero(made.prompt == image_token(model)) <= 6


@pytest.mark.parametrize("model_type", ["qwen3_vl", "internvl", "llava"])
def test_a_sample_whose_text_alone_is_too_long_is_refused_with_its_length(model_type: str) -> None:
    model, processor = opened(model_type)
    free = encoder_of(model_type, model, processor).encode(sample())
    with pytest.raises(TooLong, match=rf"^{free.length} tokens, \d+ of them for the image$"):
        encoder_of(model_type, model, processor, context=10).encode(sample())


def test_in_encoder_decoder_models_prompt_and_answer_have_separate_contexts() -> None:
    model, processor = opened("florence2")
    free = encoder_of("florence2", model, processor).encode(sample())
    context = max(len(free.prompt), len(free.answer))
    assert context < free.length
    encoder_of("florence2", model, processor, context=context, is_encoder_decoder=True).encode(
        sample()
    )
    with pytest.raises(TooLong):
        encoder_of(
            "florence2", model, processor, context=context - 1, is_encoder_decoder=True
        ).encode(sample())


def test_every_limit_on_images_or_samples_is_part_of_the_shard_name() -> None:
    plain = encoder_of("qwen3_vl", *opened("qwen3_vl"))
    others = [
        encoder_of("qwen3_vl", *limited("qwen3_vl", max_pixels=2100)),
        encoder_of("qwen3_vl", *limited("qwen3_vl", min_pixels=2100)),
        encoder_of("qwen3_vl", *limited("qwen3_vl", patch_budget=7)),
        encoder_of("qwen3_vl", *opened("qwen3_vl"), context=100),
    ]
    assert len({hash_settings(encoder) for encoder in (plain, *others)}) == 5
    assert hash_settings(plain) == hash_settings(encoder_of("qwen3_vl", *opened("qwen3_vl")))


def test_an_augmented_sample_that_does_not_fit_is_used_unchanged() -> None:
    model, processor = opened("llava")
    encoder = encoder_of("llava", model, processor)
    context = encoder.encode(sample()).length
    encoder = encoder_of("llava", model, processor, context=context)

    def augment(given: Sample, epoch: int, index: int) -> Sample:
        return (
            replace(given, truth=Answer("a longer one"))
            if epoch
            else replace(given, truth=Answer("a"))
        )

    augmented = AugmentedSamples([sample()], encoder, Layout(pad_id=0), augment)
    plain = encoder.encode(sample()).answer.tolist()
    assert augmented.make_batch([0], 1).labels.tolist() == plain
    assert augmented.make_batch([0], 0).labels.tolist() != plain


# Whole attempts.

TRAINED = {
    "idefics3": {"maxPixels": 4200},
    "smolvlm": {"patchBudget": 20},
    "qwen2_5_vl": {"minPixels": 2100},
    "qwen3_vl": {"patchBudget": 3},
    "qwen3_5": {"maxPixels": 800},
    "internvl": {"minPixels": 2000, "maxPixels": 3100},
    "llava_next": {"maxPixels": 3000},
    "llava_onevision": {"minPixels": 4000},
    "gemma4": {"maxPixels": 5000},
}


def saved(model_type: str, folder: Path) -> Path:
    model, processor = opened(model_type)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_blocks(weights: Path, images: dict[str, int], mode: str) -> dict[str, dict[str, Any]]:
    return {
        "vi-dataset": {"maxSamples": 6},
        "vi-model": {
            "architecture": {"name": "auto", "weights": str(weights)},
            "training": {"mode": mode},
            "images": images,
            "packing": False,
            "compute": {"featureCache": False},
            "hyperparameters": {"maxSteps": 2, "batchSize": 4, "microBatchSize": 2},
            "validation": {"maxSamples": 1},
            "checkpoint": {"every": {"steps": 1}},
            "evaluation": {"max_new_tokens": 2},
        },
    }


def plan_of(folder: Path, events_of: EventsOf) -> dict[str, Any]:
    return {name: item["value"] for name, item in events_of(folder, "plan")[-1]["plan"].items()}


def test_every_family_with_variable_resolution_is_tested_below() -> None:
    assert TRAINED.keys() == RESOLUTION_SETTINGS.keys()


@pytest.mark.parametrize("model_type", some_families(TRAINED))
def test_a_checkpoint_processes_images_in_plain_transformers_as_in_training(
    model_type: str, make_attempt: Any, events_of: EventsOf, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoProcessor

    mode = "lora" if model_type in ("llava_next", "qwen3_vl") else "full"
    weights = saved(model_type, tmp_path / "models" / "weights")
    folder = make_attempt(make_blocks(weights, TRAINED[model_type], mode))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    names = {"minPixels": "min_pixels", "maxPixels": "max_pixels", "patchBudget": "patch_budget"}
    model, processor = limited(
        model_type, **{names[name]: value for name, value in TRAINED[model_type].items()}
    )
    plan = plan_of(folder, events_of)
    assert plan["pictureSettings"] == get_resolution_settings(processor, model_type)
    assert plan["familyPictureSettings"] == get_resolution_settings(
        opened(model_type)[1], model_type
    )
    assert (plan["contextTokens"], plan["refusedSamples"]) == (512, 0)

    full = folder / "checkpoints" / "epoch-1" / "model_full"
    plain = AutoProcessor.from_pretrained(full, backend="pil")
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Look."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]},
    ]
    text = plain.apply_chat_template(messages, add_generation_prompt=True)
    made = plain(images=[sample().image], text=[text], return_tensors="np")
    ours = encoder_of(model_type, model, processor).encode(sample())
    assert np.asarray(made["input_ids"])[0].tolist() == ours.prompt.tolist()
    assert np.array_equal(made["pixel_values"], ours.images["pixel_values"])
    config = AutoConfig.from_pretrained(full)
    assert getattr(config, "image_grid_pinpoints", None) == getattr(
        model.config, "image_grid_pinpoints", None
    )


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_resumed_run_has_the_same_images_and_the_same_plan(
    mode: str, make_attempt: Any, events_of: EventsOf, tmp_path: Path
) -> None:
    weights = saved("qwen3_vl", tmp_path / "models" / "weights")
    requested = make_blocks(weights, {"patchBudget": 3}, mode)
    whole = make_attempt(requested, run="whole")
    assert train_attempt(whole) == 0
    cut = make_attempt(requested, run="cut", resume=whole / "checkpoints" / "step-1")
    assert train_attempt(cut) == 0
    one, two = plan_of(whole, events_of), plan_of(cut, events_of)
    plan_fields = ("pictureSettings", "familyPictureSettings", "shrunkSamples", "refusedSamples")
    assert [one[name] for name in plan_fields] == [two[name] for name in plan_fields]
    assert one["shrunkSamples"] == 12
    assert (
        events_of(whole, "step")[1]["values"]["loss"] == events_of(cut, "step")[0]["values"]["loss"]
    )


def test_a_resumed_run_keeps_the_limit_that_auto_set(
    make_attempt: Any, events_of: EventsOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = saved("qwen3_vl", tmp_path / "models" / "weights")
    requested = make_blocks(weights, {}, "lora")
    monkeypatch.setattr(image_resolution, "AUTO_MAX_PIXELS", 2100)
    whole = make_attempt(requested, run="whole")
    assert train_attempt(whole) == 0
    monkeypatch.setattr(image_resolution, "AUTO_MAX_PIXELS", 800)
    cut = make_attempt(requested, run="cut", resume=whole / "checkpoints" / "step-1")
    assert train_attempt(cut) == 0
    one, two = (events_of(folder, "plan")[-1]["plan"] for folder in (whole, cut))
    assert one["maxPixels"]["value"] == 2100
    names = ("maxPixels", "pictureSettings", "familyPictureSettings", "shrunkSamples")
    assert [one[name] for name in names] == [two[name] for name in names]
    assert (
        events_of(whole, "step")[1]["values"]["loss"] == events_of(cut, "step")[0]["values"]["loss"]
    )


@pytest.mark.parametrize("images", [{"maxPixels": 1000}, {"minPixels": 9000}, {"patchBudget": 2}])
def test_the_tiny_model_refuses_limits(images: dict[str, int], make_attempt: Any) -> None:
    folder = make_attempt({"vi-dataset": {"maxSamples": 4}, "vi-model": {"images": images}})
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json") or {}
    ((name, value),) = images.items()
    assert result["reason"] == "InvalidFlow"
    assert result["message"].startswith(
        f"images.{name} {value:,} cannot be set: the tiny model takes images of one "
    )


def asked(answer: str) -> list[Vqa]:
    return [Vqa(interactions=[Interaction(order=1, question="Which?", answer=answer)])]


def uploaded(
    make_attempt: Any,
    make_version: MakeVersion,
    png: Png,
    run: str,
    *,
    too_long: set[int],
    cached: bool = True,
) -> Path:
    """Return an attempt of the tiny model on forty images; some answers exceed its context."""
    images = {
        f"{n:03}.png": (png(n), asked("x " * 1500 if n in too_long else str(n % 5)))
        for n in range(40)
    }
    version = make_version(images)
    blocks = {
        "vi-dataset": {"datasetId": "shelves", "augmentation": {}, "validationFraction": 0.2},
        "vi-model": {
            "hyperparameters": {"maxSteps": 1, "batchSize": 8},
            "validation": {"maxSamples": 2},
        },
    }
    folder: Path = make_attempt(blocks, run=run, cache_bytes=1 << 30 if cached else 0)
    document = {"folder": str(version), "dataset": "shelves", "version": "0" * 16}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def test_samples_that_are_too_long_are_named_counted_and_left_out(
    make_attempt: Any, make_version: MakeVersion, png: Png, events_of: EventsOf
) -> None:
    plans = []
    for run, cached in (("first", True), ("from files", True), ("without cache", False)):
        folder = uploaded(make_attempt, make_version, png, run, too_long={3, 17}, cached=cached)
        assert train_attempt(folder) == 0, (folder / "result.json").read_text()
        (message,) = (event["message"] for event in events_of(folder, "warning"))
        assert message.startswith(
            "2 of 40 samples of dataset 'shelves' do not fit into the model's context of 2,048 "
            "tokens and are left out: '003.png' ("
        )
        assert "; '017.png' (" in message
        assert message.endswith(" tokens, 4 of them for the image)")
        plans.append(plan_of(folder, events_of))
    for plan in plans:
        assert (plan["refusedSamples"], plan["shrunkSamples"], plan["brokenPictures"]) == (2, 0, 0)
        assert plan["trainingPictures"] + plan["validationPictures"] == 38


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_part_of_the_data_that_is_all_too_long_ends_the_run(
    part: str, make_attempt: Any, make_version: MakeVersion, png: Png
) -> None:
    held_out = {
        n for n in range(40) if is_held_out(hashlib.sha256(png(n)).digest(), seed=7, fraction=0.2)
    }
    too_long = held_out if part == "validation" else set(range(40)) - held_out
    folder = uploaded(make_attempt, make_version, png, "run", too_long=too_long)
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json") or {}
    assert result["reason"] == "InvalidData"
    assert result["message"].startswith(
        f"no {part} sample fits: {len(too_long)} of 40 samples of dataset 'shelves' do not fit "
    )
    assert "context of 2,048 tokens: '" in result["message"]
    assert result["message"].endswith("or a model with a longer context")


def test_samples_of_built_in_data_are_left_out_as_well(
    make_attempt: Any, events_of: EventsOf, tmp_path: Path
) -> None:
    """A context that is too short for any question leaves no samples, which is reported."""
    model, processor = opened("llava")
    model.config.text_config.max_position_embeddings = 20
    model.save_pretrained(tmp_path / "models" / "weights")
    processor.save_pretrained(tmp_path / "models" / "weights")
    folder = make_attempt(make_blocks(tmp_path / "models" / "weights", {}, "full"))
    assert train_attempt(folder) == 64
    message = (read_json(folder / "result.json") or {})["message"]
    assert message.startswith(
        "no training sample fits: 12 of 12 samples of dataset 'digits' do not fit into the model's "
    )


def test_images_are_shrunk_where_that_makes_samples_fit(
    make_attempt: Any, events_of: EventsOf, tmp_path: Path
) -> None:
    model, processor = opened("internvl")
    processor.image_processor.min_patches = 6
    model.config.text_config.max_position_embeddings = 130
    model.save_pretrained(tmp_path / "models" / "weights")
    processor.save_pretrained(tmp_path / "models" / "weights")
    folder = make_attempt(make_blocks(tmp_path / "models" / "weights", {}, "full"))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    plan = plan_of(folder, events_of)
    assert plan["contextTokens"] == 130
    assert (plan["shrunkSamples"], plan["refusedSamples"]) == (12, 0)
