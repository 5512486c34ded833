"""How batches are made: from pixels or from kept features, padded or packed. What may be faster is measured.

A choice that was measured is remembered in every checkpoint: whoever goes on does the same and gets the same numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from runyard.flows import ResolvedFlow
from runyard.rundir import free_bytes
from runyard.trainer.data.augment import varied_by
from runyard.trainer.data.cache import Place, Told, encode_all
from runyard.trainer.data.datasets import Dataset
from runyard.trainer.data.encode import (
    Batch,
    EncodedSamples,
    Encoder,
    Encodings,
    Layout,
    VariedSamples,
    epoch_batches,
)
from runyard.trainer.data.packing import pack, padding_share, positions_of, use_packed_attention
from runyard.trainer.data.uploaded import Selection
from runyard.trainer.models.model import Model
from runyard.trainer.plan import Choice, Plan, with_choice
from runyard.trainer.steps.autotune import Draw, gain_of
from runyard.trainer.steps.features import FeatureEncoder, FeaturesVary, FrozenTower
from runyard.trainer.steps.losses import TokenLosses, base_of

MOST_SAMPLES_LOOKED_AT = 20_000  # to know how lengths are spread
PROBED_BATCHES = 3
LEAST_GAIN = 1.02  # less is noise, and not worth disk or rows that nobody can read


def some_batches(recipe: ResolvedFlow, lengths: Any, size: int) -> list[list[int]]:
    """Batches of so many samples as the first epoch has them, without going through all of very large data."""
    return epoch_batches(
        lengths[:MOST_SAMPLES_LOOKED_AT],
        batch_size=size,
        seed=recipe.settings.seed,
        epoch=0,
        shuffle=recipe.dataset.shuffle,
    )


def padding_of(recipe: ResolvedFlow, lengths: Any, size: int) -> float:
    """Which share of batches of so many samples would only fill them up."""
    return padding_share([lengths[batch] for batch in some_batches(recipe, lengths, size)])


@dataclass
class Drawing:
    """Makes ``draw``, which gives the batch of these samples in that epoch."""

    recipe: ResolvedFlow
    data: Dataset
    cached: Encodings
    encoder: Encoder
    layout: Layout
    model: Model
    losses: TokenLosses
    device: torch.device
    place: Place
    told: Told
    draw: Draw = field(init=False)

    def __post_init__(self) -> None:
        strengths = self.recipe.dataset.augmentation
        if strengths is None or not self.recipe.dataset.varies_images:
            self.draw = lambda indices, epoch: self.cached.batch(indices)
        else:
            vary = varied_by(strengths, self.recipe.settings.seed)
            self.draw = VariedSamples(self.data.train, self.encoder, self.layout, vary).batch

    def decide(self, plan: Plan, choices: dict[str, bool]) -> Plan:
        """The plan with nothing left open. What is measured is added to ``choices``."""
        if plan.feature_cache is not False:
            plan = self._decide_features(plan, choices)
        if plan.packing is not False:
            plan = self._decide_packing(plan, choices)
        return plan

    def _decide_packing(self, plan: Plan, choices: dict[str, bool]) -> Plan:
        module = base_of(self.model.module)
        use_packed_attention(module)
        padded, positions = self.draw, positions_of(module.model)

        def packed(indices: Sequence[int], epoch: int) -> Batch:
            return pack(padded(indices, epoch), positions)

        if plan.packing is None:
            plan = self._measured(plan, "packing", choices, lambda: self._gain(packed, self._batches(plan)))
        if plan.packing:
            self.draw = packed
        return plan

    def _decide_features(self, plan: Plan, choices: dict[str, bool]) -> Plan:
        tower = FrozenTower(self.model.module, self.model.parts, self.losses, self.device)
        encoder = FeatureEncoder(self.encoder, tower, look=self.told.look)
        try:
            tower.check(self.encoder.encode(self.data.train[0]).images)
            self.losses.from_features = tower.outputs
            if plan.feature_cache is None:
                plan = self._measured(plan, "featureCache", choices, lambda: self._features_gain(encoder, plan))
            if plan.feature_cache:
                kept = self._kept(encoder)
                self.draw = lambda indices, epoch: kept.batch(indices)
        except FeaturesVary as error:
            plan = with_choice(plan, "featureCache", False, str(error))
        return plan

    def _features_gain(self, encoder: FeatureEncoder, plan: Plan) -> float | None:
        """How much faster a step is with features, where there is room for them."""
        batches = self._batches(plan)
        numbers = sorted({index for batch in batches for index in batch})
        some = EncodedSamples([encoder.encode(self.data.train[index]) for index in numbers], self.layout)
        needed_bytes = some.size_bytes // len(numbers) * len(self.data.train)
        if isinstance(self.data.train, Selection) and not self._has_room(needed_bytes):
            raise FeaturesVary(f"{needed_bytes >> 20:,} MiB of features find no room in the cache")
        at = {index: place for place, index in enumerate(numbers)}
        return self._gain(lambda indices, epoch: some.batch([at[index] for index in indices]), batches)

    def _has_room(self, needed_bytes: int) -> bool:
        root = self.place.root
        return (
            root is not None
            and needed_bytes <= self.place.limit_bytes
            and needed_bytes + self.place.spare_bytes <= free_bytes(root)
        )

    def _kept(self, encoder: FeatureEncoder) -> Encodings:
        """All samples of the training with their features, from files of other runs as far as there are such."""
        train = self.data.train
        if not isinstance(train, Selection):
            return EncodedSamples([encoder.encode(sample) for sample in train], self.layout)
        return encode_all([train], encoder, self.place, self.told).part(train, self.layout)

    def _batches(self, plan: Plan) -> list[list[int]]:
        return some_batches(self.recipe, self.cached.lengths, plan.micro_batch_size)[:PROBED_BATCHES]

    def _gain(self, new: Draw, batches: list[list[int]]) -> float | None:
        return gain_of(new, self.draw, batches, self.losses, device=self.device)

    @staticmethod
    def _measured(plan: Plan, name: Choice, choices: dict[str, bool], measure: Callable[[], float | None]) -> Plan:
        """Take what is faster; a training that goes on does so as it began."""
        if name in choices:
            return with_choice(plan, name, choices[name], "as measured when this training began")
        gain, before = measure(), plan.document[name]["reason"]
        choices[name] = gain is not None and gain >= LEAST_GAIN
        found = "not measured: out of memory" if gain is None else f"steps are {gain:.2f} times as fast (measured)"
        return with_choice(plan, name, choices[name], f"{before}; {found}")
