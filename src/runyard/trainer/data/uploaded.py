"""Samples of a dataset that people uploaded: a version's folder, read sample by sample when asked for.

Only numbers are held: which picture, record and question each sample is, a hash of its content, and which part of the
data it belongs to. Pictures and texts are read again each time. What is held out is decided by the picture's content
hash, so all questions about a picture stand on one side, and adding pictures moves none across.
"""

import contextlib
import errno
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from runyard.datasets.records import Contents, Freeform, PhraseGrounding, Vqa
from runyard.datasets.splits import is_held_out
from runyard.datasets.versions import Item, VersionError, VersionFolder
from runyard.rundir import COMPLETE
from runyard.trainer.answers import FREEFORM, PHRASE_GROUNDING, VQA, Answer, Grounding, scale_box
from runyard.trainer.data.datasets import Dataset, Sample
from runyard.trainer.data.images import decoded
from runyard.trainer.errors import InvalidData

if TYPE_CHECKING:
    from PIL import Image

DESCRIBE = "Describe the picture."  # what is asked where a freeform record has no prompt of its own
TASKS: dict[type, str] = {Vqa: VQA, PhraseGrounding: PHRASE_GROUNDING, Freeform: FREEFORM}
DECODED_PICTURES = 2  # questions about one picture follow each other


class StoredSample(Sample):
    """A sample whose picture is decoded when it is looked at."""

    def __init__(self, question: str, truth: Answer, item: Item, show: Callable[[], "Image.Image"]):
        object.__setattr__(self, "question", question)
        object.__setattr__(self, "truth", truth)
        object.__setattr__(self, "picture", item.sha256)
        object.__setattr__(self, "filename", item.filename)
        object.__setattr__(self, "_show", show)

    @property
    def image(self) -> "Image.Image":
        """Raises BrokenPicture, OSError."""
        picture: Image.Image = self._show()  # type: ignore[attr-defined]
        return picture


class UploadedSamples:
    """Every sample of a version, by number, in the order of the manifest."""

    def __init__(self, folder: Path, *, task: str, name: str, look: Callable[[], None] = lambda: None):
        """Reads the manifest once.

        Raises:
            InvalidData: a record is not of this task.
            OSError: the folder is damaged.
        """
        self._folder, self._task, self.name = folder, task, name
        with self._damage_is_told():
            self._version = VersionFolder(folder)
            places: list[tuple[int, int, int]] = []
            keys, pictures = bytearray(), bytearray()
            for number, item in enumerate(self._version.items()):
                if number % 256 == 0:
                    look()
                for record, contents in enumerate(item.records):
                    self._check_task(item, contents)
                    for part, (question, truth) in enumerate(questions_of(contents)):
                        places.append((number, record, part))
                        keys += _key(item.sha256, question, truth)
                        pictures += bytes.fromhex(item.sha256)
        self._places = np.asarray(places, np.int32).reshape(-1, 3)
        self.keys = np.frombuffer(bytes(keys), np.uint8).reshape(-1, 32)
        """A hash of each sample: its picture's bytes, its question, its answer."""
        self.pictures = np.frombuffer(bytes(pictures), np.uint8).reshape(-1, 32)
        """The content hash of each sample's picture."""
        self._shown: OrderedDict[str, Image.Image] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def sample(self, number: int) -> StoredSample:
        place, record, part = (int(value) for value in self._places[number])
        item = self._item(place)
        question, truth = questions_of(item.records[record])[part]
        return StoredSample(question, truth, item, lambda: self._picture(item.sha256))

    def filename(self, number: int) -> str:
        return self._item(int(self._places[number, 0])).filename

    def pictures_among(self, numbers: "np.ndarray[Any, Any]") -> int:
        """How many different files these samples show."""
        return len(np.unique(self._places[numbers, 0]))

    def _item(self, place: int) -> Item:
        with self._damage_is_told():
            return self._version.item(place)

    def _picture(self, sha256: str) -> "Image.Image":
        picture = self._shown.pop(sha256, None)
        if picture is None:
            with self._damage_is_told():
                data = self._version.read(sha256)
            picture = decoded(data)
            while len(self._shown) >= DECODED_PICTURES:
                self._shown.popitem(last=False)
        self._shown[sha256] = picture
        return picture

    def _check_task(self, item: Item, contents: Contents) -> None:
        kind = TASKS[type(contents)]
        if kind != self._task:
            raise InvalidData(
                f"dataset {self.name!r} holds {kind} records ({item.filename!r} is the first), but projectKind is "
                f"{self._task!r}; set projectKind to {kind!r}, or choose another dataset"
            )

    @contextlib.contextmanager
    def _damage_is_told(self) -> Iterator[None]:
        """The machine's copy is at fault and not the data: the next attempt has every file proven anew."""
        try:
            yield
        except VersionError as error:
            (self._folder / COMPLETE).unlink(missing_ok=True)
            raise OSError(errno.EIO, f"the copy of dataset {self.name!r} is damaged: {error}") from error


class Selection(Sequence[Sample]):
    """Some of the samples, in an order of their own."""

    def __init__(self, whole: UploadedSamples, numbers: "np.ndarray[Any, Any]"):
        self.whole, self.numbers = whole, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Selection": ...
    def __getitem__(self, index: int | slice) -> "Sample | Selection":
        if isinstance(index, slice):
            return Selection(self.whole, self.numbers[index])
        return self.whole.sample(int(self.numbers[index]))

    def without(self, numbers: "np.ndarray[Any, Any]") -> "Selection":
        return Selection(self.whole, self.numbers[~np.isin(self.numbers, numbers)])

    @property
    def pictures(self) -> int:
        return self.whole.pictures_among(self.numbers)


def load_uploaded(
    folder: Path,
    *,
    name: str,
    version: str,
    task: str,
    seed: int,
    validation_fraction: float,
    max_samples: int | None,
    look: Callable[[], None] = lambda: None,
) -> Dataset:
    """The version in ``folder``, split, with at most ``max_samples`` of each part.

    Raises:
        InvalidData: a record is not of this task, or a part of the data is empty.
        OSError: the folder is damaged.
    """
    whole = UploadedSamples(folder, task=task, name=name, look=look)
    distinct, of_sample = np.unique(whole.pictures, axis=0, return_inverse=True)
    is_beside = np.fromiter(
        (is_held_out(digest.tobytes(), seed=seed, fraction=validation_fraction) for digest in distinct), bool
    )[of_sample.reshape(-1)]
    train, held_out = (Selection(whole, _some(np.flatnonzero(x), max_samples, seed)) for x in (~is_beside, is_beside))
    dataset = Dataset(name, task, train, held_out, version=version)
    check_parts(dataset, validation_fraction)
    return dataset


def check_parts(dataset: Dataset, validation_fraction: float) -> None:
    """Refuse a part of the data that should hold samples and holds none.

    Raises:
        InvalidData: with what there is, and what to change.
    """
    counts = f"{len(dataset.train)} samples to train on and {len(dataset.validation)} held out"
    told = f"dataset {dataset.name!r} has {counts} with validationFraction {validation_fraction}"
    if not dataset.train and not dataset.validation:
        raise InvalidData(f"dataset {dataset.name!r} has no sample; add pictures with records of its task")
    if not dataset.train:
        raise InvalidData(f"{told}; lower validationFraction, or add pictures")
    if validation_fraction > 0 and not dataset.validation:
        raise InvalidData(f"{told}; raise validationFraction, set it to 0 to train without, or add pictures")


def questions_of(contents: Contents) -> list[tuple[str, Answer]]:
    """What a record asks and what is the true answer, once a sample."""
    match contents:
        case Vqa(interactions=interactions):
            return [(each.question, Answer(each.answer)) for each in interactions]
        case PhraseGrounding(caption=caption, grounded_phrases=phrases):
            found = (
                Grounding(each.phrase, tuple(scale_box(box, width=1, height=1) for box in each.bounds))
                for each in phrases
            )
            return [(caption, Answer(caption, tuple(found)))]
        case Freeform(text=text, prompt=prompt):
            return [(prompt or DESCRIBE, Answer(text))]


def _key(sha256: str, question: str, truth: Answer) -> bytes:
    boxes = [[item.phrase, item.boxes] for item in truth.groundings]
    return hashlib.sha256(json.dumps([sha256, question, truth.text, boxes]).encode()).digest()


def _some(numbers: "np.ndarray[Any, Any]", count: int | None, seed: int) -> "np.ndarray[Any, Any]":
    """As for the built-in datasets: the first ``count`` after shuffling by seed, or all of them as they are."""
    return numbers if count is None else numbers[np.random.default_rng([seed, 3]).permutation(len(numbers))[:count]]
