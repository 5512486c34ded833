"""Whole conversations in a run: templates, length, evaluation, augmentation, resuming."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from runyard.datasets.records import Conversation, Turn
from runyard.flows.blocks import Augmentation
from runyard.trainer.answers import Answer
from runyard.trainer.data.augment import augment_sample
from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.encode import EncodedSample, Encoder, Layout, collate
from runyard.trainer.data.image_resolution import TokenBudget, TooLong
from runyard.trainer.data.templates import BuiltInTemplate
from runyard.trainer.errors import InvalidData
from runyard.trainer.export.replay import encode_line
from runyard.trainer.families import get_family_parts
from runyard.trainer.main import train_attempt
from tests.trainer import miniatures

ANSWERS = ["ten", "no"]
TURNS = (
    Turn("user", "<image>\nHow many in <image>?"),
    Turn("assistant", "ten"),
    Turn("user", "Sure?"),
    Turn("assistant", "no"),
)
WITHOUT_END = (
    "{% for m in messages %}{{ m['role'] | upper }}:{% for c in m['content'] %}{% if c['type'] == "
    "'image' %}<image>{% else %} {{ c['text'] | trim }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WITHOUT_HISTORY = (
    "{% for m in messages %}{% if m['role'] != 'assistant' or loop.last %}{% for c in "
    "m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>{% endif %}{% endfor %}"
)


def make_encoder(
    model_type: str, *, template: str | None = None, **budget: Any
) -> tuple[Encoder, Any]:
    model, processor = miniatures.make(model_type)
    if template is not None:
        processor.chat_template = template
    config = model.config
    token = getattr(config, "image_token_id", None) or config.image_token_index
    limits = TokenBudget(
        **{"context": None, "image_token_id": token, "model_type": model_type} | budget
    )
    encoder = Encoder(
        processor,
        get_family_parts(model_type),
        system_prompt="",
        task="vqa",
        budget=limits,
        renderer=BuiltInTemplate(processor),
    )
    return encoder, processor


def make_image(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


def make_sample(turns: tuple[Turn, ...] = TURNS, count: int = 2, **size: Any) -> Sample:
    first, *further = [make_image(number, **size) for number in range(max(1, count))]
    return Sample(
        first,
        turns[-2].content,
        Answer(turns[-1].content),
        turns=turns,
        further_images=tuple(further),
        is_text_only=count == 0,
    )


def read_labels(encoded: EncodedSample, processor: Any) -> list[str]:
    """Return the texts that are learned, each without a break."""
    batch = collate([encoded], encoded.images, Layout(pad_id=0))
    positions = batch.label_positions.numpy()
    breaks = np.flatnonzero(np.diff(positions) > 1) + 1
    return [processor.tokenizer.decode(part) for part in np.split(batch.labels.numpy(), breaks)]


def write(answer: str) -> str:
    return '{"vqa":{"answer":"' + answer + '"}}'


def test_each_answer_is_learned_with_its_end() -> None:
    encoder, processor = make_encoder("llava")
    encoded = encoder.encode(make_sample())
    assert read_labels(encoded, processor) == [f"{write(text)}<|im_end|>" for text in ANSWERS]
    text = processor.tokenizer.decode(encoded.prompt)
    assert text.count("<image>") == 8
    assert text.endswith(
        f"{write('ten')}<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_only_the_last_answer_ends_where_the_template_writes_no_end() -> None:
    encoder, processor = make_encoder("llava", template=WITHOUT_END)
    encoded = encoder.encode(make_sample())
    assert read_labels(encoded, processor) == [write("ten"), f"{write('no')}<|im_end|>"]
    assert processor.tokenizer.decode(encoded.prompt).endswith(
        f"ASSISTANT: {write('ten')} USER: Sure? ASSISTANT:"
    )


def test_a_template_without_earlier_answers_is_refused() -> None:
    encoder, _ = make_encoder("llava", template=WITHOUT_HISTORY)
    with pytest.raises(InvalidData, match="does not write each earlier answer of a conversation"):
        encoder.encode(make_sample())


def test_all_but_images_is_learned_if_the_flow_says_so() -> None:
    encoder, processor = make_encoder("llava")
    encoded = encoder.encode(make_sample())
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    layout = Layout(pad_id=0, image_token_id=token, answers_only=False)
    batch = collate([encoded], encoded.images, layout)
    assert batch.label_count == encoded.length - 1 - 8


@pytest.mark.parametrize("model_type", ["qwen3_vl", "llava_next", "internvl"])
def test_several_images_are_reduced_until_a_conversation_fits(model_type: str) -> None:
    def make(**budget: Any) -> tuple[Encoder, Any]:
        encoder, processor = make_encoder(model_type, **budget)
        if model_type == "qwen3_vl":
            processor.image_processor.size = {"shortest_edge": 256, "longest_edge": 4096}
        elif model_type == "internvl":
            processor.image_processor.max_patches = 6
        else:
            processor.image_processor.image_grid_pinpoints = [[32, 64], [64, 64], [64, 96]]
        return encoder, processor

    sample = make_sample(size=(64, 60))
    full = make()[0].encode(sample)
    encoder, processor = make(context=full.length - 1)
    encoded = encoder.encode(sample)
    assert encoded.is_shrunk and encoded.length < full.length
    assert read_labels(encoded, processor) == [f"{write(text)}<|im_end|>" for text in ANSWERS]
    with pytest.raises(TooLong, match=r"\d+ tokens, \d+ of them for its 2 images"):
        make(context=20)[0].encode(sample)
    with pytest.raises(TooLong, match=r"\d+ tokens, all of them text"):
        make(context=20)[0].encode(make_sample(TURNS[2:], 0))


def test_a_budget_of_tokens_applies_to_each_image() -> None:
    encoder, _ = make_encoder("llava", image_budget=4)
    assert not encoder.encode(make_sample()).is_shrunk
    encoder, _ = make_encoder("llava", image_budget=3)
    with pytest.raises(TooLong, match="for its 2 images"):
        encoder.encode(make_sample())


def test_images_of_a_conversation_are_augmented_alike() -> None:
    sample = make_sample()
    strengths = Augmentation(brightness=0, contrast=0, noise=0, shift=0, zoom=0, mirror=1)
    augmented = augment_sample(sample, strengths, np.random.default_rng(0))
    assert augmented.turns == TURNS
    for image, before in zip(augmented.images, sample.images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(before)[:, ::-1])
    text = make_sample(TURNS[2:], 0)
    assert augment_sample(text, strengths, np.random.default_rng(0)) is text


def make_records(path: Callable[[int], str]) -> dict[str, tuple[bytes, list[Any]]]:
    """Return thirty images, each with a conversation of one of four kinds."""
    images: dict[str, tuple[bytes, list[Any]]] = {}
    for number in range(30):
        held = io.BytesIO()
        make_image(number).save(held, "PNG")
        record = [
            Conversation(turns=[*TURNS[2:], Turn("user", "Why?"), Turn("assistant", "so")]),
            Conversation(turns=list(TURNS), images=[path(number), path((number + 7) % 30)]),
            Conversation(turns=[Turn("user", f"Is {number} odd?"), TURNS[3]], is_text_only=True),
            Conversation(turns=[Turn("system", "Be brief."), *TURNS[2:]]),
        ][number % 4]
        images[path(number)] = held.getvalue(), [record]
    return images


@pytest.fixture
def begin(
    make_attempt: Callable[..., Path], make_version: Callable[..., Path]
) -> Callable[..., Path]:
    """Return a function that makes an attempt of a run over such a dataset."""

    def make(run: str, **options: Any) -> Path:
        model = {
            "hyperparameters": {"epochs": 2, "batchSize": 8},
            "validation": {"maxSamples": 20},
            "checkpoint": {"keep": 9},
            "packing": True,
        }
        dataset = {
            "datasetId": "shelves",
            "datasetVersion": "0" * 16,
            "projectKind": "vqa",
            "augmentation": {},
            "validationFraction": 0.5,
        }
        folder = make_attempt({"vi-dataset": dataset, "vi-model": model}, run=run, **options)
        document = {"folder": str(version), "dataset": "shelves", "version": "0" * 16}
        (folder / "dataset.json").write_text(json.dumps(document))
        return folder

    version = make_version(make_records(lambda number: f"{number:02}.png"))
    return make


def test_a_run_on_conversations_evaluates_and_resumes_bit_for_bit(
    begin: Callable[..., Path],
) -> None:
    whole = begin("whole")
    assert train_attempt(whole) == 0
    resumed = begin("again", attempt=2, resume=whole / "checkpoints" / "epoch-1")
    assert train_attempt(resumed) == 0

    def read_weights(folder: Path) -> dict[str, torch.Tensor]:
        root = folder / "checkpoints" / "epoch-2"
        found: dict[str, torch.Tensor] = load_file(root / "model_full" / "model.safetensors")
        found |= load_file(root / "training_state" / "state.safetensors")
        return found

    one, two = read_weights(whole), read_weights(resumed)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []

    path = whole / "checkpoints" / "epoch-2" / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {len(line["images"]) for line in lines} == {0, 1, 2}
    assert all(line["turns"][-1]["role"] == "user" and line["scores"] for line in lines)


def test_a_stored_prediction_has_the_prompt_of_its_sample() -> None:
    encoder, _ = make_encoder("llava")
    sample = make_sample()
    turns = [{"role": turn.role, "content": turn.content} for turn in TURNS[:-1]]
    line = {"images": ["0", "1"], "turns": turns, "truth": "no", "question": "Sure?"}
    encoded = encode_line(encoder, line, lambda line: make_image(int(line["filename"])))
    assert np.array_equal(encoded.prompt, encoder.encode(sample).prompt)
