"""What is trained on: samples, the split into training and held-out ones, and the three built-in datasets.

Those that people upload are read in ``uploaded.py``.

``digits`` asks which digit a real handwritten scan shows; ``digits-grounding`` asks where digits are on a canvas;
``digits-both`` asks both, of one model. All are made of the 1,797 scans that scikit-learn carries, so they need no
download. What is held out is decided by scan, by content hash and seed: adding pictures moves none across, and no
canvas for training holds a held-out scan.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runyard.datasets.samples import (
    CANVAS_DIGIT,
    CANVAS_GRID,
    CANVAS_SIDE,
    CANVASES,
    DIGIT_QUESTION,
    UNNAMED,
    WORDS,
    Canvas,
    Scan,
    choose_digit_question,
    draw_canvases,
    enlarge_scan,
    load_scans,
)
from runyard.datasets.splits import is_held_out
from runyard.trainer.answers import PHRASE_GROUNDING, VQA, Answer, Grounding, scale_box
from runyard.trainer.errors import InvalidData, InvalidFlow

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CANVAS_QUESTION = "Which digits are here?"
TRAINING_CANVASES, HELD_OUT_CANVASES = CANVASES, 400
# Of the dataset with both tasks. Held out are as many of each, and together as many as a recipe measures by default.
BOTH_CANVASES, BOTH_HELD_OUT = 10_000, 500
BOTH_VQA, BOTH_HELD_OUT_VQA = 0.25, 0.5
VERSION_LENGTH = 16  # as that of an uploaded dataset's


@dataclass(frozen=True)
class Sample:
    """One question about one picture, and the true answer.

    ``picture`` is the hash of the picture's bytes and ``filename`` its name, where it was uploaded; else empty.
    ``task`` is named where the dataset has several; without it the sample is of the recipe's.
    """

    image: "Image.Image"
    question: str
    truth: Answer
    picture: str = ""
    filename: str = ""
    task: str | None = None


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
            train=_some(dataset.train, max_samples, seed, dataset.task),
            validation=_some(dataset.validation, max_samples, seed, dataset.task),
        )
    if not dataset.train:
        raise InvalidData(f"dataset {name!r} has nothing to train on with validationFraction {validation_fraction}")
    return dataset


def version_of(data: Dataset) -> str:
    """A hash of all samples, in their order and as they are divided; of built-in data, whose samples lie in memory.

    It is another one where a library draws or resizes pictures otherwise, or other samples are made of the same scans.
    """
    found = hashlib.sha256()
    for part in (data.train, data.validation):
        found.update(f"{len(part)} samples".encode())
        for sample in part:
            found.update(f"{sample.image.size}{sample.task}{sample.question!r}{sample.truth}".encode())
            found.update(sample.image.tobytes())
    return found.hexdigest()[:VERSION_LENGTH]


def _is_held_out(scan: "np.ndarray[Any, Any]", seed: int, fraction: float) -> bool:
    return is_held_out(hashlib.sha256(scan.tobytes()).digest(), seed=seed, fraction=fraction)


def digits(seed: int, validation_fraction: float) -> Dataset:
    """Which digit is this? One scan a sample, enlarged to 32 x 32."""
    train: list[Sample] = []
    held_out: list[Sample] = []
    for scan, label in load_scans():
        if _is_held_out(scan, seed, validation_fraction):
            held_out.append(Sample(enlarge_scan(scan), DIGIT_QUESTION, Answer(str(label))))
        else:
            train.append(Sample(enlarge_scan(scan), choose_digit_question(len(train)), Answer(str(label))))
    return Dataset("digits", VQA, train, held_out)


def digits_grounding(seed: int, validation_fraction: float) -> Dataset:
    """Where are these digits? One to three different scans on a canvas of 48 x 48; the sentence names all of them."""
    import numpy as np

    train, held_out = _divided(seed, validation_fraction)
    return Dataset(
        "digits-grounding",
        PHRASE_GROUNDING,
        _canvases(train, TRAINING_CANVASES, np.random.default_rng([seed, 1]), share_unnamed=UNNAMED),
        _canvases(held_out, HELD_OUT_CANVASES, np.random.default_rng([seed, 2]), share_unnamed=0.0),
        (" and ", CANVAS_QUESTION, *_box_phrases()),
    )


def digits_both(seed: int, validation_fraction: float) -> Dataset:
    """Both for one model, on canvases of 48 x 48: which digit is this, of one, and where are these, of two or three.

    The answer's form follows from the question, so samples name their task and stand in mixed order.
    """
    import numpy as np

    train, held_out = _divided(seed, validation_fraction)
    return Dataset(
        "digits-both",
        PHRASE_GROUNDING,
        _both(train, BOTH_CANVASES, np.random.default_rng([seed, 1]), share_vqa=BOTH_VQA, is_training=True),
        _both(
            held_out, BOTH_HELD_OUT, np.random.default_rng([seed, 2]), share_vqa=BOTH_HELD_OUT_VQA, is_training=False
        ),
        (" and ", *_corner_phrases()),
    )


def _both(
    scans: list[Scan], count: int, random: "np.random.Generator", *, share_vqa: float, is_training: bool
) -> list[Sample]:
    """Canvases with a question about their one digit, and others with two or three to be found, in mixed order.

    Those to train on show varied scans, because the model soon knows the scans themselves by heart. That moves no box:
    what is marked is the cell in which a scan stands.
    """
    single = draw_canvases(scans, round(count * share_vqa), random, share_unnamed=0.0, most=1, is_varied=is_training)
    asked = [
        Sample(
            canvas.image,
            choose_digit_question(place) if is_training else DIGIT_QUESTION,
            Answer(canvas.sentence),
            task=VQA,
        )
        for place, canvas in enumerate(single)
    ]
    several = draw_canvases(scans, count - len(asked), random, share_unnamed=0.0, fewest=2, is_varied=is_training)
    mixed = [*asked, *(replace(_located(canvas), task=PHRASE_GROUNDING) for canvas in several)]
    return _own_first([mixed[int(place)] for place in random.permutation(len(mixed))], PHRASE_GROUNDING)


def _divided(seed: int, validation_fraction: float) -> tuple[list[Scan], list[Scan]]:
    """The scans to train on and those held out."""
    train: list[Scan] = []
    held_out: list[Scan] = []
    for scan, label in load_scans():
        side = held_out if _is_held_out(scan, seed, validation_fraction) else train
        side.append((scan, label))
    return train, held_out


def _box_phrases() -> Iterator[str]:
    """What stands right before a number of a box: the phrase, then each number with its comma.

    As one token each, because the tiny model has two layers to look at: where a number depends on a token that stands
    further back, it needs one of them to find that token, and does not learn in time which digit is asked for.
    """
    yield from (f'{word}","grounding":[[' for word in WORDS)
    corners = range(0, CANVAS_SIDE + 1, CANVAS_GRID)
    yield from (f"{scale_box((x, x, x, x), width=CANVAS_SIDE, height=CANVAS_SIDE)[0]}," for x in corners)


def _corner_phrases() -> Iterator[str]:
    """As ``_box_phrases``, but each corner of a box as one token, so that one token decides where a digit is.

    Boxes elsewhere than on the grid can still be said, in the tokens of their numbers.
    """
    yield from (f'{word}","grounding":[[' for word in WORDS)
    corners = range(0, CANVAS_SIDE - CANVAS_DIGIT + 1, CANVAS_GRID)
    for x, y in itertools.product(corners, corners):
        box = (x, y, x + CANVAS_DIGIT, y + CANVAS_DIGIT)
        x1, y1, x2, y2 = scale_box(box, width=CANVAS_SIDE, height=CANVAS_SIDE)
        yield f"{x1},{y1},"
        yield f"{x2},{y2}"


def _canvases(scans: list[Scan], count: int, random: "np.random.Generator", *, share_unnamed: float) -> list[Sample]:
    """``count`` canvases, each of scans from this list alone.

    In ``share_unnamed`` of them the question names no digit, so the model has to read them itself, in the order of
    text. Without such samples it learns to find digits but not to tell them apart.
    """
    return [_located(canvas) for canvas in draw_canvases(scans, count, random, share_unnamed=share_unnamed)]


def _located(canvas: Canvas) -> Sample:
    found = tuple(
        Grounding(word, (scale_box(box, width=CANVAS_SIDE, height=CANVAS_SIDE),)) for word, box in canvas.digits
    )
    question = CANVAS_QUESTION if canvas.is_unnamed else canvas.sentence
    return Sample(canvas.image, question, Answer(canvas.sentence, found))


def _some(samples: Sequence[Sample], count: int, seed: int, task: str) -> list[Sample]:
    """The first ``count`` after shuffling by seed."""
    import numpy as np

    order = np.random.default_rng([seed, 3]).permutation(len(samples))
    return _own_first([samples[int(i)] for i in order], task)[:count]


def _own_first(samples: list[Sample], task: str) -> list[Sample]:
    """A sample of the dataset's own task comes first: its metric is asked for, however few samples are measured."""
    first = next((place for place, sample in enumerate(samples) if sample.task in (None, task)), 0)
    return [*samples[first : first + 1], *samples[:first], *samples[first + 1 :]]


BUILT_IN: dict[str, Callable[[int, float], Dataset]] = {
    "digits": digits,
    "digits-grounding": digits_grounding,
    "digits-both": digits_both,
}
