"""The forms of answers: what training writes, predictions and evaluations read."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

from runyard.flows.families import FAMILIES
from runyard.trainer.answer_forms import (
    BOX_NOTATIONS,
    AnswerForm,
    FlorenceBoxes,
    JsonBoxes,
    PaliGemmaBoxes,
    make_form,
)
from runyard.trainer.answers import (
    BOX_SCALE,
    FREEFORM,
    PHRASE_GROUNDING,
    VQA,
    Answer,
    Grounding,
    group_by_phrase,
)
from runyard.trainer.data.datasets import BUILT_IN, Dataset, Sample, load_dataset
from runyard.trainer.data.encode import Encoder
from runyard.trainer.data.image_resolution import TokenBudget
from runyard.trainer.evaluation.metrics import compute_metrics
from runyard.trainer.export.export import export_model
from runyard.trainer.export.predict import Predictor
from runyard.trainer.families import PARTS
from runyard.trainer.main import train_attempt
from tests.support.slow import mark_slow
from tests.trainer import miniatures

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
PIXELS = (640, 448)
PHRASES = some.sampled_from(["seven", "a red car", 'the "old" dog; and a cat', "größe 1", "日本"])
BOXES = some.tuples(*[some.integers(0, BOX_SCALE)] * 4).map(
    lambda at: (min(at[0], at[2]), min(at[1], at[3]), max(at[0], at[2]), max(at[1], at[3]))
)
GROUNDINGS = some.lists(
    some.builds(Grounding, PHRASES, some.lists(BOXES, max_size=3).map(tuple)), max_size=4
).map(tuple)
# How far a box may be off after it was written and read, in 1,024ths: horizontally, vertically.
TOLERANCES = {
    "qwen2_5_vl": (0.5 * BOX_SCALE / PIXELS[0] + 0.5, 0.5 * BOX_SCALE / PIXELS[1] + 0.5),
    "qwen3_vl": (1, 1),
    "paligemma": (1, 1),
    "florence2": (1, 1),
}
TWO = (
    Grounding("dog", ((512, 256, 1024, 512), (0, 0, 128, 128))),
    Grounding("cat", ((256, 0, 512, 768),)),
)


def native(model_type: str) -> AnswerForm:
    return AnswerForm("native", BOX_NOTATIONS[model_type], patch_size=14)


def is_near(
    found: tuple[Grounding, ...], truth: tuple[Grounding, ...], tolerance: tuple[float, float]
) -> bool:
    """Return whether the same phrases have the same boxes, within a tolerance."""
    given, true = ({k: v for k, v in group_by_phrase(each).items() if v} for each in (found, truth))
    return given.keys() == true.keys() and all(
        len(given[phrase]) == len(boxes)
        and all(
            abs(a - b) <= tolerance[axis % 2]
            for box, other in zip(given[phrase], boxes, strict=True)
            for axis, (a, b) in enumerate(zip(box, other, strict=True))
        )
        for phrase, boxes in true.items()
    )


@pytest.mark.parametrize("model_type", BOX_NOTATIONS)
@given(GROUNDINGS)
@settings(max_examples=60, deadline=None)
def test_boxes_are_read_as_they_were_written(
    model_type: str, groundings: tuple[Grounding, ...]
) -> None:
    form, truth = native(model_type), Answer("a sentence", groundings)
    written = form.write(PHRASE_GROUNDING, truth, PIXELS)
    read = form.read(PHRASE_GROUNDING, written, PIXELS)
    assert read.is_well_formed
    assert form.explain_problem(PHRASE_GROUNDING, written) is None
    assert is_near(read.groundings, groundings, TOLERANCES[model_type])


@pytest.mark.parametrize("form", [AnswerForm("text"), *map(native, BOX_NOTATIONS)])
@pytest.mark.parametrize("task", [VQA, FREEFORM])
def test_plain_words_are_the_answer_alone(form: AnswerForm, task: str) -> None:
    assert form.write(task, Answer("a red car")) == "a red car"
    assert form.read(task, " a red car\n") == Answer("a red car", raw=" a red car\n")
    assert form.explain_problem(task, "anything") is None
    right, wrong = form.read(task, "a red car"), form.read(task, '{"vqa":{"answer":"a red car"}}')
    assert compute_metrics(VQA, [right, wrong], [Answer("a red car")] * 2).values[
        "exactMatch"
    ] == pytest.approx(0.5)


def test_each_family_writes_boxes_as_in_its_pretraining() -> None:
    def write(model_type: str) -> str:
        return native(model_type).write(PHRASE_GROUNDING, Answer("", TWO), PIXELS)

    assert write("qwen2_5_vl") == (
        "```json\n[\n"
        '\t{"bbox_2d": [320, 112, 640, 224], "label": "dog"},\n'
        '\t{"bbox_2d": [0, 0, 80, 56], "label": "dog"},\n'
        '\t{"bbox_2d": [160, 0, 320, 336], "label": "cat"}\n'
        "]\n```"
    )
    assert '{"bbox_2d": [500, 250, 1000, 500], "label": "dog"}' in write("qwen3_vl")
    assert write("paligemma") == (
        "<loc0256><loc0512><loc0512><loc1023> dog ; <loc0000><loc0000><loc0128><loc0128> dog ; "
        "<loc0000><loc0256><loc0768><loc0512> cat"
    )
    assert write("florence2") == (
        "dog<loc_500><loc_250><loc_999><loc_500><loc_0><loc_0><loc_125><loc_125>"
        "cat<loc_250><loc_0><loc_500><loc_750>"
    )


def test_the_own_post_processing_of_florence_reads_the_same_boxes() -> None:
    from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

    raw = native("florence2").write(PHRASE_GROUNDING, Answer("", TWO))
    reader = Florence2PostProcessor.__new__(Florence2PostProcessor)
    reader.quantize_bins, reader.banned_grounding_tokens = (1000, 1000), set()
    theirs = reader.parse_phrase_grounding_from_text_and_spans(raw, (BOX_SCALE, BOX_SCALE))
    ours = native("florence2").read(PHRASE_GROUNDING, raw).groundings
    assert [item["cat_name"] for item in theirs] == [item.phrase for item in ours]
    for item, other in zip(theirs, ours, strict=True):
        assert [tuple(box) for box in item["bbox"]] == list(other.boxes)


@pytest.mark.parametrize(
    ("model_type", "raw", "phrases", "problem"),
    [
        ("qwen3_vl", '{"bbox_2d": [1, 2, 3, 4], "label": "a"}', ["a"], None),
        ("qwen3_vl", '[{"bbox_2d": [1.5, 2, 3, 1e30], "label": "a"}]', ["a"], None),
        ("qwen3_vl", '[{"bbox_2d": [1, 2, 3], "label": "a"}]', [], "1 of 1 boxes cannot be read"),
        ("qwen3_vl", '[{"bbox_2d": [1, 2, 3, true], "label": "a"}]', [], "1 of 1"),
        ("qwen3_vl", '[{"bbox_2d": [1, 2, 3, Infinity], "label": "a"}]', [], "1 of 1"),
        ("qwen3_vl", "```json\n[", [], "not JSON"),
        ("qwen3_vl", "[" * 100_000, [], "nested too deeply"),
        ("qwen3_vl", "7", [], "JSON of another form"),
        ("paligemma", "", [], None),
        ("paligemma", "seven", [], "without a box"),
        ("paligemma", "<loc0001><loc0002> a", [], "exactly four"),
        ("paligemma", "<loc0001>" * 4 + " a ; " + "<loc0001>" * 5 + " b", ["a"], "exactly four"),
        ("florence2", "", [], None),
        ("florence2", "a<loc_1><loc_2><loc_3><loc_4>b", ["a"], "without a box"),
        ("florence2", "a<loc_1><loc_2><loc_3><loc_4><loc_5>", ["a"], "exactly four"),
    ],
)
def test_what_cannot_be_read_is_marked_and_the_rest_is_kept(
    model_type: str, raw: str, phrases: list[str], problem: str | None
) -> None:
    form = native(model_type)
    read = form.read(PHRASE_GROUNDING, raw, PIXELS)
    assert [item.phrase for item in read.groundings] == phrases
    assert read.is_well_formed == (problem is None)
    assert (problem or "None") in str(form.explain_problem(PHRASE_GROUNDING, raw))
    assert phrases or read.text == raw.strip()


@pytest.mark.parametrize("model_type", BOX_NOTATIONS)
@pytest.mark.parametrize("task", [VQA, PHRASE_GROUNDING])
def test_the_tokens_that_training_sees_are_read_back(
    model_type: str, task: str, miniature: Any
) -> None:
    """Encode a sample, and read its answer's tokens as if they had been generated."""
    import torch

    from runyard.trainer.models.model import load_model

    loaded = load_model(miniature(model_type), dtype=torch.float32)
    form = make_form("native", model_type, loaded.processor)
    encoder = Encoder(
        loaded.processor, loaded.parts, system_prompt="", task=task, renderer=loaded.renderer,
        form=form,
    )  # fmt: skip
    truth = Answer("a dog", TWO if task == PHRASE_GROUNDING else ())
    # Qwen scales it to 64 x 16 pixels.
    sample = Sample(Image.new("RGB", (256, 64)), "Where is the dog?", truth)
    encoded = encoder.encode(sample)
    assert len(encoder.encode(sample, with_image=False).answer) == len(encoded.answer)

    (raw,) = form.decode(loaded.processor.tokenizer, torch.from_numpy(encoded.answer)[None])
    size = form.read_size(encoded.images)
    assert size == ((64, 16) if model_type == "qwen2_5_vl" else None)
    read = form.read(task, raw.removesuffix("<|im_end|>").strip(), size)
    assert read.is_well_formed
    if task == VQA:
        assert read.text == "a dog"
    else:
        within = (8.5, 32.5) if model_type == "qwen2_5_vl" else TOLERANCES[model_type]
        assert is_near(read.groundings, TWO, within)


@pytest.mark.parametrize("is_special", [True, False])
def test_location_tokens_survive_decoding_and_other_special_ones_do_not(is_special: bool) -> None:
    import torch

    tokenizer = miniatures.make_tokenizer(image_token="<image>")
    tokenizer.add_tokens([f"<loc_{number}>" for number in range(1000)], special_tokens=is_special)
    raw = "dog<loc_1><loc_2><loc_3><loc_999>"
    tokens = tokenizer(f"<s>{raw}<|im_end|><pad><image>", add_special_tokens=False)["input_ids"]
    assert native("florence2").decode(tokenizer, torch.tensor([tokens])) == [raw]
    assert ("<loc_1>" in AnswerForm().decode(tokenizer, [tokens])[0]) != is_special


def test_boxes_in_pixels_are_those_of_an_image_that_was_shrunk_to_fit() -> None:
    _, processor = miniatures.make("qwen2_5_vl")
    processor.image_processor.size = {"shortest_edge": 1024, "longest_edge": 128 * 128}
    form = make_form("native", "qwen2_5_vl", processor)
    encoder = Encoder(
        processor, PARTS["qwen2_5_vl"], system_prompt="", task=PHRASE_GROUNDING, form=form
    )
    token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    sample = Sample(Image.new("RGB", (128, 128)), "Where?", Answer("", TWO))
    whole = encoder.encode(sample)
    assert form.read_size(whole.images) == (128, 128)
    budget = TokenBudget(
        context=None, image_token_id=token, model_type="qwen2_5_vl", image_budget=16
    )
    encoder._budget = budget
    small = encoder.encode(sample)
    assert small.is_shrunk
    assert form.read_size(small.images) == (64, 64)
    raw = processor.tokenizer.decode(small.answer, skip_special_tokens=True)
    assert '"bbox_2d": [32, 16, 64, 32]' in raw


def test_every_family_says_whether_it_has_a_native_form() -> None:
    for family in FAMILIES.values():
        assert family.has_native_form == (family.model_type in BOX_NOTATIONS)


@pytest.fixture(scope="module", autouse=True)
def canvases() -> Iterator[None]:
    """Make the canvases once for all trainings of this file."""
    with pytest.MonkeyPatch.context() as patch:
        name = "digits-grounding"
        patch.setitem(BUILT_IN, name, lru_cache(maxsize=1)(BUILT_IN[name]))
        yield


def make_blocks(folder: Path, form: str, **model: Any) -> dict[str, dict[str, Any]]:
    return {
        "vi-dataset": {"datasetId": "digits-grounding", "maxSamples": 12},
        "vi-model": {
            "architecture": {"name": "auto", "weights": str(folder)},
            "training": {"mode": "full"},
            "hyperparameters": {"maxSteps": 2, "batchSize": 4, "microBatchSize": 2},
            "validation": {"maxSamples": 4},
            "evaluation": {"max_new_tokens": 4},
            "answers": {"form": form},
        }
        | model,
    }


@pytest.mark.parametrize(
    "model_type", mark_slow(BOX_NOTATIONS, unless=lambda name: name in ("qwen2_5_vl", "paligemma"))
)
def test_evaluation_and_prediction_read_the_form_of_the_training(
    model_type: str,
    miniature: Any,
    make_attempt: Any,
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Replace generated tokens by the true answers, which must then score 1."""
    from runyard.trainer.evaluation import evaluation

    folder = make_attempt(make_blocks(miniature(model_type), "native"))

    def answer_truly(module: Any, tokenizer: Any, data: Any, count: int, **given: Any) -> list[str]:
        import torch

        texts = []
        for index in range(count):
            tokens = torch.from_numpy(data.read_row(index).answer)[None]
            (text,) = given["decode"](tokenizer, tokens)
            texts.append(text.removesuffix("<|im_end|>").strip())
        return texts

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "generate_answers", answer_truly)
        assert train_attempt(folder) == 0, (folder / "result.json").read_text()

    (found,) = events_of(folder, "evaluation")
    # An image of 32 pixels has boxes of a resolution of its own.
    least = 0.85 if model_type == "qwen2_5_vl" else 0.97
    assert found["values"]["validation/iou"] > least
    assert found["values"]["validation/wellFormed"] == 1
    assert found["previews"][0]["truth"] == found["previews"][0]["answer"]
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {line["parse"] for line in lines if line["kind"] == "sample"} == {"ok"}
    checkpoint = next((folder / "checkpoints").iterdir())
    saved = json.loads((checkpoint / "model_full" / "run.json").read_text())
    assert saved["status"]["plan"]["answerForm"]["value"] == "native"

    predictor = Predictor(checkpoint)
    (sample, *_) = load_dataset(
        "digits-grounding", seed=7, validation_fraction=0.2, max_samples=12
    ).validation
    monkeypatch.setattr(
        evaluation, "generate_answers", lambda *_, **__: [found["previews"][0]["answer"]]
    )
    read = predictor.predict(sample.image, sample.question)
    assert read.is_well_formed
    shown = [(item["phrase"], tuple(item["box"])) for item in found["previews"][0]["boxes"]]
    assert [(item.phrase, box) for item in read.groundings for box in item.boxes] == shown


@pytest.mark.slow
def test_an_export_replays_answers_in_the_form_of_the_training(
    miniature: Any, make_attempt: Any, tmp_path: Path
) -> None:
    model = {
        "compute": {"precisionType": "float32"},
        "hyperparameters": {"maxSteps": 16, "epochs": 9, "batchSize": 4, "learningRate": 0.02},
        "checkpoint": {"every": {"steps": 16}},
        "validation": {"maxSamples": 4, "every": {"steps": 16}},
        "evaluation": {"max_new_tokens": 40, "repetition_penalty": 1.0},
    }
    folder = make_attempt(make_blocks(miniature("paligemma"), "native", **model))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    checkpoint = next((folder / "checkpoints").iterdir())
    lines = (checkpoint / "predictions.jsonl").read_text().splitlines()
    assert any("<loc" in json.loads(line)["raw"] for line in lines)
    document = export_model(checkpoint, tmp_path / "exported")
    assert (document["replayed"], document["different"]) == (4, 0)
    predictor = Predictor(tmp_path / "exported")
    assert predictor._form.name == "native"


@pytest.mark.parametrize("model_type", ["idefics3", "llava"])
def test_a_family_without_a_form_of_its_own_is_refused_before_loading(
    model_type: str, miniature: Any, make_attempt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", refuse)
    folder = make_attempt(make_blocks(miniature(model_type), "native"))
    assert train_attempt(folder) != 0
    result = (folder / "result.json").read_text()
    assert "InvalidFlow" in result
    assert f"model type {model_type!r}" in result
    assert "'json' and 'text'" in result
    assert "qwen25vl" in result


def test_plain_words_are_learned_and_read(make_attempt: Any, events_of: EventsOf) -> None:
    model = {
        "validation": {"maxSamples": 20},
        "answers": {"form": "text"},
        "hyperparameters": {"maxSteps": 40},
    }
    folder = make_attempt({"vi-model": model, "vi-dataset": {"augmentation": {}}})
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    *_, last = events_of(folder, "evaluation")
    preview = last["previews"][0]
    assert preview["truth"] in "0123456789"
    assert last["values"]["validation/wellFormed"] == 1
    assert last["values"]["validation/exactMatch"] > 0.2
    checkpoint = next((folder / "checkpoints").iterdir())
    question = preview["question"]
    read = Predictor(checkpoint).predict(Image.new("RGB", (32, 32)), question, max_new_tokens=4)
    assert read == replace(read, text=read.raw.strip(), groundings=(), is_well_formed=True)


def test_notations_are_distinct() -> None:
    kinds = {type(notation) for notation in BOX_NOTATIONS.values()}
    assert kinds == {JsonBoxes, PaliGemmaBoxes, FlorenceBoxes}


def make_quadrants(_seed: int, _fraction: float) -> Dataset:
    """Make images with a bright square in one of four places, and noise around it."""
    random = np.random.default_rng(3)

    def make_sample(number: int) -> Sample:
        pixels = random.integers(0, 60, (32, 32, 3), np.uint8)
        x, y = 16 * (number % 2), 16 * (number // 2 % 2)
        pixels[y : y + 16, x : x + 16] += 180
        box = (32 * x, 32 * y, 32 * x + 512, 32 * y + 512)
        truth = Answer("square", (Grounding("square", (box,)),))
        return Sample(Image.fromarray(pixels), "square", truth)

    samples = [make_sample(number) for number in range(80)]
    return Dataset("digits-grounding", PHRASE_GROUNDING, samples[:64], samples[64:])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["paligemma", "florence2"])
def test_a_model_trained_in_its_own_form_scores_as_with_json_or_better(
    model_type: str,
    miniature: Any,
    make_attempt: Any,
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BUILT_IN, "digits-grounding", make_quadrants)
    scores = {}
    for form in ("json", "native"):
        model = {
            "hyperparameters": {
                "maxSteps": 300,
                "epochs": 99,
                "batchSize": 8,
                "microBatchSize": 8,
                "learningRate": 0.005,
            },
            "validation": {"every": {"steps": 300}},
            "checkpoint": {"every": {"steps": 300}},
            "compute": {"precisionType": "float32"},
            "evaluation": {"max_new_tokens": 120, "repetition_penalty": 1.0},
        }
        blocks = make_blocks(miniature(model_type), form, **model)
        blocks["vi-dataset"]["maxSamples"] = 64
        folder = make_attempt(blocks, run=form)
        assert train_attempt(folder) == 0, (folder / "result.json").read_text()
        (found,) = events_of(folder, "evaluation")
        scores[form] = found["values"]["validation/iou"]
    assert scores["native"] >= scores["json"] - 0.01
    assert scores["native"] > 0.6  # the constant answer scores a quarter
