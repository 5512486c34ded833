"""What is trained on: samples, the split into training and held-out ones, and the two built-in datasets.

Those that people upload are read in ``uploaded.py``.

``digits`` asks which digit a real handwritten scan shows; ``digits-grounding`` asks where digits are on a canvas. Both
are made of the 1,797 scans that scikit-learn carries, so they need no download. What is held out is decided by scan, by
content hash and seed: adding pictures moves none across, and no canvas for training holds a held-out scan.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runyard.datasets.samples import (
    CANVAS_GRID,
    CANVAS_SIDE,
    CANVASES,
    DIGIT_QUESTION,
    UNNAMED,
    WORDS,
    canvases,
    digit_question,
    enlarged,
    scans,
)
from runyard.datasets.splits import is_held_out
from runyard.trainer.answers import PHRASE_GROUNDING, VQA, Answer, Grounding, scale_box
from runyard.trainer.errors import InvalidData, InvalidFlow

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CANVAS_QUESTION = "Which digits are here?"
TRAINING_CANVASES, HELD_OUT_CANVASES = CANVASES, 400


@dataclass(frozen=True)
class Sample:
    """One question about one picture, and the true answer.

    ``picture`` is the hash of the picture's bytes and ``filename`` its name, where it was uploaded; else empty.
    """

    image: "Image.Image"
    question: str
    truth: Answer
    picture: str = ""
    filename: str = ""


@dataclass(frozen=True)
class Dataset:
    """Samples to train on and samples held out. ``phrases`` are texts that occur often, for a new tokenizer."""

    name: str
    task: str
    train: Sequence[Sample]
    validation: Sequence[Sample]
    phrases: tuple[str, ...] = ()
    version: str | None = None  # of an uploaded dataset


def load_dataset(name: str, *, seed: int, validation_fraction: float, max_samples: int | None = None) -> Dataset:
    """Make or read the dataset of that id, split, with at most ``max_samples`` of each part.

    Raises:
        InvalidFlow: no such dataset.
        InvalidData: nothing to train on is left.
    """
    if name not in BUILT_IN:
        raise InvalidFlow(f"dataset {name!r} is not known here; the built-in ones are {', '.join(BUILT_IN)}")
    dataset = BUILT_IN[name](seed, validation_fraction)
    if max_samples is not None:
        dataset = replace(
            dataset,
            train=_some(dataset.train, max_samples, seed),
            validation=_some(dataset.validation, max_samples, seed),
        )
    if not dataset.train:
        raise InvalidData(f"dataset {name!r} has nothing to train on with validationFraction {validation_fraction}")
    return dataset


def _is_held_out(scan: "np.ndarray[Any, Any]", seed: int, fraction: float) -> bool:
    return is_held_out(hashlib.sha256(scan.tobytes()).digest(), seed=seed, fraction=fraction)


def digits(seed: int, validation_fraction: float) -> Dataset:
    """Which digit is this? One scan a sample, enlarged to 32 x 32."""
    train: list[Sample] = []
    held_out: list[Sample] = []
    for scan, label in scans():
        if _is_held_out(scan, seed, validation_fraction):
            held_out.append(Sample(enlarged(scan), DIGIT_QUESTION, Answer(str(label))))
        else:
            train.append(Sample(enlarged(scan), digit_question(len(train)), Answer(str(label))))
    return Dataset("digits", VQA, train, held_out)


def digits_grounding(seed: int, validation_fraction: float) -> Dataset:
    """Where are these digits? One to three different scans on a canvas of 48 x 48; the sentence names all of them."""
    import numpy as np

    train: list[tuple[Any, int]] = []
    held_out: list[tuple[Any, int]] = []
    for scan, label in scans():
        side = held_out if _is_held_out(scan, seed, validation_fraction) else train
        side.append((scan, label))
    return Dataset(
        "digits-grounding",
        PHRASE_GROUNDING,
        _canvases(train, TRAINING_CANVASES, np.random.default_rng([seed, 1]), share_unnamed=UNNAMED),
        _canvases(held_out, HELD_OUT_CANVASES, np.random.default_rng([seed, 2]), share_unnamed=0.0),
        (" and ", CANVAS_QUESTION, *_box_phrases()),
    )


def _box_phrases() -> Iterator[str]:
    """What stands right before a number of a box: the phrase, then each number with its comma.

    As one token each, because the tiny model has two layers to look at: where a number depends on a token that stands
    further back, it needs one of them to find that token, and does not learn in time which digit is asked for.
    """
    yield from (f'{word}","grounding":[[' for word in WORDS)
    corners = range(0, CANVAS_SIDE + 1, CANVAS_GRID)
    yield from (f"{scale_box((x, x, x, x), width=CANVAS_SIDE, height=CANVAS_SIDE)[0]}," for x in corners)


def _canvases(
    scans: list[tuple[Any, int]], count: int, random: "np.random.Generator", *, share_unnamed: float
) -> list[Sample]:
    """``count`` canvases, each of scans from this list alone.

    In ``share_unnamed`` of them the question names no digit, so the model has to read them itself, in the order of
    text. Without such samples it learns to find digits but not to tell them apart.
    """
    samples = []
    for canvas in canvases(scans, count, random, share_unnamed=share_unnamed):
        found = tuple(
            Grounding(word, (scale_box(box, width=CANVAS_SIDE, height=CANVAS_SIDE),)) for word, box in canvas.digits
        )
        question = CANVAS_QUESTION if canvas.is_unnamed else canvas.sentence
        samples.append(Sample(canvas.picture, question, Answer(canvas.sentence, found)))
    return samples


def _some(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """The first ``count`` after shuffling by seed."""
    import numpy as np

    order = np.random.default_rng([seed, 3]).permutation(len(samples))[:count]
    return [samples[int(i)] for i in order]


BUILT_IN: dict[str, Callable[[int, float], Dataset]] = {"digits": digits, "digits-grounding": digits_grounding}
