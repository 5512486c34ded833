"""Augmented images: the same numbers give the same image, and boxes stay on what they mark."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from runyard.flows.blocks import Augmentation
from runyard.trainer.answers import Answer, Grounding
from runyard.trainer.data.augment import augment_sample, make_augmenter
from runyard.trainer.data.datasets import Sample


def sample_with_a_square() -> Sample:
    """A white square of 16 pixels at (16, 24) on black, and its box."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[24:40, 16:32] = 255
    return Sample(
        Image.fromarray(pixels),
        "square",
        Answer("square", (Grounding("square", ((256, 384, 512, 640),)),)),
    )


@pytest.mark.parametrize(
    "strengths",
    [
        Augmentation(shift=0.2),
        Augmentation(zoom=0.3),
        Augmentation(mirror=1.0),
        Augmentation(shift=0.1, zoom=0.2),
    ],
)
def test_boxes_follow_the_image(strengths: Augmentation) -> None:
    for seed in range(10):
        varied = augment_sample(sample_with_a_square(), strengths, np.random.default_rng(seed))
        bright = np.argwhere(np.asarray(varied.image.convert("L")) > 127)
        (top, left), (bottom, right) = bright.min(0), bright.max(0) + 1
        seen = [int(value) * 16 for value in (left, top, right, bottom)]
        assert varied.truth.groundings[0].boxes[0] == pytest.approx(seen, abs=20)
        assert varied.image.size == (64, 64)


def test_an_augmented_sample_has_the_same_task() -> None:
    sample = replace(sample_with_a_square(), task="phrase-grounding")
    assert (
        augment_sample(sample, Augmentation(shift=0.2), np.random.default_rng(0)).task
        == "phrase-grounding"
    )


def test_an_image_is_not_transformed_where_a_box_would_be_lost() -> None:
    sample = sample_with_a_square()
    moved = 0
    for seed in range(40):
        varied = augment_sample(sample, Augmentation(shift=1.0), np.random.default_rng(seed))
        is_moved = varied.image.tobytes() != sample.image.tobytes()
        moved += is_moved
        assert is_moved == (varied.truth != sample.truth)
    assert 0 < moved < 40


def test_light_and_noise_leave_boxes_alone() -> None:
    strengths = Augmentation(brightness=0.5, contrast=0.5, noise=0.1)
    varied = augment_sample(sample_with_a_square(), strengths, np.random.default_rng(1))
    assert varied.truth == sample_with_a_square().truth
    assert varied.image.tobytes() != sample_with_a_square().image.tobytes()


def test_an_augmentation_depends_only_on_seed_epoch_and_position() -> None:
    sample = sample_with_a_square()
    one, two = (
        make_augmenter(Augmentation(shift=0.2), 7),
        make_augmenter(Augmentation(shift=0.2), 7),
    )
    assert one(sample, 3, 5).image.tobytes() == two(sample, 3, 5).image.tobytes()
    assert one(sample, 3, 5).image.tobytes() != one(sample, 4, 5).image.tobytes()
