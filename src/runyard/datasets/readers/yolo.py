"""The YOLO reader: one text file per image and one box per line, ``class x y width height``.

Numbers are fractions of the image; x and y are the box's center. A label file is next to its image,
or in ``labels`` if the image is in ``images``. The two variants differ in where classes are named:
Darknet has a list (``classes.txt``, ``obj.names``), Ultralytics a ``data.yaml``. A line with more
numbers is a polygon, whose bounding box is used. An empty label file means that the image shows no
object; such an image gets no row.
"""

import json
import posixpath
import re
from collections.abc import Iterator

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.readers.boxes import LabeledBox, build_row, parse_number
from runyard.datasets.readers.lines import read_head, read_lines, read_text
from runyard.datasets.records import Box, DatasetType
from runyard.datasets.sources import Source

MAX_NAMES_BYTES = 4 << 20
NAMES_FILES = ("classes.txt", "_darknet.labels")
NAMES_ENDING = ".names"
# Lists of files, without annotations.
SIDE_FILES = ("obj.data", "train.txt", "valid.txt", "val.txt", "test.txt")
COLUMNS = ("class", "x", "y", "width", "height")

_LABEL = re.compile(rb"\s*\d+(?:[ \t]+[-+.\deEnaif]+){4,}\s*$")
_YAML_KEY = re.compile(rb"^(?:names|nc|train|val)[ \t]*:", re.M)


class YoloDarknetReader:
    """The reader of labels with a plain list of names; see ``base.Reader``."""

    name = "YoloDarknet"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        return [] if _find_yaml_files(source) else _list_files(source, _find_name_lists(source))

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        lists = [path for path in files if _is_name_list(path)]
        names = _read_name_list(source, lists[0], report) if lists else []
        yield from _read_rows(source, files, names, report)


class YoloKerasPytorchReader:
    """The reader of Ultralytics labels, with a ``data.yaml``; see ``base.Reader``."""

    name = "YoloKerasPytorch"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        yaml = _find_yaml_files(source)
        return _list_files(source, [*yaml, *_find_name_lists(source)]) if yaml else []

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        names: list[str] = []
        for path in (path for path in files if _is_yaml(path)):
            text = read_text(source, path, report, limit_bytes=MAX_NAMES_BYTES)
            names = names or (parse_yaml_names(text) if text is not None else [])
        yield from _read_rows(source, files, names, report)


def _list_files(source: Source, names_files: list[str]) -> list[str]:
    labels = find_label_files(source)
    if not labels:
        return []
    side = [path for path in source.paths() if posixpath.basename(path).lower() in SIDE_FILES]
    return sorted({*labels, *names_files, *side})


def find_label_files(source: Source) -> list[str]:
    """Find the text files with boxes.

    Files paired with an image count if a sample of them looks like labels; any other file must look
    like labels itself.
    """
    texts = [
        path
        for path in source.paths()
        if path.lower().endswith(".txt")
        and not _is_name_list(path)
        and posixpath.basename(path).lower() not in SIDE_FILES
    ]
    stems = _index_images_by_stem(source)
    paired = [path for path in texts if any(stem in stems for stem in _list_stems(path))]
    step = max(1, len(paired) // 20)
    verdicts = [looks_like_labels(read_head(source, path)) for path in paired[::step]]
    if verdicts.count(True) < max(1, verdicts.count(False)):
        paired = []
    alone = set(texts).difference(paired)
    few = len(alone) <= 1000
    return sorted(
        [*paired, *(path for path in alone if few and looks_like_labels(read_head(source, path)))]
    )


def looks_like_labels(head: bytes) -> bool | None:
    """Return whether any of the first lines is a box, so that one bad line does not decide.

    Return None if empty.
    """
    lines = [line for line in head.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    return any(_LABEL.match(line) is not None for line in lines) if lines else None


def _read_rows(
    source: Source, files: list[str], names: list[str], report: ReportFinding
) -> Iterator[Row]:
    labels = [path for path in files if path.lower().endswith(".txt") and not _is_side_file(path)]
    if not names:
        cause = "no file names the classes"
        fix = "add classes.txt with one name per line, or data.yaml with names"
        report(
            make_finding(
                "ClassUnknown", file=labels[0], cause=cause, fix=fix, action="FileRejected"
            )
        )
        return
    stems = _index_images_by_stem(source)
    for path in labels:
        row = _read_file(source, path, _find_image_name(path, stems), names, report)
        if row is not None:
            yield row


def _read_file(
    source: Source, path: str, image: str, names: list[str], report: ReportFinding
) -> Row | None:
    labeled_boxes, findings = [], []
    if source.size_bytes(path) == 0:
        return None
    for number, line in read_lines(source, path, report):
        if not line.strip():
            continue
        found = _parse_box(path, number, line, names)
        if isinstance(found, Finding):
            findings.append(found)
        else:
            labeled_boxes.append(found)
    if not labeled_boxes and not findings:
        return None
    first = min(
        [
            *(labeled.location.line or 1 for labeled in labeled_boxes),
            *(labeled.line or 1 for labeled in findings),
        ]
    )
    return build_row(source, image, labeled_boxes, file=path, line=first, findings=findings)


def _parse_box(path: str, line_number: int, line: bytes, names: list[str]) -> LabeledBox | Finding:
    def make_line_finding(code: str, field: str | None, cause: str, value: object) -> Finding:
        return make_finding(
            code, file=path, line=line_number, field=field, cause=cause, value=value
        )

    words = line.decode(errors="replace").split()
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        cause = f"the line has {len(words)} numbers; a box has 5, a polygon 7 or another odd number"
        return make_line_finding("RowInvalid", None, cause, " ".join(words))
    numbers = [parse_number(word) for word in words[1:]]
    for index, number in enumerate(numbers):
        if number is None:
            return make_line_finding(
                "FieldInvalid", COLUMNS[min(index + 1, 4)], "not a number", words[index + 1]
            )
    if not words[0].isascii() or not words[0].isdigit():
        return make_line_finding("FieldInvalid", "class", "the class is not an integer", words[0])
    if len(words[0]) > 9 or int(words[0]) >= len(names):
        return make_line_finding(
            "ClassUnknown", "class", f"there are {len(names)} classes, counted from 0", words[0]
        )
    box = _to_box([number for number in numbers if number is not None])
    return LabeledBox(names[int(words[0])], box, BoxLocation(line_number, "x y width height"))


def _to_box(numbers: list[float]) -> Box:
    if len(numbers) == 4:
        x, y, width, height = numbers
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    xs, ys = numbers[0::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


# The image of a label file ------------------------------------------------------------------------


def _index_images_by_stem(source: Source) -> dict[str, str]:
    """Index images by their path without extension."""
    return {posixpath.splitext(path)[0]: path for path in source.paths() if source.is_image(path)}


def _list_stems(path: str) -> list[str]:
    """List the possible image paths of a label file, without extension: next to it, or in images
    for labels.
    """
    stem = posixpath.splitext(path)[0]
    parts = stem.split("/")
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() == "labels":
            return [stem, "/".join([*parts[:index], "images", *parts[index + 1 :]])]
    return [stem]


def _find_image_name(path: str, stems: dict[str, str]) -> str:
    stem = next((stems[stem] for stem in _list_stems(path) if stem in stems), None)
    return stem or f"{posixpath.splitext(posixpath.basename(path))[0]}.jpg"


# Names of classes ---------------------------------------------------------------------------------


def _find_name_lists(source: Source) -> list[str]:
    return [path for path in source.paths() if _is_name_list(path)]


def _is_name_list(path: str) -> bool:
    base = posixpath.basename(path).lower()
    return base in NAMES_FILES or base.endswith(NAMES_ENDING)


def _is_side_file(path: str) -> bool:
    return _is_name_list(path) or posixpath.basename(path).lower() in SIDE_FILES


def _is_yaml(path: str) -> bool:
    return path.lower().endswith((".yaml", ".yml"))


def _find_yaml_files(source: Source) -> list[str]:
    return [
        path
        for path in source.paths()
        if _is_yaml(path) and _YAML_KEY.search(read_head(source, path)) is not None
    ]


def _read_name_list(source: Source, path: str, report: ReportFinding) -> list[str]:
    text = read_text(source, path, report, limit_bytes=MAX_NAMES_BYTES)
    lines = (text or "").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.strip() for line in lines]


_ITEM = re.compile(
    r"""\s*(?:(\d+)\s*:\s*)?(?:'((?:[^']|'')*)'|"((?:[^"\\]|\\.)*)"|([^,\[\]{}]*?))\s*(?:,|$)"""
)


def parse_yaml_names(text: str) -> list[str]:
    """Parse the names of ``data.yaml``: a list or a numbered mapping, in one line or one line each.

    Only this subset of YAML is supported. Return an empty list if there is no such entry.
    """
    found = re.search(r"^names[ \t]*:[ \t]*(.*)$", text, re.M)
    if found is None:
        return []
    rest = found[1].partition(" #")[0].strip()
    if rest[:1] in ("[", "{"):
        end = {"[": "]", "{": "}"}[rest[0]]
        inside = text[text.index(rest[0], found.start(1)) + 1 :]
        return _order_names(_parse_items(inside[: inside.find(end)] if end in inside else ""))
    items: list[tuple[int | None, str]] = []
    for line in text[found.end() :].splitlines():
        if line.strip() and not line.startswith((" ", "\t", "-")):
            break
        entry = re.match(r"\s*(?:-\s+|(\d+)\s*:\s+)(.*)$", line)
        if entry and (value := _parse_items(re.sub(r"\s#.*$", "", entry[2]))):
            items.append((int(entry[1]) if entry[1] else None, value[0][1]))
    return _order_names(items)


def _parse_items(text: str) -> list[tuple[int | None, str]]:
    items: list[tuple[int | None, str]] = []
    at = 0
    while at < len(text):
        found = _ITEM.match(text, at)
        if found is None or found.end() == at:
            break
        at = found.end()
        number, single, double, bare = found.groups()
        name = (
            single.replace("''", "'")
            if single is not None
            else _unescape(double)
            if double is not None
            else bare
        )
        if name or single is not None or double is not None:
            items.append((None if number is None else int(number), name.strip()))
    return items


def _unescape(quoted: str) -> str:
    try:
        return str(json.loads(f'"{quoted}"'))
    except ValueError:  # YAML has more escapes than JSON
        return quoted


def _order_names(items: list[tuple[int | None, str]]) -> list[str]:
    """Order names by their numbers; missing numbers get empty names."""
    numbered = [
        (index if number is None else number, name) for index, (number, name) in enumerate(items)
    ]
    count = min(max((number for number, _ in numbered), default=-1) + 1, 100_000)
    names = [""] * count
    for number, name in numbered:
        if number < count:
            names[number] = name
    return names
