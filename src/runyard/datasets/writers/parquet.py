"""Parquet that Hugging Face ``datasets`` and pyarrow read as they are, and that we read back without loss.

One row a record. ``image`` is ``{bytes, path}`` and repeats where a picture has several records; then ``sha256``,
``width``, ``height``, ``type``, ``id``, ``category``, and the contents: ``caption`` and ``grounded_phrases``, or
``interactions``, or ``prompt`` and ``text``. A picture without records is a row whose ``type`` is null. Shards are
``data/train-00000.parquet`` and so on, of at most about 512 MiB. What writes them is in arrow.py, because pyarrow takes
a third of a second to load.
"""

from collections.abc import Iterable
from pathlib import Path

from runyard.datasets.records import DatasetType
from runyard.datasets.writers import Item


class Parquet:
    """Parquet with the pictures inside."""

    name = "Parquet"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")
    loses = ""

    def write(self, items: Iterable[Item], folder: Path, *, with_pictures: bool) -> None:
        from runyard.datasets.writers.arrow import write_shards

        write_shards(items, folder, with_pictures=with_pictures)
