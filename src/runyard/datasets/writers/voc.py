"""The Pascal VOC XML writer: one file per image with boxes, next to the image, in pixels counted
from 0.
"""

import html
import posixpath
from collections.abc import Iterable
from pathlib import Path

from runyard.datasets.records import Box, DatasetType
from runyard.datasets.writers.base import ExportedImage
from runyard.datasets.writers.files import (
    ONE_CAPTION,
    UniqueStems,
    list_boxes,
    make_path,
    to_pixels,
    write_image,
)


class PascalVocWriter:
    """The writer of names and boxes; see ``base.Writer``."""

    name = "PascalVoc"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)
    loses = ONE_CAPTION

    def write(self, items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
        stems = UniqueStems()
        for item in items:
            image, stem = stems.assign(item.asset.filename)
            if boxes := list_boxes(item):
                make_path(folder, f"{stem}.xml").write_text(
                    _build_document(image, item, boxes), encoding="utf-8"
                )
            if with_images:
                write_image(folder, image, item)


def _build_document(image: str, item: ExportedImage, boxes: list[tuple[str, Box]]) -> str:
    lines = [
        "<annotation>",
        f"  <folder>{_escape_text(posixpath.dirname(image))}</folder>",
        f"  <filename>{_escape_text(posixpath.basename(image))}</filename>",
        f"  <size><width>{item.asset.width}</width><height>{item.asset.height}</height>"
        "<depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for name, box in boxes:
        corners = "".join(
            f"<{corner}>{value:.10g}</{corner}>"
            for corner, value in zip(
                ("xmin", "ymin", "xmax", "ymax"), to_pixels(box, item), strict=True
            )
        )
        lines += [
            "  <object>",
            f"    <name>{_escape_text(name)}</name>",
            "    <pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>",
            f"    <bndbox>{corners}</bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _escape_text(text: str) -> str:
    """Escape text for XML, which does not allow control characters."""
    return html.escape("".join(character if character.isprintable() else " " for character in text))
