"""Image resolution: the flow's limits, translated into the processor's own settings.

The settings are changed in the processor because it is saved with every checkpoint: plain
transformers then loads images at the resolution of the training. Processors control
the resolution in five ways, each a class below; all other families take images of one size. A limit
that cannot be met is refused, never ignored.

Samples that exceed the model's context are handled the same way: a copy of the processor with a
tighter limit makes their image smaller. Text is never truncated.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runyard.flows.blocks import Images
from runyard.flows.families import FAMILIES
from runyard.rundir import read_json, write_json
from runyard.trainer.errors import InvalidFlow

CONFIG = "config.json"
PINPOINTS = "image_grid_pinpoints"
AUTO_MAX_PIXELS = 1_200_000  # near a megapixel; 1092 x 1092, three Idefics tiles, are below it
PHOTO = (4000, 3000)  # the example in the reason of the limit
FROM_FLOW = "flow"  # the reason of a limit that the flow names
UNLIMITED = 10**9  # tokenizers without a maximum length report a number of thirty digits


@dataclass(frozen=True, kw_only=True)
class ResolutionLimits:
    """The pixels of a resized image, and the tokens it may take.

    None where the flow sets no limit.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    tokens: int | None = None

    @classmethod
    def from_images(cls, images: Images) -> "ResolutionLimits":
        low, high = (
            int(value) if isinstance(value, int) else None
            for value in (images.min_pixels, images.max_pixels)
        )
        return cls(min_pixels=low, max_pixels=high, tokens=images.patch_budget)

    def allow(self, pixels: int, tokens: int) -> bool:
        return (
            (self.min_pixels is None or pixels >= self.min_pixels)
            and (self.max_pixels is None or pixels <= self.max_pixels)
            and (self.tokens is None or tokens <= self.tokens)
        )

    def __str__(self) -> str:
        named = (
            ("minPixels", self.min_pixels),
            ("maxPixels", self.max_pixels),
            ("patchBudget", self.tokens),
        )
        return " with ".join(
            f"images.{name} {value:,}" for name, value in named if value is not None
        )


class ResolutionSetting(ABC):
    """One way in which processors control image resolution.

    ``fields`` are their settings for it.
    """

    fields: tuple[str, ...]

    @abstractmethod
    def fit_limits(self, processor: Any, limits: ResolutionLimits) -> dict[str, Any]:
        """Return values of ``fields`` within these limits, as close as possible to the processor's
        own.

        Raises:
            InvalidFlow: no values meet the limits.
        """

    @abstractmethod
    def get_max_pixels(self, processor: Any) -> int:
        """Return the pixels of the largest resized image."""

    @abstractmethod
    def count_tokens(self, processor: Any, width: int, height: int) -> int:
        """Return the number of image tokens of an image of this size."""

    def list_smaller(
        self, processor: Any, image: Any, max_tokens: int
    ) -> Iterator[tuple[Any, Any]]:
        """Yield pairs of processor and image with at most ``max_tokens``, largest first."""
        for settings in self._list_smaller_settings(processor):
            other = with_settings(processor, settings)
            if self.count_tokens(other, *image.size) <= max_tokens:
                yield other, image

    def _list_smaller_settings(self, processor: Any) -> Iterator[dict[str, Any]]:
        """Yield settings of decreasing resolution."""
        yield from ()


class Area(ResolutionSetting):
    """Any number of pixels between two bounds, in squares of one token (Qwen)."""

    fields = ("size",)

    def fit_limits(self, processor: Any, limits: ResolutionLimits) -> dict[str, Any]:
        images = processor.image_processor
        unit = (images.patch_size * images.merge_size) ** 2
        low, high = int(images.size["shortest_edge"]), int(images.size["longest_edge"])
        high = limits.max_pixels or max(high, limits.min_pixels or 0)
        if limits.tokens is not None:
            high = min(high, limits.tokens * unit)
        low = limits.min_pixels or min(low, high)
        if high < unit or low > high:
            raise _make_unmet_error(
                limits,
                f"one token takes {unit:,} pixels, so at least {max(unit, low):,} are needed",
            )
        return {"size": {"shortest_edge": low, "longest_edge": high}}

    def get_max_pixels(self, processor: Any) -> int:
        return int(processor.image_processor.size["longest_edge"])

    def count_tokens(self, processor: Any, width: int, height: int) -> int:
        images = processor.image_processor
        return int(images.get_number_of_image_patches(height, width) // images.merge_size**2)

    def resize(self, processor: Any, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to which the processor scales an image."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        images = processor.image_processor
        rows, columns = smart_resize(
            height,
            width,
            factor=images.patch_size * images.merge_size,
            min_pixels=images.size["shortest_edge"],
            max_pixels=images.size["longest_edge"],
        )
        return columns, rows

    def list_smaller(
        self, processor: Any, image: Any, max_tokens: int
    ) -> Iterator[tuple[Any, Any]]:
        # A very elongated image takes more tokens than its area suggests, as no side is shorter
        # than one token.
        tokens = max_tokens
        while tokens > 0:
            other = with_settings(
                processor, self.fit_limits(processor, ResolutionLimits(tokens=tokens))
            )
            if self.count_tokens(other, *image.size) <= max_tokens:
                yield other, image
                return
            tokens //= 2


class LongestEdge(ResolutionSetting):
    """Every image is scaled to one length of its longer edge and cut into tiles, plus a thumbnail
    (Idefics).

    The length is chosen as a number of tiles per side; pixels and tokens are those of a square
    image.
    """

    fields = ("size",)
    max_edge = 4096  # the processors' own bound

    def fit_limits(self, processor: Any, limits: ResolutionLimits) -> dict[str, Any]:
        images = processor.image_processor
        tile, own = self._get_tile_edge(images), images.size["longest_edge"]
        if not images.do_image_splitting:
            raise InvalidFlow(
                f"{limits} cannot be set: this model's processor does not split images, so each "
                f"has {tile} x {tile} "
                "pixels; try: leave images at its default, or choose other weights"
            )
        sides = range(1, self.max_edge // tile + 1)
        steps = [((side * tile) ** 2, self._count_square_tokens(processor, side)) for side in sides]
        side = (
            _find_nearest(
                steps, math.ceil(own / tile) - 1, limits, f"square tiles of {tile} x {tile}"
            )
            + 1
        )
        return {"size": {"longest_edge": own if side == math.ceil(own / tile) else side * tile}}

    def get_max_pixels(self, processor: Any) -> int:
        edge: int = self._count_sides(processor) * self._get_tile_edge(processor.image_processor)
        return edge * edge

    def count_tokens(self, processor: Any, width: int, height: int) -> int:
        tiles, _, _ = processor.image_processor.get_number_of_image_patches(height, width)
        return max(1, int(tiles)) * int(processor.image_seq_len)

    def _list_smaller_settings(self, processor: Any) -> Iterator[dict[str, Any]]:
        tile, own = self._get_tile_edge(processor.image_processor), self._count_sides(processor)
        yield from ({"size": {"longest_edge": side * tile}} for side in range(own - 1, 0, -1))

    def _count_sides(self, processor: Any) -> int:
        """Return the number of tiles along the longer edge."""
        images = processor.image_processor
        if not images.do_image_splitting:
            return 1
        return math.ceil(int(images.size["longest_edge"]) / self._get_tile_edge(images))

    @staticmethod
    def _get_tile_edge(images: Any) -> int:
        return int(images.max_image_size["longest_edge"])

    @staticmethod
    def _count_square_tokens(processor: Any, side: int) -> int:
        return (side * side + 1 if side > 1 else 1) * int(processor.image_seq_len)


class Tiles(ResolutionSetting):
    """A number of tiles that matches the aspect ratio, plus a thumbnail (InternVL)."""

    fields = ("min_patches", "max_patches")

    def fit_limits(self, processor: Any, limits: ResolutionLimits) -> dict[str, Any]:
        images, seq = processor.image_processor, int(processor.image_seq_length)
        tile = images.size["height"] * images.size["width"]
        min_tiles = math.ceil((limits.min_pixels or 0) / tile)
        high = (
            max(images.max_patches, min_tiles)
            if limits.max_pixels is None
            else limits.max_pixels // tile
        )
        if limits.tokens is not None:
            high = min(high, max(limits.tokens // seq - 1, min(1, limits.tokens // seq)))
        low = min_tiles or min(images.min_patches, high)
        if high < 1 or low > high:
            raise _make_unmet_error(
                limits,
                f"one tile has {tile:,} pixels and takes {seq} tokens, and several tiles need a "
                "thumbnail more",
            )
        return {"min_patches": low, "max_patches": high}

    def get_max_pixels(self, processor: Any) -> int:
        images = processor.image_processor
        return int(images.max_patches * images.size["height"] * images.size["width"])

    def count_tokens(self, processor: Any, width: int, height: int) -> int:
        count = processor.image_processor.get_number_of_image_patches(
            height, width, {"crop_to_patches": True}
        )
        return int(count) * int(processor.image_seq_length)

    def _list_smaller_settings(self, processor: Any) -> Iterator[dict[str, Any]]:
        images = processor.image_processor
        for most in range(images.max_patches - 1, 0, -1):
            yield {"min_patches": min(images.min_patches, most), "max_patches": most}


class Pinpoints(ResolutionSetting):
    """One of a list of sizes, the one that fits the image best (LLaVA-NeXT and -OneVision).

    The model looks the size up in a list of its own, which must be the same. So single samples
    become smaller by resizing their image, not by another list.
    """

    fields = (PINPOINTS,)

    def fit_limits(self, processor: Any, limits: ResolutionLimits) -> dict[str, Any]:
        own = [list(size) for size in processor.image_processor.image_grid_pinpoints]
        left = [
            size
            for size in own
            if limits.allow(size[0] * size[1], self.count_tokens(processor, size[1], size[0]))
        ]
        if not left:
            sizes = sorted((h * w, self.count_tokens(processor, w, h)) for h, w in own)
            (min_pixels, min_tokens), (max_pixels, max_tokens) = sizes[0], sizes[-1]
            raise _make_unmet_error(
                limits,
                f"its sizes have {min_pixels:,} to {max_pixels:,} pixels and take {min_tokens:,} "
                f"to {max_tokens:,} "
                "tokens",
            )
        return {PINPOINTS: left}

    def get_max_pixels(self, processor: Any) -> int:
        sizes = processor.image_processor.image_grid_pinpoints
        return max(int(height * width) for height, width in sizes)

    def count_tokens(self, processor: Any, width: int, height: int) -> int:
        (count,) = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])[
            "num_image_tokens"
        ]
        return int(count)

    def list_smaller(
        self, processor: Any, image: Any, max_tokens: int
    ) -> Iterator[tuple[Any, Any]]:
        by_size = sorted(
            processor.image_processor.image_grid_pinpoints, key=math.prod, reverse=True
        )
        for height, width in by_size:
            ratio = min(width / image.width, height / image.height)
            size = max(1, int(image.width * ratio)), max(1, int(image.height * ratio))
            if ratio < 1 and self.count_tokens(processor, *size) <= max_tokens:
                yield processor, image.resize(size)


class SoftTokens(ResolutionSetting):
    """Every image is scaled to about one of five numbers of tokens (Gemma 4)."""

    fields = ("max_soft_tokens",)
    steps = (70, 140, 280, 560, 1120)

    def fit_limits(self, processor: Any, limits: ResolutionLimits) -> dict[str, Any]:
        images = processor.image_processor
        unit = (images.patch_size * images.pooling_kernel_size) ** 2
        steps = [(count * unit, count) for count in self.steps]
        own = self.steps.index(images.max_soft_tokens)
        at = _find_nearest(
            steps, own, limits, f"{', '.join(map(str, self.steps))} tokens of {unit:,} pixels"
        )
        return {"max_soft_tokens": self.steps[at]}

    def get_max_pixels(self, processor: Any) -> int:
        images = processor.image_processor
        unit = (images.patch_size * images.pooling_kernel_size) ** 2
        return int(images.max_soft_tokens * unit)

    def count_tokens(self, processor: Any, width: int, height: int) -> int:
        (count,) = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])[
            "num_image_tokens"
        ]
        return int(count)

    def _list_smaller_settings(self, processor: Any) -> Iterator[dict[str, Any]]:
        own = processor.image_processor.max_soft_tokens
        yield from ({"max_soft_tokens": count} for count in reversed(self.steps) if count < own)


RESOLUTION_SETTINGS: Mapping[str, ResolutionSetting] = {
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
    """Return a copy of a processor with these image settings; everything else is shared."""
    other = copy.copy(processor)
    other.image_processor = copy.copy(processor.image_processor)
    _set_settings(other.image_processor, settings)
    return other


def get_resolution_settings(processor: Any, model_type: str) -> dict[str, Any] | None:
    """Return the settings that control image resolution, as JSON; None in families without any."""
    setting = RESOLUTION_SETTINGS.get(model_type)
    if setting is None:
        return None
    return {name: _to_json(getattr(processor.image_processor, name)) for name in setting.fields}


@dataclass(frozen=True, kw_only=True)
class MaxPixels:
    """The limit on pixels, None for none, and why."""

    value: int | None
    reason: str


def choose_max_pixels(
    processor: Any, model_type: str, images: Images, *, recorded: MaxPixels | None = None
) -> MaxPixels:
    """Resolve ``images.maxPixels``; auto gets a limit that most images are worth.

    ``recorded`` is the limit of the checkpoint to resume from; auto keeps it.
    """
    if images.max_pixels != "auto":
        return MaxPixels(value=images.max_pixels, reason=FROM_FLOW)
    setting = RESOLUTION_SETTINGS.get(model_type)
    if setting is None:
        return MaxPixels(value=None, reason="the family takes images of one size only")
    if images.patch_budget is not None:
        return MaxPixels(value=None, reason="images.patchBudget limits them")
    if isinstance(images.min_pixels, int) and images.min_pixels > AUTO_MAX_PIXELS:
        return MaxPixels(value=None, reason="images.minPixels is larger than auto would be")
    if recorded is not None and recorded.reason != FROM_FLOW:
        return recorded
    own = setting.get_max_pixels(processor)
    if own <= AUTO_MAX_PIXELS:
        return MaxPixels(value=None, reason=f"the family's {own:,} are few enough")
    limits = replace(ResolutionLimits.from_images(images), max_pixels=AUTO_MAX_PIXELS)
    try:
        limited = with_settings(processor, setting.fit_limits(processor, limits))
    except InvalidFlow:
        return MaxPixels(value=None, reason=f"the family has no size below {AUTO_MAX_PIXELS:,}")
    before, after = (setting.count_tokens(item, *PHOTO) for item in (processor, limited))
    return MaxPixels(
        value=AUTO_MAX_PIXELS,
        reason=f"auto: a photo of {PHOTO[0]:,} x {PHOTO[1]:,} takes {after:,} tokens instead of "
        f"{before:,}; null takes the family's {own:,} pixels",
    )


def limit_resolution(
    module: Any, processor: Any, model_type: str, images: Images, *, is_tiny: bool
) -> None:
    """Set the processor, and the model's copy of the settings, to the flow's limits, if it has any.

    An open ``maxPixels`` sets no limit; ``choose_max_pixels`` resolves it.

    Raises:
        InvalidFlow: the family cannot meet them.
    """
    limits = ResolutionLimits.from_images(images)
    if limits == ResolutionLimits():
        return
    setting = RESOLUTION_SETTINGS.get(model_type)
    if is_tiny or setting is None:
        names = {family.key: family.model_type for family in FAMILIES.values()}
        model = "the tiny model" if is_tiny else f"family {model_type!r}"
        raise InvalidFlow(
            f"{limits} cannot be set: {model} takes images of one size only; try: leave images at "
            "its default, or "
            "choose another architecture: "
            f"{', '.join(name for name, kind in names.items() if kind in RESOLUTION_SETTINGS)}"
        )
    apply_resolution(module, processor, setting.fit_limits(processor, limits))


def apply_resolution(module: Any, processor: Any, settings: Mapping[str, Any]) -> None:
    """Put settings into a processor, and into the model's config where it has them too."""
    _set_settings(processor.image_processor, settings)
    if PINPOINTS in settings:
        for config in (module.config, module.model.config):
            config.image_grid_pinpoints = settings[PINPOINTS]


def write_model_config(folder: Path, module: Any) -> None:
    """Update a copied ``config.json`` to the model's image sizes."""
    own = _to_json(getattr(module.config, PINPOINTS, None))
    saved = read_json(folder / CONFIG) if own is not None else None
    if saved is not None and saved.get(PINPOINTS) != own:
        write_json(folder / CONFIG, saved | {PINPOINTS: own})


def get_context_length(module: Any, tokenizer: Any) -> tuple[int | None, str]:
    """Return the language model's context length in tokens and its source.

    None if nothing limits it.
    """
    length = getattr(module.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if length:
        return int(length), "max_position_embeddings of the language model"
    length = tokenizer.model_max_length
    return (
        (int(length), "model_max_length of the tokenizer")
        if length < UNLIMITED
        else (None, "the model names no limit")
    )


class TooLong(Exception):
    """A sample does not fit even with the smallest image; the message says its length."""


@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """The tokens that a sample may take: ``context`` in all, ``image_budget`` for its image; None
    for any number.

    ``is_encoder_decoder``: prompt and answer are limited separately, each to the whole context.
    ``family_settings`` are the resolution settings before the flow limited them, None where it did
    not.
    """

    context: int | None
    image_token_id: int | None
    model_type: str
    image_budget: int | None = None
    is_encoder_decoder: bool = False
    family_settings: dict[str, Any] | None = None

    @property
    def description(self) -> str:
        limits = [
            f"the model's context of {self.context:,} tokens" if self.context is not None else ""
        ]
        limits.append(
            f"images.patchBudget {self.image_budget:,}" if self.image_budget is not None else ""
        )
        return " and ".join(filter(None, limits))

    def count_tokens(self, prompt: int, answer: int) -> int:
        """Return the tokens that count against the context."""
        return max(prompt, answer) if self.is_encoder_decoder else prompt + answer

    def count_image_tokens(self, prompt: Any) -> int:
        return int((prompt == self.image_token_id).sum())

    def fits(self, prompt: Any, answer: Any, *, images: int = 1) -> bool:
        return (
            self.context is None or self.count_tokens(len(prompt), len(answer)) <= self.context
        ) and (
            self.image_budget is None
            or self.count_image_tokens(prompt) <= images * self.image_budget
        )

    def image_tokens_left(self, prompt: Any, answer: Any, *, images: int = 1) -> int:
        """Return how many tokens all images may take, given the text of the sample."""
        text_tokens = self.count_tokens(len(prompt), len(answer)) - self.count_image_tokens(prompt)
        image_budget = images * (self.image_budget or UNLIMITED)
        return min((self.context or UNLIMITED) - text_tokens, image_budget)

    def describe_length(self, prompt: Any, answer: Any, *, images: int = 1) -> str:
        """Return the tokens of a sample that is too long, and how many of them images take."""
        length = f"{self.count_tokens(len(prompt), len(answer)):,} tokens"
        taken = f"{self.count_image_tokens(prompt):,} of them for"
        if images == 0:
            return f"{length}, all of them text"
        return f"{length}, {taken} {'the image' if images == 1 else f'its {images} images'}"

    def is_reduced(self, processor: Any, image: Any) -> bool:
        """Return whether this image takes fewer tokens than without the flow's limits."""
        if self.family_settings is None:
            return False
        setting = RESOLUTION_SETTINGS[self.model_type]
        before = setting.count_tokens(with_settings(processor, self.family_settings), *image.size)
        return setting.count_tokens(processor, *image.size) < before

    def list_smaller(
        self, processor: Any, image: Any, max_tokens: int
    ) -> Iterator[tuple[Any, Any]]:
        """Yield pairs of processor and image that take at most ``max_tokens``, largest first."""
        setting = RESOLUTION_SETTINGS.get(self.model_type)
        if setting is not None:
            yield from setting.list_smaller(processor, image, max_tokens)

    def list_smaller_together(
        self, processor: Any, images: Sequence[Any], prompt: Any, answer: Any
    ) -> Iterator[tuple[Any, list[Any]]]:
        """Yield pairs of processor and the sample's images, largest first.

        The largest image takes at most its share of the tokens that the text leaves; the others
        are processed, or scaled, like it.
        """
        if not images:
            return
        left = self.image_tokens_left(prompt, answer, images=len(images))
        largest = max(images, key=lambda image: image.width * image.height)
        for other, smaller in self.list_smaller(processor, largest, left // len(images)):
            ratio = smaller.width / largest.width
            yield other, [_scale_image(image, ratio) for image in images]


def _scale_image(image: Any, ratio: float) -> Any:
    if ratio == 1:
        return image
    return image.resize((max(1, int(image.width * ratio)), max(1, int(image.height * ratio))))


def _find_nearest(
    steps: list[tuple[int, int]], own: int, limits: ResolutionLimits, description: str
) -> int:
    """Return the index of the allowed step nearest to ``own``.

    A step is pixels and tokens, in ascending order.
    """
    allowed = [index for index, step in enumerate(steps) if limits.allow(*step)]
    if not allowed:
        (min_pixels, min_tokens), (max_pixels, max_tokens) = steps[0], steps[-1]
        raise _make_unmet_error(
            limits,
            f"images are made of {description}, which is {min_pixels:,} to {max_pixels:,} pixels "
            f"and {min_tokens:,} "
            f"to {max_tokens:,} tokens in steps",
        )
    return min(allowed, key=lambda index: abs(index - own))


def _make_unmet_error(limits: ResolutionLimits, reason: str) -> InvalidFlow:
    return InvalidFlow(f"{limits} cannot be met: {reason}; try: another limit, or none")


def _set_settings(images: Any, settings: Mapping[str, Any]) -> None:
    from transformers.image_utils import SizeDict

    for name, value in settings.items():
        setattr(images, name, SizeDict(**value) if name == "size" else value)


def _to_json(value: Any) -> Any:
    """Return a setting as JSON; sizes without their unset fields."""
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, int | float | str | type(None)):
        return value
    return {name: size for name, size in dict(value).items() if size is not None}
