"""YOLO in: one text file a picture, one box a line, ``class x y width height`` as shares, x and y of the centre.

A label file lies beside its picture, or in ``labels`` where the picture lies in ``images``. The two kinds differ in who
names the classes: Darknet has a list (``classes.txt``, ``obj.names``), Ultralytics a ``data.yaml``. A line with more
numbers is a polygon, whose box is taken. An empty label file says that nothing is to be seen, which no caption can say:
its picture has no row.
"""

import json
import posixpath
import re
from collections.abc import Iterator

from runyard.datasets.findings import Finding, Say, finding
from runyard.datasets.readers import Row, Spot
from runyard.datasets.readers.boxes import Labelled, number_of, row_of
from runyard.datasets.readers.lines import head_of, lines_of, text_of
from runyard.datasets.records import Box, DatasetType
from runyard.datasets.sources import Source

LARGEST_NAMES_BYTES = 4 << 20
NAMES_FILES = ("classes.txt", "_darknet.labels")
NAMES_ENDING = ".names"
SIDE_FILES = ("obj.data", "train.txt", "valid.txt", "val.txt", "test.txt")  # lists of files, which say nothing new
COLUMNS = ("class", "x", "y", "width", "height")

_LABEL = re.compile(rb"\s*\d+(?:[ \t]+[-+.\deEnaif]+){4,}\s*$")
_YAML_KEY = re.compile(rb"^(?:names|nc|train|val)[ \t]*:", re.M)


class YoloDarknet:
    """Labels with a plain list of names; see ``readers.Reader``."""

    name = "YoloDarknet"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def claims(self, source: Source) -> list[str]:
        return [] if _yaml_files(source) else _with_names(source, _lists(source))

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        lists = [path for path in files if _is_list(path)]
        names = _names_of_list(source, lists[0], say) if lists else []
        yield from _rows(source, files, names, say)


class YoloKerasPytorch:
    """Labels as Ultralytics trains on them, with a ``data.yaml``; see ``readers.Reader``."""

    name = "YoloKerasPytorch"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def claims(self, source: Source) -> list[str]:
        yaml = _yaml_files(source)
        return _with_names(source, [*yaml, *_lists(source)]) if yaml else []

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        names: list[str] = []
        for path in (path for path in files if _is_yaml(path)):
            text = text_of(source, path, say, limit_bytes=LARGEST_NAMES_BYTES)
            names = names or (names_in_yaml(text) if text is not None else [])
        yield from _rows(source, files, names, say)


def _with_names(source: Source, names_files: list[str]) -> list[str]:
    labels = label_files(source)
    if not labels:
        return []
    side = [path for path in source.paths() if posixpath.basename(path).lower() in SIDE_FILES]
    return sorted({*labels, *names_files, *side})


def label_files(source: Source) -> list[str]:
    """The text files that hold boxes: those with a picture, if what some of them hold looks like it, and others that
    look like it themselves."""
    texts = [
        path
        for path in source.paths()
        if path.lower().endswith(".txt") and not _is_list(path) and posixpath.basename(path).lower() not in SIDE_FILES
    ]
    stems = _pictures_by_stem(source)
    paired = [path for path in texts if any(stem in stems for stem in _stems_of(path))]
    step = max(1, len(paired) // 20)
    looks = [looks_like_labels(head_of(source, path)) for path in paired[::step]]
    if looks.count(True) < max(1, looks.count(False)):
        paired = []
    alone = set(texts).difference(paired)
    few = len(alone) <= 1000
    return sorted([*paired, *(path for path in alone if few and looks_like_labels(head_of(source, path)))])


def looks_like_labels(head: bytes) -> bool | None:
    """Whether one of the first lines is a box, so that one bad line makes no file a text; None for an empty file."""
    lines = [line for line in head.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    return any(_LABEL.match(line) is not None for line in lines) if lines else None


def _rows(source: Source, files: list[str], names: list[str], say: Say) -> Iterator[Row]:
    labels = [path for path in files if path.lower().endswith(".txt") and not _is_side(path)]
    if not names:
        cause = "no file names the classes"
        cure = "add classes.txt with a name a line, or data.yaml with names"
        say(finding("ClassUnknown", file=labels[0], cause=cause, cure=cure, action="FileRejected"))
        return
    stems = _pictures_by_stem(source)
    for path in labels:
        row = _row(source, path, _picture_of(path, stems), names, say)
        if row is not None:
            yield row


def _row(source: Source, path: str, picture: str, names: list[str], say: Say) -> Row | None:
    labelled, defects = [], []
    if source.size_bytes(path) == 0:
        return None
    for number, line in lines_of(source, path, say):
        if not line.strip():
            continue
        found = _labelled(path, number, line, names)
        if isinstance(found, Finding):
            defects.append(found)
        else:
            labelled.append(found)
    if not labelled and not defects:
        return None
    first = min([*(one.spot.line or 1 for one in labelled), *(one.line or 1 for one in defects)])
    return row_of(source, picture, labelled, file=path, line=first, defects=defects)


def _labelled(path: str, line_number: int, line: bytes, names: list[str]) -> Labelled | Finding:
    def wrong(code: str, field: str | None, cause: str, value: object) -> Finding:
        return finding(code, file=path, line=line_number, field=field, cause=cause, value=value)

    words = line.decode(errors="replace").split()
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        cause = f"the line has {len(words)} numbers; a box has 5, a polygon 7 or another odd number"
        return wrong("RowInvalid", None, cause, " ".join(words))
    numbers = [number_of(word) for word in words[1:]]
    for place, number in enumerate(numbers):
        if number is None:
            return wrong("FieldInvalid", COLUMNS[min(place + 1, 4)], "it is no number", words[place + 1])
    if not words[0].isascii() or not words[0].isdigit():
        return wrong("FieldInvalid", "class", "the class is no whole number", words[0])
    if len(words[0]) > 9 or int(words[0]) >= len(names):
        return wrong("ClassUnknown", "class", f"there are {len(names)} classes, counted from 0", words[0])
    box = _box([number for number in numbers if number is not None])
    return Labelled(names[int(words[0])], box, Spot(line_number, "x y width height"))


def _box(numbers: list[float]) -> Box:
    if len(numbers) == 4:
        x, y, width, height = numbers
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    xs, ys = numbers[0::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


# Which picture a label file is about ---------------------------------------------------------------------------------


def _pictures_by_stem(source: Source) -> dict[str, str]:
    """Pictures by their path without its ending."""
    return {posixpath.splitext(path)[0]: path for path in source.paths() if source.is_picture(path)}


def _stems_of(path: str) -> list[str]:
    """Where the picture of a label file may lie, without an ending: beside it, or in images instead of labels."""
    stem = posixpath.splitext(path)[0]
    parts = stem.split("/")
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() == "labels":
            return [stem, "/".join([*parts[:place], "images", *parts[place + 1 :]])]
    return [stem]


def _picture_of(path: str, stems: dict[str, str]) -> str:
    stem = next((stems[stem] for stem in _stems_of(path) if stem in stems), None)
    return stem or f"{posixpath.splitext(posixpath.basename(path))[0]}.jpg"


# Names of classes ----------------------------------------------------------------------------------------------------


def _lists(source: Source) -> list[str]:
    return [path for path in source.paths() if _is_list(path)]


def _is_list(path: str) -> bool:
    base = posixpath.basename(path).lower()
    return base in NAMES_FILES or base.endswith(NAMES_ENDING)


def _is_side(path: str) -> bool:
    return _is_list(path) or posixpath.basename(path).lower() in SIDE_FILES


def _is_yaml(path: str) -> bool:
    return path.lower().endswith((".yaml", ".yml"))


def _yaml_files(source: Source) -> list[str]:
    return [path for path in source.paths() if _is_yaml(path) and _YAML_KEY.search(head_of(source, path)) is not None]


def _names_of_list(source: Source, path: str, say: Say) -> list[str]:
    text = text_of(source, path, say, limit_bytes=LARGEST_NAMES_BYTES)
    lines = (text or "").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.strip() for line in lines]


_ITEM = re.compile(r"""\s*(?:(\d+)\s*:\s*)?(?:'((?:[^']|'')*)'|"((?:[^"\\]|\\.)*)"|([^,\[\]{}]*?))\s*(?:,|$)""")


def names_in_yaml(text: str) -> list[str]:
    """The names of ``data.yaml``: a list or a numbered mapping, in one line or a line each. Only this much of YAML is
    read; empty when there is no such entry."""
    found = re.search(r"^names[ \t]*:[ \t]*(.*)$", text, re.M)
    if found is None:
        return []
    rest = found[1].partition(" #")[0].strip()
    if rest[:1] in ("[", "{"):
        end = {"[": "]", "{": "}"}[rest[0]]
        inside = text[text.index(rest[0], found.start(1)) + 1 :]
        return _numbered(_items(inside[: inside.find(end)] if end in inside else ""))
    items: list[tuple[int | None, str]] = []
    for line in text[found.end() :].splitlines():
        if line.strip() and not line.startswith((" ", "\t", "-")):
            break
        entry = re.match(r"\s*(?:-\s+|(\d+)\s*:\s+)(.*)$", line)
        if entry and (value := _items(re.sub(r"\s#.*$", "", entry[2]))):
            items.append((int(entry[1]) if entry[1] else None, value[0][1]))
    return _numbered(items)


def _items(text: str) -> list[tuple[int | None, str]]:
    items: list[tuple[int | None, str]] = []
    at = 0
    while at < len(text):
        found = _ITEM.match(text, at)
        if found is None or found.end() == at:
            break
        at = found.end()
        number, single, double, bare = found.groups()
        name = single.replace("''", "'") if single is not None else _unescaped(double) if double is not None else bare
        if name or single is not None or double is not None:
            items.append((None if number is None else int(number), name.strip()))
    return items


def _unescaped(quoted: str) -> str:
    try:
        return str(json.loads(f'"{quoted}"'))
    except ValueError:  # YAML knows more escapes than JSON
        return quoted


def _numbered(items: list[tuple[int | None, str]]) -> list[str]:
    """Names in the order of their numbers; gaps stay empty and are never more than the names there are, twice."""
    numbered = [(place if number is None else number, name) for place, (number, name) in enumerate(items)]
    count = min(max((number for number, _ in numbered), default=-1) + 1, 100_000)
    names = [""] * count
    for number, name in numbered:
        if number < count:
            names[number] = name
    return names
