"""The kinds of text files, from their first lines: labels of a format, or another text.

Each file is judged by itself, and once for all readers. A label file with mistakes is still a label
file: it must never become a caption.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from runyard.datasets.readers.boxes import parse_number
from runyard.datasets.readers.lines import BOM, HEAD_BYTES, read_head
from runyard.datasets.readers.text_labels.poses import fits_pose
from runyard.datasets.readers.text_labels.words import (
    has_decimal_comma,
    is_fraction,
    parse_whole,
    split_words,
)
from runyard.datasets.sources import Source

Kind = Literal["yolo", "dota", "kitti", "settings", "empty", "other"]
NAME_LISTS = ("classes.txt", "_darknet.labels")
NAME_LIST_ENDING = ".names"
# Lists of images, without annotations.
SIDE_FILES = ("obj.data", "train.txt", "valid.txt", "val.txt", "test.txt")
DOTA_HEADERS = ("imagesource:", "gsd:")
DOTA_FOLDER = "labeltxt"
MAX_LINES = 50
MAX_NAME_WORDS = 8
# Of a name before whole numbers, as in a caption that ends in numbers.
_MAX_LIKELY_WORDS = 3
# A row of keypoints may be taken for a polygon from this count of numbers after the class.
MIN_POSE_NUMBERS = 9

_SOURCES: "WeakKeyDictionary[Source, TextKinds]" = WeakKeyDictionary()


class TextForm(NamedTuple):
    """The form of one text file.

    ``is_certain`` means that no other text looks like it. ``pose_numbers`` is the count of numbers
    after the class, if it is equal in all rows that have at least ``MIN_POSE_NUMBERS`` and each of
    them fits a box with keypoints; -1 if it is not, 0 if there are no such rows.
    """

    kind: Kind
    is_certain: bool = False
    pose_numbers: int = 0


@dataclass
class TextKinds:
    """The text files of a source, by kind; lists of classes and images are left out.

    ``paired`` are those with the name of an image, in whatever folder.
    """

    forms: dict[str, TextForm] = field(default_factory=dict)
    paired: set[str] = field(default_factory=set)

    def list_files(self, kind: Kind) -> list[str]:
        """List the label files of a format, in order.

        These are the files that look like it, and those with the name of an image that are empty or
        damaged, if most labels in their folder (else everywhere) have this format.
        """
        own = [path for path, form in self.forms.items() if form.kind == kind]
        if not own:
            return []
        by_folder = self._find_folder_kinds()
        others = [
            path
            for path, form in self.forms.items()
            if form.kind in ("empty", "other")
            and path in self.paired
            and by_folder.get(posixpath.dirname(path), by_folder[None]) == kind
        ]
        return sorted([*own, *others])

    def list_empty_files(self) -> list[str]:
        """List the empty files with the name of an image, unless there are other text files."""
        files = [path for path in self.forms if path in self.paired]
        return files if all(self.forms[path].kind == "empty" for path in files) else []

    def are_captions(self, paths: Sequence[str]) -> bool:
        """Return whether more of these files are other texts than labels."""
        kinds = Counter(self.forms[path].kind for path in paths if path in self.forms)
        return kinds["other"] > kinds["yolo"] + kinds["dota"] + kinds["kitti"]

    def _find_folder_kinds(self) -> dict[str | None, Kind]:
        """Find the most frequent format of each folder, and under None that of all folders."""
        counts: dict[str | None, Counter[Kind]] = {}
        for path, form in self.forms.items():
            if form.kind not in ("empty", "other"):
                for folder in (posixpath.dirname(path), None):
                    counts.setdefault(folder, Counter())[form.kind] += 1
        return {folder: kinds.most_common(1)[0][0] for folder, kinds in counts.items()}


def find_text_kinds(source: Source) -> TextKinds:
    """Read the beginning of every text file of a source, once."""
    if source not in _SOURCES:
        _SOURCES[source] = _read_text_kinds(source)
    return _SOURCES[source]


def list_side_files(source: Source) -> list[str]:
    """List the text files with the same folder and name as an image."""
    stems = {posixpath.splitext(path)[0] for path in source.paths() if source.is_image(path)}
    return [path for path in find_text_kinds(source).forms if posixpath.splitext(path)[0] in stems]


def is_name_list(path: str) -> bool:
    """Return whether a file is a plain list of class names, by its name."""
    base = posixpath.basename(path).lower()
    return base in NAME_LISTS or base.endswith(NAME_LIST_ENDING)


def is_image_list(path: str) -> bool:
    """Return whether a file lists the images of a split, by its name."""
    return posixpath.basename(path).lower() in SIDE_FILES


def looks_like_labels(head: bytes) -> bool | None:
    """Return whether the first lines of a file are boxes; None if there are no lines.

    One bad line does not decide.
    """
    form = classify_text(head)
    return None if form.kind == "empty" else form.kind != "other"


def classify_text(head: bytes, *, is_dota_folder: bool = False) -> TextForm:
    """Classify a text file by its first lines."""
    kinds: Counter[tuple[Kind, bool]] = Counter()
    pose_numbers: set[int] = set()
    is_empty = True
    for line in _list_lines(head):
        is_empty = is_empty and not line.strip()
        words = split_words(line)
        if not words or words[0].lower().startswith(DOTA_HEADERS):
            continue
        numbers = [parse_number(word.replace(",", ".")) for word in words]
        kinds[_classify_words(words, numbers, is_dota_folder=is_dota_folder)] += 1
        if len(words) > MIN_POSE_NUMBERS:
            pose_numbers.add(_count_pose_numbers(numbers))
    certain = Counter({kind: count for (kind, is_sure), count in kinds.items() if is_sure})
    if certain:
        pose = pose_numbers.pop() if len(pose_numbers) == 1 else -1 if pose_numbers else 0
        return TextForm(certain.most_common(1)[0][0], True, pose)
    likely, other = kinds["yolo", False], kinds["other", False]
    if not likely:
        return TextForm("empty" if is_empty else "other")
    return TextForm("yolo" if likely >= other else "other")


def _read_text_kinds(source: Source) -> TextKinds:
    kinds = TextKinds()
    stems = {
        posixpath.splitext(posixpath.basename(path))[0].casefold()
        for path in source.paths()
        if source.is_image(path)
    }
    for path in source.paths():
        if not path.lower().endswith(".txt") or is_name_list(path):
            continue
        is_dota = DOTA_FOLDER in path.lower()
        form = classify_text(read_head(source, path), is_dota_folder=is_dota)
        is_paired = not stems.isdisjoint(_list_stems(path))
        if is_image_list(path) and form.kind in ("empty", "other") and not is_paired:
            continue
        kinds.forms[path] = form
        if is_paired:
            kinds.paired.add(path)
    return kinds


def _list_stems(path: str) -> Iterator[str]:
    """Yield the names that the image of a label file may have, without extension, in lower case."""
    stem = posixpath.splitext(posixpath.basename(path))[0].casefold()
    yield stem
    yield unquote(stem).casefold()
    yield posixpath.splitext(stem)[0]  # of a.jpg.txt


def _list_lines(head: bytes) -> list[str]:
    data = head.removeprefix(BOM).replace(b"\r", b"\n")
    lines = data.decode(errors="replace").split("\n")
    if len(head) >= HEAD_BYTES and len(lines) > 1:
        lines.pop()  # it is cut off
    return lines[:MAX_LINES]


def _classify_words(
    words: list[str], numbers: list[float | None], *, is_dota_folder: bool
) -> tuple[Kind, bool]:
    """Return the format of a line, and whether no other text looks like it."""
    fractions = sum(map(is_fraction, words, numbers))
    if words[0].endswith(":") and len(words) > 4 and None not in numbers[1:]:
        return "settings", True  # as in calibration files
    if None not in numbers:
        if is_dota_folder and len(words) in (9, 10):
            return "dota", True
        if len(words) > 4 and parse_whole(words[0]) is not None:
            return "yolo", fractions >= 3 or any(map(has_decimal_comma, words))
        is_box = len(words) >= 3 and fractions >= 2
        return ("yolo", fractions >= 3) if is_box else ("other", False)
    if _is_dota(numbers) and (is_dota_folder or fractions < 6):
        return "dota", True
    if _is_kitti(words, numbers) and fractions < len(words) - 3:
        return "kitti", True
    if _ends_in_box(numbers, fractions) or (fractions >= 3 and len(words) - fractions <= 2):
        return "yolo", True
    name_words = len(words) - _count_last_numbers(numbers)
    is_likely = name_words <= _MAX_LIKELY_WORDS and len(words) - name_words in (4, 5)
    return ("yolo" if is_likely else "other"), False


def _is_dota(numbers: list[float | None]) -> bool:
    """Return whether this is ``x1 y1 x2 y2 x3 y3 x4 y4 name difficulty``."""
    return 9 <= len(numbers) <= 13 and None not in numbers[:8] and numbers[8] is None


def _is_kitti(words: list[str], numbers: list[float | None]) -> bool:
    """Return whether this is a type and 14 numbers (15 with a score), the second a whole number."""
    is_row = len(words) in (15, 16) and numbers[0] is None and None not in numbers[1:]
    return is_row and words[2].lstrip("-").isdigit()


def _ends_in_box(numbers: list[float | None], fractions: int) -> bool:
    """Return whether this is a name and at least four numbers from 0 to 1."""
    count = _count_last_numbers(numbers)
    tail = [number for number in numbers[len(numbers) - count :] if number is not None]
    is_name = 0 < len(numbers) - count <= MAX_NAME_WORDS
    is_box = count >= 4 and all(-0.5 <= number <= 1.5 for number in tail[-4:])
    return is_name and is_box and fractions >= 2


def _count_last_numbers(numbers: list[float | None]) -> int:
    return next((at for at, one in enumerate(reversed(numbers)) if one is None), len(numbers))


def _count_pose_numbers(numbers: list[float | None]) -> int:
    """Return the count of numbers after the class if they fit a box with keypoints, else -1."""
    after = [number for number in numbers[1:] if number is not None]
    return len(after) if len(after) == len(numbers) - 1 and fits_pose(after) else -1
