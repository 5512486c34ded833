"""Encodings restore the processor's output exactly, and only answers have labels."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from runyard.trainer.answers import Answer, Grounding
from runyard.trainer.data.datasets import Sample, make_digits
from runyard.trainer.data.encode import (
    Encoder,
    InMemoryEncodings,
    Layout,
    epoch_batches,
)
from runyard.trainer.data.pixels import concatenate_padded
from runyard.trainer.families import get_family_parts
from runyard.trainer.models.model import load_processor
from runyard.trainer.models.tiny import SHAPES, make_processor


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(make_digits(seed=7, validation_fraction=0.2).train[:12])


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_processor(SHAPES["vqa"], ["Look."], pixel_mean=0.3, pixel_std=0.3)


@pytest.fixture(scope="module")
def data(samples: list[Sample], processor: Any) -> InMemoryEncodings:
    encoder = Encoder(processor, get_family_parts("idefics3"), system_prompt="Look.", task="vqa")
    return InMemoryEncodings([encoder.encode(sample) for sample in samples], Layout(pad_id=0))


def test_pixels_and_prompts_are_the_processors_own(
    data: InMemoryEncodings, samples: list[Sample], processor: Any
) -> None:
    batch = data.make_batch([3, 4])
    for row, sample in enumerate(samples[3:5]):
        messages = [
            {"role": "system", "content": [{"type": "text", "text": "Look."}]},
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": sample.question}],
            },
        ]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        made = processor(images=[sample.image], text=[text], return_tensors="np")
        prompt = made["input_ids"][0]
        assert np.array_equal(batch.inputs["pixel_values"][row].numpy(), made["pixel_values"][0])
        assert batch.inputs["input_ids"][row, : len(prompt)].tolist() == prompt.tolist()


def test_without_images_the_tokens_are_the_same(
    samples: list[Sample], processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(processor, get_family_parts("idefics3"), system_prompt="Look.", task="vqa")
    asked = [replace(sample, question="Which digit is this?") for sample in samples]
    data = InMemoryEncodings([encoder.encode(sample) for sample in asked], Layout(pad_id=0))
    shown = []
    preprocess = type(processor.image_processor).preprocess

    def preprocess_and_count(*arguments: Any, **named: Any) -> Any:
        shown.append(1)
        return preprocess(*arguments, **named)

    monkeypatch.setattr(type(processor.image_processor), "preprocess", preprocess_and_count)
    bare = InMemoryEncodings(
        [encoder.encode(sample, with_image=False) for sample in asked], Layout(pad_id=0)
    )
    assert not shown  # the tokens of this text and size are known
    assert bare.size_bytes == 0
    assert bare.lengths.tolist() == data.lengths.tolist()
    tokens = [part.make_batch(range(12)) for part in (bare, data)]
    assert torch.equal(tokens[0].inputs["input_ids"], tokens[1].inputs["input_ids"])
    assert torch.equal(tokens[0].labels, tokens[1].labels)


def test_only_the_answer_and_its_end_token_have_labels(
    data: InMemoryEncodings, samples: list[Sample], processor: Any
) -> None:
    batch = data.make_batch([0, 1, 2])
    for row, sample in enumerate(samples[:3]):
        is_of_row = batch.label_positions // batch.inputs["input_ids"].shape[1] == row
        decoded = processor.tokenizer.decode(batch.labels[is_of_row])
        assert decoded == '{"vqa":{"answer":"' + sample.truth.text + '"}}<end_of_utterance>'
    assert (
        batch.inputs["input_ids"].flatten()[batch.label_positions + 1].tolist()
        == batch.labels.tolist()
    )
    assert batch.label_count == 12


def test_a_sample_that_names_its_task_is_answered_in_that_form(
    samples: list[Sample], processor: Any
) -> None:
    encoder = Encoder(
        processor, get_family_parts("idefics3"), system_prompt="Look.", task="phrase-grounding"
    )
    found = replace(samples[0], truth=Answer("seven", (Grounding("seven", ((0, 171, 341, 512),)),)))
    decoded = [
        processor.tokenizer.decode(encoder.encode(sample).answer)
        for sample in (replace(samples[0], task="vqa"), found)
    ]
    assert decoded[0] == '{"vqa":{"answer":"' + samples[0].truth.text + '"}}<end_of_utterance>'
    box = '[{"phrase":"seven","grounding":[[0,171,341,512]]}]'
    assert (
        decoded[1]
        == '{"phrase_grounding":{"sentence":"seven","groundings":' + box + "}}<end_of_utterance>"
    )


def test_without_answers_the_prompt_is_learned_but_not_the_image(
    samples: list[Sample], processor: Any
) -> None:
    encoder = Encoder(processor, get_family_parts("idefics3"), system_prompt="Look.", task="vqa")
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    layout = Layout(pad_id=0, image_token_id=image, answers_only=False)
    batch = InMemoryEncodings([encoder.encode(samples[0])], layout).make_batch([0])
    ids = batch.inputs["input_ids"][0]
    assert batch.labels.tolist() == ids[1:][ids[1:] != image].tolist()
    assert batch.label_positions.tolist() == (ids[1:] != image).nonzero().flatten().tolist()


@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl", "paligemma"])
def test_the_image_processor_alone_matches_the_full_processor(
    model_type: str, miniature: Any, samples: list[Sample]
) -> None:
    processor = load_processor(miniature(model_type))
    whole, short = (
        Encoder(processor, get_family_parts(model_type), system_prompt="", task="vqa")
        for _ in range(2)
    )
    short.encode(samples[0])
    one, two = whole.encode(samples[2]), short.encode(samples[2])
    assert one.prompt.tolist() == two.prompt.tolist()
    assert one.images.keys() == two.images.keys()
    assert all(np.array_equal(one.images[name], two.images[name]) for name in one.images)


def test_arrays_of_different_size_are_padded_with_zeros() -> None:
    joined = concatenate_padded([np.ones((1, 2, 2)), np.ones((2, 1, 3))])
    assert joined.shape == (3, 2, 3)
    assert joined.sum() == 4 + 6


def test_an_epoch_has_every_sample_once_in_an_order_of_seed_and_epoch() -> None:
    lengths = np.arange(100) % 7
    batches = epoch_batches(lengths, batch_size=8, seed=1, epoch=2)
    assert sorted(index for batch in batches for index in batch) == list(range(100))
    assert batches == epoch_batches(lengths, batch_size=8, seed=1, epoch=2)
    assert batches != epoch_batches(lengths, batch_size=8, seed=1, epoch=3)
    assert epoch_batches(lengths, batch_size=60, seed=1, epoch=0, shuffle=False)[1] == list(
        range(60, 100)
    )


def test_batches_have_samples_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 400)
    batches = epoch_batches(lengths, batch_size=8, seed=1, epoch=0)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert lengths.sum() / padded > 0.95


def test_a_freeform_answer_may_contain_anything(samples: list[Sample], processor: Any) -> None:
    encoder = Encoder(processor, get_family_parts("idefics3"), system_prompt="", task="freeform")
    sample = Sample(samples[0].image, "What?", Answer("<image> ANSWER {braces}"))
    ids = encoder.encode(sample).answer
    assert processor.tokenizer.decode(ids).endswith("<end_of_utterance>")
