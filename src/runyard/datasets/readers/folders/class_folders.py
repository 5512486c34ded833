"""Classes as folders of images: ``tin/1.jpg`` and ``jar/2.jpg``.

The class folders may be within folders that hold all images, of splits (``train/tin/1.jpg``) and
with general names (``Images/tin/1.jpg``); folders with general names may also be within class
folders. There must be two classes, and no annotations: documents such as a README are none.
Nested folders, ``food/tin/1.jpg``, could each be the class, so they are not read.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from runyard.datasets.archives import is_archive
from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.images import is_image_name
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.columns import Table, build_rows
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.tables.class_names import NAMES_FILES
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source, is_system_file

_ANNOTATIONS = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xml", ".txt", ".parquet", ".arrow"),
    *(".tar", ".tar.gz", ".tgz", ".zip"),
)
_DOCUMENT = re.compile(
    r"(?:readme|licen[cs]e|notice|changelog|citation|requirements|copying|copyright|about)\b", re.I
)
_OTHER_DOCUMENT = re.compile(
    r"(?:notes?|info|todo|credits?|sources?|authors?|version|labels?|classes|names|captions?)\b",
    re.I,
)
_SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")
# Names of splits with words around them, if all folders next to them have such names.
_SPLIT = re.compile(r"(?:\w+[_-])?(?:train|test|val|dev)(?:ing|id|idation)?(?:[_-]\w+|\d*)", re.I)
# Folders that are never a class.
_GENERAL = frozenset(
    (
        *("images", "image", "pictures", "photos", "img", "imgs", "data", "dataset", "assets"),
        *("jpegimages", "raw", "original", "originals", "files", "jpg", "png"),
    )
)
# Folders of images that annotate other images, and the numbered folders of KITTI.
_NOT_CLASS = re.compile(
    r"(?:labels?|annotations?|masks?|gt|ground_?truth|depth|disparity|flow|panoptic|"
    r"(?:semantic|instance)s?(?:_rgb|_seg\w*)?|segmentations?(?:class|object)?|image_\d+)",
    re.I,
)


@dataclass
class ClassFolders:
    """The images by class.

    ``unclassified`` are the images next to the class folders. ``why`` explains why folders that may
    be classes are none; ``classes`` is then empty.
    """

    classes: dict[str, str] = field(default_factory=dict)
    unclassified: list[str] = field(default_factory=list)
    why: str = ""
    table: Table = field(default_factory=Table)

    @property
    def files(self) -> list[str]:
        """The images with a class and, if there are any, those without."""
        return sorted([*self.classes, *self.unclassified]) if self.classes else []

    def read_image(
        self, source: Source, location: SourceLocation, task: DatasetType
    ) -> Iterator[Row]:
        path = location.file
        if path in self.classes:
            row = {"class": self.classes[path]}
            image = source.find_image(path)
            yield from build_rows(
                row, location, task, self.table, name=path, image=image, identity=path
            )

    def report(self, report: ReportFinding) -> None:
        """Report what concerns all images, and those without a class."""
        self.table.report_collected()
        for path in self.unclassified:
            cause = "the image is next to the class folders, so it has no class and gets no row"
            fix = "move it into the folder of its class, or remove it"
            report(make_finding("FileIgnored", file=path, cause=cause, fix=fix))


def find_class_folders(source: Source) -> ClassFolders:
    """Find the class of each image; no classes if the folders are none."""
    paths = [path for path in source.paths() if not _is_hidden(path)]
    if any(_is_annotation(path) for path in paths):
        return ClassFolders()
    images = [path for path in paths if is_image_name(path) and not is_system_file(path)]
    folders = _strip_outer([path.split("/")[:-1] for path in images])
    found = ClassFolders()
    for path, parts in zip(images, folders, strict=True):
        inner = _strip_inner(parts)
        if not parts:
            found.unclassified.append(path)
        elif not inner or any(map(_NOT_CLASS.fullmatch, inner)):
            return ClassFolders()
        elif len(inner) > 1:
            why = f"{'/'.join(inner)!r} is nested, so either folder could be the class"
            return ClassFolders(why=why)
        else:
            found.classes[path] = inner[0]
    names = sorted(set(found.classes.values()))
    if len(names) == 1:
        why = f"all images are in the folder {names[0]!r}; it is a class only if there is another"
        return ClassFolders(why=why)
    return found if names else ClassFolders()


def explain_folders(source: Source) -> Finding | None:
    """Return the finding about folders that may be classes and are not read as such."""
    found = find_class_folders(source)
    if not found.why:
        return None
    fix = "name the class of each image in a table (file_name,label), if the folders are classes"
    first = next(path for path in source.paths() if is_image_name(path) and "/" in path)
    return make_finding("AnnotationsAbsent", file=first, cause=found.why, fix=fix)


def is_document(path: str) -> bool:
    """Return whether a text is about a dataset, by its name, and about no single image."""
    base = path.rpartition("/")[2]
    return any(pattern.match(base) for pattern in (_DOCUMENT, _OTHER_DOCUMENT))


def _is_annotation(path: str) -> bool:
    base = path.rpartition("/")[2].lower()
    is_list = base in NAMES_FILES
    return base.endswith(_ANNOTATIONS) and not is_list and not _DOCUMENT.match(base)


def _is_hidden(path: str) -> bool:
    return path.startswith(".") or "/." in path


def _strip_outer(folders: Sequence[list[str]]) -> list[list[str]]:
    """Remove the folders that hold the class folders: those of all images, splits, archives."""
    folders = [list(parts) for parts in folders]
    while True:
        tops = {parts[0] for parts in folders if parts}
        is_common = len(tops) == 1 and any(len(parts) > 1 for parts in folders)
        are_splits = bool(tops) and all(_SPLIT.fullmatch(_strip_ending(top)) for top in tops)
        if not is_common and not are_splits and not any(map(_is_container, tops)):
            return folders
        for parts in folders:
            if parts and (is_common or are_splits or _is_container(parts[0])):
                del parts[0]


def _is_container(folder: str) -> bool:
    return folder.lower() in _SPLITS or is_archive(folder)


def _strip_ending(folder: str) -> str:
    return folder.partition(".")[0] if is_archive(folder) else folder


def _strip_inner(parts: Sequence[str]) -> list[str]:
    """Remove folders with general names around and in a class folder."""
    return [part for part in parts if part.lower() not in _GENERAL and not _is_container(part)]
