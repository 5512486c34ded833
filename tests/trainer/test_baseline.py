"""Constant answers, found on training samples and scored on held-out ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runyard.trainer.answers import FREEFORM, METRICS, PHRASE_GROUNDING, VQA, Answer, Grounding
from runyard.trainer.data.datasets import Sample
from runyard.trainer.evaluation import baseline as baseline_module
from runyard.trainer.evaluation.baseline import (
    ConstantBoxes,
    ConstantTexts,
    choose_frequent,
    find_constants,
    join_frequent_fields,
    score_baseline,
)
from runyard.trainer.main import train_attempt

IMAGE = Image.new("RGB", (8, 8))
EventsOf = Callable[[Path, str], list[dict[str, Any]]]


def ask(question: str, *texts: str, task: str | None = None) -> list[Sample]:
    return [Sample(IMAGE, question, Answer(text), task=task) for text in texts]


def locate(question: str, **boxes: tuple[int, int, int, int]) -> Sample:
    found = tuple(Grounding(name.replace("_", " "), (box,)) for name, box in boxes.items())
    return Sample(IMAGE, question, Answer(question, found))


def test_a_question_gets_its_most_frequent_answer_and_a_new_one_that_of_all() -> None:
    samples = [*ask("What color?", "red", "Blue", "blue"), *ask("How many?", "2", "2", "2", "1")]
    constants = ConstantTexts(VQA, samples)
    questions = ("what color? ", "How many?", "Why?")
    assert [constants.answer(question).text for question in questions] == ["Blue", "2", "2"]


def test_the_baseline_is_scored_like_answers_of_the_model() -> None:
    train = ask("digit", "7", "7", "1")
    scores = score_baseline(VQA, train, ask("digit", "7", "1", "7", "0"))
    assert scores["baseline/exactMatch"] == scores["baseline/anls"] == 0.5
    assert set(scores) == {f"baseline/{name}" for name in METRICS[VQA] if name != "wellFormed"}


def test_of_texts_that_never_repeat_the_most_similar_one_is_chosen() -> None:
    texts = ["a dog on a beach", "two boats", "a dog runs on a beach", "a cat on a beach"]
    assert choose_frequent(texts, is_long=True) == "a dog on a beach"
    assert choose_frequent(texts, is_long=False) == texts[0]
    assert choose_frequent([*texts, "Two boats"], is_long=True) == "two boats"
    assert choose_frequent([], is_long=True) is None


def test_flat_json_gets_the_most_frequent_value_of_each_field() -> None:
    texts = ['{"color": "red", "doors": 4}', '{"color": "blue", "doors": 4, "rare": 1}']
    texts += ['{"color": "blue", "doors": 2}']
    assert join_frequent_fields(texts) == '{"color": "blue", "doors": 4}'
    compact = [text.replace(" ", "") for text in texts]
    assert join_frequent_fields(compact) == '{"color":"blue","doors":4}'
    for other in ("red", "{", '{"a": [1]}', "[1]"):
        assert join_frequent_fields([*texts, other]) is None


def test_each_phrase_of_a_question_gets_its_median_box() -> None:
    constants = ConstantBoxes(
        [
            locate("A dog and a red ball", dog=(0, 0, 10, 10), red_ball=(50, 50, 60, 60)),
            locate("the dog", dog=(2, 0, 14, 30)),
            locate("a Dog.", Dog=(4, 6, 18, 20)),
            locate("ball", ball=(1, 1, 2, 2)),
        ]
    )
    dog, red, ball = (
        Grounding("dog", ((2, 0, 14, 20),)),
        Grounding("red ball", ((50, 50, 60, 60),)),
        Grounding("ball", ((1, 1, 2, 2),)),
    )
    assert constants.answer("The DOG, a red ball and a dog").groundings == (dog, red)
    assert constants.answer("a ball").groundings == (ball,)
    assert constants.answer("What is here?").groundings == (dog,)
    scores = score_baseline(
        PHRASE_GROUNDING,
        [locate("dog", dog=(0, 0, 100, 100))],
        [locate("dog", dog=(0, 0, 100, 50)), locate("cat", cat=(0, 0, 10, 10))],
    )
    # One half, a cat without a box, and the box of a dog that is not there.
    assert scores["baseline/iou"] == pytest.approx(1 / 6, abs=1e-6)


def test_samples_of_several_tasks_get_answers_of_their_own() -> None:
    train = [*ask("digit", "7", task=VQA), locate("dog", dog=(0, 0, 10, 10))]
    held_out = [*ask("digit", "7", task=VQA), locate("dog", dog=(0, 0, 10, 10))]
    held_out += ask("?", "words", task=FREEFORM)
    scores = score_baseline(PHRASE_GROUNDING, train, held_out)
    assert (scores["baseline/exactMatch"], scores["baseline/iou"]) == (1, 1)
    assert scores["baseline/cider"] == 0


def test_of_many_samples_as_many_as_allowed_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline_module, "MOST_SAMPLES", 10)
    read: list[int] = []

    class Samples(list[Sample]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    checks: list[int] = []
    find_constants(VQA, Samples(ask("digit", *"7" * 95)), lambda: checks.append(1))
    assert read == list(range(0, 95, 10))
    assert checks == [1]


def test_a_run_reports_the_baseline_once_at_step_0(
    make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    validation = {"maxSamples": 20, "beforeTraining": True}
    numbers = {"maxSteps": 1}
    folder = make_attempt(
        {
            "vi-dataset": {"maxSamples": 200},
            "vi-model": {"validation": validation, "hyperparameters": numbers},
        }
    )
    assert train_attempt(folder) == 0
    first, last = events_of(folder, "evaluation")
    assert 0 < first["values"]["baseline/exactMatch"] < 0.5
    assert not [name for name in last["values"] if name.startswith("baseline/")]
    (saved,) = events_of(folder, "checkpoint")
    assert json.dumps(saved).count("baseline") == 0
