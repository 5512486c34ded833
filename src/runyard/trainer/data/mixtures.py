"""Several dataset versions as one: their samples, their splits, and how often each is drawn.

Without weights, every sample is drawn once per epoch. With weights, an epoch has as many samples as
all datasets together, divided by weight. Each dataset is read in an order of its own that continues
in the next epoch, so that every sample is drawn before one is drawn again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from runyard.flows import ResolvedFlow
from runyard.trainer.data.datasets import Dataset, Sample
from runyard.trainer.data.uploaded import (
    SampleSelection,
    StoredSample,
    UploadedSamples,
    split_samples,
    subsample,
)
from runyard.trainer.errors import InvalidData

_Array = np.ndarray[Any, Any]
# They end the seeds of these orders, apart from all others: numpy fills short seeds with zeros.
_VALIDATION_ORDER, _DRAWN_ORDER = 4, 5


@dataclass(frozen=True)
class FetchedVersion:
    """A dataset version on this machine."""

    folder: Path
    dataset: str
    version: str


class CombinedSamples:
    """The samples of several dataset versions, numbered one version after the other."""

    def __init__(self, wholes: Sequence[UploadedSamples]):
        self.wholes = list(wholes)
        self.name = " and ".join(whole.name for whole in wholes)
        self.keys = np.concatenate([whole.keys for whole in wholes])
        self.image_hashes = np.concatenate([whole.image_hashes for whole in wholes])
        self._starts = np.cumsum([0, *(len(whole) for whole in wholes)])

    @property
    def descriptors(self) -> list[int]:
        return [each for whole in self.wholes for each in whole.descriptors]

    def sample(self, number: int) -> StoredSample:
        whole, own = self._locate(number)
        sample = whole.sample(own)
        object.__setattr__(sample, "dataset", whole.name)  # a new sample, frozen like all
        return sample

    def have_same_image(self, one: int, other: int) -> bool:
        return np.array_equal(self.image_hashes[one], self.image_hashes[other])

    def filename(self, number: int) -> str:
        whole, own = self._locate(number)
        return whole.filename(own)

    def count_images(self, numbers: _Array) -> int:
        parts = self.get_parts(numbers)
        return sum(
            whole.count_images(numbers[parts == part] - self._starts[part])
            for part, whole in enumerate(self.wholes)
        )

    def get_parts(self, numbers: _Array) -> _Array:
        """Return the index of each sample's dataset, (samples,)."""
        return np.searchsorted(self._starts, numbers, side="right") - 1

    def _locate(self, number: int) -> tuple[UploadedSamples, int]:
        part = int(self.get_parts(np.asarray(number)))
        return self.wholes[part], number - int(self._starts[part])


def load_mixture(
    flow: ResolvedFlow,
    versions: Sequence[FetchedVersion],
    check_cancelled: Callable[[], None] = lambda: None,
) -> Dataset:
    """Return the datasets of a flow as one, split, with at most ``maxSamples`` of each part.

    ``versions`` are in the order of the flow: its own dataset, those of the mixture, and the
    validation dataset. That is held out as a whole; without one, each dataset is split as by
    itself. Samples whose image another dataset holds out are not trained on.

    Raises:
        InvalidData: a record is of another task, or a part of the data is empty.
        OSError: a folder is damaged.
    """
    settings, seed = flow.dataset, flow.settings.seed
    wholes = [
        UploadedSamples(
            each.folder, task=flow.task, name=each.dataset, check_cancelled=check_cancelled
        )
        for each in versions
    ]
    splits_own = settings.validation_dataset is None
    fraction = settings.validation_fraction if splits_own else 0.0
    splits = [split_samples(whole, seed=seed, fraction=fraction) for whole in wholes]
    trained = [split.is_trained for split in splits]
    held_out = [split.is_held_out for split in splits]
    if not splits_own:
        trained[-1], held_out[-1] = np.zeros(len(wholes[-1]), bool), np.ones(len(wholes[-1]), bool)
    combined = CombinedSamples(wholes)
    is_trained, is_held_out = np.concatenate(trained), np.concatenate(held_out)
    held_out_images = {row.tobytes() for row in combined.image_hashes[is_held_out]}
    overlaps = is_trained & np.fromiter(
        (row.tobytes() in held_out_images for row in combined.image_hashes), bool, len(is_trained)
    )
    is_unused = ~(is_trained | is_held_out)
    train = _limit(combined, np.flatnonzero(is_trained & ~overlaps), settings.max_samples, seed)
    # An evaluation of the first few covers all datasets.
    validation = np.random.default_rng([seed, 0, 0, _VALIDATION_ORDER]).permutation(
        np.flatnonzero(is_held_out)
    )
    dataset = Dataset(
        versions[0].dataset,
        flow.task,
        SampleSelection(combined, train),
        SampleSelection(combined, validation[: settings.max_samples]),
        version=versions[0].version,
        unused_images=combined.count_images(np.flatnonzero(is_unused)),
        has_text_only=any(whole.has_text_only for whole in wholes),
        overlapping_samples=int(overlaps.sum()),
    )
    check_mixture(flow, dataset)
    return dataset


def _limit(combined: CombinedSamples, numbers: _Array, most: int | None, seed: int) -> _Array:
    """Return at most ``most`` of the samples, some of each dataset, in proportion to its size."""
    if most is None or most >= len(numbers):
        return numbers
    parts = combined.get_parts(numbers)
    sizes = [int(size) for size in np.bincount(parts) if size]
    if most < len(sizes):
        raise InvalidData(
            f"maxSamples is {most}, fewer than the {len(sizes)} datasets that are trained on; try: "
            f"at least {len(sizes)}"
        )
    counts = divide_by_weight(most, sizes)
    return np.concatenate(
        [
            subsample(numbers[parts == part], count, seed)
            for part, count in zip(np.unique(parts), counts, strict=True)
        ]
    )


def check_mixture(flow: ResolvedFlow, data: Dataset) -> None:
    """Check that each dataset of a mixture has samples to train on, and that some are held out.

    Raises:
        InvalidData: one has none; the message has a fix.
    """
    for share in describe_mixture(flow, data):
        if share.training_samples == 0 and not share.is_validation_dataset:
            raise InvalidData(
                f"dataset {share.dataset!r} of the mixture has no sample to train on: "
                f"{share.validation_samples} are held out, and {data.overlapping_samples} of all "
                "datasets have an image that is held out; try: leave it out of the mixture, or "
                "add images"
            )
    if flow.dataset.validation_dataset is not None and not data.validation:
        raise InvalidData(
            f"no sample of validation dataset {flow.dataset.validation_dataset.dataset_id!r} can "
            "be used; try: another one, or leave validationDataset out"
        )
    if flow.dataset.holds_out and not data.validation:
        raise InvalidData(
            f"no sample of the {len(flow.dataset.mixture) + 1} datasets is held out with "
            f"validationFraction {flow.dataset.validation_fraction}; try: a higher "
            "validationFraction, or 0 to train without validation"
        )


@dataclass(frozen=True)
class DatasetShare:
    """How much of the training and of the validation comes from one dataset."""

    dataset: str
    training_samples: int
    samples_per_epoch: int
    validation_samples: int
    is_validation_dataset: bool


def describe_mixture(flow: ResolvedFlow, data: Dataset) -> list[DatasetShare]:
    """Return the share of each dataset in the order of the flow; none if there is only one."""
    train, validation = data.train, data.validation
    if not isinstance(train, SampleSelection) or not isinstance(validation, SampleSelection):
        return []
    combined = train.whole
    if not isinstance(combined, CombinedSamples):
        return []
    count = len(combined.wholes)
    trained, held_out = (
        np.bincount(combined.get_parts(selection.numbers), minlength=count)
        for selection in (train, validation)
    )
    mixture = make_mixture(flow, train)
    drawn = trained if mixture is None else np.asarray([*mixture.counts, 0])[:count]
    return [
        DatasetShare(
            whole.name,
            int(trained[part]),
            int(drawn[part]),
            int(held_out[part]),
            flow.dataset.validation_dataset is not None and part == count - 1,
        )
        for part, whole in enumerate(combined.wholes)
    ]


class Mixture:
    """The samples of each epoch, drawn from datasets by weight: a function of seed and epoch."""

    def __init__(self, parts: _Array, weights: Sequence[float], *, seed: int, shuffle: bool):
        """Take the index of each sample's dataset, (samples,), and the weight of each dataset."""
        self._members = [np.flatnonzero(parts == part) for part in range(len(weights))]
        self.counts = divide_by_weight(len(parts), weights)
        """How many samples of each dataset an epoch has."""
        self._seed, self._shuffle = seed, shuffle
        self._order = lru_cache(maxsize=2 * len(weights))(self._make_order)

    def draw_epoch(self, epoch: int) -> _Array:
        """Return the indices of the epoch's samples, (samples,), dataset by dataset."""
        return np.concatenate(
            [
                self._draw(part, epoch * count, (epoch + 1) * count)
                for part, count in enumerate(self.counts)
            ]
        )

    def _draw(self, part: int, first: int, last: int) -> _Array:
        """Return what is drawn of a dataset from one position up to another, excluded."""
        size = len(self._members[part])
        rounds = range(first // size, -(-last // size))
        drawn = np.concatenate([self._order(part, each) for each in rounds])
        return drawn[first - rounds.start * size :][: last - first]

    def _make_order(self, part: int, round: int) -> _Array:
        members = self._members[part]
        if not self._shuffle:
            return members
        random = np.random.default_rng([self._seed, part, round, _DRAWN_ORDER])
        return members[random.permutation(len(members))]


def make_mixture(flow: ResolvedFlow, train: Sequence[Sample]) -> Mixture | None:
    """Return how the training samples are drawn; None if each is drawn once per epoch."""
    settings = flow.dataset
    weights = [settings.weight, *(each.weight for each in settings.mixture)]
    given = [weight for weight in weights if weight is not None]
    if not isinstance(train, SampleSelection) or len(given) < len(weights):
        return None
    if not isinstance(train.whole, CombinedSamples):
        return None
    return Mixture(
        train.whole.get_parts(train.numbers),
        given,
        seed=flow.settings.seed,
        shuffle=settings.shuffle,
    )


def divide_by_weight(total: int, weights: Sequence[float]) -> list[int]:
    """Divide ``total``, at least one per weight, by the largest remainders; nothing gets zero."""
    exact = np.asarray(weights, float) / np.sum(weights) * total
    counts = np.maximum(1, np.floor(exact).astype(int))
    for index in np.argsort(counts - exact, kind="stable")[: max(0, total - int(counts.sum()))]:
        counts[index] += 1
    while counts.sum() > total:
        counts[np.argmax(counts)] -= 1
    return [int(count) for count in counts]
