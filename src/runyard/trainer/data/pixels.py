"""Pixels as the image processor found them: 8 bits each, normalized when a batch is made.

A processor resizes and cuts an image of 8-bit values, and turns each value into a float by a scale,
a mean and a standard deviation. So there are at most 256 floats per channel, which the processor's
own functions compute once. The 8-bit values are recovered from its output and compared with it, bit
for bit. An output that differs from them anywhere, such as one padded after it was normalized, is
kept as it is.

Frames of a still image that some processors repeat are kept once, and so are the elements of an
array that are all equal. Integers are kept in as few bytes as they need.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CHUNK = 1 << 16  # values that are looked up at once, so that their indices stay in a CPU cache
LEVELS = 256
CHANNELS = 3
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PackedArray:
    """An array as it is kept: ``data``, which restores one of this ``kind`` (dtype) and shape.

    With ``block``, data are 8-bit pixels: that many of one channel follow each other, and are
    repeated ``repeats`` times.
    """

    data: Array
    kind: str
    shape: tuple[int, ...]
    block: int = 0
    repeats: int = 1

    @property
    def size_bytes(self) -> int:
        return int(self.data.nbytes)

    def is_same(self, other: "PackedArray") -> bool:
        """Return whether both restore the same array from the same data."""
        form = self.kind, self.shape, self.block, self.repeats
        return (
            form == (other.kind, other.shape, other.block, other.repeats)
            and self.data.dtype == other.data.dtype
            and np.array_equal(self.data, other.data)
        )

    def restore(self, tables: Array, out: Array | None = None) -> Array:
        """Return the array, in ``out`` if it is given; ``tables`` as those of ``PixelCodec``."""
        if out is None:
            if not self.block and self.data.dtype == self.kind and self.data.shape == self.shape:
                return self.data
            out = np.empty(self.shape, self.kind)
        if not self.block:
            out[...] = self.data
            return out
        # (rows, channels, repeats, block)
        pixels = out.reshape(-1, len(tables), self.repeats, self.block)
        codes = self.data.reshape(-1, len(tables), self.block)
        for rows, channel, columns in _chunks(*codes.shape):
            found = codes[rows, channel, columns]
            if self.repeats == 1:
                target = pixels[rows, channel, 0, columns]
                if target.flags.c_contiguous:
                    np.take(tables[channel], found, out=target, mode="clip")
                    continue
            values = np.take(tables[channel], found, mode="clip")
            pixels[rows, channel, :, columns] = values[:, None]
        return out


def join_packed(arrays: Sequence[PackedArray], tables: Array) -> Array:
    """Return the restored arrays, joined as by ``concatenate_padded``."""
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1 or len({array.kind for array in arrays}) > 1:
        return concatenate_padded([array.restore(tables) for array in arrays])
    shape = (sum(array.shape[0] for array in arrays), *arrays[0].shape[1:])
    if len(tables) == 1 and all(array.block and array.repeats == 1 for array in arrays):
        size = sum(array.data.size for array in arrays)
        if size <= CHUNK:  # of small images, all are looked up at once
            codes = np.concatenate([array.data.reshape(-1) for array in arrays])
            found: Array = np.take(tables[0], codes, mode="clip").reshape(shape)
            return found
    joined = np.empty(shape, arrays[0].kind)
    start = 0
    for array in arrays:
        array.restore(tables, joined[start : start + array.shape[0]])
        start += array.shape[0]
    return joined


class PackedColumn:
    """One image tensor of many samples, in one block where they are of one size.

    A batch of small images is then one gather.
    """

    def __init__(self, arrays: Sequence[PackedArray], tables: Array):
        self._tables, self._arrays = tables, list(arrays)
        first = arrays[0]
        is_uniform = bool(first.block) and all(
            (array.kind, array.shape, array.block, array.repeats)
            == (first.kind, first.shape, first.block, first.repeats)
            for array in arrays
        )
        self.size_bytes = sum(array.size_bytes for array in arrays)
        # One channel's table for all pixels, which follow each other.
        self._block: Array | None = None
        if is_uniform and len(tables) == 1 and first.repeats == 1:
            self._block = np.stack([array.data.reshape(first.shape) for array in arrays])
            self._arrays = []

    def join(self, indices: Sequence[int]) -> Array:
        """Return the arrays at these indices, joined as by ``concatenate_padded``."""
        if self._block is None:
            return join_packed([self._arrays[index] for index in indices], self._tables)
        chosen = self._block[np.asarray(indices)]
        codes = chosen.reshape(-1, *chosen.shape[2:])
        joined: Array = np.take(self._tables[0], codes, mode="clip")
        return joined


def concatenate_padded(arrays: Sequence[Array]) -> Array:
    """Concatenate arrays along the first axis; zero-pad the other axes to the largest."""
    trailing = tuple(
        max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)
    )
    if all(array.shape[1:] == trailing for array in arrays):
        return np.concatenate(arrays)
    joined = np.zeros((sum(len(array) for array in arrays), *trailing), arrays[0].dtype)
    start = 0
    for array in arrays:
        joined[
            (slice(start, start + len(array)), *(slice(0, size) for size in array.shape[1:]))
        ] = array
        start += len(array)
    return joined


class PixelCodec:
    """Packs the arrays of one image processor.

    ``tables`` has the float of each 8-bit value, (channels, 256); one row if all channels have the
    same. Without rows, as for an unknown processor, floats are kept as they are.
    """

    def __init__(self, image_processor: Any = None):
        self.tables = _compute_tables(image_processor)
        self._frames = int(getattr(image_processor, "temporal_patch_size", 1) or 1)
        first, last = self.tables[:, :1], self.tables[:, -1:]
        with np.errstate(divide="ignore"):
            scales = (LEVELS - 1) / (last - first)
        self._offsets, self._scales = first.astype(np.float32), scales.astype(np.float32)

    def pack(self, array: Array) -> PackedArray:
        array = np.ascontiguousarray(array)
        kind, shape = array.dtype.str, array.shape
        if array.size and array.dtype.kind in "iub":
            return PackedArray(_narrow(array), kind, shape)
        if array.size and array.dtype == np.float32 and len(self.tables):
            for block, repeats in self._list_layouts(shape):
                codes = self._find_codes(array, block, repeats)
                if codes is not None:
                    return PackedArray(codes, kind, shape, block, repeats)
        return PackedArray(array, kind, shape)

    def _list_layouts(self, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """Yield block and repeats of the orders of channels, frames and pixels to try."""
        channels, frames = len(self.tables), self._frames
        if frames > 1 and shape[-1] % (CHANNELS * frames) == 0:
            yield shape[-1] // (CHANNELS * frames), frames
        if channels == 1:
            yield int(np.prod(shape)), 1
            return
        if len(shape) >= CHANNELS and shape[-3] == channels:
            yield shape[-2] * shape[-1], 1
        if shape[-1] % channels == 0:
            yield shape[-1] // channels, 1
            yield 1, 1

    def _find_codes(self, array: Array, block: int, repeats: int) -> Array | None:
        """Return the 8-bit values (rows, channels, block); None if they do not restore the array.

        Floats are compared as bits, so negative zeros and NaNs are no 8-bit values.
        """
        floats = array.reshape(-1, len(self.tables), repeats, block)
        first = floats[:, :, 0]
        if any(not np.array_equal(first, floats[:, :, frame]) for frame in range(1, repeats)):
            return None
        codes = np.empty(first.shape, np.uint8)
        for rows, channel, columns in _chunks(*first.shape):
            part = first[rows, channel, columns]
            levels = (part - self._offsets[channel]) * self._scales[channel]
            with np.errstate(invalid="ignore"):
                found = np.clip(np.rint(levels, out=levels), 0, LEVELS - 1).astype(np.uint8)
            restored = np.take(self.tables[channel], found, mode="clip")
            if not np.array_equal(restored.view(np.uint32), _as_bits(part)):
                return None
            codes[rows, channel, columns] = found
        return codes


def _chunks(rows: int, channels: int, block: int) -> Iterator[tuple[slice, int, slice]]:
    """Yield the parts of (rows, channels, block) to look up at once."""
    height, width = max(1, CHUNK // max(1, block)), min(block, CHUNK) or 1
    for top in range(0, rows, height):
        for channel in range(channels):
            for left in range(0, block, width):
                yield slice(top, top + height), channel, slice(left, left + width)


def _as_bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view(np.uint32)


def _narrow(array: Array) -> Array:
    """Return equal integers in as few bytes as they need: one element if all are equal."""
    low, high = array.min(), array.max()
    if low == high:
        return array.reshape(-1)[:1].copy()
    if array.dtype.kind == "b":
        return array
    return array.astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))


def _compute_tables(image_processor: Any) -> Array:
    """Return the floats of all 8-bit values, as described at ``PixelCodec``."""
    nothing = np.zeros((0, LEVELS), np.float32)
    levels = np.broadcast_to(np.arange(LEVELS, dtype=np.uint8), (CHANNELS, 1, LEVELS)).copy()
    try:
        tables = _normalize(image_processor, levels)
    except Exception:  # another kind of processor, whose floats are kept
        return nothing
    if tables.shape != levels.shape or tables.dtype != np.float32:
        return nothing
    tables = np.ascontiguousarray(tables[:, 0])
    bits = _as_bits(tables)
    if (bits == bits[:1]).all():
        tables = tables[:1]
    is_increasing = np.isfinite(tables).all() and (np.diff(tables) > 0).all()
    return tables if is_increasing else nothing


def _normalize(image_processor: Any, image: Array) -> Array:
    """Return what the processor makes of the values of an image, by its own functions."""
    p = image_processor
    if hasattr(p, "rescale_and_normalize"):
        import torch

        found = p.rescale_and_normalize(
            torch.from_numpy(image),
            p.do_rescale,
            p.rescale_factor,
            p.do_normalize,
            tuple(p.image_mean),
            tuple(p.image_std),
        )
        return np.asarray(found)
    if p.do_rescale:
        image = p.rescale(image, p.rescale_factor)
    if p.do_normalize:
        image = p.normalize(image, p.image_mean, p.image_std)
    return np.asarray(image)
