"""The COCO JSON writer: ``annotations.json``, and the images under their own names in the same
folder.

Phrases become categories, boxes become annotations in pixels, and freeform texts become captions.
Annotations wait in a temporary file until the images have been listed, so that only the names are
held in memory.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from runyard.datasets.records import DatasetType, Freeform
from runyard.datasets.writers.base import ExportedImage
from runyard.datasets.writers.files import ONE_CAPTION, list_boxes, to_pixels, write_image


class CocoWriter:
    """The writer of instances and captions; see ``base.Writer``."""

    name = "Coco"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "freeform")
    loses = f"{ONE_CAPTION}; prompts of texts; conversations"

    def write(self, items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
        categories: dict[str, int] = {}
        with (
            open(folder / "annotations.json", "wb") as file,
            tempfile.TemporaryFile(dir=folder) as waiting,
        ):
            images, annotations = _JsonArray(file), _JsonArray(waiting)
            file.write(b'{"images":[')
            for number, item in enumerate(items, start=1):
                images.add(_image_entry(number, item))
                for annotation in _build_annotations(item, categories):
                    annotations.add({"id": annotations.count + 1, "image_id": number, **annotation})
                if with_images:
                    write_image(folder, item.asset.filename, item)
            file.write(b'\n],"annotations":[')
            waiting.seek(0)
            shutil.copyfileobj(waiting, file)
            file.write(b'\n],"categories":')
            file.write(
                msgspec.json.encode(
                    [{"id": number, "name": name} for name, number in categories.items()]
                )
            )
            file.write(b"}\n")


class _JsonArray:
    """A JSON array being written, one element per line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def add(self, element: dict[str, Any]) -> None:
        self._file.write((b",\n" if self.count else b"\n") + msgspec.json.encode(element))
        self.count += 1


def _image_entry(number: int, item: ExportedImage) -> dict[str, Any]:
    asset = item.asset
    return {"id": number, "file_name": asset.filename, "width": asset.width, "height": asset.height}


def _build_annotations(item: ExportedImage, categories: dict[str, int]) -> Iterator[dict[str, Any]]:
    for record in item.records:
        if isinstance(record.contents, Freeform):
            yield {"caption": record.contents.text}
    for name, box in list_boxes(item):
        xmin, ymin, xmax, ymax = to_pixels(box, item)
        width, height = round(xmax - xmin, 4), round(ymax - ymin, 4)
        yield {
            "category_id": categories.setdefault(name, len(categories) + 1),
            "bbox": [xmin, ymin, width, height],
            "area": round(width * height, 4),
            "iscrowd": 0,
        }
