"""The YOLO writer: one text file per image and one box per line, ``class x y width height``.

Numbers are fractions of the image; x and y are the box's center. Darknet has the label file next to
its image, and the names in ``classes.txt``. Ultralytics has ``images``, ``labels`` and
``data.yaml``.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from runyard.datasets.records import Box, DatasetType
from runyard.datasets.writers.base import ExportedImage
from runyard.datasets.writers.files import (
    ONE_CAPTION,
    UniqueStems,
    list_boxes,
    make_path,
    write_image,
)


class YoloDarknetWriter:
    """The writer of labels next to images, and ``classes.txt``; see ``base.Writer``."""

    name = "YoloDarknet"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)
    loses = ONE_CAPTION

    def write(self, items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
        names = _write_labels(items, folder, images="", labels="", with_images=with_images)
        (folder / "classes.txt").write_text(
            "".join(f"{name}\n" for name in names), encoding="utf-8"
        )


class YoloKerasPytorchWriter:
    """The writer of ``images``, ``labels`` and ``data.yaml``; see ``base.Writer``."""

    name = "YoloKerasPytorch"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)
    loses = ONE_CAPTION

    def write(self, items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
        names = _write_labels(
            items, folder, images="images/", labels="labels/", with_images=with_images
        )
        lines = ["path: .", "train: images", "val: images", f"nc: {len(names)}", "names:"]
        # A JSON string is also a quoted YAML string.
        lines += [
            f"  {number}: {json.dumps(name, ensure_ascii=False)}"
            for number, name in enumerate(names)
        ]
        (folder / "data.yaml").write_text("\n".join([*lines, ""]), encoding="utf-8")


def _write_labels(
    items: Iterable[ExportedImage], folder: Path, *, images: str, labels: str, with_images: bool
) -> list[str]:
    """Write labels and images; return the names of the classes."""
    stems, numbers = UniqueStems(), dict[str, int]()
    for item in items:
        image, stem = stems.assign(item.asset.filename.removeprefix(images))
        if boxes := list_boxes(item):
            lines = [
                f"{numbers.setdefault(name, len(numbers))} {_format_centered(box)}\n"
                for name, box in boxes
            ]
            make_path(folder, f"{labels}{stem}.txt").write_text("".join(lines), encoding="utf-8")
        if with_images:
            write_image(folder, f"{images}{image}", item)
    return list(numbers)


def _format_centered(box: Box) -> str:
    xmin, ymin, xmax, ymax = box
    numbers = ((xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin)
    return " ".join(f"{number:.10f}".rstrip("0").rstrip(".") for number in numbers)
