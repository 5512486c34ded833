"""The tiny preset: its tokenizer, its size, and that two builds are equal."""

from typing import Any

import pytest

from runyard.trainer.answers import Answer, Grounding, write_grounding, write_vqa
from runyard.trainer.models.tiny import SHAPES, make_model, make_processor, make_tokenizer

PROMPT = 'Answer the question about the picture with one JSON object: {"vqa":{"answer":"..."}}'


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer([PROMPT])


@pytest.mark.parametrize(
    "text",
    [
        PROMPT,
        write_vqa("7"),
        write_grounding("seven and two", [Grounding("seven", ((0, 171, 341, 1024),))]),
        "Größe  mit Emoji 🙂 und\nZeilen\t.",
        "",
        " leading and trailing ",
    ],
)
def test_any_text_round_trips(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_prompt_and_scaffolding_are_one_token_each(tokenizer: Any) -> None:
    assert len(tokenizer(PROMPT)["input_ids"]) == 1
    assert len(tokenizer(write_vqa("7"))["input_ids"]) == 3
    boxes = write_grounding("seven", [Grounding("seven", ((0, 171, 341, 1024),))])
    assert len(tokenizer(boxes)["input_ids"]) == 13


def test_two_builds_give_the_same_vocabulary(tokenizer: Any) -> None:
    assert make_tokenizer([PROMPT]).get_vocab() == tokenizer.get_vocab()


def test_the_model_has_about_200_000_parameters_and_every_id_a_row() -> None:
    for shape in SHAPES.values():
        processor = make_processor(shape, [PROMPT], pixel_mean=0.3, pixel_std=0.3)
        model = make_model(shape, processor)
        assert 150_000 < sum(p.numel() for p in model.parameters()) < 250_000
        assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)


def test_unknown_task_words_are_not_special(tokenizer: Any) -> None:
    assert Answer(tokenizer.decode(tokenizer("<image")["input_ids"])).text == "<image"
