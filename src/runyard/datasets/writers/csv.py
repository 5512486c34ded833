"""CSV out: ``annotations.csv``, one box a line with the picture's name, and the pictures beside it.

    filename,xmin,ymin,xmax,ymax,class         four corners
    filename,x,y,width,height,class            upper left corner and size

Numbers are shares of the picture, or pixels with ``is_normalized=False``.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

from runyard.datasets.records import Box, DatasetType
from runyard.datasets.writers import Item
from runyard.datasets.writers.files import ONE_CAPTION, boxes_of, in_pixels, write_picture


class _Csv:
    types: tuple[DatasetType, ...] = ("phrase-grounding",)
    loses = ONE_CAPTION

    def __init__(self, name: str, columns: tuple[str, ...], *, is_normalized: bool) -> None:
        self.name = name
        self._columns = columns
        self._is_normalized = is_normalized

    def write(self, items: Iterable[Item], folder: Path, *, with_pictures: bool) -> None:
        with open(folder / "annotations.csv", "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("filename", *self._columns, "class"))
            for item in items:
                for name, box in boxes_of(item):
                    numbers = self._numbers(box if self._is_normalized else in_pixels(box, item))
                    rows.writerow((item.asset.filename, *numbers, name))
                if with_pictures:
                    write_picture(folder, item.asset.filename, item)

    def _numbers(self, box: Box) -> tuple[float, ...]:
        raise NotImplementedError


class CsvFourCorner(_Csv):
    """``filename,xmin,ymin,xmax,ymax,class``; see ``writers.Writer``."""

    def __init__(self, *, is_normalized: bool = True) -> None:
        super().__init__("CsvFourCorner", ("xmin", "ymin", "xmax", "ymax"), is_normalized=is_normalized)

    def _numbers(self, box: Box) -> tuple[float, ...]:
        return tuple(float(number) for number in box)


class CsvWidthHeight(_Csv):
    """``filename,x,y,width,height,class``; see ``writers.Writer``."""

    def __init__(self, *, is_normalized: bool = True) -> None:
        super().__init__("CsvWidthHeight", ("x", "y", "width", "height"), is_normalized=is_normalized)

    def _numbers(self, box: Box) -> tuple[float, ...]:
        xmin, ymin, xmax, ymax = box
        return float(xmin), float(ymin), round(xmax - xmin, 10), round(ymax - ymin, 10)
