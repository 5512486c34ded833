"""The image of a label file: next to it, in the folder of images that belongs to the folder of
labels, or wherever the source finds its name.
"""

import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import takewhile

from runyard.datasets.findings import Finding, make_finding
from runyard.datasets.sources import Source

# The folders of images that belong to a folder of labels.
_IMAGE_FOLDERS = {
    "labels": ("images",),
    "label": ("images", "image"),
    "labeltxt": ("images",),
    "label_2": ("image_2",),
    "label_3": ("image_3",),
}

_RIVAL_FIX = "put each label file next to its image, or in labels if the image is in images"


class LabelImages:
    """The images of label files: by path without extension, else by bare name."""

    def __init__(self, source: Source, labels: Iterable[str]) -> None:
        self._source = source
        self._by_stem: dict[str, list[str]] = {}
        self._by_folded: dict[str, list[str]] = {}
        for path in source.paths():
            if source.is_image(path):
                stem = _normalize(posixpath.splitext(path)[0])
                self._by_stem.setdefault(stem, []).append(path)
                self._by_folded.setdefault(stem.casefold(), []).append(path)
        self._by_bare_name: dict[str, list[str]] = {}
        for label in labels:
            if (name := self.find(label)) == _get_bare_name(label):
                self._by_bare_name.setdefault(name, []).append(label)

    def find(self, label: str) -> str:
        """Return the name by which the source finds the image of a label file.

        Next to the label file, or in the folder of images, it is the image's path; the path without
        extension if several images have it. Else it is the bare name, without extension.
        """
        stems = list(_list_stems(_normalize(label)))
        for stem in stems:
            if found := self._by_stem.get(stem):
                return found[0] if len(found) == 1 else stem
        for stem in stems:
            if found := self._by_folded.get(stem.casefold()):
                return found[0] if len(found) == 1 else stem
        for stem in stems:
            if self._source.is_image(stem):  # the label of a.jpg is a.jpg.txt
                return stem
        return _get_bare_name(label)

    def check_rivals(self, label: str) -> Finding | None:
        """Return a finding if another label file of this name fits the same image equally well."""
        name = _get_bare_name(label)
        rivals = self._by_bare_name.get(name, [])
        if len(rivals) < 2 or label not in rivals:
            return None
        image = self._source.find_image(name, relative_to=label)
        if image is None:
            return None
        depth = _count_shared_folders(image.path, label)
        for rival in rivals:
            if rival == label or _count_shared_folders(image.path, rival) != depth:
                continue
            other = self._source.find_image(name, relative_to=rival)
            if other is not None and other.path == image.path:
                cause = f"{rival} fits the image {image.path!r} equally well"
                return make_finding("ImageAmbiguous", file=label, cause=cause, fix=_RIVAL_FIX)
        return None


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


def _get_bare_name(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _count_shared_folders(path: str, other: str) -> int:
    """Return how many folders two paths have in common, from the top."""
    pairs = zip(path.split("/")[:-1], other.split("/")[:-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
