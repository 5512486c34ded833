"""The Parquet writer, for Hugging Face ``datasets`` and pyarrow, which we also read back without
loss.

One row per record. ``image`` is ``{bytes, path}`` and repeats if an image has several records; then
``sha256``, ``width``, ``height``, ``type``, ``id``, ``category``, and the contents: ``caption`` and
``grounded_phrases``, or ``interactions``, or ``prompt`` and ``text``, or ``turns`` and ``images``.
An image without records is a row whose ``type`` is null; the ``type`` of a conversation is
``conversation``. ``images`` names the images of a conversation about several, which comes after the
rows that embed them. Shards are ``data/train-00000.parquet`` and so on, of at most about 512 MiB;
images of the validation and test splits have shards of their own, named after the split. The
writing itself is in arrow.py, because pyarrow takes a third of a second to load.
"""

from collections.abc import Iterable
from pathlib import Path

from runyard.datasets.records import DatasetType
from runyard.datasets.writers.base import ExportedImage


class ParquetWriter:
    """The writer of Parquet files with embedded images."""

    name = "Parquet"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")
    loses = ""

    def write(self, items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
        from runyard.datasets.writers.arrow import write_shards

        write_shards(items, folder, with_images=with_images)
