"""Pictures varied while training: light, noise, place and size; boxes follow the picture.

A variation is drawn from seed, epoch and the sample's place, so a resumed run sees the very pictures that an
undisturbed one would have seen. A picture keeps its size; what comes in from outside is black. Where moving would cut a
box to less than half, the picture is not moved.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from runyard.flows.blocks import Augmentation
from runyard.trainer.answers import BOX_SCALE, Box, Grounding
from runyard.trainer.data.datasets import Sample

LEAST_VISIBLE = 0.5


def vary(sample: Sample, strengths: Augmentation, random: np.random.Generator) -> Sample:
    """The sample with its picture varied; draws the same numbers whatever the strengths."""
    x, y, size, mirror, light, contrast = random.uniform(-1, 1, 6)
    image = sample.image.convert("RGB")
    zoom = 1 + strengths.zoom * float(size)
    is_mirrored = abs(float(mirror)) < strengths.mirror
    shift = (strengths.shift * float(x), strengths.shift * float(y))
    moved = _move_boxes(sample.truth.groundings, zoom=zoom, shift=shift, is_mirrored=is_mirrored)
    truth = sample.truth
    if moved is not None and (zoom != 1 or shift != (0, 0) or is_mirrored):
        image = _move(image, zoom=zoom, shift=shift, is_mirrored=is_mirrored)
        truth = replace(truth, groundings=moved)
    if strengths.brightness:
        image = ImageEnhance.Brightness(image).enhance(1 + strengths.brightness * float(light))
    if strengths.contrast:
        image = ImageEnhance.Contrast(image).enhance(1 + strengths.contrast * float(contrast))
    if strengths.noise:
        pixels = np.asarray(image, np.float64) + random.normal(0, 255 * strengths.noise, (*image.size[::-1], 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return Sample(image, sample.question, truth, task=sample.task)


def _move(image: Image.Image, *, zoom: float, shift: tuple[float, float], is_mirrored: bool) -> Image.Image:
    """Enlarge about the middle, move by a share of the sides, perhaps swap left and right."""
    width, height = image.size
    sign = -1.0 if is_mirrored else 1.0
    # PIL asks for the way back: for a point of the result, where it comes from.
    matrix = (
        sign / zoom,
        0.0,
        width / 2 - sign * (width / 2 + shift[0] * width) / zoom,
        0.0,
        1 / zoom,
        height / 2 - (height / 2 + shift[1] * height) / zoom,
    )
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def _move_boxes(
    groundings: tuple[Grounding, ...], *, zoom: float, shift: tuple[float, float], is_mirrored: bool
) -> tuple[Grounding, ...] | None:
    """The boxes after ``_move``; None if one of them would lose more than half of its area."""
    moved = []
    for item in groundings:
        boxes = [_move_box(box, zoom=zoom, shift=shift, is_mirrored=is_mirrored) for box in item.boxes]
        if any(box is None for box in boxes):
            return None
        moved.append(Grounding(item.phrase, tuple(box for box in boxes if box is not None)))
    return tuple(moved)


def _move_box(box: Box, *, zoom: float, shift: tuple[float, float], is_mirrored: bool) -> Box | None:
    half = BOX_SCALE / 2
    sign = -1 if is_mirrored else 1
    xs = sorted(half + shift[0] * BOX_SCALE + sign * zoom * (x - half) for x in (box[0], box[2]))
    ys = [half + shift[1] * BOX_SCALE + zoom * (y - half) for y in (box[1], box[3])]
    x1, y1, x2, y2 = (min(float(BOX_SCALE), max(0.0, value)) for value in (xs[0], ys[0], xs[1], ys[1]))
    whole = (xs[1] - xs[0]) * (ys[1] - ys[0])
    if whole <= 0 or (x2 - x1) * (y2 - y1) < LEAST_VISIBLE * whole:
        return None
    return round(x1), round(y1), round(x2), round(y2)


def varied_by(strengths: Augmentation, seed: int) -> Any:
    """The function ``VariedSamples`` asks: sample, epoch and index to the varied sample."""

    def varied(sample: Sample, epoch: int, index: int) -> Sample:
        return vary(sample, strengths, np.random.default_rng([seed, epoch, index]))

    return varied
