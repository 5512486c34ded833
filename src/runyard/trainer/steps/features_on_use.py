"""Features of images that are computed when a sample is first used, and kept.

Training does not wait for the features of all images: the first epoch computes each where the
vision encoder would have run anyway. They are kept in a file without a name below the attempt's
folder, which the system removes with the process. When all are there and they are not too large,
they become shards of the cache, which other runs share.
"""

import contextlib
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.encode import Batch, EncodedSample, Encodings, Layout, join_images
from runyard.trainer.steps.features import FeatureEncoder

MOST_SHARED_BYTES = 1 << 30  # writing more would make a step last too long
Array = np.ndarray[Any, Any]
Place = tuple[int, np.dtype[Any], tuple[int, ...]]  # offset, kind and shape of an array in the file


class FeaturesOnUse(Encodings):
    """Encodings with features in place of the pixels of ``encodings``.

    ``share`` gets an encoder that returns what is kept, and returns the encodings that replace it;
    None where nothing is shared. ``check_cancelled`` is called before features are computed.
    """

    def __init__(
        self,
        encoder: FeatureEncoder,
        encodings: Encodings,
        samples: Sequence[Sample],
        layout: Layout,
        folder: Path,
        *,
        share: Callable[["KeptFeatures"], Encodings] | None,
        check_cancelled: Callable[[], None] = lambda: None,
    ):
        super().__init__(layout)
        self.encoder, self.samples, self.size_bytes = encoder, samples, 0
        self.lengths, self.prompt_lengths = encodings.lengths, encodings.prompt_lengths
        self._encodings, self._share, self._check_cancelled = encodings, share, check_cancelled
        self._shared: Encodings | None = None
        self._places: dict[int, dict[str, Place]] = {}
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as this object
        weakref.finalize(self, self._file.close)
        self._is_full = False

    def read(self, index: int) -> EncodedSample:
        """Return a sample with its features, which are computed if they are not kept."""
        row = self._encodings.read_row(index)
        return replace(row, images=self._read_features(index))

    @property
    def cache_growth_bytes(self) -> int:
        return self._encodings.cache_growth_bytes

    def make_batch(self, indices: Sequence[int]) -> Batch:
        batch = super().make_batch(indices)
        has_all = len(self._places) == len(self.samples)
        if self._share is not None and has_all and self.size_bytes <= MOST_SHARED_BYTES:
            with contextlib.suppress(OSError):  # what is kept is used on
                self._shared = self._share(KeptFeatures(self))
                self._file.close()
                self._places.clear()
            self._share = None
        return batch

    def read_row(self, index: int) -> EncodedSample:
        return self._encodings.read_row(index)

    def read_images(self, indices: Sequence[int]) -> dict[str, Array]:
        if self._shared is not None:
            return self._shared.read_images(indices)
        found = [self._read_features(index) for index in indices]
        return join_images(found)

    def read_processed(self, index: int) -> dict[str, Array]:
        return self._encodings.read_processed(index)

    def _read_features(self, index: int) -> dict[str, Array]:
        if index not in self._places:
            self._check_cancelled()
            images = self.encoder.replace_pixels(self._encodings.read_images([index]))
            self.keep(index, images)
            return images
        images = {}
        for name, (offset, kind, shape) in self._places[index].items():
            size_bytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
            data = bytearray(os.pread(self._file.fileno(), size_bytes, offset))
            images[name] = np.frombuffer(data, kind).reshape(shape)
        return images

    def keep(self, index: int, images: dict[str, Array]) -> None:
        """Write a sample's features, as long as the disk accepts them."""
        places: dict[str, Place] = {}
        for name, array in images.items():
            data = np.ascontiguousarray(array).tobytes()
            places[name] = self.size_bytes, array.dtype, array.shape
            if self._is_full or not self._append(data):
                self._is_full = True
                return
        self._places[index] = places

    def _append(self, data: bytes) -> bool:
        """Write data at the end of the file; return whether the disk accepted all of it."""
        with contextlib.suppress(OSError):
            if os.pwrite(self._file.fileno(), data, self.size_bytes) == len(data):
                self.size_bytes += len(data)
                return True
        return False


class KeptFeatures:
    """An encoder that returns samples as they are kept."""

    def __init__(self, kept: FeaturesOnUse):
        self._kept, self.codec = kept, kept.encoder.codec
        self._indices = {_identify(sample): index for index, sample in enumerate(kept.samples)}

    @property
    def settings(self) -> dict[str, Any]:
        return self._kept.encoder.settings

    def encode(self, sample: Sample) -> EncodedSample:
        return self._kept.read(self._indices[_identify(sample)])


def _identify(sample: Sample) -> tuple[Any, ...]:
    images = sample.image_sha256, sample.image_size, sample.further_filenames
    return images, sample.question, sample.truth, sample.turns
