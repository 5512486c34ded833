"""The common parts of writers: file paths, and the named boxes of an item."""

import posixpath
from collections.abc import Iterable
from pathlib import Path

from runyard.datasets.packs import is_safe
from runyard.datasets.records import Box, PhraseGrounding
from runyard.datasets.writers.base import ExportedImage

ONE_CAPTION = (
    "wording of captions beyond the phrases; which row a box belongs to; ids and categories of rows"
)


def make_path(folder: Path, path: str) -> Path:
    """Return the path below the folder, and create its parent folders.

    Raises ValueError for a path that is not safe.
    """
    if not is_safe(path):
        raise ValueError(f"{path!r} is not a plain relative path")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def write_image(folder: Path, path: str, item: ExportedImage) -> None:
    make_path(folder, path).write_bytes(item.read())


def find_further_images(items: Iterable[ExportedImage]) -> set[str]:
    """Return the file names of all images that are not the first of their conversation."""
    return {name for item in items for record in item.records for name in record.further_images}


def list_boxes(item: ExportedImage) -> list[tuple[str, Box]]:
    """List every named box, with each phrase on one line."""
    return [
        (" ".join(phrase.phrase.split()), box)
        for record in item.records
        if isinstance(record.contents, PhraseGrounding)
        for phrase in record.contents.grounded_phrases
        for box in phrase.bounds
    ]


def to_pixels(box: Box, item: ExportedImage) -> tuple[float, float, float, float]:
    """Convert a box to pixels, with four decimals."""
    width, height = item.asset.width, item.asset.height
    return (
        round(box[0] * width, 4),
        round(box[1] * height, 4),
        round(box[2] * width, 4),
        round(box[3] * height, 4),
    )


class UniqueStems:
    """Unique names for label files, since two images may differ only in their extension."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def assign(self, filename: str) -> tuple[str, str]:
        """Return a name for the image and its stem, which no other image has."""
        stem, ending = posixpath.splitext(filename)
        own, number = stem, 2
        while own.lower() in self._taken:
            own, number = f"{stem}-{number}", number + 1
        self._taken.add(own.lower())
        return own + ending, own
