"""The built-in data: held-out scans never occur in training."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from PIL import Image

from runyard.datasets.samples import CANVAS_DIGIT, CANVAS_GRID, CANVAS_SIDE, Scan, load_scans
from runyard.trainer.answers import iou
from runyard.trainer.data.datasets import Dataset, Sample, _is_held_out, load_dataset, make_digits
from runyard.trainer.errors import InvalidData, InvalidFlow


def test_no_scan_is_in_both_splits_and_the_share_is_about_as_requested() -> None:
    data = make_digits(seed=7, validation_fraction=0.2)
    train = {sample.image.tobytes() for sample in data.train}
    held_out = {sample.image.tobytes() for sample in data.validation}
    assert not train & held_out
    assert len(data.train) + len(data.validation) == 1797
    assert 0.15 < len(data.validation) / 1797 < 0.25


def test_held_out_questions_are_fixed_and_half_of_the_training_ones_are_reworded() -> None:
    data = make_digits(seed=7, validation_fraction=0.2)
    assert {sample.question for sample in data.validation} == {"Which digit is this?"}
    usual = sum(sample.question == "Which digit is this?" for sample in data.train)
    assert abs(usual - len(data.train) / 2) <= 1


def test_canvases_show_digits_where_the_boxes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runyard.trainer.data.datasets.TRAINING_CANVASES", 60)
    monkeypatch.setattr("runyard.trainer.data.datasets.HELD_OUT_CANVASES", 30)
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
    monkeypatch.setattr("runyard.trainer.data.datasets.TRAINING_CANVASES", 5)
    one, two = (load_dataset("digits-grounding", seed=3, validation_fraction=0.2) for _ in range(2))
    assert [s.image.tobytes() for s in one.train] == [s.image.tobytes() for s in two.train]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Return some canvases of the dataset with both tasks."""
    monkeypatch.setattr("runyard.trainer.data.datasets.BOTH_CANVASES", 60)
    monkeypatch.setattr("runyard.trainer.data.datasets.BOTH_HELD_OUT", 20)
    return partial(load_dataset, "digits-both", seed=3, validation_fraction=0.2)


def read_scan(scan: Scan) -> bytes:
    """Return the pixels of a scan as drawn on a canvas, without augmentation."""
    small = Image.fromarray(scan[0]).resize((CANVAS_DIGIT, CANVAS_DIGIT), Image.Resampling.BILINEAR)
    return np.asarray(small).tobytes()


def count_scans(sample: Sample, among: set[bytes]) -> int:
    """Return how many of these scans, as drawn on canvases, the image shows."""
    pixels = np.asarray(sample.image.convert("L"))
    corners = range(0, CANVAS_SIDE - CANVAS_DIGIT + 1, CANVAS_GRID)
    pieces = [
        pixels[y : y + CANVAS_DIGIT, x : x + CANVAS_DIGIT].tobytes()
        for x in corners
        for y in corners
    ]
    return sum(piece in among for piece in pieces)


def test_both_tasks_use_canvases_without_scans_of_the_other_split(
    both: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runyard.datasets.samples.CANVAS_SHIFT", 0)
    monkeypatch.setattr("runyard.datasets.samples.CANVAS_ZOOM", 0)
    data = both()
    known: dict[bool, set[bytes]] = {True: set(), False: set()}
    for scan in load_scans():
        known[_is_held_out(scan[0], 3, 0.2)].add(read_scan(scan))
    for samples, is_held_out, vqa in ((data.train, False, 15), (data.validation, True, 10)):
        assert Counter(sample.task for sample in samples) == {
            "vqa": vqa,
            "phrase-grounding": len(samples) - vqa,
        }
        assert {len(s.truth.groundings) for s in samples if s.task == "phrase-grounding"} == {2, 3}
        for sample in samples:
            assert count_scans(sample, known[is_held_out]) == (len(sample.truth.groundings) or 1)
            assert count_scans(sample, known[not is_held_out]) == 0
    assert {s.question for s in data.validation if s.task == "vqa"} == {"Which digit is this?"}


def test_training_scans_of_both_tasks_are_augmented_within_their_boxes(
    both: Callable[..., Dataset],
) -> None:
    unvaried = set(map(read_scan, load_scans()))
    data = both()
    assert sum(count_scans(sample, unvaried) for sample in data.validation) > len(data.validation)
    assert sum(count_scans(sample, unvaried) for sample in data.train) == 0
    for sample in data.train:
        pixels = np.array(sample.image.convert("L"))
        for item in sample.truth.groundings:
            x1, y1, x2, y2 = (round(value * CANVAS_SIDE / 1024) for value in item.boxes[0])
            assert pixels[y1:y2, x1:x2].max() > 100
            pixels[y1:y2, x1:x2] = 0
        assert pixels.max() == 0 or sample.task == "vqa"


@pytest.mark.parametrize("seed", range(8))
def test_the_first_sample_always_has_the_datasets_own_task(
    both: Callable[..., Dataset], seed: int
) -> None:
    few = both(seed=seed, max_samples=1)
    assert [sample.task for sample in (few.train[0], few.validation[0])] == [few.task, few.task]
    assert both(seed=seed).validation[0].task == few.task


def test_an_unknown_dataset_is_an_error_of_the_flow() -> None:
    with pytest.raises(InvalidFlow, match="unknown dataset 'shelves'"):
        load_dataset("shelves", seed=0, validation_fraction=0.2)


def test_an_empty_training_split_is_an_error_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runyard.trainer.data.datasets.is_held_out", lambda *_, **__: True)
    with pytest.raises(InvalidData, match="no training samples"):
        load_dataset("digits", seed=0, validation_fraction=0.9)
