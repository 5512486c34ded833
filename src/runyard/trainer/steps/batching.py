"""How batches are built: from pixels or from stored features, padded or packed. What may be faster
is measured.

A measured choice is stored in every checkpoint, so that a resumed run makes the same choice and
gets the same numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from runyard.flows import ResolvedFlow
from runyard.rundir import free_bytes
from runyard.trainer.data.augment import make_augmenter
from runyard.trainer.data.cache import (
    CachedEncodings,
    CacheDir,
    Hooks,
    encode_all,
    has_all_shards,
)
from runyard.trainer.data.datasets import Dataset, Sample
from runyard.trainer.data.encode import (
    AugmentedSamples,
    Batch,
    EncodedSample,
    Encoder,
    Encodings,
    InMemoryEncodings,
    Layout,
    SampleEncoder,
    epoch_batches,
    pack_images,
)
from runyard.trainer.data.packing import (
    compute_padding_share,
    get_position_function,
    pack,
    use_packed_attention,
)
from runyard.trainer.data.uploaded import SampleSelection
from runyard.trainer.data.workers import SamplesAhead
from runyard.trainer.models.model import LoadedModel
from runyard.trainer.plan import Choice, Plan, with_choice
from runyard.trainer.steps.autotune import BuildBatch, measure_speedup
from runyard.trainer.steps.features import (
    FeatureEncoder,
    FeaturesNotReusable,
    FrozenTower,
    with_features,
)
from runyard.trainer.steps.features_on_use import FeaturesOnUse
from runyard.trainer.steps.losses import TokenLosses, get_base_model

MAX_LENGTHS_SAMPLED = 20_000  # enough to know the distribution of lengths
MEASURED_BATCHES = 3
SLOW_SAMPLE_S = 0.5  # features that take longer are kept without a measurement
MIN_SPEEDUP = 1.02  # less is noise, and not worth disk space or rows that are hard to inspect


def sample_batches(flow: ResolvedFlow, lengths: Any, size: int) -> list[list[int]]:
    """Return batches as in the first epoch, of large datasets from the first samples only."""
    return epoch_batches(
        lengths[:MAX_LENGTHS_SAMPLED],
        batch_size=size,
        seed=flow.settings.seed,
        epoch=0,
        shuffle=flow.dataset.shuffle,
    )


def estimate_padding_share(flow: ResolvedFlow, lengths: Any, size: int) -> float:
    """Return the share of padding tokens in padded batches of this size."""
    return compute_padding_share([lengths[batch] for batch in sample_batches(flow, lengths, size)])


def read_epoch(
    encodings: CachedEncodings, ahead: SamplesAhead, indices: Sequence[int], epoch: int
) -> Batch:
    """Return a batch; images that are not stored come from ``ahead``, if it has them."""
    encodings.read_ahead = partial(ahead.read, epoch)
    try:
        return encodings.make_batch(indices)
    finally:
        encodings.read_ahead = None


@dataclass
class BatchBuilder:
    """Chooses ``build``, the function that returns the batch of given samples in a given epoch, and
    the encodings of the held-out samples, ``validation``.

    ``may_prepare``: batches need no device, so that they can be built during a step. ``ahead``
    encodes samples that are not kept in up to ``processes`` worker processes.
    """

    flow: ResolvedFlow
    data: Dataset
    encodings: Encodings
    validation: Encodings
    encoder: Encoder
    layout: Layout
    model: LoadedModel
    losses: TokenLosses
    device: torch.device
    cache_dir: CacheDir
    hooks: Hooks
    processes: int = 1
    build: BuildBatch = field(init=False)
    may_prepare: bool = True
    ahead: SamplesAhead | None = None

    def __post_init__(self) -> None:
        strengths = self.flow.dataset.augmentation
        if strengths is None or not self.flow.dataset.varies_images:
            self.build = lambda indices, epoch: self.encodings.make_batch(indices)
            self._read_unstored_ahead()
        else:
            augment = make_augmenter(strengths, self.flow.settings.seed)
            samples = AugmentedSamples(self.data.train, self.encoder, self.layout, augment)
            self.build = samples.make_batch
            self.ahead = self._make_ahead(
                lambda epoch, index: pack_images(samples.encode(epoch, index), self.encoder.codec)
            )
            samples.read_ahead = self.ahead.read

    def _read_unstored_ahead(self) -> None:
        """Have samples encoded ahead that the cache has no space for."""
        encodings = self.encodings
        if not isinstance(encodings, CachedEncodings) or encodings.has_all_images:
            return
        self.ahead = ahead = self._make_ahead(lambda epoch, index: encodings.encode(index))
        # A stored sample is the same in every epoch.
        self.build = lambda indices, epoch: read_epoch(encodings, ahead, indices, epoch)

    def _make_ahead(self, encode: Callable[[int, int], EncodedSample]) -> SamplesAhead:
        train = self.data.train
        return SamplesAhead(
            encode,
            count=len(train),
            processes=self.processes,
            descriptors=lambda: (
                train.whole.descriptors if isinstance(train, SampleSelection) else ()
            ),
        )

    def resolve_choices(self, plan: Plan, choices: dict[str, bool]) -> Plan:
        """Return the plan with every open choice made.

        Measured choices are added to ``choices``.
        """
        if plan.feature_cache is not False:
            plan = self._resolve_features(plan, choices)
        if plan.packing is not False:
            plan = self._resolve_packing(plan, choices)
        return plan

    def _resolve_packing(self, plan: Plan, choices: dict[str, bool]) -> Plan:
        module = get_base_model(self.model.module)
        use_packed_attention(module)
        build_padded, compute_positions = self.build, get_position_function(module.model)

        def build_packed(indices: Sequence[int], epoch: int) -> Batch:
            return pack(build_padded(indices, epoch), compute_positions)

        if plan.packing is None:
            self.hooks.on_activity("Measuring packing")
            plan = self._choose_by_speedup(
                plan,
                "packing",
                choices,
                lambda: self._measure_speedup(build_packed, self._sample_batches(plan)),
            )
        if plan.packing:
            self.build = build_packed
        return plan

    def _resolve_features(self, plan: Plan, choices: dict[str, bool]) -> Plan:
        self.hooks.on_activity("Comparing image features with the model's own")
        tower = FrozenTower(self.model.module, self.model.parts, self.losses, self.device)
        encoder = FeatureEncoder(self.encoder, tower, check_cancelled=self.hooks.check_cancelled)
        try:
            index, images = self.encodings.read_longest_images()
            if not images:
                raise FeaturesNotReusable("no sample has an image")
            seconds, computed = tower.check(images)
            self.losses.expand_features = tower.expand
            if plan.feature_cache is None:
                self.hooks.on_activity("Measuring the feature cache")
                if "featureCache" not in choices:
                    self._check_space(computed.nbytes)
                plan = self._choose_features(encoder, plan, choices, seconds)
            if plan.feature_cache:
                self.hooks.on_activity("Opening the feature cache")
                features = self._encode_features(encoder, self.data.train, self.encodings)
                if isinstance(features, FeaturesOnUse):  # the trial of memory uses this sample next
                    features.keep(index, with_features(images, computed))
                self.build = lambda indices, epoch: features.make_batch(indices)
                self.may_prepare = False  # features are computed on first use
                self.validation = self._encode_features(
                    encoder,
                    self.data.validation[: plan.validation_samples],
                    self.validation,
                    check_cancelled=self.hooks.check_cancelled,
                )
        except FeaturesNotReusable as error:
            plan = with_choice(plan, "featureCache", False, str(error))
        return plan

    def _choose_features(
        self, encoder: FeatureEncoder, plan: Plan, choices: dict[str, bool], seconds: float
    ) -> Plan:
        """Return the plan with the faster choice.

        Features of which one takes long, ``seconds``, are faster to read than to compute, which
        needs no measurement.
        """
        if "featureCache" not in choices and seconds > SLOW_SAMPLE_S:
            choices["featureCache"] = True
            reason = f"{plan.document['featureCache']['reason']}; one sample takes {seconds:.1f} s"
            return with_choice(plan, "featureCache", True, f"{reason} (measured)")

        def measure() -> float | None:
            batches = self._sample_batches(plan)
            numbers = sorted({index for batch in batches for index in batch})
            encoded = [encoder.encode(self.data.train[index]) for index in numbers]
            some, at = (
                InMemoryEncodings(encoded, self.layout),
                {index: row for row, index in enumerate(numbers)},
            )
            return self._measure_speedup(
                lambda indices, epoch: some.make_batch([at[index] for index in indices]), batches
            )

        return self._choose_by_speedup(plan, "featureCache", choices, measure)

    def _check_space(self, size_bytes: int) -> None:
        """Raise FeaturesNotReusable if such features of all samples do not fit into the cache."""
        needed_bytes = size_bytes * (len(self.data.train) + len(self.data.validation))
        if isinstance(self.data.train, SampleSelection) and not self._has_space(needed_bytes):
            raise FeaturesNotReusable(
                f"{needed_bytes >> 20:,} MiB of features do not fit into the cache"
            )

    def _has_space(self, needed_bytes: int) -> bool:
        root = self.cache_dir.root
        return (
            root is not None
            and needed_bytes <= self.cache_dir.limit_bytes
            and needed_bytes + self.cache_dir.spare_bytes <= free_bytes(root)
        )

    def _encode_features(
        self,
        encoder: FeatureEncoder,
        samples: Sequence[Sample],
        encodings: Encodings,
        *,
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> Encodings:
        """Return samples with features: from the cache, or computed on first use.

        ``check_cancelled`` is called before features are computed on use.
        """
        place, share, layout = self.cache_dir, None, self.layout
        if isinstance(samples, SampleSelection) and len(samples) and place.shared is not None:
            if has_all_shards(samples, encoder, place):
                return encode_all([samples], encoder, place, self.hooks).select(samples, layout)
            share = partial(self._share_features, samples)
        return FeaturesOnUse(
            encoder,
            encodings,
            samples,
            layout,
            place.attempt_folder,
            share=share,
            check_cancelled=check_cancelled,
        )

    def _share_features(self, samples: SampleSelection, kept: SampleEncoder) -> Encodings:
        """Write shards of the samples that are kept; return them."""
        # Without hooks: a step in progress is completed, and its phase stays.
        return encode_all([samples], kept, self.cache_dir, Hooks()).select(samples, self.layout)

    def _sample_batches(self, plan: Plan) -> list[list[int]]:
        return sample_batches(self.flow, self.encodings.lengths, plan.micro_batch_size)[
            :MEASURED_BATCHES
        ]

    def _measure_speedup(self, new: BuildBatch, batches: list[list[int]]) -> float | None:
        return measure_speedup(new, self.build, batches, self.losses, device=self.device)

    @staticmethod
    def _choose_by_speedup(
        plan: Plan, name: Choice, choices: dict[str, bool], measure: Callable[[], float | None]
    ) -> Plan:
        """Return the plan with the faster choice.

        A resumed run keeps the choice of its checkpoint.
        """
        if name in choices:
            return with_choice(plan, name, choices[name], "as measured when this training started")
        speedup, before = measure(), plan.document[name]["reason"]
        choices[name] = speedup is not None and speedup >= MIN_SPEEDUP
        found = (
            "not measured: out of memory"
            if speedup is None
            else f"steps are {speedup:.2f} times as fast (measured)"
        )
        return with_choice(plan, name, choices[name], f"{before}; {found}")
