"""WebDataset: tar shards whose members are grouped by key.

    000123.jpg 000123.txt        the text is the caption
    000123.jpg 000123.json       columns as in columns.py
    000123.jpg 000123.cls        the number or name of a class; ``classes.txt`` beside the shard names the numbers

The key is the name up to the first point of its last part. Members of one key stand one after another. Plain tar, or
tar with gzip; what does not group this way is an archive like any other (archives.py).
"""

import json
from collections.abc import Iterator
from typing import Any

from runyard.datasets.archives import ArchiveRefused, Member, first_members, members
from runyard.datasets.findings import Say
from runyard.datasets.images import MOST_BYTES
from runyard.datasets.readers import Row
from runyard.datasets.readers.columns import Table, rows_of
from runyard.datasets.readers.places import Place
from runyard.datasets.readers.yolo import looks_like_labels
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_SAYS = ("json", "txt", "caption", "cls")
_ENDINGS = (".tar", ".tar.gz", ".tgz")
_LOOKED_AT = 20
_TRIED = 100  # groups, before a shard is given up that says nothing for the type of the dataset
_LONGEST_TEXT = 16 << 20

Group = dict[str, tuple[str, bytes]]  # by ending: name and bytes


class WebDataset:
    """Tar shards of WebDataset."""

    name = "WebDataset"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def claims(self, source: Source) -> list[str]:
        return [path for path in source.paths() if is_shard(source, path)]

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        for file in files:
            place, table, number, has_rows = Place(file, say), Table(_class_names(source, file)), 0, False
            try:
                with source.open(file) as opened:
                    for number, (key, group) in enumerate(_groups(members(opened, file), place), start=1):
                        for row in _rows(source, place.at(line=number, field=key), number, group, task, table):
                            has_rows = True
                            yield row
                        if table.is_unfit and not has_rows and number == _TRIED:
                            place.say("ContentsUnfit", f"none of the first {_TRIED} groups fits", action="FileRejected")
                            break
            except ArchiveRefused as refused:
                say(refused.finding(file, f"; the {number} groups before it were read" if number else ""))


def is_shard(source: Source, path: str) -> bool:
    """Whether the first members are pictures and what is said of them, grouped by key, and no boxes of YOLO."""
    if not path.lower().endswith(_ENDINGS):
        return False
    keys: list[str] = []
    endings: set[str] = set()
    try:
        with source.open(path) as file:
            for member in first_members(file, path, _LOOKED_AT):
                key, ending = key_of(member.name)
                if ending == "txt" and (member.size_bytes > 1024 or looks_like_labels(member.read()) is not False):
                    return False
                if not keys or keys[-1] != key:
                    keys.append(key)
                endings.add(ending)
    except ArchiveRefused as refused:
        if refused.code != "ArchiveTooLarge":  # the first members alone may be more than is looked at
            return False  # as an archive it will be refused, and why will be told
    is_grouped = len(keys) == len(set(keys))
    return is_grouped and not endings.isdisjoint(_PICTURES) and not endings.isdisjoint(_SAYS)


def key_of(name: str) -> tuple[str, str]:
    """Key and ending: ``("a/000123", "seg.png")`` for ``a/000123.seg.png``."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return folder + slash + stem, ending.lower()


def _groups(found: Iterator[Member], place: Place) -> Iterator[tuple[str, Group]]:
    """Members under one key, with the bytes of those that are read."""
    group: Group = {}
    current, ignored = None, 0
    for member in found:
        key, ending = key_of(member.name)
        if group and key != current:
            yield str(current), group
            group = {}
        current = key
        if ending not in (*_PICTURES, *_SAYS):
            ignored += 1
        elif member.size_bytes > (MOST_BYTES if ending in _PICTURES else _LONGEST_TEXT):
            cause = f"{member.name} has {member.size_bytes:,} bytes, more than is read"
            place.say("ImageTooLarge" if ending in _PICTURES else "FileUnreadable", cause, field=member.name)
        else:
            group[ending] = (member.name, member.read())
    if group:
        yield str(current), group
    if ignored:
        place.say("FileIgnored", f"{ignored} members are neither pictures nor one of .{', .'.join(_SAYS)}")


def _rows(source: Source, place: Place, number: int, group: Group, task: DatasetType, table: Table) -> Iterator[Row]:
    pictures = [group[ending] for ending in _PICTURES if ending in group]
    if not pictures:
        place.say("ImageMissing", "the group has no picture")
        return
    for name, _ in pictures[1:]:
        place.say("FileIgnored", "the group has a picture already", value=name)
    name, data = pictures[0]
    path = f"{place.file}/{name}"
    picture = source.add_image(path, data, found_in=place.file, line=number)
    row = _row(group, place)
    if row is not None:
        yield from rows_of(row, place, task, table, name=path, picture=picture, identity=path)


def _row(group: Group, place: Place) -> dict[str, Any] | None:
    """What the group says, as columns; None when it cannot be read, which has been told, or when it says nothing."""
    row: dict[str, Any] = {}
    if "json" in group:
        try:
            said = json.loads(group["json"][1])
        except (ValueError, RecursionError) as error:
            place.say("RowInvalid", f"{group['json'][0]} is not JSON: {error}")
            return None
        if not isinstance(said, dict):
            place.say("RowInvalid", f"{group['json'][0]} is not a JSON object", value=said)
            return None
        row |= said
    for ending, column in (("cls", "class"), ("caption", "caption"), ("txt", "text")):
        if ending not in group:
            continue
        name, raw = group[ending]
        try:
            row[column] = raw.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            place.say("EncodingWrong", f"byte {error.start + 1} of {name} is not UTF-8")
            return None
    return row or None


def _class_names(source: Source, file: str) -> dict[str, list[str]]:
    """``classes.txt`` in the shard's folder, one name a line."""
    folder = file.rpartition("/")[0]
    path = f"{folder}/classes.txt" if folder else "classes.txt"
    if path not in source.paths() or source.size_bytes(path) > _LONGEST_TEXT:
        return {}
    with source.open(path) as opened:
        return {"class": opened.read().decode("utf-8-sig", "replace").split("\n")}
