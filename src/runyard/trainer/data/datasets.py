"""Training data: samples, the train/validation split, and the three built-in datasets.

Uploaded datasets are read in ``uploaded.py``.

``digits`` asks which digit a scan of real handwriting shows. ``digits-grounding`` asks where digits
are on a canvas. ``digits-both`` asks both of one model. All are made from the 1,797 scans that
scikit-learn ships, so they need no download. The split is decided per scan, by content hash and
seed: added images move none to the other part, and no canvas for training shows a held-out scan.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runyard.datasets.records import Turn
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
from runyard.datasets.splits import Split, is_held_out
from runyard.trainer.answers import PHRASE_GROUNDING, VQA, Answer, Grounding, scale_box
from runyard.trainer.errors import InvalidData, InvalidFlow

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CANVAS_QUESTION = "Which digits are here?"
TRAINING_CANVASES, HELD_OUT_CANVASES = CANVASES, 400
# For the dataset with both tasks. The held-out part has as many of each, and as many as a flow
# evaluates by default.
BOTH_CANVASES, BOTH_HELD_OUT = 10_000, 500
BOTH_VQA, BOTH_HELD_OUT_VQA = 0.25, 0.5
VERSION_LENGTH = 16  # the same as for uploaded datasets


@dataclass(frozen=True)
class Sample:
    """One question about one image, and the true answer; or a conversation that ends with them.

    ``image_sha256`` and ``filename`` describe an uploaded image's file; they are empty otherwise.
    ``task`` is set in datasets with several tasks; None stands for the flow's task. ``turns`` are
    those of a conversation, from the first to the last answer; empty for one question about one
    image. ``further_images`` follow ``image`` in a conversation about several images; uploaded ones
    have ``further_filenames``. A sample of text only has turns and an image that is not used.
    ``dataset`` is set in mixtures, whose datasets may use the same file names.
    """

    image: "Image.Image"
    question: str
    truth: Answer
    image_sha256: str = ""
    filename: str = ""
    task: str | None = None
    turns: tuple[Turn, ...] = ()
    further_images: "tuple[Image.Image, ...]" = ()
    further_filenames: tuple[str, ...] = ()
    is_text_only: bool = False
    dataset: str = ""

    @property
    def images(self) -> "list[Image.Image]":
        """All images in their order."""
        return [] if self.is_text_only else [self.image, *self.further_images]

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the first image in pixels."""
        return self.image.size


@dataclass(frozen=True)
class Dataset:
    """Training samples and held-out samples.

    ``phrases`` are frequent texts, for a new tokenizer. ``held_out_split`` is the part of the
    dataset's own split that is held out, or None if the content of images decides.
    ``unused_images`` counts its test images, if those of ``validation`` are held out.
    ``has_text_only`` says whether some samples show no image. ``overlapping_samples`` counts those
    that are not trained on, since another dataset holds their image out.
    """

    name: str
    task: str
    train: Sequence[Sample]
    validation: Sequence[Sample]
    phrases: tuple[str, ...] = ()
    version: str | None = None  # of an uploaded dataset; None for built-in ones
    held_out_split: Split | None = None
    unused_images: int = 0
    has_text_only: bool = False
    overlapping_samples: int = 0


def load_dataset(
    name: str, *, seed: int, validation_fraction: float, max_samples: int | None = None
) -> Dataset:
    """Return the built-in dataset with this ID, split, with at most ``max_samples`` of each part.

    Raises:
        InvalidFlow: there is no such dataset.
        InvalidData: the training part is empty.
    """
    if name not in BUILT_IN:
        raise InvalidFlow(f"unknown dataset {name!r}; the built-in ones are {', '.join(BUILT_IN)}")
    dataset = BUILT_IN[name](seed, validation_fraction)
    if max_samples is not None:
        dataset = replace(
            dataset,
            train=_subsample(dataset.train, max_samples, seed, dataset.task),
            validation=_subsample(dataset.validation, max_samples, seed, dataset.task),
        )
    if not dataset.train:
        raise InvalidData(
            f"dataset {name!r} has no training samples with validationFraction "
            f"{validation_fraction}; "
            "try: a lower validationFraction"
        )
    return dataset


def hash_samples(data: Dataset) -> str:
    """Return a hash of all samples of a built-in dataset, in order and by part: its version.

    It changes when a library resizes images differently, or when other samples are made from the
    same scans.
    """
    digest = hashlib.sha256()
    for part in (data.train, data.validation):
        digest.update(f"{len(part)} samples".encode())
        for sample in part:
            digest.update(
                f"{sample.image.size}{sample.task}{sample.question!r}{sample.truth}".encode()
            )
            digest.update(sample.image.tobytes())
    return digest.hexdigest()[:VERSION_LENGTH]


def _is_held_out(scan: "np.ndarray[Any, Any]", seed: int, fraction: float) -> bool:
    return is_held_out(hashlib.sha256(scan.tobytes()).digest(), seed=seed, fraction=fraction)


def make_digits(seed: int, validation_fraction: float) -> Dataset:
    """Make the dataset "Which digit is this?": one scan per sample, enlarged to 32 x 32."""
    train: list[Sample] = []
    held_out: list[Sample] = []
    for scan, label in load_scans():
        if _is_held_out(scan, seed, validation_fraction):
            held_out.append(Sample(enlarge_scan(scan), DIGIT_QUESTION, Answer(str(label))))
        else:
            train.append(
                Sample(enlarge_scan(scan), choose_digit_question(len(train)), Answer(str(label)))
            )
    return Dataset("digits", VQA, train, held_out)


def make_digits_grounding(seed: int, validation_fraction: float) -> Dataset:
    """Make the dataset "Where are these digits?": one to three different scans on a canvas of 48 x
    48.

    The sentence names all of them.
    """
    import numpy as np

    train, held_out = _split_scans(seed, validation_fraction)
    return Dataset(
        "digits-grounding",
        PHRASE_GROUNDING,
        _make_canvases(
            train, TRAINING_CANVASES, np.random.default_rng([seed, 1]), share_unnamed=UNNAMED
        ),
        _make_canvases(
            held_out, HELD_OUT_CANVASES, np.random.default_rng([seed, 2]), share_unnamed=0.0
        ),
        (" and ", CANVAS_QUESTION, *_list_box_phrases()),
    )


def make_digits_both(seed: int, validation_fraction: float) -> Dataset:
    """Make the dataset with both tasks, on canvases of 48 x 48.

    Canvases with one digit ask which it is; those with two or three ask where they are. The
    question determines the form of the answer, so each sample names its task, and the order is
    mixed.
    """
    import numpy as np

    train, held_out = _split_scans(seed, validation_fraction)
    return Dataset(
        "digits-both",
        PHRASE_GROUNDING,
        _make_both(
            train,
            BOTH_CANVASES,
            np.random.default_rng([seed, 1]),
            share_vqa=BOTH_VQA,
            is_training=True,
        ),
        _make_both(
            held_out,
            BOTH_HELD_OUT,
            np.random.default_rng([seed, 2]),
            share_vqa=BOTH_HELD_OUT_VQA,
            is_training=False,
        ),
        (" and ", *_list_corner_phrases()),
    )


def _make_both(
    scans: list[Scan],
    count: int,
    random: "np.random.Generator",
    *,
    share_vqa: float,
    is_training: bool,
) -> list[Sample]:
    """Return canvases with one digit to name and canvases with two or three to locate, in mixed
    order.

    Canvases for training show augmented scans, because the model soon memorizes the scans
    themselves. Boxes stay the same: they mark the grid cell of a scan.
    """
    single = draw_canvases(
        scans, round(count * share_vqa), random, share_unnamed=0.0, most=1, is_varied=is_training
    )
    naming = [
        Sample(
            canvas.image,
            choose_digit_question(index) if is_training else DIGIT_QUESTION,
            Answer(canvas.sentence),
            task=VQA,
        )
        for index, canvas in enumerate(single)
    ]
    several = draw_canvases(
        scans, count - len(naming), random, share_unnamed=0.0, fewest=2, is_varied=is_training
    )
    mixed = [
        *naming,
        *(replace(_make_grounding_sample(canvas), task=PHRASE_GROUNDING) for canvas in several),
    ]
    return _put_own_task_first(
        [mixed[int(index)] for index in random.permutation(len(mixed))], PHRASE_GROUNDING
    )


def _split_scans(seed: int, validation_fraction: float) -> tuple[list[Scan], list[Scan]]:
    """Return the scans for training and the held-out ones."""
    train: list[Scan] = []
    held_out: list[Scan] = []
    for scan, label in load_scans():
        side = held_out if _is_held_out(scan, seed, validation_fraction) else train
        side.append((scan, label))
    return train, held_out


def _list_box_phrases() -> Iterator[str]:
    """Yield the texts directly before each number of a box: the phrase, then each number with its
    comma.

    Each becomes one token, because the tiny model has two layers of attention. Where a number
    depends on a token further back, one layer is spent on finding that token, and the model does
    not learn in time which digit is asked.
    """
    yield from (f'{word}","grounding":[[' for word in WORDS)
    corners = range(0, CANVAS_SIDE + 1, CANVAS_GRID)
    yield from (
        f"{scale_box((x, x, x, x), width=CANVAS_SIDE, height=CANVAS_SIDE)[0]}," for x in corners
    )


def _list_corner_phrases() -> Iterator[str]:
    """Yield texts as ``_list_box_phrases`` does, but each corner of a box as one, so that one token
    locates a digit.

    Boxes off the grid can still be written, with the tokens of their numbers.
    """
    yield from (f'{word}","grounding":[[' for word in WORDS)
    corners = range(0, CANVAS_SIDE - CANVAS_DIGIT + 1, CANVAS_GRID)
    for x, y in itertools.product(corners, corners):
        box = (x, y, x + CANVAS_DIGIT, y + CANVAS_DIGIT)
        x1, y1, x2, y2 = scale_box(box, width=CANVAS_SIDE, height=CANVAS_SIDE)
        yield f"{x1},{y1},"
        yield f"{x2},{y2}"


def _make_canvases(
    scans: list[Scan], count: int, random: "np.random.Generator", *, share_unnamed: float
) -> list[Sample]:
    """Return ``count`` canvases made of these scans alone.

    In a share ``share_unnamed`` of them the question names no digit, so the model must read them
    itself, in reading order. Without such samples it learns to locate digits but not to distinguish
    them.
    """
    return [
        _make_grounding_sample(canvas)
        for canvas in draw_canvases(scans, count, random, share_unnamed=share_unnamed)
    ]


def _make_grounding_sample(canvas: Canvas) -> Sample:
    groundings = tuple(
        Grounding(word, (scale_box(box, width=CANVAS_SIDE, height=CANVAS_SIDE),))
        for word, box in canvas.digits
    )
    question = CANVAS_QUESTION if canvas.is_unnamed else canvas.sentence
    return Sample(canvas.image, question, Answer(canvas.sentence, groundings))


def _subsample(samples: Sequence[Sample], count: int, seed: int, task: str) -> list[Sample]:
    """Return the first ``count`` samples after a seeded shuffle."""
    import numpy as np

    order = np.random.default_rng([seed, 3]).permutation(len(samples))
    return _put_own_task_first([samples[int(i)] for i in order], task)[:count]


def _put_own_task_first(samples: list[Sample], task: str) -> list[Sample]:
    """Move a sample of the own task to the front, so that any evaluation has its metric."""
    first = next((index for index, sample in enumerate(samples) if sample.task in (None, task)), 0)
    return [*samples[first : first + 1], *samples[:first], *samples[first + 1 :]]


BUILT_IN: dict[str, Callable[[int, float], Dataset]] = {
    "digits": make_digits,
    "digits-grounding": make_digits_grounding,
    "digits-both": make_digits_both,
}
