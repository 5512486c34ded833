"""What is trained on: samples, the split into training and held-out ones, and the two built-in datasets.

``digits`` asks which digit a real handwritten scan shows; ``digits-grounding`` asks where digits are on a canvas. Both
are made of the 1,797 scans that scikit-learn carries, so they need no download. What is held out is decided by scan, by
content hash and seed: adding pictures moves none across, and no canvas for training holds a held-out scan.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runyard.trainer.answers import PHRASE_GROUNDING, VQA, Answer, Grounding, scale_box
from runyard.trainer.errors import InvalidData, InvalidFlow

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_QUESTION = "Which digit is this?"
# Half of the training questions are worded otherwise, so that people may ask in their own words, too.
DIGIT_WORDINGS = (
    "What number is this?",
    "What digit can you see?",
    "which number does the picture show",
    "Tell me the digit.",
    "What is written here?",
    "Read the number in this image.",
    "Which digit is it?",
    "what is this?",
)
SCAN_SIDE = 32
CANVAS_QUESTION = "Which digits are here?"
UNNAMED = 0.4
CANVAS_SIDE, CANVAS_DIGIT, CANVAS_GRID = 48, 16, 8
TRAINING_CANVASES, HELD_OUT_CANVASES = 12000, 400


@dataclass(frozen=True)
class Sample:
    """One question about one picture, and the true answer."""

    image: "Image.Image"
    question: str
    truth: Answer


@dataclass(frozen=True)
class Dataset:
    """Samples to train on and samples held out. ``phrases`` are texts that occur often, for a new tokenizer."""

    name: str
    task: str
    train: Sequence[Sample]
    validation: Sequence[Sample]
    phrases: tuple[str, ...] = ()


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


def is_held_out(content: bytes, *, seed: int, fraction: float) -> bool:
    """Whether a picture belongs to the held-out part; depends on nothing but itself, the seed and the fraction."""
    digest = hashlib.sha256(seed.to_bytes(8, "big") + hashlib.sha256(content).digest()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def digits(seed: int, validation_fraction: float) -> Dataset:
    """Which digit is this? One scan a sample, enlarged to 32 x 32."""
    from PIL import Image

    train: list[Sample] = []
    held_out: list[Sample] = []
    for scan, label in _scans():
        picture = Image.fromarray(scan).resize((SCAN_SIDE, SCAN_SIDE), Image.Resampling.BILINEAR).convert("RGB")
        if is_held_out(scan.tobytes(), seed=seed, fraction=validation_fraction):
            held_out.append(Sample(picture, DIGIT_QUESTION, Answer(str(label))))
        else:
            place = len(train)
            question = DIGIT_WORDINGS[place // 2 % len(DIGIT_WORDINGS)] if place % 2 else DIGIT_QUESTION
            train.append(Sample(picture, question, Answer(str(label))))
    return Dataset("digits", VQA, train, held_out)


def digits_grounding(seed: int, validation_fraction: float) -> Dataset:
    """Where are these digits? One to three different scans on a canvas of 48 x 48; the sentence names all of them."""
    import numpy as np

    train: list[tuple[Any, int]] = []
    held_out: list[tuple[Any, int]] = []
    for scan, label in _scans():
        side = held_out if is_held_out(scan.tobytes(), seed=seed, fraction=validation_fraction) else train
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
    from PIL import Image

    enlarged = [
        (Image.fromarray(scan).resize((CANVAS_DIGIT, CANVAS_DIGIT), Image.Resampling.BILINEAR), label)
        for scan, label in scans
    ]
    by_label: dict[int, list[Any]] = {}
    for picture, label in enlarged:
        by_label.setdefault(label, []).append(picture)
    if not by_label:
        return []
    samples = []
    for _ in range(count):
        question = ""
        how_many = int(random.integers(1, min(3, len(by_label)) + 1))
        labels = [int(label) for label in random.choice(sorted(by_label), how_many, replace=False)]
        canvas = Image.new("L", (CANVAS_SIDE, CANVAS_SIDE))
        found = []
        for label, (x, y) in zip(labels, _places(how_many, random), strict=True):
            pictures = by_label[label]
            canvas.paste(pictures[int(random.integers(len(pictures)))], (x, y))
            box = scale_box((x, y, x + CANVAS_DIGIT, y + CANVAS_DIGIT), width=CANVAS_SIDE, height=CANVAS_SIDE)
            found.append(Grounding(WORDS[label], (box,)))
        if random.random() < share_unnamed:
            question = CANVAS_QUESTION
            found.sort(key=lambda item: (item.boxes[0][1], item.boxes[0][0]))
        sentence = " and ".join(item.phrase for item in found)
        samples.append(Sample(canvas.convert("RGB"), question or sentence, Answer(sentence, tuple(found))))
    return samples


def _places(count: int, random: "np.random.Generator") -> list[tuple[int, int]]:
    """Upper left corners on the grid, so that no two digits overlap."""
    while True:
        steps = (CANVAS_SIDE - CANVAS_DIGIT) // CANVAS_GRID + 1
        corners = [(int(x) * CANVAS_GRID, int(y) * CANVAS_GRID) for x, y in random.integers(steps, size=(count, 2))]
        if all(
            abs(a[0] - b[0]) >= CANVAS_DIGIT or abs(a[1] - b[1]) >= CANVAS_DIGIT
            for i, a in enumerate(corners)
            for b in corners[:i]
        ):
            return corners


def _scans() -> list[tuple["np.ndarray[Any, Any]", int]]:
    """The 1,797 scans as 8 x 8 grey pictures with their labels."""
    import numpy as np
    from sklearn.datasets import load_digits

    data = load_digits()
    scans = (data.images / 16 * 255).astype(np.uint8)
    return [(scan, int(label)) for scan, label in zip(scans, data.target, strict=True)]


def _some(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """The first ``count`` after shuffling by seed."""
    import numpy as np

    order = np.random.default_rng([seed, 3]).permutation(len(samples))[:count]
    return [samples[int(i)] for i in order]


BUILT_IN: dict[str, Callable[[int, float], Dataset]] = {"digits": digits, "digits-grounding": digits_grounding}
