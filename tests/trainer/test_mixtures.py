"""Mixtures of datasets: what an epoch draws, and how several versions are split and read as one."""

from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runyard.datasets.records import Interaction, Vqa
from runyard.flows import ResolvedFlow, resolve, validate
from runyard.trainer.data.datasets import Dataset
from runyard.trainer.data.encode import epoch_batches
from runyard.trainer.data.mixtures import (
    CombinedSamples,
    FetchedVersion,
    Mixture,
    describe_mixture,
    divide_by_weight,
    load_mixture,
    make_mixture,
)
from runyard.trainer.data.uploaded import SampleSelection
from runyard.trainer.errors import InvalidData

MakeVersion = Callable[..., Path]
MakeImage = Callable[..., bytes]

sizes_and_weights = st.lists(
    st.tuples(st.integers(1, 40), st.floats(0.01, 100)), min_size=1, max_size=5
)


def make(found: list[tuple[int, float]], *, seed: int = 7, shuffle: bool = True) -> Mixture:
    parts = np.repeat(np.arange(len(found)), [size for size, _ in found])
    return Mixture(parts, [weight for _, weight in found], seed=seed, shuffle=shuffle)


@settings(max_examples=200, deadline=None)
@given(sizes_and_weights, st.integers(0, 2**31 - 1), st.booleans())
def test_an_epoch_divides_all_samples_by_weight_and_repeats_none_too_early(
    found: list[tuple[int, float]], seed: int, shuffle: bool
) -> None:
    mixture, total = make(found, seed=seed, shuffle=shuffle), sum(size for size, _ in found)
    epochs = [mixture.draw_epoch(epoch) for epoch in range(5)]
    assert {len(drawn) for drawn in epochs} == {total}
    starts = np.cumsum([0, *(size for size, _ in found)])
    for part, (size, _) in enumerate(found):
        first, last = starts[part], starts[part + 1]
        drawn = np.concatenate([each[(each >= first) & (each < last)] for each in epochs])
        assert len(drawn) == 5 * mixture.counts[part] > 0
        for begin in range(0, len(drawn), size):  # each round has every sample at most once
            rounds = drawn[begin : begin + size]
            assert len(set(rounds.tolist())) == len(rounds)
    # A function of seed and epoch: a new process, or one that begins in the middle, draws the same.
    assert np.array_equal(make(found, seed=seed, shuffle=shuffle).draw_epoch(3), epochs[3])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=8), st.integers(8, 10_000))
def test_a_share_is_within_one_sample_of_its_weight(weights: list[float], total: int) -> None:
    counts = divide_by_weight(total, weights)
    assert sum(counts) == total
    assert min(counts) >= 1
    exact = np.asarray(weights) / sum(weights) * total
    small = int((exact < 1).sum())  # those get one, at the cost of the largest
    assert all(abs(count - share) <= 1 + small for count, share in zip(counts, exact, strict=True))


def test_batches_of_a_mixture_hold_what_was_drawn() -> None:
    mixture = make([(10, 3.0), (30, 1.0)])
    assert mixture.counts == [30, 10]
    drawn = mixture.draw_epoch(1)
    lengths = np.arange(40) % 7
    batches = epoch_batches(lengths, batch_size=8, seed=7, epoch=1, drawn=drawn)
    assert Counter(chain(*batches)) == Counter(drawn.tolist())
    in_order = epoch_batches(lengths, batch_size=8, seed=7, epoch=1, shuffle=False, drawn=drawn)
    assert list(chain(*in_order)) == drawn.tolist()


def make_flow(**dataset: Any) -> ResolvedFlow:
    settings_ = {"datasetId": "a", "mixture": [{"datasetId": "b"}]} | dataset
    return resolve(validate({"blocks": [{"block": "vi-dataset", "settings": settings_}]}))


def asked(text: str) -> Vqa:
    return Vqa(interactions=[Interaction(order=1, question="q", answer=text)])


@pytest.fixture
def versions(make_version: MakeVersion, png: MakeImage) -> list[FetchedVersion]:
    """Versions a, b and c of 12, 8 and 5 images; the first of a is also the first of c."""
    found, first = [], png(0)
    for name, count, start in (("a", 12, 0), ("b", 8, 20), ("c", 5, 40)):
        images = {
            f"{n}.png": (first if (name, n) == ("c", 0) else png(start + n), [asked(f"{name}{n}")])
            for n in range(count)
        }
        found.append(FetchedVersion(make_version(images), name, f"{name}" * 16))
    return found


def answers(samples: Any) -> list[str]:
    return [sample.truth.text for sample in samples]


def get_whole(data: Dataset) -> CombinedSamples:
    assert isinstance(data.train, SampleSelection)
    assert isinstance(data.train.whole, CombinedSamples)
    return data.train.whole


def test_datasets_are_split_one_by_one_and_trained_on_together(
    versions: list[FetchedVersion],
) -> None:
    flow = make_flow(validationFraction=0.3)
    data = load_mixture(flow, versions[:2])
    everything = {f"a{n}" for n in range(12)} | {f"b{n}" for n in range(8)}
    train, held_out = answers(data.train), answers(data.validation)
    assert {*train, *held_out} == everything
    assert len(train) + len(held_out) == 20
    assert {text[0] for text in held_out} == {"a", "b"}
    assert make_mixture(flow, data.train) is None  # without weights, each sample once
    assert get_whole(data).filename(13) == "1.png"
    assert get_whole(data).count_images(np.arange(20)) == 20


def test_a_validation_dataset_is_held_out_as_a_whole_and_its_images_not_trained_on(
    versions: list[FetchedVersion],
) -> None:
    flow = make_flow(validationDataset={"datasetId": "c"}, weight=1, mixture=[
        {"datasetId": "b", "weight": 3}
    ])  # fmt: skip
    data = load_mixture(flow, versions)
    assert sorted(answers(data.validation)) == [f"c{n}" for n in range(5)]
    assert sorted(answers(data.train)) == sorted(
        [f"a{n}" for n in range(1, 12)] + [f"b{n}" for n in range(8)]
    )
    assert data.overlapping_samples == 1
    shares = describe_mixture(flow, data)
    assert [
        (each.dataset, each.training_samples, each.samples_per_epoch, each.validation_samples)
        for each in shares
    ] == [("a", 11, 5, 0), ("b", 8, 14, 0), ("c", 0, 0, 5)]
    assert [each.is_validation_dataset for each in shares] == [False, False, True]


def test_the_first_held_out_samples_are_of_all_datasets(versions: list[FetchedVersion]) -> None:
    data = load_mixture(make_flow(validationFraction=0.5), versions[:2])
    assert {text[0] for text in answers(data.validation[:6])} == {"a", "b"}


def test_max_samples_limits_the_whole_and_keeps_some_of_each_dataset(
    versions: list[FetchedVersion],
) -> None:
    data = load_mixture(make_flow(validationFraction=0.3, maxSamples=3), versions[:2])
    assert (len(data.train), len(data.validation)) == (3, 3)
    assert {text[0] for text in answers(data.train)} == {"a", "b"}
    with pytest.raises(InvalidData, match="maxSamples is 1, fewer than the 2 datasets"):
        load_mixture(make_flow(maxSamples=1), versions[:2])


def test_a_dataset_without_a_sample_to_train_on_is_refused(
    versions: list[FetchedVersion], make_version: MakeVersion, png: MakeImage
) -> None:
    same = FetchedVersion(make_version({"x.png": (png(0), [asked("x")])}), "b", "b" * 16)
    flow = make_flow(validationDataset={"datasetId": "c"})
    with pytest.raises(InvalidData, match="dataset 'b' of the mixture has no sample"):
        load_mixture(flow, [versions[0], same, versions[2]])
