"""WebDataset: tar shards whose members are grouped by key.

    000123.jpg 000123.txt        the text is the caption
    000123.jpg 000123.json       columns as in columns.py
    000123.jpg 000123.cls        a class number or name; ``classes.txt`` in the shard's folder
                                 names the numbers

The key is the name up to a point, see keys.py. Members of one key follow each other; if they do
not, the texts are collected first, so they must fit into memory. The tar may be gzipped. A tar that
does not group this way is treated like any other archive (archives.py). The table and the
statistics that img2dataset writes next to its shards repeat them, and are not read.
"""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from runyard.datasets.archives import (
    ArchiveMember,
    ArchiveRejected,
    list_names,
    read_first_members,
    read_members,
)
from runyard.datasets.findings import ReportFinding
from runyard.datasets.images import MAX_BYTES
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.columns import Table, build_rows, normalize_columns
from runyard.datasets.readers.frames import choose_frame
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.parquet import find_shard_metadata
from runyard.datasets.readers.shards.keys import IMAGE_ENDINGS, TEXT_ENDINGS, ShardKeys
from runyard.datasets.readers.tables.class_names import read_names
from runyard.datasets.readers.text_labels.text_kinds import looks_like_labels
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

_ENDINGS = (".tar", ".tar.gz", ".tgz")
_SAMPLED = 20
_MAX_SAMPLED = 2000  # members, if the first ones are only images
_MAX_TRIED = 100  # groups, after which a shard without contents of the dataset type is given up
_MAX_SAMPLE_BYTES = 1024
_MAX_TEXT = 16 << 20
_MAX_TEXTS = 64 << 20  # of a shard whose members are not next to each other

Group = dict[str, tuple[str, bytes]]  # by ending: name and bytes


class WebDatasetReader:
    """The reader of WebDataset tar shards."""

    name = "WebDataset"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def detect(self, source: Source) -> list[str]:
        shards = [path for path in source.paths() if is_shard(source, path)]
        return sorted({*shards, *find_shard_metadata(source)}) if shards else []

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        for file in files:
            location = SourceLocation(file, report)
            if not file.lower().endswith(_ENDINGS):
                cause = "img2dataset wrote it next to the shard, which has the same rows"
                location.report("FileIgnored", cause)
                continue
            by_column, names = read_names(source, file)
            frame = choose_frame(options, "pixel", "size")
            yield from _Shard(source, location, task, Table(by_column, names, frame)).read()


class _Shard:
    """One shard while it is read."""

    def __init__(
        self, source: Source, location: SourceLocation, task: DatasetType, table: Table
    ) -> None:
        self._source, self._location, self._task, self._table = source, location, task, table
        self._table.has_text_cells = True
        self._keys = ShardKeys([])
        self._number = 0  # of groups

    def read(self) -> Iterator[Row]:
        file, has_rows = self._location.file, False
        try:
            with self._source.open(file) as opened:
                self._keys = ShardKeys(list_names(opened, file))
                groups = self._collect(opened) if self._keys.is_scattered else self._group(opened)
                for key, group in groups:
                    self._number += 1
                    location = self._location.at(line=self._number, field=key)
                    for row in self._read_group(location, group):
                        has_rows = True
                        yield row
                    if self._table.mismatches == self._number == _MAX_TRIED and not has_rows:
                        self._table.mismatches = self._keys.groups
                        break
        except ArchiveRejected as rejected:
            rest = f"; the {self._number} groups before it were read" if self._number else ""
            self._location.report_finding(rejected.to_finding(file, rest))
        self._table.report_collected()

    def _iter_needed(self, opened: BinaryIO) -> Iterator[tuple[str, str, ArchiveMember]]:
        """Yield the key, the ending and the member of each image and text; report the others."""
        ignored = 0
        for member in read_members(opened, self._location.file, is_checked=True):
            key, ending = self._keys.split(member.name)
            if ending not in (*IMAGE_ENDINGS, *TEXT_ENDINGS):
                ignored += 1
            elif member.size_bytes > (MAX_BYTES if ending in IMAGE_ENDINGS else _MAX_TEXT):
                cause = f"{member.name} has {member.size_bytes:,} bytes, which is too large"
                code = "ImageTooLarge" if ending in IMAGE_ENDINGS else "FileUnreadable"
                self._location.report(code, cause, field=member.name)
            else:
                yield key, ending, member
        if ignored:
            endings = ", .".join(TEXT_ENDINGS)
            self._location.report(
                "FileIgnored", f"{ignored} members are neither images nor one of .{endings}"
            )

    def _group(self, opened: BinaryIO) -> Iterator[tuple[str, Group]]:
        """Group members that follow each other."""
        group: Group = {}
        current = ""
        for key, ending, member in self._iter_needed(opened):
            if group and key != current:
                yield current, group
                group = {}
            current = key
            self._add(group, ending, member)
        if group:
            yield current, group

    def _collect(self, opened: BinaryIO) -> Iterator[tuple[str, Group]]:
        """Group members in any order: the texts first, then each image with its texts."""
        groups: dict[str, Group] = {}
        size_bytes = 0
        for member in read_members(opened, self._location.file, is_checked=True):
            key, ending = self._keys.split(member.name)
            if ending in TEXT_ENDINGS and member.size_bytes <= _MAX_TEXT:
                size_bytes += member.size_bytes
                if size_bytes > _MAX_TEXTS:
                    raise ArchiveRejected(
                        "FileUnreadable",
                        "members of one key do not follow each other, and the texts have more "
                        f"than {_MAX_TEXTS >> 20} MiB; pack the files again with tar --sort=name",
                    )
                self._add(groups.setdefault(key, {}), ending, member)
        done: set[str] = set()
        for key, ending, member in self._iter_needed(opened):
            if ending in IMAGE_ENDINGS and key in done:
                self._report_second(member)
            elif ending in IMAGE_ENDINGS:
                done.add(key)
                yield key, {ending: (member.name, member.read())} | groups.pop(key, {})
        yield from groups.items()

    def _add(self, group: Group, ending: str, member: ArchiveMember) -> None:
        if ending in group:
            self._report_second(member)
        else:
            group[ending] = (member.name, member.read())

    def _report_second(self, member: ArchiveMember) -> None:
        cause = "the group already has a member of this kind"
        self._location.report("FileIgnored", cause, value=member.name)

    def _read_group(self, location: SourceLocation, group: Group) -> Iterator[Row]:
        images = [group[ending] for ending in IMAGE_ENDINGS if ending in group]
        if not images:
            location.report("ImageMissing", "the group has no image")
            return
        for name, _ in images[1:]:
            location.report("FileIgnored", "the group already has an image", value=name)
        name, data = images[0]
        path = f"{location.file}/{name}"
        image = self._source.add_image(path, data, found_in=location.file, line=location.line)
        row = _parse_columns(group, location)
        if row is not None:
            yield from build_rows(
                normalize_columns(row),
                location,
                self._task,
                self._table,
                name=path,
                image=image,
                identity=path,
            )


def is_shard(source: Source, path: str) -> bool:
    """Return whether the first members are images with texts of the same key, and not YOLO
    labels.
    """
    if not path.lower().endswith(_ENDINGS):
        return False
    names: list[str] = []
    looks: list[bool | None] = []
    try:
        with source.open(path) as file:
            for member in read_first_members(file, path, _MAX_SAMPLED):
                names.append(member.name)
                if member.name.lower().endswith(".txt") and len(looks) < _SAMPLED:
                    head = member.read() if member.size_bytes <= _MAX_SAMPLE_BYTES else b"text"
                    looks.append(looks_like_labels(head))
                if len(names) % _SAMPLED == 0 and ShardKeys(names).has_pair(names):
                    break
    except ArchiveRejected as rejected:
        # The first members alone may exceed the limit of this check.
        if rejected.code != "ArchiveTooLarge":
            return False  # it will be rejected, with a finding, when read as an archive
    if True in looks or (looks and False not in looks):
        return False
    return ShardKeys(names).has_pair(names)


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
