"""Pascal VOC XML out: one file a picture with boxes, beside the picture, in pixels counted from 0."""

import html
import posixpath
from collections.abc import Iterable
from pathlib import Path

from runyard.datasets.records import Box, DatasetType
from runyard.datasets.writers import Item
from runyard.datasets.writers.files import ONE_CAPTION, Stems, boxes_of, in_pixels, place_of, write_picture


class PascalVoc:
    """Names and boxes; see ``writers.Writer``."""

    name = "PascalVoc"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)
    loses = ONE_CAPTION

    def write(self, items: Iterable[Item], folder: Path, *, with_pictures: bool) -> None:
        stems = Stems()
        for item in items:
            picture, stem = stems.named(item.asset.filename)
            if boxes := boxes_of(item):
                place_of(folder, f"{stem}.xml").write_text(_document(picture, item, boxes), encoding="utf-8")
            if with_pictures:
                write_picture(folder, picture, item)


def _document(picture: str, item: Item, boxes: list[tuple[str, Box]]) -> str:
    lines = [
        "<annotation>",
        f"  <folder>{_text(posixpath.dirname(picture))}</folder>",
        f"  <filename>{_text(posixpath.basename(picture))}</filename>",
        f"  <size><width>{item.asset.width}</width><height>{item.asset.height}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for name, box in boxes:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), in_pixels(box, item), strict=True)
        lines += [
            "  <object>",
            f"    <name>{_text(name)}</name>",
            "    <pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>",
            f"    <bndbox>{''.join(f'<{corner}>{value:.10g}</{corner}>' for corner, value in corners)}</bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _text(text: str) -> str:
    """Text as XML may hold it, which has no place for control characters."""
    return html.escape("".join(character if character.isprintable() else " " for character in text))
