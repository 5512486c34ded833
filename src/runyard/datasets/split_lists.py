"""Splits that a dataset keeps in files of their own: lists of images, and the folders of a YAML.

A list is a text file named after a split, such as ``train.txt`` or ``ImageSets/Main/val.txt`` of
VOC, with the path or the bare name of an image in each line. The ``data.yaml`` of Ultralytics names
the folder or the list of each split.
"""

import contextlib
import posixpath
import re
from collections.abc import Iterable, Iterator

from runyard.datasets.sources import Source
from runyard.datasets.splits import Image, Split, SplitClaim, parse_split

MAX_LIST_BYTES = 256 << 20
MAX_YAML_BYTES = 1 << 20
MAX_YAML_FILES = 20
MAX_LINE_BYTES = 4096

_YAML_ENTRY = re.compile(r"(train|val|test|path)[ \t]*:[ \t]*(.*)")
_YAML_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)")


def read_split_lists(source: Source, images: Iterable[Image]) -> Iterator[SplitClaim]:
    """Yield the split of each image that such a file names."""
    images = list(images)
    stems: dict[str, str | None] = {}  # None for a stem of several images
    for image in images:
        stem = _get_stem(image.path)
        stems[stem] = None if stem in stems else image.path
    files = {
        path: split
        for path in source.paths()
        if path.lower().endswith(".txt")
        and (split := parse_split(_get_stem(path)))
        and _get_stem(path) not in stems  # else it may be the label file of an image
        and ("ImageSets/" not in path or "/Main/" in path)  # VOC's other tasks divide differently
    }
    folders: dict[str, tuple[Split, str] | None] = {}  # None for a folder of several splits
    known_folders = _list_folders(images)
    for file in _list_yaml_files(source):
        for split, names in _read_yaml(source, file):
            for path in (path for name in names for path in _list_candidates(file, name)):
                if path in known_folders:
                    before = folders.setdefault(path, (split, file))
                    folders[path] = before if before and before[0] == split else None
                    break
                if path.lower().endswith(".txt") and path in source.paths():
                    files[path] = split
                    break
    for file, split in files.items():
        with contextlib.suppress(OSError):  # reported when the files were inspected
            yield from _read_list(source, file, split, stems)
    if any(folders.values()):
        yield from _list_in_folders(images, folders)


def _read_list(
    source: Source, file: str, split: Split, stems: dict[str, str | None]
) -> Iterator[SplitClaim]:
    if source.size_bytes(file) > MAX_LIST_BYTES:
        return
    with source.open(file) as opened:
        number = 0
        while line := opened.readline(MAX_LINE_BYTES):
            number += 1
            text = line.decode("utf-8-sig", errors="replace").strip()
            # VOC's lists of one class have a number behind the name.
            for name in dict.fromkeys((text, *text.split()[:1])):
                if path := _find_image(source, file, name, stems):
                    yield SplitClaim(path, split, file, number)
                    break


def _find_image(source: Source, file: str, name: str, stems: dict[str, str | None]) -> str | None:
    if not name:
        return None
    facts = source.find_image(name, relative_to=file)
    return facts.path if facts is not None else stems.get(name)


def _list_in_folders(
    images: Iterable[Image], folders: dict[str, tuple[Split, str] | None]
) -> Iterator[SplitClaim]:
    """Yield the split of each image by the deepest of its folders that a YAML names."""
    for image in images:
        named = next((path for path in _list_parents(image.path) if path in folders), None)
        if named is not None and (claim := folders[named]) is not None:
            yield SplitClaim(image.path, *claim, None)


def _get_stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _list_folders(images: Iterable[Image]) -> set[str]:
    return {folder for image in images for folder in _list_parents(image.path)}


def _list_parents(path: str) -> Iterator[str]:
    """Yield the folders of a path, the deepest first."""
    while path := posixpath.dirname(path):
        yield path


def _list_yaml_files(source: Source) -> list[str]:
    found = [path for path in source.paths() if path.lower().endswith((".yaml", ".yml"))]
    return [path for path in found if source.size_bytes(path) <= MAX_YAML_BYTES][:MAX_YAML_FILES]


def _read_yaml(source: Source, file: str) -> list[tuple[Split, list[str]]]:
    """Return the folders or lists that a YAML names for each split, below its ``path`` or not.

    Only plain entries are read: ``train: path``, ``train: [path, path]``, or one path per line.
    """
    try:
        with source.open(file) as opened:
            text = opened.read(MAX_YAML_BYTES).decode("utf-8-sig", errors="replace")
    except OSError:  # reported when the files were inspected
        return []
    root, found, key = "", list[tuple[Split, str]](), ""
    for line in text.splitlines():
        if entry := _YAML_ENTRY.fullmatch(line):
            key, value = entry.groups()
        elif key and (item := _YAML_ITEM.fullmatch(line)):
            value = item.group(1)
        else:
            key = "" if line.strip() and not line.lstrip().startswith("#") else key
            continue
        names = [_strip_quotes(name) for name in value.strip().strip("[]").split(",")]
        if key == "path":
            root = names[0]
        elif split := parse_split(key):
            found += [(split, name) for name in names if name]
    return [(split, [posixpath.join(root, name), name]) for split, name in found]


def _strip_quotes(text: str) -> str:
    return text.partition(" #")[0].strip().strip("'\"").rstrip("/")


def _list_candidates(file: str, named: str) -> Iterator[str]:
    """Yield what a path in a YAML may mean: it is often written for another machine."""
    folder = posixpath.dirname(file)
    yield posixpath.normpath(posixpath.join(folder, named))
    plain = re.sub(r"^(?:\.{0,2}/)+", "", posixpath.normpath(named))
    yield posixpath.normpath(posixpath.join(folder, plain))
