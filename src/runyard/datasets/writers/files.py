"""What writers have in common: where pictures go, and names and boxes of an item."""

import posixpath
from pathlib import Path

from runyard.datasets.packs import is_safe
from runyard.datasets.records import Box, PhraseGrounding
from runyard.datasets.writers import Item

ONE_CAPTION = "wording of captions beyond the phrases; which row a box belongs to; ids and categories of rows"


def place_of(folder: Path, path: str) -> Path:
    """The file of this path below the folder; its folders are made. Raises ValueError for a path that is not safe."""
    if not is_safe(path):
        raise ValueError(f"{path!r} is no plain relative path")
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def write_picture(folder: Path, path: str, item: Item) -> None:
    place_of(folder, path).write_bytes(item.read())


def boxes_of(item: Item) -> list[tuple[str, Box]]:
    """Every named box, each phrase on one line."""
    return [
        (" ".join(phrase.phrase.split()), box)
        for record in item.records
        if isinstance(record.contents, PhraseGrounding)
        for phrase in record.contents.grounded_phrases
        for box in phrase.bounds
    ]


def in_pixels(box: Box, item: Item) -> tuple[float, float, float, float]:
    """A box in pixels, to the tenth of a thousandth."""
    width, height = item.asset.width, item.asset.height
    return round(box[0] * width, 4), round(box[1] * height, 4), round(box[2] * width, 4), round(box[3] * height, 4)


class Stems:
    """Names for files that are called as their picture but for the ending, where two pictures may differ in that."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def named(self, filename: str) -> tuple[str, str]:
        """The picture's name here, and its stem, which no other has."""
        stem, ending = posixpath.splitext(filename)
        own, number = stem, 2
        while own.lower() in self._taken:
            own, number = f"{stem}-{number}", number + 1
        self._taken.add(own.lower())
        return own + ending, own
