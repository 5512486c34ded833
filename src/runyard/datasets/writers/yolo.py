"""YOLO out: one text file a picture, one box a line, ``class x y width height`` as shares, x and y of the centre.

Darknet has the label file beside its picture, and the names in ``classes.txt``; Ultralytics has ``images`` and
``labels``, and ``data.yaml``.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from runyard.datasets.records import Box, DatasetType
from runyard.datasets.writers import Item
from runyard.datasets.writers.files import ONE_CAPTION, Stems, boxes_of, place_of, write_picture


class YoloDarknet:
    """Labels beside pictures, and ``classes.txt``; see ``writers.Writer``."""

    name = "YoloDarknet"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)
    loses = ONE_CAPTION

    def write(self, items: Iterable[Item], folder: Path, *, with_pictures: bool) -> None:
        names = _write_labels(items, folder, pictures="", labels="", with_pictures=with_pictures)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


class YoloKerasPytorch:
    """``images``, ``labels`` and ``data.yaml``; see ``writers.Writer``."""

    name = "YoloKerasPytorch"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)
    loses = ONE_CAPTION

    def write(self, items: Iterable[Item], folder: Path, *, with_pictures: bool) -> None:
        names = _write_labels(items, folder, pictures="images/", labels="labels/", with_pictures=with_pictures)
        lines = ["path: .", "train: images", "val: images", f"nc: {len(names)}", "names:"]
        # A JSON string is a quoted YAML one.
        lines += [f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(names)]
        (folder / "data.yaml").write_text("\n".join([*lines, ""]), encoding="utf-8")


def _write_labels(items: Iterable[Item], folder: Path, *, pictures: str, labels: str, with_pictures: bool) -> list[str]:
    """Write what all items hold; returns the names of the classes."""
    stems, numbers = Stems(), dict[str, int]()
    for item in items:
        picture, stem = stems.named(item.asset.filename.removeprefix(pictures))
        if boxes := boxes_of(item):
            lines = [f"{numbers.setdefault(name, len(numbers))} {_centred(box)}\n" for name, box in boxes]
            place_of(folder, f"{labels}{stem}.txt").write_text("".join(lines), encoding="utf-8")
        if with_pictures:
            write_picture(folder, f"{pictures}{picture}", item)
    return list(numbers)


def _centred(box: Box) -> str:
    xmin, ymin, xmax, ymax = box
    numbers = ((xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin)
    return " ".join(f"{number:.10f}".rstrip("0").rstrip(".") for number in numbers)
