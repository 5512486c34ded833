"""The image of a label file: next to it, in the folder of images that belongs to the folder of
labels, or wherever the source finds its name.
"""

import posixpath
import unicodedata
from collections.abc import Iterator

from runyard.datasets.sources import Source

# The folders of images that belong to a folder of labels.
_IMAGE_FOLDERS = {
    "labels": ("images",),
    "label": ("images", "image"),
    "labeltxt": ("images",),
    "label_2": ("image_2",),
    "label_3": ("image_3",),
}


class LabelImages:
    """The images of a source, by path without extension."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._by_stem: dict[str, list[str]] = {}
        self._by_folded: dict[str, list[str]] = {}
        for path in source.paths():
            if source.is_image(path):
                stem = _normalize(posixpath.splitext(path)[0])
                self._by_stem.setdefault(stem, []).append(path)
                self._by_folded.setdefault(stem.casefold(), []).append(path)

    def find(self, label: str) -> str:
        """Return the name by which the source finds the image of a label file.

        Next to the label file, or in the folder of images, it is the image's path; the path without
        extension if several images have it. Else it is the bare name, without extension.
        """
        stems = list(_list_stems(_normalize(label)))
        for index, key in ((self._by_stem, str), (self._by_folded, str.casefold)):
            for stem in stems:
                found = index.get(key(stem), [])
                if found:
                    return found[0] if len(found) == 1 else stem
        for stem in stems:
            if self._source.is_image(stem):  # the label of a.jpg is a.jpg.txt
                return stem
        return posixpath.splitext(posixpath.basename(label))[0]


def _list_stems(label: str) -> Iterator[str]:
    """Yield the possible paths of the image, without extension."""
    stem = posixpath.splitext(label)[0]
    yield stem
    parts = stem.split("/")
    for index in range(len(parts) - 2, -1, -1):
        for folder in _find_image_folders(parts[index].lower()):
            yield "/".join([*parts[:index], folder, *parts[index + 1 :]])


def _find_image_folders(folder: str) -> tuple[str, ...]:
    # DOTA has the version in the name: labelTxt-v1.5.
    return _IMAGE_FOLDERS.get("labeltxt" if folder.startswith("labeltxt") else folder, ())


def _normalize(path: str) -> str:
    return path if path.isascii() else unicodedata.normalize("NFC", path)
