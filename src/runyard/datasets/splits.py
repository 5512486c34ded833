"""Splits: the dataset's own division into train, validation and test, and the one made by hash.

The own split of an image is that of its row (a column ``split``), else that of a list of images
(``split_lists``), else that of the label file, else that of the image's folders. It is kept only if
it divides the data. An image that is in two splits, by its rows or by its bytes, is used for
training only, because a score on it would mean nothing.

Without an own split the held-out part is decided by each image's content, so that adding images
moves none to the other part.
"""

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

from runyard.datasets.findings import Finding, ReportFinding, make_finding

Split = Literal["train", "validation", "test"]
SplitPolicy = Literal["keep", "ignore"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_POLICIES: tuple[SplitPolicy, ...] = get_args(SplitPolicy)
UNSPLIT = "unsplit"  # the key of the images in no split, in counts

COLUMNS = ("split", "subset", "partition", "ml_use")
_NAMES: dict[Split, str] = {
    "train": "train training trainset",
    "validation": "val valid validation validate valset dev eval evaluation",
    "test": "test testing testset",
}
_SPLIT_OF_WORD = {word: split for split, words in _NAMES.items() for word in words.split()}
# The words that a folder of a split may have besides, as in ``train_images`` or ``test-set``.
_NEUTRAL_WORDS = (
    "set data dataset split splits image images img imgs photos jpg jpeg png label labels "
    "annotation annotations of"
)
_NEUTRAL = frozenset(_NEUTRAL_WORDS.split())
# TrainImages, train2017 and test-dev are several words each.
_WORD = re.compile(r"\d+|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]")


def is_held_out(sha256: bytes, *, seed: int, fraction: float) -> bool:
    """Return whether the image with this SHA-256 (32 bytes, of its file) belongs to the held-out
    part.
    """
    digest = hashlib.sha256(seed.to_bytes(8, "big") + sha256).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def parse_split(value: object) -> Split | None:
    """Return the split that a field of a row names, such as ``Train`` or ``val``; else None."""
    return _find_in_folder(value.strip()) if isinstance(value, str) else None


def find_row_split(row: Mapping[str, Any]) -> Split | None:
    """Return the split that a row of a table names in one of ``COLUMNS``."""
    for name, value in row.items():
        if isinstance(name, str) and name.lower() in COLUMNS and (split := parse_split(value)):
            return split
    return None


def find_split(path: str, *, reads_name: bool = False) -> Split | None:
    """Return the split that a relative path names: by the outermost such folder, in any case.

    With ``reads_name`` the words of the file's name come first, as in ``instances_train2017.json``:
    for files with labels of many images.
    """
    folder, name = posixpath.split(path)
    if reads_name and (split := _choose_split(_list_words(name))):
        return split
    return next((split for part in folder.split("/") if (split := _find_in_folder(part))), None)


def find_common_folder(paths: Iterable[str]) -> str:
    """Return the deepest folder that contains all paths; empty if there is none."""
    lowest = highest = None
    for path in paths:
        lowest = path if lowest is None or path < lowest else lowest
        highest = path if highest is None or path > highest else highest
    if lowest is None or highest is None:
        return ""
    return posixpath.commonpath([posixpath.dirname(lowest), posixpath.dirname(highest)])


def format_counts(counts: Mapping[str, int]) -> str:
    """Format the images of each split, as ``700 train, 62 test images, 3 of no split``.

    Empty for a dataset without an own split.
    """
    parts = [f"{counts[name]:,} {name}" for name in SPLITS if counts.get(name)]
    if not parts:
        return ""
    noun = "image" if sum(counts.get(name, 0) for name in SPLITS) == 1 else "images"
    rest = counts.get(UNSPLIT, 0)
    return f"{', '.join(parts)} {noun}{f', {rest:,} of no split' if rest else ''}"


def _list_words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _find_in_folder(name: str) -> Split | None:
    """Return the split of a folder whose whole name means it."""
    words = _list_words(name)
    if all(word in _SPLIT_OF_WORD or word in _NEUTRAL or word.isdecimal() for word in words):
        return _choose_split(words)
    return None


def _choose_split(words: list[str]) -> Split | None:
    """Return the only split among the words; ``test-dev`` is a test split."""
    found = {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}
    if found == {"test", "validation"} and "dev" in words:
        return "test"
    return found.pop() if len(found) == 1 else None


# The splits of one import ------------------------------------------------------------------------


class Image(Protocol):
    """The facts of an image that a split depends on."""

    @property
    def path(self) -> str: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image that the dataset has already: its split, and whether it has records."""

    split: Split | None = None
    is_annotated: bool = False


class SplitClaim(NamedTuple):
    """A file that puts an image into a split."""

    path: str
    split: Split
    file: str
    line: int | None


@dataclass(frozen=True, slots=True)
class _Conflict:
    """The row, or the line of a list, that puts an image into a second split."""

    splits: tuple[Split, Split]
    file: str
    line: int | None


class SplitAssigner:
    """The splits of an import's images: collected row by row, decided at the end.

    ``changes`` maps the paths whose split differs from the known one to the new split. ``counts``
    are the images of the import by split, ``UNSPLIT`` included; empty if the data is not divided.
    """

    def __init__(
        self, policy: SplitPolicy = "keep", known: Mapping[str, KnownImage] | None = None
    ) -> None:
        """``known`` maps paths to the images that the dataset already has."""
        self.changes: dict[str, Split | None] = {}
        self.counts: dict[str, int] = {}
        self._policy = policy
        self._known = known or {}
        self._root = ""
        self._of_rows: dict[str, Split | None] = {}  # by path of the image
        self._listed: dict[str, Split | None] = {}
        self._of_folders: dict[str, Split | None] = {}
        self._of_names: dict[str, Split | None] = {}
        self._conflicts: dict[str, _Conflict] = {}

    def begin(self, images: Iterable[Image], claims: Iterable[SplitClaim] = ()) -> None:
        """Note the images before rows are added: a folder that contains all divides nothing.

        ``claims`` are read from files that list images by split.
        """
        self._root = find_common_folder(image.path for image in images)
        if self._policy == "keep":
            for path, split, file, line in claims:
                self._add(self._listed, path, split, file, line)

    def add_row(self, path: str, split: Split | None, *, file: str, line: int | None) -> None:
        """Add an accepted row about the image ``path``; ``split`` is the one that it names."""
        if self._policy == "ignore":
            self._of_rows[path] = None
            return
        if split is None:
            split = self._listed.get(path) or self._find_in_file(file, path)
        self._add(self._of_rows, path, split or self._find_in_folders(path), file, line)

    def assign(self, images: Iterable[Image], report: ReportFinding) -> None:
        """Decide the split of every image, and report images that are in two."""
        images = list(images)
        splits = {image.path: self._find(image.path) for image in images}
        if self._policy == "keep":
            self._move_conflicts(splits, report)
            self._move_leaks(images, splits, report)
            if not self._is_divided(splits):
                splits = dict.fromkeys(splits)
        for path, split in splits.items():
            known = self._known.get(path)
            if split != (None if known is None else known.split):
                self.changes[path] = split
        counts = Counter(
            split or UNSPLIT
            for path, split in splits.items()
            if path not in self._known or path in self._of_rows
        )
        if set(counts) - {UNSPLIT}:
            self.counts = {name: counts[name] for name in (*SPLITS, UNSPLIT) if counts[name]}

    def _add(
        self,
        splits: dict[str, Split | None],
        path: str,
        split: Split | None,
        file: str,
        line: int | None,
    ) -> None:
        before = splits.get(path)
        if before is None or split is None:
            splits[path] = before or split
        elif before != split and path not in self._conflicts:
            self._conflicts[path] = _Conflict((before, split), file, line)

    def _find(self, path: str) -> Split | None:
        known = self._known.get(path)
        if self._policy == "ignore":
            return known.split if known is not None and path not in self._of_rows else None
        if (split := self._of_rows.get(path) or self._listed.get(path)) is not None:
            return split
        return self._find_in_folders(path) if known is None else known.split

    def _move_conflicts(self, splits: dict[str, Split | None], report: ReportFinding) -> None:
        """Move images whose rows are in two splits to ``train``; report each."""
        for path, conflict in self._conflicts.items():
            splits[path] = "train"
            first, second = conflict.splits
            cause = (
                f"{path!r} is put into {second} here, and into {first} before; the image is used "
                "for training only"
            )
            report(_make_conflict(conflict.file, conflict.line, cause, path))

    def _move_leaks(
        self, images: Iterable[Image], splits: dict[str, Split | None], report: ReportFinding
    ) -> None:
        """Move images with equal bytes in two splits to ``train``; report each."""
        first_paths: dict[str, str] = {}
        leaked = set[str]()
        for image in images:
            part = self._find_part(image.path, splits)
            if part is None:
                continue
            first_path = first_paths.setdefault(image.sha256, image.path)
            before = self._find_part(first_path, splits)
            if before != part:
                leaked.add(image.sha256)
                cause = (
                    f"it is in {part} and has the same bytes as {first_path!r}, which is in "
                    f"{before}; they are used for training only"
                )
                report(_make_conflict(image.path, None, cause, first_path))
        for image in images:
            if image.sha256 in leaked and splits[image.path] is not None:
                splits[image.path] = "train"

    def _find_part(self, path: str, splits: Mapping[str, Split | None]) -> Split | None:
        """Return what the image is used for: images of no split are trained on if annotated."""
        return splits[path] or ("train" if self._is_annotated(path) else None)

    def _is_annotated(self, path: str) -> bool:
        known = self._known.get(path)
        return path in self._of_rows or (known is not None and known.is_annotated)

    def _is_divided(self, splits: Mapping[str, Split | None]) -> bool:
        """Return whether more than one part of the data has images."""
        found = {self._find_part(path, splits) for path in splits} - {None}
        return len(found) > 1

    def _find_in_file(self, file: str, path: str) -> Split | None:
        """Return the split of a label file, by its name and its folders.

        The name counts only if it is not that of the image: ``test_1.txt`` has the labels of
        ``test_1.jpg``, not those of a split.
        """
        name = posixpath.basename(file)
        if name.partition(".")[0] != posixpath.basename(path).partition(".")[0]:
            if name not in self._of_names:
                self._of_names[name] = find_split(name, reads_name=True)
            if split := self._of_names[name]:
                return split
        return self._find_in_folders(file)

    def _find_in_folders(self, path: str) -> Split | None:
        folder = posixpath.dirname(path)
        if folder not in self._of_folders:
            below = posixpath.commonpath([folder, self._root]) if self._root else ""
            self._of_folders[folder] = find_split(f"{folder}/".removeprefix(f"{below}/"))
        return self._of_folders[folder]


def _make_conflict(file: str, line: int | None, cause: str, value: str) -> Finding:
    return make_finding(
        "SplitConflict", file=file, line=line, cause=cause, value=value, action="Mended"
    )
