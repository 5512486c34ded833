"""Augmentation while training: brightness, contrast, noise, shift, zoom and mirroring; boxes follow
the image.

The random numbers depend on seed, epoch and the sample's index, so a resumed run sees exactly the
images that an uninterrupted run would have seen. An image keeps its size; regions from outside it
are black. The geometric change is skipped where it would leave less than half of a box visible.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from runyard.flows.blocks import Augmentation
from runyard.trainer.answers import BOX_SCALE, Box, Grounding
from runyard.trainer.data.datasets import Sample

MIN_VISIBLE = 0.5


def augment_sample(sample: Sample, strengths: Augmentation, random: np.random.Generator) -> Sample:
    """Return the sample with its images augmented, all of them alike.

    Draws the same numbers whatever the strengths are.
    """
    if sample.is_text_only:
        return sample
    x, y, size, mirror, light, contrast = random.uniform(-1, 1, 6)
    zoom = 1 + strengths.zoom * float(size)
    is_mirrored = abs(float(mirror)) < strengths.mirror
    shift = (strengths.shift * float(x), strengths.shift * float(y))
    groundings = _transform_groundings(
        sample.truth.groundings, zoom=zoom, shift=shift, is_mirrored=is_mirrored
    )
    is_moved = groundings is not None and (zoom != 1 or shift != (0, 0) or is_mirrored)
    truth, images = sample.truth, []
    if groundings is not None and is_moved:
        truth = replace(truth, groundings=groundings)
    for image in sample.images:
        image = image.convert("RGB")
        if is_moved:
            image = _transform_image(image, zoom=zoom, shift=shift, is_mirrored=is_mirrored)
        if strengths.brightness:
            image = ImageEnhance.Brightness(image).enhance(1 + strengths.brightness * float(light))
        if strengths.contrast:
            image = ImageEnhance.Contrast(image).enhance(1 + strengths.contrast * float(contrast))
        if strengths.noise:
            pixels = np.asarray(image, np.float64) + random.normal(
                0, 255 * strengths.noise, (*image.size[::-1], 3)
            )
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        images.append(image)
    first, *further = images
    return Sample(
        first,
        sample.question,
        truth,
        task=sample.task,
        turns=sample.turns,
        further_images=tuple(further),
    )


def _transform_image(
    image: Image.Image, *, zoom: float, shift: tuple[float, float], is_mirrored: bool
) -> Image.Image:
    """Zoom about the center, shift by a fraction of each side, and mirror horizontally if asked."""
    width, height = image.size
    sign = -1.0 if is_mirrored else 1.0
    # PIL takes the inverse transform: for each output pixel, its source coordinates.
    matrix = (
        sign / zoom,
        0.0,
        width / 2 - sign * (width / 2 + shift[0] * width) / zoom,
        0.0,
        1 / zoom,
        height / 2 - (height / 2 + shift[1] * height) / zoom,
    )
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
    )


def _transform_groundings(
    groundings: tuple[Grounding, ...], *, zoom: float, shift: tuple[float, float], is_mirrored: bool
) -> tuple[Grounding, ...] | None:
    """Return the boxes after ``_transform_image``.

    None if one would lose more than half of its area.
    """
    transformed = []
    for item in groundings:
        boxes = [
            _transform_box(box, zoom=zoom, shift=shift, is_mirrored=is_mirrored)
            for box in item.boxes
        ]
        if any(box is None for box in boxes):
            return None
        transformed.append(Grounding(item.phrase, tuple(box for box in boxes if box is not None)))
    return tuple(transformed)


def _transform_box(
    box: Box, *, zoom: float, shift: tuple[float, float], is_mirrored: bool
) -> Box | None:
    half = BOX_SCALE / 2
    sign = -1 if is_mirrored else 1
    xs = sorted(half + shift[0] * BOX_SCALE + sign * zoom * (x - half) for x in (box[0], box[2]))
    ys = [half + shift[1] * BOX_SCALE + zoom * (y - half) for y in (box[1], box[3])]
    x1, y1, x2, y2 = (
        min(float(BOX_SCALE), max(0.0, value)) for value in (xs[0], ys[0], xs[1], ys[1])
    )
    area = (xs[1] - xs[0]) * (ys[1] - ys[0])
    if area <= 0 or (x2 - x1) * (y2 - y1) < MIN_VISIBLE * area:
        return None
    return round(x1), round(y1), round(x2), round(y2)


def make_augmenter(strengths: Augmentation, seed: int) -> Any:
    """Return the function that ``AugmentedSamples`` calls with sample, epoch and index."""

    def augment(sample: Sample, epoch: int, index: int) -> Sample:
        return augment_sample(sample, strengths, np.random.default_rng([seed, epoch, index]))

    return augment
