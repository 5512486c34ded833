"""The CSV writer: ``annotations.csv``, one box per line with the image's name, and the images in
the same folder.

    filename,xmin,ymin,xmax,ymax,class         four corners
    filename,x,y,width,height,class            upper left corner and size

Numbers are fractions of the image, or pixels with ``is_normalized=False``.
"""

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from runyard.datasets.records import Box, DatasetType
from runyard.datasets.writers.base import ExportedImage
from runyard.datasets.writers.files import ONE_CAPTION, list_boxes, to_pixels, write_image


class _CsvWriter(ABC):
    types: tuple[DatasetType, ...] = ("phrase-grounding",)
    loses = ONE_CAPTION

    def __init__(self, name: str, columns: tuple[str, ...], *, is_normalized: bool) -> None:
        self.name = name
        self._columns = columns
        self._is_normalized = is_normalized

    def write(self, items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
        with open(folder / "annotations.csv", "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("filename", *self._columns, "class"))
            for item in items:
                for name, box in list_boxes(item):
                    numbers = self._box_columns(
                        box if self._is_normalized else to_pixels(box, item)
                    )
                    rows.writerow((item.asset.filename, *numbers, name))
                if with_images:
                    write_image(folder, item.asset.filename, item)

    @abstractmethod
    def _box_columns(self, box: Box) -> tuple[float, ...]: ...


class CsvFourCornerWriter(_CsvWriter):
    """``filename,xmin,ymin,xmax,ymax,class``; see ``base.Writer``."""

    def __init__(self, *, is_normalized: bool = True) -> None:
        super().__init__(
            "CsvFourCorner", ("xmin", "ymin", "xmax", "ymax"), is_normalized=is_normalized
        )

    def _box_columns(self, box: Box) -> tuple[float, ...]:
        return tuple(float(number) for number in box)


class CsvWidthHeightWriter(_CsvWriter):
    """``filename,x,y,width,height,class``; see ``base.Writer``."""

    def __init__(self, *, is_normalized: bool = True) -> None:
        super().__init__(
            "CsvWidthHeight", ("x", "y", "width", "height"), is_normalized=is_normalized
        )

    def _box_columns(self, box: Box) -> tuple[float, ...]:
        xmin, ymin, xmax, ymax = box
        return float(xmin), float(ymin), round(xmax - xmin, 10), round(ymax - ymin, 10)
