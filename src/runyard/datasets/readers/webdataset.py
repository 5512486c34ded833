"""WebDataset: tar shards whose members are grouped by key.

    000123.jpg 000123.txt        the text is the caption
    000123.jpg 000123.json       columns as in columns.py
    000123.jpg 000123.cls        a class number or name; ``classes.txt`` in the shard's folder
                                 names the numbers

The key is the name up to the first point of its last part. Members of one key are consecutive. The
tar may be gzipped. A tar that does not group this way is treated like any other archive
(archives.py).
"""

import json
from collections.abc import Iterator
from typing import Any

from runyard.datasets.archives import (
    ArchiveMember,
    ArchiveRejected,
    read_first_members,
    read_members,
)
from runyard.datasets.findings import ReportFinding
from runyard.datasets.images import MAX_BYTES
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.columns import Table, build_rows
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.yolo import looks_like_labels
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

_IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_TEXT_ENDINGS = ("json", "txt", "caption", "cls")
_ENDINGS = (".tar", ".tar.gz", ".tgz")
_SAMPLED = 20
_MAX_TRIED = 100  # groups, after which a shard without contents of the dataset type is given up
_MAX_TEXT = 16 << 20

Group = dict[str, tuple[str, bytes]]  # by ending: name and bytes


class WebDatasetReader:
    """The reader of WebDataset tar shards."""

    name = "WebDataset"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def detect(self, source: Source) -> list[str]:
        return [path for path in source.paths() if is_shard(source, path)]

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        for file in files:
            location, table = SourceLocation(file, report), Table(_read_class_names(source, file))
            number, has_rows = 0, False
            try:
                with source.open(file) as opened:
                    for number, (key, group) in enumerate(
                        _iter_groups(read_members(opened, file), location), start=1
                    ):
                        for row in _read_group(
                            source, location.at(line=number, field=key), number, group, task, table
                        ):
                            has_rows = True
                            yield row
                        if table.mismatches and not has_rows and number == _MAX_TRIED:
                            location.report(
                                "ContentsUnfit",
                                f"none of the first {_MAX_TRIED} groups fits the dataset type",
                                action="FileRejected",
                            )
                            break
            except ArchiveRejected as rejected:
                report(
                    rejected.to_finding(
                        file, f"; the {number} groups before it were read" if number else ""
                    )
                )


def is_shard(source: Source, path: str) -> bool:
    """Return whether the first members are images with annotations, grouped by key, and not YOLO
    labels.
    """
    if not path.lower().endswith(_ENDINGS):
        return False
    keys: list[str] = []
    endings: set[str] = set()
    try:
        with source.open(path) as file:
            for member in read_first_members(file, path, _SAMPLED):
                key, ending = split_key(member.name)
                if ending == "txt" and (
                    member.size_bytes > 1024 or looks_like_labels(member.read()) is not False
                ):
                    return False
                if not keys or keys[-1] != key:
                    keys.append(key)
                endings.add(ending)
    except ArchiveRejected as rejected:
        # The first members alone may exceed the limit of this check.
        if rejected.code != "ArchiveTooLarge":
            return False  # it will be rejected, with a finding, when read as an archive
    is_grouped = len(keys) == len(set(keys))
    return (
        is_grouped
        and not endings.isdisjoint(_IMAGE_ENDINGS)
        and not endings.isdisjoint(_TEXT_ENDINGS)
    )


def split_key(name: str) -> tuple[str, str]:
    """Split a name into key and extension: ``("a/000123", "seg.png")`` for ``a/000123.seg.png``."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return folder + slash + stem, ending.lower()


def _iter_groups(
    found: Iterator[ArchiveMember], location: SourceLocation
) -> Iterator[tuple[str, Group]]:
    """Group members by key, with the bytes of those that are needed."""
    group: Group = {}
    current, ignored = None, 0
    for member in found:
        key, ending = split_key(member.name)
        if group and key != current:
            yield str(current), group
            group = {}
        current = key
        if ending not in (*_IMAGE_ENDINGS, *_TEXT_ENDINGS):
            ignored += 1
        elif member.size_bytes > (MAX_BYTES if ending in _IMAGE_ENDINGS else _MAX_TEXT):
            cause = f"{member.name} has {member.size_bytes:,} bytes, which is too large"
            location.report(
                "ImageTooLarge" if ending in _IMAGE_ENDINGS else "FileUnreadable",
                cause,
                field=member.name,
            )
        else:
            group[ending] = (member.name, member.read())
    if group:
        yield str(current), group
    if ignored:
        location.report(
            "FileIgnored",
            f"{ignored} members are neither images nor one of .{', .'.join(_TEXT_ENDINGS)}",
        )


def _read_group(
    source: Source,
    location: SourceLocation,
    number: int,
    group: Group,
    task: DatasetType,
    table: Table,
) -> Iterator[Row]:
    images = [group[ending] for ending in _IMAGE_ENDINGS if ending in group]
    if not images:
        location.report("ImageMissing", "the group has no image")
        return
    for name, _ in images[1:]:
        location.report("FileIgnored", "the group already has an image", value=name)
    name, data = images[0]
    path = f"{location.file}/{name}"
    image = source.add_image(path, data, found_in=location.file, line=number)
    row = _parse_columns(group, location)
    if row is not None:
        yield from build_rows(row, location, task, table, name=path, image=image, identity=path)


def _parse_columns(group: Group, location: SourceLocation) -> dict[str, Any] | None:
    """Return the group's annotations as columns.

    Return None if there are none, or if they cannot be read, which is reported.
    """
    row: dict[str, Any] = {}
    if "json" in group:
        try:
            document = json.loads(group["json"][1])
        except (ValueError, RecursionError) as error:
            location.report("RowInvalid", f"{group['json'][0]} is not JSON: {error}")
            return None
        if not isinstance(document, dict):
            location.report(
                "RowInvalid", f"{group['json'][0]} is not a JSON object", value=document
            )
            return None
        row |= document
    for ending, column in (("cls", "class"), ("caption", "caption"), ("txt", "text")):
        if ending not in group:
            continue
        name, raw = group[ending]
        try:
            row[column] = raw.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            location.report("EncodingWrong", f"byte {error.start + 1} of {name} is not UTF-8")
            return None
    return row or None


def _read_class_names(source: Source, file: str) -> dict[str, list[str]]:
    """Read ``classes.txt`` in the shard's folder, one name per line."""
    folder = file.rpartition("/")[0]
    path = f"{folder}/classes.txt" if folder else "classes.txt"
    if path not in source.paths() or source.size_bytes(path) > _MAX_TEXT:
        return {}
    with source.open(path) as opened:
        return {"class": opened.read().decode("utf-8-sig", "replace").split("\n")}
