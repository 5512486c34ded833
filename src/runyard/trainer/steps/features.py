"""What a frozen vision encoder makes of pictures, computed once instead of in every epoch.

If neither the encoder nor the projector behind it is trained, what is kept is what the language model gets to see; if
the projector is, what goes into it. It is kept as bits, in the arithmetic's own format, so nothing is rounded. Files
and their sharing between runs are those of ``cache.py``; a file's name depends on the frozen weights as well.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.encode import FEATURES, Encoded, Encoder
from runyard.trainer.families import Parts, part_of
from runyard.trainer.models.model import whole as whole_weights
from runyard.trainer.steps.losses import TokenLosses, base_of

CLOSE = 1e-5  # what a projector makes of a copy may differ in the last bits, as matrices lie otherwise in memory
_Array = np.ndarray[Any, Any]
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def why_not_frozen(module: Any, parts: Parts) -> str | None:
    """Why what the vision encoder makes of a picture does not stay the same; None if it does."""
    named = [(name, p) for name, p in base_of(module).named_parameters() if part_of(name, parts) == "vision"]
    if not named:
        return "the family has no vision encoder of its own"
    if any(parameter.requires_grad for _, parameter in named):
        return "the vision encoder is trained"
    if "mm_encoder_outputs" not in inspect.signature(base_of(module).model.forward).parameters:
        return "the family takes pictures as pixels only"
    return None


class FrozenTower:
    """The frozen part of a model, up to where something is trained.

    Raises:
        FeaturesVary: what it makes of a picture is not the same each time, or cannot be handed on.
    """

    def __init__(self, module: Any, parts: Parts, losses: TokenLosses, device: torch.device):
        self._module, self._body = module, base_of(module).model
        self._losses, self._device = losses, device
        self._is_whole = not any(
            p.requires_grad for name, p in base_of(module).named_parameters() if part_of(name, parts) == "projector"
        )
        self._projector = base_of(module).get_submodule(parts.projector[0])
        self._parts = parts
        self._names = tuple(inspect.signature(self._body.get_image_features).parameters)
        self._width = base_of(module).config.get_text_config().hidden_size
        self._shape: tuple[int, ...] | None = None
        self._is_list = True

    def key(self) -> str:
        """A hash of the frozen weights, of the arithmetic they are used in, and of the shape that features have."""
        found = hashlib.sha256(f"{self._is_whole} {self._shape} {self._losses.precision} {self._device.type}".encode())
        frozen = ("vision", "projector") if self._is_whole else ("vision",)
        for name, value in sorted(base_of(self._module).named_parameters()):
            if part_of(name, self._parts) in frozen:
                found.update(name.encode())
                found.update(whole_weights(value).contiguous().view(torch.uint8).cpu().numpy().data)
        return found.hexdigest()

    def features(self, images: dict[str, _Array]) -> _Array:
        """What is kept of the pictures of one sample, as integers of the same bits."""
        with self._in_use():
            whole, made = self._run(images)
        kept = whole if self._is_whole else made
        if not self._is_whole and self._shape not in (None, kept.shape[1:]):
            raise FeaturesVary("pictures have different numbers of patches")
        self._shape = tuple(kept.shape[1:])
        bits: _Array = kept.contiguous().view(_BITS[kept.dtype]).cpu().numpy()
        return bits

    def check(self, images: dict[str, _Array]) -> None:
        """Compare what the model would make of these pictures with what it makes of their kept features."""
        bits = torch.from_numpy(self.features(images)).to(self._device)
        with self._in_use():
            whole, _ = self._run(images)
        self._module.train()
        with torch.no_grad(), self._losses.arithmetic():
            in_training, _ = self._run(images)
            handed_on = self._flat(self.outputs(bits)["mm_encoder_outputs"]["image"])
        if not torch.equal(whole, in_training):
            raise FeaturesVary("the vision encoder drops some of its values at random")
        if whole.shape != handed_on.shape or not torch.allclose(whole, handed_on, rtol=CLOSE, atol=CLOSE):
            raise FeaturesVary("this family does more behind the projector")

    def outputs(self, bits: torch.Tensor) -> dict[str, Any]:
        """Kept features of a batch, one sample after the other, as the model's forward takes them."""
        dtype = torch.float32 if bits.dtype == torch.int32 else self._losses.dtype
        features = bits.view(dtype)
        if not self._is_whole:
            projected = self._projector(features)
            features = projected.reshape(-1, projected.shape[-1])
        pooled, *deeper = features.split(self._width, dim=-1)
        image = BaseModelOutputWithPooling(pooler_output=[pooled] if self._is_list else pooled[None])
        if deeper:
            image["deepstack_features"] = [[layer] for layer in deeper]
        return {"mm_encoder_outputs": {"image": image}}

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        was_training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad(), self._losses.arithmetic():
                yield
        finally:
            self._module.train(was_training)

    def _run(self, images: dict[str, _Array]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the language model gets of these pictures, and what went into the projector."""
        inputs = {n: torch.from_numpy(v).to(self._device) for n, v in images.items() if n in self._names}
        seen: list[torch.Tensor] = []
        hook = self._projector.register_forward_pre_hook(
            lambda _, given, named: seen.extend([*given, *named.values()][:1]), with_kwargs=True
        )
        try:
            image = self._body.get_image_features(**inputs, return_dict=True)
        finally:
            hook.remove()
        self._is_list = not isinstance(image.pooler_output, torch.Tensor)
        if not self._is_whole and len(seen) != 1:
            raise FeaturesVary("this family calls its projector otherwise")
        return self._flat(image), seen[0] if seen else torch.empty(0)

    def _flat(self, image: Any) -> torch.Tensor:
        """(tokens, width) of all pictures, features of deeper layers beside them."""
        pooled = image.pooler_output
        parts = [pooled.flatten(0, -2) if isinstance(pooled, torch.Tensor) else torch.cat(list(pooled))]
        for layer in image.get("deepstack_features") or ():
            parts.append(layer if isinstance(layer, torch.Tensor) else torch.cat(list(layer)))
        return torch.cat(parts, dim=-1)


class FeaturesVary(Exception):
    """Why features of this model cannot be kept."""


class FeatureEncoder:
    """An encoder whose samples carry kept features where those of ``encoder`` carry pixels."""

    def __init__(self, encoder: Encoder, tower: FrozenTower, *, look: Callable[[], None] = lambda: None):
        self._encoder, self._tower, self._look = encoder, tower, look

    @property
    def settings(self) -> dict[str, Any]:
        return self._encoder.settings | {"tower": self._tower.key()}

    def encode(self, sample: Sample) -> Encoded:
        self._look()
        made = self._encoder.encode(sample)
        others = {name: value for name, value in made.images.items() if "pixel" not in name}
        return replace(made, images={**others, FEATURES: self._tower.features(made.images)})
