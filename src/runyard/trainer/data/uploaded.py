"""Samples of an uploaded dataset: the folder of a dataset version, read sample by sample on demand.

Only numbers are kept in memory: which image, record and question each sample is, a hash of its
content, and the part of the data it belongs to. Images and texts are read each time. The split is
the dataset's own, if it has one. Otherwise it is decided by the image's content hash, so added
images move none to the other part. All questions about an image are in one part.
"""

import contextlib
import errno
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from runyard.datasets.pixels import BrokenImage, decode_image
from runyard.datasets.records import (
    IMAGE_MARK,
    Contents,
    Conversation,
    Freeform,
    PhraseGrounding,
    Vqa,
    is_text_only,
    list_further_images,
)
from runyard.datasets.splits import SPLITS, Split, is_held_out
from runyard.datasets.versions import VersionError, VersionFolder, VersionImage
from runyard.rundir import COMPLETE
from runyard.trainer.answers import FREEFORM, PHRASE_GROUNDING, VQA, Answer, Grounding, scale_box
from runyard.trainer.data.datasets import Dataset, Sample
from runyard.trainer.errors import InvalidData

if TYPE_CHECKING:
    from PIL import Image

# The question of a freeform record without a prompt. Trained models know these words.
DESCRIBE = "Describe the picture."
TASKS: dict[type, tuple[str, ...]] = {
    Vqa: (VQA,),
    PhraseGrounding: (PHRASE_GROUNDING,),
    Freeform: (FREEFORM,),
    Conversation: (VQA, FREEFORM),
}
_IMAGE_MARK = re.compile(rf"\s*{IMAGE_MARK}\s*")
MAX_DECODED_IMAGES = 2  # questions about one image follow each other


class StoredSample(Sample):
    """A sample whose images are decoded on access."""

    def __init__(
        self,
        question: str,
        truth: Answer,
        item: VersionImage,
        read_image: Callable[[VersionImage], "Image.Image"],
        *,
        conversation: Conversation | None = None,
        further: Sequence[VersionImage] = (),
    ):
        if conversation is not None:
            object.__setattr__(self, "turns", tuple(conversation.turns))
            object.__setattr__(self, "is_text_only", conversation.is_text_only)
        object.__setattr__(self, "further_filenames", tuple(image.filename for image in further))
        object.__setattr__(self, "_further", further)
        object.__setattr__(self, "question", question)
        object.__setattr__(self, "truth", truth)
        object.__setattr__(self, "image_sha256", item.sha256)
        object.__setattr__(self, "filename", item.filename)
        object.__setattr__(self, "_item", item)
        object.__setattr__(self, "_read_image", read_image)

    @property
    def image(self) -> "Image.Image":
        """Raises BrokenImage, OSError."""
        image: Image.Image = self._read_image(self._item)  # type: ignore[attr-defined]
        return image

    @property
    def images(self) -> "list[Image.Image]":
        """All images in their order. Raises BrokenImage, OSError."""
        if self.is_text_only:
            return []
        images = [self.image]
        for item in self._further:  # type: ignore[attr-defined]
            try:
                images.append(self._read_image(item))  # type: ignore[attr-defined]
            except BrokenImage as error:
                raise BrokenImage(f"its image {item.filename!r}: {error}") from error
        return images

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the first image as recorded: it is not decoded."""
        item: VersionImage = self._item  # type: ignore[attr-defined]
        return item.width, item.height


class UploadedSamples:
    """All samples of a dataset version, by number, in the order of the manifest."""

    def __init__(
        self,
        folder: Path,
        *,
        task: str,
        name: str,
        check_cancelled: Callable[[], None] = lambda: None,
    ):
        """Read the manifest once.

        Raises:
            InvalidData: a record is of another task, or names an image that is not there.
            OSError: the folder is damaged.
        """
        self._folder, self._task, self.name = folder, task, name
        with self._mark_damaged():
            self._version = VersionFolder(folder)
            locations: list[tuple[int, int, int]] = []
            keys, image_hashes, splits = bytearray(), bytearray(), bytearray()
            self._numbers_by_name: dict[str, int] | None = None
            shows_image = bytearray()
            for number, item in enumerate(self._version.items()):
                if number % 256 == 0:
                    check_cancelled()
                for record, contents in enumerate(item.records):
                    self._check_task(item, contents)
                    images = [item, *self._find_further(item, contents)]
                    for part, (question, truth) in enumerate(list_questions(contents)):
                        locations.append((number, record, part))
                        key = _hash_sample(images, contents, question, truth)
                        keys += key
                        shows_image.append(not is_text_only(contents))
                        # Rows of text only are split one by one.
                        image_hashes += (
                            key if is_text_only(contents) else bytes.fromhex(item.sha256)
                        )
                        splits.append(SPLITS.index(item.split) if item.split else len(SPLITS))
        # Item, record, question of each sample.
        self._locations = np.asarray(locations, np.int32).reshape(-1, 3)
        self.keys = np.frombuffer(bytes(keys), np.uint8).reshape(-1, 32)
        """A hash of each sample: its images' bytes and sizes, its texts."""
        self.image_hashes = np.frombuffer(bytes(image_hashes), np.uint8).reshape(-1, 32)
        """The content hash of each sample's first image; of a sample without one its own hash."""
        self.splits = np.frombuffer(bytes(splits), np.uint8)
        """The index of each sample's split in ``SPLITS``; ``len(SPLITS)`` for no split."""
        self._shows_image = np.frombuffer(bytes(shows_image), np.uint8).astype(bool)
        self._decoded: OrderedDict[str, Image.Image] = OrderedDict()

    def __len__(self) -> int:
        return len(self._locations)

    def sample(self, number: int) -> StoredSample:
        item_number, record, part = (int(value) for value in self._locations[number])
        item = self._read_item(item_number)
        contents = item.records[record]
        question, truth = list_questions(contents)[part]
        return StoredSample(
            question,
            truth,
            item,
            self._read_image,
            conversation=get_conversation(contents),
            further=self._find_further(item, contents),
        )

    def have_same_image(self, one: int, other: int) -> bool:
        return np.array_equal(self.image_hashes[one], self.image_hashes[other])

    @property
    def descriptors(self) -> list[int]:
        """The open files that samples are read from, which a fork may use as well."""
        return self._version.descriptors

    def filename(self, number: int) -> str:
        return self._read_item(int(self._locations[number, 0])).filename

    def is_in(self, split: Split) -> "np.ndarray[Any, Any]":
        """Return which samples are in this part of the dataset's own split."""
        return np.equal(self.splits, SPLITS.index(split))

    @property
    def has_text_only(self) -> bool:
        """Whether some samples show no image."""
        return not bool(self._shows_image.all())

    def count_images(self, numbers: "np.ndarray[Any, Any]") -> int:
        """Return the number of distinct files that these samples show first."""
        return len(np.unique(self._locations[numbers[self._shows_image[numbers]], 0]))

    def _read_item(self, item_number: int) -> VersionImage:
        with self._mark_damaged():
            return self._version.item(item_number)

    def _read_image(self, item: VersionImage) -> "Image.Image":
        """Return the decoded image.

        Raises:
            BrokenImage: it cannot be decoded, or not to the size that its boxes refer to.
            OSError: the folder is damaged.
        """
        image = self._decoded.pop(item.sha256, None)
        if image is None:
            with self._mark_damaged():
                data = self._version.read(item.sha256)
            image = decode_image(data)
            while len(self._decoded) >= MAX_DECODED_IMAGES:
                self._decoded.popitem(last=False)
        self._decoded[item.sha256] = image
        # After keeping it: another item may have the same bytes and the right size.
        if image.size != (item.width, item.height):
            raise BrokenImage(
                f"it has {image.width} x {image.height} pixels as displayed, but its record says "
                f"{item.width} x {item.height}: import the dataset again"
            )
        return image

    def _find_further(self, item: VersionImage, contents: Contents) -> list[VersionImage]:
        """Return the images of a conversation after the first."""
        names = list_further_images(contents)
        if not names:
            return []
        if self._numbers_by_name is None:
            with self._mark_damaged():
                self._numbers_by_name = {
                    image.filename: number for number, image in enumerate(self._version.items())
                }
        for name in names:
            if name not in self._numbers_by_name:
                raise InvalidData(
                    f"dataset {self.name!r} has a conversation of {item.filename!r} about image "
                    f"{name!r}, which is not in this version; try: import the conversation again"
                )
        return [self._read_item(self._numbers_by_name[name]) for name in names]

    def _check_task(self, item: VersionImage, contents: Contents) -> None:
        kinds = TASKS[type(contents)]
        if self._task not in kinds:
            kind = kinds[0]
            raise InvalidData(
                f"dataset {self.name!r} has {kind} records ({item.filename!r} is the first), but "
                "projectKind is "
                f"{self._task!r}; try: set projectKind to {kind!r}, or choose another dataset"
            )

    @contextlib.contextmanager
    def _mark_damaged(self) -> Iterator[None]:
        """Convert VersionError to OSError, and have the next attempt verify the copy again."""
        try:
            yield
        except VersionError as error:
            (self._folder / COMPLETE).unlink(missing_ok=True)
            raise OSError(
                errno.EIO, f"the copy of dataset {self.name!r} is damaged: {error}"
            ) from error


class SampleStore(Protocol):
    """Samples by number, with what the cache identifies them by. ``UploadedSamples`` says more."""

    name: str
    keys: "np.ndarray[Any, Any]"
    image_hashes: "np.ndarray[Any, Any]"

    @property
    def descriptors(self) -> list[int]: ...

    def sample(self, number: int, /) -> StoredSample: ...

    def have_same_image(self, one: int, other: int, /) -> bool: ...

    def filename(self, number: int, /) -> str: ...

    def count_images(self, numbers: "np.ndarray[Any, Any]", /) -> int: ...


class SampleSelection(Sequence[Sample]):
    """Some of the samples, in an order of their own."""

    def __init__(self, whole: SampleStore, numbers: "np.ndarray[Any, Any]"):
        self.whole, self.numbers = whole, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "SampleSelection": ...
    def __getitem__(self, index: int | slice) -> "Sample | SampleSelection":
        if isinstance(index, slice):
            return SampleSelection(self.whole, self.numbers[index])
        return self.whole.sample(int(self.numbers[index]))

    def without(self, numbers: "np.ndarray[Any, Any]") -> "SampleSelection":
        return SampleSelection(self.whole, self.numbers[~np.isin(self.numbers, numbers)])

    @property
    def image_count(self) -> int:
        return self.whole.count_images(self.numbers)


def load_uploaded(
    folder: Path,
    *,
    name: str,
    version: str,
    task: str,
    seed: int,
    validation_fraction: float,
    max_samples: int | None,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Dataset:
    """Return the dataset version in ``folder``, split, with at most ``max_samples`` of each part.

    A dataset's own split comes first: images of ``validation`` are held out, or those of ``test``
    if there is no ``validation``; the others are trained on, except those of ``test``. Then
    ``validation_fraction`` only decides, by 0, that nothing is held out.

    Raises:
        InvalidData: a record is of another task, or a part of the data is empty.
        OSError: the folder is damaged.
    """
    whole = UploadedSamples(folder, task=task, name=name, check_cancelled=check_cancelled)
    split = split_samples(whole, seed=seed, fraction=validation_fraction)
    train, validation = (
        SampleSelection(whole, subsample(np.flatnonzero(mask), max_samples, seed))
        for mask in (split.is_trained, split.is_held_out)
    )
    dataset = Dataset(
        name,
        task,
        train,
        validation,
        version=version,
        held_out_split=split.held_out_split,
        unused_images=whole.count_images(np.flatnonzero(split.is_unused)),
        has_text_only=whole.has_text_only,
    )
    check_split(dataset, validation_fraction)
    return dataset


@dataclass(frozen=True)
class SampleSplit:
    """Which samples are trained on, held out, and in neither part, as masks of shape (samples,).

    ``held_out_split`` is the part of the dataset's own split that is held out, if it has one.
    """

    is_trained: "np.ndarray[Any, Any]"
    is_held_out: "np.ndarray[Any, Any]"
    is_unused: "np.ndarray[Any, Any]"
    held_out_split: Split | None


def split_samples(whole: UploadedSamples, *, seed: int, fraction: float) -> SampleSplit:
    """Split the samples of a dataset version as ``load_uploaded`` says."""
    evaluated: tuple[Split, ...] = ("validation", "test")
    held_out_split = next((split for split in evaluated if whole.is_in(split).any()), None)
    if held_out_split is None:
        held_out = _choose_held_out(whole, seed=seed, fraction=fraction)
        return SampleSplit(~held_out, held_out, np.zeros(len(whole), bool), None)
    held_out = whole.is_in(held_out_split) & (fraction > 0)
    is_trained = ~(whole.is_in("validation") | whole.is_in("test"))
    return SampleSplit(is_trained, held_out, whole.is_in("test") & ~held_out, held_out_split)


def _choose_held_out(
    whole: UploadedSamples, *, seed: int, fraction: float
) -> "np.ndarray[Any, Any]":
    """Return which samples are held out by the content of their images."""
    distinct, of_sample = np.unique(whole.image_hashes, axis=0, return_inverse=True)
    return np.fromiter(
        (is_held_out(digest.tobytes(), seed=seed, fraction=fraction) for digest in distinct),
        bool,
    )[of_sample.reshape(-1)]


def check_split(dataset: Dataset, validation_fraction: float) -> None:
    """Check that each part of the data has samples, where it should.

    Raises:
        InvalidData: a part is empty; the message has the counts and a fix.
    """
    counts = f"{len(dataset.train)} training samples and {len(dataset.validation)} held out"
    found = f"dataset {dataset.name!r} has {counts}"
    if dataset.held_out_split is not None:
        _check_own_split(dataset, found, validation_fraction)
        return
    found = f"{found} with validationFraction {validation_fraction}"
    if not dataset.train and not dataset.validation:
        raise InvalidData(
            f"dataset {dataset.name!r} has no samples; try: add images with records of its task"
        )
    if not dataset.train:
        raise InvalidData(f"{found}; try: a lower validationFraction, or more images")
    if validation_fraction > 0 and not dataset.validation:
        raise InvalidData(
            f"{found}; try: a higher validationFraction, 0 to train without validation, or more "
            "images"
        )


def _check_own_split(dataset: Dataset, found: str, validation_fraction: float) -> None:
    merge = "import the data with --split ignore"
    if not dataset.train:
        raise InvalidData(
            f"{found} in its own split, which has no usable images for training; try: add images "
            f"of its train split, or {merge}"
        )
    if validation_fraction > 0 and not dataset.validation:
        raise InvalidData(
            f"{found} in its own {dataset.held_out_split} split; try: add images to it, "
            f"validationFraction 0 to train without validation, or {merge}"
        )


def get_conversation(contents: Contents) -> Conversation | None:
    """Return the record if its sample is a conversation; None if it has single questions."""
    if isinstance(contents, Conversation) and not contents.is_single_question:
        return contents
    return None


def list_questions(contents: Contents) -> list[tuple[str, Answer]]:
    """Return the questions of a record with their true answers, one per sample.

    A conversation is one sample: its last question, without image marks, and the last answer.
    """
    match contents:
        case Conversation(turns=turns):
            question = turns[-2].content
            if not contents.is_text_only:
                question = _IMAGE_MARK.sub(" ", question)
            return [(question.strip() or DESCRIBE, Answer(turns[-1].content))]
        case Vqa(interactions=interactions):
            return [(each.question, Answer(each.answer)) for each in interactions]
        case PhraseGrounding(caption=caption, grounded_phrases=phrases):
            groundings = (
                Grounding(
                    each.phrase, tuple(scale_box(box, width=1, height=1) for box in each.bounds)
                )
                for each in phrases
            )
            return [(caption, Answer(caption, tuple(groundings)))]
        case Freeform(text=text, prompt=prompt):
            return [(prompt or DESCRIBE, Answer(text))]


def _hash_sample(
    images: Sequence[VersionImage], contents: Contents, question: str, truth: Answer
) -> bytes:
    boxes = [[grounding.phrase, grounding.boxes] for grounding in truth.groundings]
    # The size, because an image that decodes to another size is cached as broken.
    sizes = [[item.sha256, item.width, item.height] for item in images]
    described: list[Any] = [*sizes[0], question, truth.text, boxes]
    conversation = get_conversation(contents)
    if conversation is not None:
        turns = [[turn.role, turn.content] for turn in conversation.turns]
        described += [[] if conversation.is_text_only else sizes, turns]
    return hashlib.sha256(json.dumps(described).encode()).digest()


def subsample(
    numbers: "np.ndarray[Any, Any]", count: int | None, seed: int
) -> "np.ndarray[Any, Any]":
    """Return the first ``count`` after a seeded shuffle, as for built-in datasets.

    All in order for None.
    """
    return (
        numbers
        if count is None
        else numbers[np.random.default_rng([seed, 3]).permutation(len(numbers))[:count]]
    )
