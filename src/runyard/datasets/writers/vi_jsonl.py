"""Vi JSONL out: ``annotations.jsonl``, one record a line, and the pictures beside it under their own names."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from runyard.datasets.records import DatasetType, encode
from runyard.datasets.writers import Item
from runyard.datasets.writers.files import write_picture


class ViJsonl:
    """Everything, as it is; see ``writers.Writer``."""

    name = "ViJsonl"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")
    loses = ""

    def write(self, items: Iterable[Item], folder: Path, *, with_pictures: bool) -> None:
        with open(folder / "annotations.jsonl", "wb") as file:
            for item in items:
                for record in item.records:
                    file.write(encode(msgspec.structs.replace(record, asset=item.asset)) + b"\n")
                if with_pictures:
                    write_picture(folder, item.asset.filename, item)
