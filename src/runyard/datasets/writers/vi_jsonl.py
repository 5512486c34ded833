"""The Vi JSONL writer: ``annotations.jsonl``, one record per line, and the images in the same
folder.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from runyard.datasets.records import DatasetType, encode
from runyard.datasets.writers.base import ExportedImage
from runyard.datasets.writers.files import write_image


class ViJsonlWriter:
    """The lossless writer of records; see ``base.Writer``."""

    name = "ViJsonl"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")
    loses = ""

    def write(self, items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
        with open(folder / "annotations.jsonl", "wb") as file:
            for item in items:
                for record in item.records:
                    file.write(encode(msgspec.structs.replace(record, asset=item.asset)) + b"\n")
                if with_images:
                    write_image(folder, item.asset.filename, item)
