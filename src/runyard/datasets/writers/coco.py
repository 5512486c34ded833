"""COCO JSON out: ``annotations.json``, and the pictures beside it under their own names.

Phrases become categories, boxes annotations in pixels; freeform texts become captions. Annotations wait in a file of
their own until the pictures have been written, so that nothing is held in memory but the names.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from runyard.datasets.records import DatasetType, Freeform
from runyard.datasets.writers import Item
from runyard.datasets.writers.files import ONE_CAPTION, boxes_of, in_pixels, write_picture


class Coco:
    """Instances and captions; see ``writers.Writer``."""

    name = "Coco"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "freeform")
    loses = f"{ONE_CAPTION}; prompts of texts"

    def write(self, items: Iterable[Item], folder: Path, *, with_pictures: bool) -> None:
        categories: dict[str, int] = {}
        with open(folder / "annotations.json", "wb") as file, tempfile.TemporaryFile(dir=folder) as waiting:
            pictures, annotations = _List(file), _List(waiting)
            file.write(b'{"images":[')
            for number, item in enumerate(items, start=1):
                pictures.add(_picture(number, item))
                for annotation in _annotations(item, categories):
                    annotations.add({"id": annotations.count + 1, "image_id": number, **annotation})
                if with_pictures:
                    write_picture(folder, item.asset.filename, item)
            file.write(b'\n],"annotations":[')
            waiting.seek(0)
            shutil.copyfileobj(waiting, file)
            file.write(b'\n],"categories":')
            file.write(msgspec.json.encode([{"id": number, "name": name} for name, number in categories.items()]))
            file.write(b"}\n")


class _List:
    """The elements of a JSON array on their way out, one a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def add(self, element: dict[str, Any]) -> None:
        self._file.write((b",\n" if self.count else b"\n") + msgspec.json.encode(element))
        self.count += 1


def _picture(number: int, item: Item) -> dict[str, Any]:
    asset = item.asset
    return {"id": number, "file_name": asset.filename, "width": asset.width, "height": asset.height}


def _annotations(item: Item, categories: dict[str, int]) -> Iterator[dict[str, Any]]:
    for record in item.records:
        if isinstance(record.contents, Freeform):
            yield {"caption": record.contents.text}
    for name, box in boxes_of(item):
        xmin, ymin, xmax, ymax = in_pixels(box, item)
        width, height = round(xmax - xmin, 4), round(ymax - ymin, 4)
        yield {
            "category_id": categories.setdefault(name, len(categories) + 1),
            "bbox": [xmin, ymin, width, height],
            "area": round(width * height, 4),
            "iscrowd": 0,
        }
