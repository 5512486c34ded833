"""The built-in data: what is held out stays held out."""

import numpy as np
import pytest

from runyard.datasets.samples import CANVAS_DIGIT, CANVAS_SIDE
from runyard.trainer.answers import iou
from runyard.trainer.datasets import digits, load_dataset
from runyard.trainer.errors import InvalidData, InvalidFlow


def test_no_scan_is_in_both_parts_and_the_share_is_about_as_asked() -> None:
    data = digits(seed=7, validation_fraction=0.2)
    train = {sample.image.tobytes() for sample in data.train}
    held_out = {sample.image.tobytes() for sample in data.validation}
    assert not train & held_out
    assert len(data.train) + len(data.validation) == 1797
    assert 0.15 < len(data.validation) / 1797 < 0.25


def test_all_held_out_questions_are_the_same_and_half_of_the_training_ones_are_worded_otherwise() -> None:
    data = digits(seed=7, validation_fraction=0.2)
    assert {sample.question for sample in data.validation} == {"Which digit is this?"}
    usual = sum(sample.question == "Which digit is this?" for sample in data.train)
    assert abs(usual - len(data.train) / 2) <= 1


def test_canvases_show_digits_where_the_boxes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runyard.trainer.datasets.TRAINING_CANVASES", 60)
    monkeypatch.setattr("runyard.trainer.datasets.HELD_OUT_CANVASES", 30)
    data = load_dataset("digits-grounding", seed=3, validation_fraction=0.2)
    assert {len(sample.truth.groundings) for sample in data.train} == {1, 2, 3}
    for sample in [*data.train, *data.validation]:
        pixels = np.asarray(sample.image.convert("L"))
        outside = pixels.copy()
        for item in sample.truth.groundings:
            x1, y1, x2, y2 = (round(value * CANVAS_SIDE / 1024) for value in item.boxes[0])
            assert (x2 - x1, y2 - y1) == (CANVAS_DIGIT, CANVAS_DIGIT)
            assert pixels[y1:y2, x1:x2].max() > 100
            outside[y1:y2, x1:x2] = 0
        assert outside.max() == 0
        boxes = [item.boxes[0] for item in sample.truth.groundings]
        assert all(iou(a, b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_same_seed_makes_the_same_canvases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runyard.trainer.datasets.TRAINING_CANVASES", 5)
    one, two = (load_dataset("digits-grounding", seed=3, validation_fraction=0.2) for _ in range(2))
    assert [s.image.tobytes() for s in one.train] == [s.image.tobytes() for s in two.train]


def test_an_unknown_dataset_is_the_recipes_fault() -> None:
    with pytest.raises(InvalidFlow, match="'shelves' is not known here"):
        load_dataset("shelves", seed=0, validation_fraction=0.2)


def test_nothing_left_to_train_on_is_the_datas_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runyard.trainer.datasets.is_held_out", lambda *_, **__: True)
    with pytest.raises(InvalidData, match="nothing to train on"):
        load_dataset("digits", seed=0, validation_fraction=0.9)
