"""Features of a frozen vision encoder, computed once instead of in every epoch.

If neither the encoder nor the projector is trained, the inputs of the language model are stored; if
the projector is trained, its inputs are. They are stored as bits in the precision of the forward
pass, so nothing is rounded. Shards and their sharing between runs are those of ``cache.py``; a
shard's name also depends on the frozen weights.

Shapes: I images, S image tokens (of all images), E patches per image, C width of the language
model, D width of the vision encoder, L deeper layers whose features some families add (deepstack).
"""

import contextlib
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.encode import FEATURES, EncodedSample, Encoder
from runyard.trainer.data.pixels import PixelCodec
from runyard.trainer.families import FamilyParts, find_part
from runyard.trainer.models.model import dequantize
from runyard.trainer.steps.losses import TokenLosses, get_base_model

# A projector's output on a copy with another memory layout may differ in the last bits.
TOLERANCE = 1e-5
_Array = np.ndarray[Any, Any]
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def explain_not_frozen(module: Any, parts: FamilyParts) -> str | None:
    """Return why image features may change during training or cannot be passed in.

    None if they can be stored.
    """
    base = get_base_model(module)
    named = [(name, p) for name, p in base.named_parameters() if find_part(name, parts) == "vision"]
    if not named:
        return "the family has no vision encoder of its own"
    if any(parameter.requires_grad for _, parameter in named):
        return "the vision encoder is trained"
    if "mm_encoder_outputs" not in inspect.signature(base.model.forward).parameters:
        return "the family accepts images only as pixels"
    return None


class FrozenTower:
    """The frozen part of a model, up to the first trained layer.

    Raises:
        FeaturesNotReusable: the features of an image differ between calls, or cannot be passed to
        the model.
    """

    def __init__(self, module: Any, parts: FamilyParts, losses: TokenLosses, device: torch.device):
        base = get_base_model(module)
        self._module, self._body = module, base.model
        self._losses, self._device = losses, device
        self._includes_projector = not any(
            p.requires_grad
            for name, p in base.named_parameters()
            if find_part(name, parts) == "projector"
        )
        self._projector = base.get_submodule(parts.projector[0])
        self._parts = parts
        self._argument_names = tuple(inspect.signature(self._body.get_image_features).parameters)
        self._width = base.config.get_text_config().hidden_size
        self._shape: tuple[int, ...] | None = None
        self._is_list = True

    def hash_weights(self) -> str:
        """Return a hash of the frozen weights, of the precision, and of the features' shape."""
        digest = hashlib.sha256(
            f"{self._includes_projector} {self._shape} {self._losses.precision} "
            f"{self._device.type}".encode()
        )
        frozen = ("vision", "projector") if self._includes_projector else ("vision",)
        for name, value in sorted(get_base_model(self._module).named_parameters()):
            if find_part(name, self._parts) in frozen:
                digest.update(name.encode())
                digest.update(dequantize(value).contiguous().view(torch.uint8).cpu().numpy().data)
        return digest.hexdigest()

    def compute_features(self, images: dict[str, _Array]) -> _Array:
        """Return the features of one sample's images as integers with the same bits.

        Their shape is (S, C * (1 + L)) with the projector included, else the projector's input,
        such as (I, E, D).
        """
        return self._compute(images)[0]

    def _compute(self, images: dict[str, _Array]) -> tuple[_Array, torch.Tensor]:
        """Return the features as bits, and the language model's image inputs (S, C * (1 + L))."""
        with self._eval_mode():
            output, projector_input = self._run(images)
        features = output if self._includes_projector else projector_input
        if not self._includes_projector and self._shape not in (None, features.shape[1:]):
            raise FeaturesNotReusable("images have different numbers of patches")
        self._shape = tuple(features.shape[1:])
        bits: _Array = features.contiguous().view(_BITS[features.dtype]).cpu().numpy()
        return bits, output

    def check(self, images: dict[str, _Array]) -> tuple[float, _Array]:
        """Compare the model's own features of these images with those restored from storage.

        Returns the seconds that computing them took, and what ``compute_features`` returns.

        Raises:
            FeaturesNotReusable: they differ.
        """
        started_s = time.perf_counter()
        computed, output = self._compute(images)  # output: (S, C * (1 + L))
        seconds, bits = time.perf_counter() - started_s, torch.from_numpy(computed).to(self._device)
        self._module.train()
        with torch.no_grad(), self._losses.autocast():
            in_training, _ = self._run(images)
            # (S, C * (1 + L)).
            restored = self._flatten(self.expand(bits)["mm_encoder_outputs"]["image"])
        if not torch.equal(output, in_training):
            raise FeaturesNotReusable("the vision encoder uses dropout")
        if output.shape != restored.shape or not torch.allclose(
            output, restored, rtol=TOLERANCE, atol=TOLERANCE
        ):
            raise FeaturesNotReusable("this family does more after the projector")
        return seconds, computed

    def expand(self, bits: torch.Tensor) -> dict[str, Any]:
        """Convert the stored features of a batch to arguments of the model's forward."""
        dtype = torch.float32 if bits.dtype == torch.int32 else self._losses.dtype
        features = bits.view(dtype)
        if not self._includes_projector:
            projected = self._projector(features)  # (I, E, D) -> (I, tokens per image, C)
            features = projected.reshape(-1, projected.shape[-1])  # (S, C)
        pooled, *deeper = features.split(self._width, dim=-1)  # each (S, C)
        image = BaseModelOutputWithPooling(
            pooler_output=[pooled] if self._is_list else pooled[None]
        )
        if deeper:
            image["deepstack_features"] = [[layer] for layer in deeper]
        return {"mm_encoder_outputs": {"image": image}}

    @contextlib.contextmanager
    def _eval_mode(self) -> Iterator[None]:
        was_training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad(), self._losses.autocast():
                yield
        finally:
            self._module.train(was_training)

    def _run(self, images: dict[str, _Array]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the language model's image inputs (S, C * (1 + L)) and the projector's input."""
        inputs = {
            n: torch.from_numpy(v).to(self._device)
            for n, v in images.items()
            if n in self._argument_names
        }
        seen: list[torch.Tensor] = []
        hook = self._projector.register_forward_pre_hook(
            lambda _, args, kwargs: seen.extend([*args, *kwargs.values()][:1]), with_kwargs=True
        )
        try:
            image = self._body.get_image_features(**inputs, return_dict=True)
        finally:
            hook.remove()
        self._is_list = not isinstance(image.pooler_output, torch.Tensor)
        if not self._includes_projector and len(seen) != 1:
            raise FeaturesNotReusable("this family does not call its projector exactly once")
        return self._flatten(image), seen[0] if seen else torch.empty(0)

    def _flatten(self, image: Any) -> torch.Tensor:
        """Return the features of all images and layers: (S, C * (1 + L))."""
        pooled = image.pooler_output
        # (S, C).
        parts = [
            pooled.flatten(0, -2) if isinstance(pooled, torch.Tensor) else torch.cat(list(pooled))
        ]
        for layer in image.get("deepstack_features") or ():
            parts.append(layer if isinstance(layer, torch.Tensor) else torch.cat(list(layer)))
        return torch.cat(parts, dim=-1)


class FeaturesNotReusable(Exception):
    """Image features of this model cannot be stored; the message says why."""


class FeatureEncoder:
    """An encoder whose samples have stored features where those of ``encoder`` have pixels."""

    def __init__(
        self,
        encoder: Encoder,
        tower: FrozenTower,
        *,
        check_cancelled: Callable[[], None] = lambda: None,
    ):
        self._encoder, self._tower, self._check_cancelled = encoder, tower, check_cancelled
        self.codec = PixelCodec()  # features have no 8-bit values

    @property
    def settings(self) -> dict[str, Any]:
        return self._encoder.settings | {"tower": self._tower.hash_weights()}

    def encode(self, sample: Sample) -> EncodedSample:
        self._check_cancelled()
        encoded = self._encoder.encode(sample)
        return replace(encoded, images=self.replace_pixels(encoded.images))

    def replace_pixels(self, images: dict[str, _Array]) -> dict[str, _Array]:
        """Return the image inputs of one sample with features in place of pixels.

        A sample of text only has none.
        """
        return with_features(images, self._tower.compute_features(images)) if images else {}


def with_features(images: dict[str, _Array], features: _Array) -> dict[str, _Array]:
    """Return the image inputs of one sample with these features in place of pixels."""
    others = {name: value for name, value in images.items() if "pixel" not in name}
    return {**others, FEATURES: features}
