"""How large pictures reach the model: limits of the recipe, put into the processor's own settings.

They are put there because the processor is saved with every checkpoint: whoever loads one with plain transformers gets
pictures of the size that was trained with. Families let their size be set in five ways, each a class below; the others
take pictures of one size. What a limit cannot do is refused, never left out.

The same way leads to samples that fit: one that is longer than the model's context gets a smaller picture, by a copy
of the processor with a tighter limit, and no text is ever cut.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runyard.flows.blocks import Images
from runyard.flows.families import FAMILIES
from runyard.rundir import read_json, write_json
from runyard.trainer.errors import InvalidFlow

CONFIG = "config.json"
PINPOINTS = "image_grid_pinpoints"
ENDLESS = 10**9  # tokenizers without a longest text say a number of thirty digits


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Pixels that a picture is fed with, and tokens it may take; None where nothing is asked for."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, images: Images) -> "Limits":
        low, high = (None if wanted == "auto" else int(wanted) for wanted in (images.min_pixels, images.max_pixels))
        return cls(min_pixels=low, max_pixels=high, tokens=images.patch_budget)

    def take(self, pixels: int, tokens: int) -> bool:
        return (
            (self.min_pixels is None or pixels >= self.min_pixels)
            and (self.max_pixels is None or pixels <= self.max_pixels)
            and (self.tokens is None or tokens <= self.tokens)
        )

    def __str__(self) -> str:
        named = (("minPixels", self.min_pixels), ("maxPixels", self.max_pixels), ("patchBudget", self.tokens))
        return " with ".join(f"images.{name} {value:,}" for name, value in named if value is not None)


class Sizing(ABC):
    """One way in which processors let the size of pictures be set. ``fields`` are their settings for it."""

    fields: tuple[str, ...]

    @abstractmethod
    def limited(self, processor: Any, limits: Limits) -> dict[str, Any]:
        """Values for ``fields`` within these limits, as near to the processor's own as they allow.

        Raises:
            InvalidFlow: there are none.
        """

    @abstractmethod
    def tokens(self, processor: Any, width: int, height: int) -> int:
        """How many image tokens a picture of that size takes."""

    def smaller(self, processor: Any, image: Any, room: int) -> Iterator[tuple[Any, Any]]:
        """Ways to at most ``room`` tokens for this picture, the largest first: a processor, and what to give it."""
        for settings in self._below(processor):
            other = with_settings(processor, settings)
            if self.tokens(other, *image.size) <= room:
                yield other, image

    def _below(self, processor: Any) -> Iterator[dict[str, Any]]:
        """Settings that make pictures smaller and smaller."""
        yield from ()


class Area(Sizing):
    """Any number of pixels between two bounds, in squares of one token (Qwen)."""

    fields = ("size",)

    def limited(self, processor: Any, limits: Limits) -> dict[str, Any]:
        images = processor.image_processor
        unit = (images.patch_size * images.merge_size) ** 2
        low, high = int(images.size["shortest_edge"]), int(images.size["longest_edge"])
        high = limits.max_pixels or max(high, limits.min_pixels or 0)
        if limits.tokens is not None:
            high = min(high, limits.tokens * unit)
        low = limits.min_pixels or min(low, high)
        if high < unit or low > high:
            raise _refused(limits, f"one token takes {unit:,} pixels, so at least {max(unit, low):,} are needed")
        return {"size": {"shortest_edge": low, "longest_edge": high}}

    def tokens(self, processor: Any, width: int, height: int) -> int:
        images = processor.image_processor
        return int(images.get_number_of_image_patches(height, width) // images.merge_size**2)

    def smaller(self, processor: Any, image: Any, room: int) -> Iterator[tuple[Any, Any]]:
        # A picture far longer than wide takes more tokens than its pixels say, as no side is less than one token.
        most = room
        while most > 0:
            other = with_settings(processor, self.limited(processor, Limits(tokens=most)))
            if self.tokens(other, *image.size) <= room:
                yield other, image
                return
            most //= 2


class LongestEdge(Sizing):
    """Every picture is scaled to one length of its longer edge and cut into tiles, with itself as one more (Idefics).

    A length is chosen as a number of tiles a side; pixels and tokens are those of a square.
    """

    fields = ("size",)
    longest = 4096  # the processors' own bound

    def limited(self, processor: Any, limits: Limits) -> dict[str, Any]:
        images = processor.image_processor
        tile, own = self._tile(images), images.size["longest_edge"]
        if not images.do_image_splitting:
            raise InvalidFlow(
                f"{limits} cannot be set: this model's processor does not split pictures, so each has {tile} x {tile} "
                "pixels; leave images as it is, or choose other weights"
            )
        sides = range(1, self.longest // tile + 1)
        steps = [((side * tile) ** 2, self._tokens(processor, side)) for side in sides]
        side = _nearest(steps, math.ceil(own / tile) - 1, limits, f"square tiles of {tile} x {tile}") + 1
        return {"size": {"longest_edge": own if side == math.ceil(own / tile) else side * tile}}

    def tokens(self, processor: Any, width: int, height: int) -> int:
        tiles, _, _ = processor.image_processor.get_number_of_image_patches(height, width)
        return max(1, int(tiles)) * int(processor.image_seq_len)

    def _below(self, processor: Any) -> Iterator[dict[str, Any]]:
        images = processor.image_processor
        tile = self._tile(images)
        own = math.ceil(images.size["longest_edge"] / tile) if images.do_image_splitting else 1
        yield from ({"size": {"longest_edge": side * tile}} for side in range(own - 1, 0, -1))

    @staticmethod
    def _tile(images: Any) -> int:
        return int(images.max_image_size["longest_edge"])

    @staticmethod
    def _tokens(processor: Any, side: int) -> int:
        return (side * side + 1 if side > 1 else 1) * int(processor.image_seq_len)


class Tiles(Sizing):
    """As many tiles as fit the picture's shape, between two numbers, and the whole as one more (InternVL)."""

    fields = ("min_patches", "max_patches")

    def limited(self, processor: Any, limits: Limits) -> dict[str, Any]:
        images, seq = processor.image_processor, int(processor.image_seq_length)
        tile = images.size["height"] * images.size["width"]
        wanted = math.ceil((limits.min_pixels or 0) / tile)
        high = max(images.max_patches, wanted) if limits.max_pixels is None else limits.max_pixels // tile
        if limits.tokens is not None:
            high = min(high, max(limits.tokens // seq - 1, min(1, limits.tokens // seq)))
        low = wanted or min(images.min_patches, high)
        if high < 1 or low > high:
            raise _refused(
                limits,
                f"one tile has {tile:,} pixels and takes {seq} tokens, and several come with the whole as one more",
            )
        return {"min_patches": low, "max_patches": high}

    def tokens(self, processor: Any, width: int, height: int) -> int:
        count = processor.image_processor.get_number_of_image_patches(height, width, {"crop_to_patches": True})
        return int(count) * int(processor.image_seq_length)

    def _below(self, processor: Any) -> Iterator[dict[str, Any]]:
        images = processor.image_processor
        for most in range(images.max_patches - 1, 0, -1):
            yield {"min_patches": min(images.min_patches, most), "max_patches": most}


class Pinpoints(Sizing):
    """One of a list of sizes, that which fits the picture best (LLaVA-NeXT and -OneVision).

    The model looks the size up again in a list of its own, which has to be the same: so smaller pictures of single
    samples come from making the picture smaller, and not from another list.
    """

    fields = (PINPOINTS,)

    def limited(self, processor: Any, limits: Limits) -> dict[str, Any]:
        own = [list(size) for size in processor.image_processor.image_grid_pinpoints]
        left = [size for size in own if limits.take(size[0] * size[1], self.tokens(processor, size[1], size[0]))]
        if not left:
            found = sorted((h * w, self.tokens(processor, w, h)) for h, w in own)
            (fewest, least), (most, greatest) = found[0], found[-1]
            raise _refused(
                limits, f"its sizes have {fewest:,} to {most:,} pixels and take {least:,} to {greatest:,} tokens"
            )
        return {PINPOINTS: left}

    def tokens(self, processor: Any, width: int, height: int) -> int:
        (count,) = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
        return int(count)

    def smaller(self, processor: Any, image: Any, room: int) -> Iterator[tuple[Any, Any]]:
        by_size = sorted(processor.image_processor.image_grid_pinpoints, key=math.prod, reverse=True)
        for height, width in by_size:
            ratio = min(width / image.width, height / image.height)
            size = max(1, int(image.width * ratio)), max(1, int(image.height * ratio))
            if ratio < 1 and self.tokens(processor, *size) <= room:
                yield processor, image.resize(size)


class SoftTokens(Sizing):
    """Every picture is scaled to about as many tokens as one of five numbers (Gemma 4)."""

    fields = ("max_soft_tokens",)
    steps = (70, 140, 280, 560, 1120)

    def limited(self, processor: Any, limits: Limits) -> dict[str, Any]:
        images = processor.image_processor
        unit = (images.patch_size * images.pooling_kernel_size) ** 2
        steps = [(count * unit, count) for count in self.steps]
        own = self.steps.index(images.max_soft_tokens)
        at = _nearest(steps, own, limits, f"{', '.join(map(str, self.steps))} tokens of {unit:,} pixels")
        return {"max_soft_tokens": self.steps[at]}

    def tokens(self, processor: Any, width: int, height: int) -> int:
        (count,) = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
        return int(count)

    def _below(self, processor: Any) -> Iterator[dict[str, Any]]:
        own = processor.image_processor.max_soft_tokens
        yield from ({"max_soft_tokens": count} for count in reversed(self.steps) if count < own)


SIZINGS: Mapping[str, Sizing] = {
    "idefics3": LongestEdge(),
    "smolvlm": LongestEdge(),
    "qwen2_5_vl": Area(),
    "qwen3_vl": Area(),
    "qwen3_5": Area(),
    "internvl": Tiles(),
    "llava_next": Pinpoints(),
    "llava_onevision": Pinpoints(),
    "gemma4": SoftTokens(),
}


def with_settings(processor: Any, settings: Mapping[str, Any]) -> Any:
    """A copy of a processor whose pictures are made with these settings; all else is shared."""
    made = copy.copy(processor)
    made.image_processor = copy.copy(processor.image_processor)
    _put(made.image_processor, settings)
    return made


def settings_of(processor: Any, model_type: str) -> dict[str, Any] | None:
    """What decides how large pictures are, as JSON; None in families where nothing does."""
    sizing = SIZINGS.get(model_type)
    if sizing is None:
        return None
    return {name: _plain(getattr(processor.image_processor, name)) for name in sizing.fields}


def limit_pictures(module: Any, processor: Any, model_type: str, images: Images, *, is_tiny: bool) -> None:
    """Set the processor, and what the model knows of it, to the recipe's limits; nothing where it has none.

    Raises:
        InvalidFlow: the family cannot do that.
    """
    limits = Limits.of(images)
    if limits == Limits():
        return
    sizing = SIZINGS.get(model_type)
    if is_tiny or sizing is None:
        names = {family.key: family.model_type for family in FAMILIES.values()}
        who = "the tiny model" if is_tiny else f"family {model_type!r}"
        raise InvalidFlow(
            f"{limits} cannot be set: {who} takes pictures of one size only; leave images as it is, or choose another "
            f"architecture: {', '.join(name for name, kind in names.items() if kind in SIZINGS)}"
        )
    apply(module, processor, sizing.limited(processor, limits))


def apply(module: Any, processor: Any, settings: Mapping[str, Any]) -> None:
    """Put settings into a processor, and into the model where it has them too."""
    _put(processor.image_processor, settings)
    if PINPOINTS in settings:
        for config in (module.config, module.model.config):
            config.image_grid_pinpoints = settings[PINPOINTS]


def write_config(folder: Path, module: Any) -> None:
    """Bring a copied ``config.json`` to what the model knows of the sizes of pictures."""
    own = _plain(getattr(module.config, PINPOINTS, None))
    saved = read_json(folder / CONFIG) if own is not None else None
    if saved is not None and saved.get(PINPOINTS) != own:
        write_json(folder / CONFIG, saved | {PINPOINTS: own})


def context_of(module: Any, tokenizer: Any) -> tuple[int | None, str]:
    """How many tokens the language model can tell apart by place, and what says so; None if nothing does."""
    found = getattr(module.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if found:
        return int(found), "max_position_embeddings of the language model"
    found = tokenizer.model_max_length
    return (int(found), "model_max_length of the tokenizer") if found < ENDLESS else (None, "the model names no limit")


class TooLong(Exception):
    """A sample does not fit, however small its picture is made; the message says its length."""


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What samples have to fit into: ``context`` tokens, ``budget`` of them the picture's; None for any number.

    ``is_apart``: prompt and answer are read by an encoder and a decoder, each with the whole context to itself.
    ``family`` are the settings that pictures had before the recipe limited them, None where it did not.
    """

    context: int | None
    image_token_id: int | None
    model_type: str
    budget: int | None = None
    is_apart: bool = False
    family: dict[str, Any] | None = None

    @property
    def in_words(self) -> str:
        bounds = [f"the model's context of {self.context:,} tokens" if self.context is not None else ""]
        bounds.append(f"images.patchBudget {self.budget:,}" if self.budget is not None else "")
        return " and ".join(filter(None, bounds))

    def length(self, prompt: int, answer: int) -> int:
        return max(prompt, answer) if self.is_apart else prompt + answer

    def of_picture(self, prompt: Any) -> int:
        """How many of these tokens stand for the picture."""
        return int((prompt == self.image_token_id).sum())

    def takes(self, prompt: Any, answer: Any) -> bool:
        return (self.context is None or self.length(len(prompt), len(answer)) <= self.context) and (
            self.budget is None or self.of_picture(prompt) <= self.budget
        )

    def room(self, prompt: Any, answer: Any) -> int:
        """How many tokens the picture may take beside all that is text."""
        of_text = self.length(len(prompt), len(answer)) - self.of_picture(prompt)
        return min((self.context or ENDLESS) - of_text, self.budget or ENDLESS)

    def is_reduced(self, processor: Any, image: Any) -> bool:
        """Whether this picture takes fewer tokens than it would without the recipe's limits."""
        if self.family is None:
            return False
        sizing = SIZINGS[self.model_type]
        before = sizing.tokens(with_settings(processor, self.family), *image.size)
        return sizing.tokens(processor, *image.size) < before

    def smaller(self, processor: Any, image: Any, room: int) -> Iterator[tuple[Any, Any]]:
        sizing = SIZINGS.get(self.model_type)
        if sizing is not None:
            yield from sizing.smaller(processor, image, room)


def _nearest(steps: list[tuple[int, int]], own: int, limits: Limits, told: str) -> int:
    """The place of the step nearest to ``own`` that limits take; a step is pixels and tokens, ascending."""
    allowed = [place for place, step in enumerate(steps) if limits.take(*step)]
    if not allowed:
        (fewest, least), (most, greatest) = steps[0], steps[-1]
        raise _refused(
            limits,
            f"pictures are made of {told}, which is {fewest:,} to {most:,} pixels and {least:,} to {greatest:,} tokens "
            "in steps",
        )
    return min(allowed, key=lambda place: abs(place - own))


def _refused(limits: Limits, why: str) -> InvalidFlow:
    return InvalidFlow(f"{limits} cannot be had: {why}; change the limit, or leave it out")


def _put(images: Any, settings: Mapping[str, Any]) -> None:
    from transformers.image_utils import SizeDict

    for name, value in settings.items():
        setattr(images, name, SizeDict(**value) if name == "size" else value)


def _plain(value: Any) -> Any:
    """A setting as JSON; sizes without what they leave open."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int | float | str | type(None)):
        return value
    return {name: size for name, size in dict(value).items() if size is not None}
