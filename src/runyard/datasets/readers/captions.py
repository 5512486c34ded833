"""Plain folders of pictures: a text beside each, a table beside all, or folders named after what they show.

    a.jpg a.txt                       the text is the caption
    metadata.jsonl, metadata.csv      Hugging Face ImageFolder: ``file_name``, and columns as in columns.py; a name is
                                      relative to the table's folder
    cat/1.jpg dog/2.jpg               the folder's name is the caption, or the answer

Folders count only where nothing else is said of any picture: at least two of them, all pictures right inside, after an
optional ``train``, ``test`` or ``validation``. A caption has no boxes, so for phrase grounding only tables help.
"""

import csv
import io
from collections.abc import Iterator

from runyard.datasets.findings import Say
from runyard.datasets.readers import Row
from runyard.datasets.readers.columns import Table, rows_of
from runyard.datasets.readers.json_rows import json_rows
from runyard.datasets.readers.lines import head_of
from runyard.datasets.readers.places import Place
from runyard.datasets.readers.yolo import looks_like_labels
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

TABLES = ("metadata.jsonl", "metadata.csv")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SAYS_MORE = (".json", ".jsonl", ".csv", ".xml", ".txt", ".parquet", ".arrow", ".tar", ".tar.gz", ".tgz", ".zip")
_SPLITS = ("train", "training", "test", "val", "valid", "validation")
_LONGEST_TEXT = 1 << 20
_NAMES = ("file_name", "filename", "image", "path")  # what a table calls its pictures
_NO_CLASSES = ("images", "image", "pictures", "photos", "img", "imgs", "data", "assets", *_SPLITS)


class Captions:
    """Side files, ImageFolder tables and class folders."""

    name = "Captions"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def claims(self, source: Source) -> list[str]:
        tables = [path for path in source.paths() if _is_table(source, path)]
        return tables or _side_files(source) or _class_folders(source)

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        folders = Table()
        for file in files:
            place = Place(file, say)
            kind = file.rpartition("/")[2].lower()
            if file.lower().endswith(_PICTURES):
                yield from _of_folder(source, place, task, folders)
            elif not source.size_bytes(file):
                place.say("FileEmpty", "the file has no bytes", action="FileRejected")
            elif kind in TABLES:
                yield from _of_table(source, place, task)
            else:
                yield from _beside(source, place, task)


def _is_table(source: Source, path: str) -> bool:
    return path.rpartition("/")[2].lower() in TABLES and b"file_name" in head_of(source, path)


# -- a text beside each picture ----------------------------------------------------------------------------------------

_LOOKED_AT = 20


def _side_files(source: Source) -> list[str]:
    """Texts with the name of a picture, unless most of those looked at hold the numbers of YOLO."""
    stems = {path.rpartition(".")[0] for path in source.paths() if path.lower().endswith(_PICTURES)}
    texts = [path for path in source.paths() if path.lower().endswith(".txt") and path[:-4] in stems]
    looks = [looks_like_labels(head_of(source, path)) for path in texts[:_LOOKED_AT]]
    return texts if looks.count(False) > looks.count(True) else []


def _beside(source: Source, place: Place, task: DatasetType) -> Iterator[Row]:
    if source.size_bytes(place.file) > _LONGEST_TEXT:
        place.say("FileUnreadable", f"a caption of more than {_LONGEST_TEXT:,} bytes", action="FileRejected")
        return
    with source.open(place.file) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        place.say("EncodingWrong", f"byte {error.start + 1} is not UTF-8", action="FileRejected")
        return
    stem = place.file[:-4]
    name = next((stem + ending for ending in _endings(source, stem)), stem)
    yield from rows_of({"text": text}, place, task, Table(), name=name, picture=source.image(name), identity=place.file)


def _endings(source: Source, stem: str) -> Iterator[str]:
    for ending in _PICTURES:
        for written in (ending, ending.upper()):
            if source.image(stem + written) is not None:
                yield written


# -- ImageFolder -------------------------------------------------------------------------------------------------------


def _of_table(source: Source, place: Place, task: DatasetType) -> Iterator[Row]:
    rows = csv_rows(source, place) if place.file.lower().endswith(".csv") else json_rows(source, place.file, place)
    table = Table()
    folder = place.file.rpartition("/")[0]
    for number, (here, row) in enumerate(rows, start=1):
        key = next((key for key in _NAMES if row.get(key)), None)
        name = row[key] if key is not None else None
        if not isinstance(name, str):
            here.say(
                "FieldMissing" if name is None else "FieldInvalid", "the row names no picture", field=key or _NAMES[0]
            )
            continue
        columns = {column: value for column, value in row.items() if column != key}
        picture = source.image(f"{folder}/{name}" if folder else name) or source.image(name, beside=place.file)
        identity = f"{place.file}:{here.line or number}"
        yield from rows_of(columns, here, task, table, name=name, picture=picture, identity=identity)


def csv_rows(source: Source, place: Place) -> Iterator[tuple[Place, dict[str, str]]]:
    """The rows of a table with a head, in UTF-8, with their lines."""
    with source.open(place.file) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        rows = csv.DictReader(text, strict=True)
        try:
            for row in rows:
                here = place.at(line=rows.line_num)
                if None in row or None in row.values():
                    here.say("RowInvalid", f"the row has not the {len(rows.fieldnames or ())} columns of the head")
                else:
                    yield here, {str(key): value for key, value in row.items()}
        except UnicodeDecodeError:
            place.at(line=rows.line_num + 1).say("EncodingWrong", "not UTF-8 from about here on; the rest is not read")
        except csv.Error as error:
            place.at(line=max(1, rows.line_num)).say("FileUnreadable", f"{error}; rows from here on are not read")


# -- class folders -----------------------------------------------------------------------------------------------------


def _class_folders(source: Source) -> list[str]:
    """All pictures, when each lies in a folder that can be its class and nothing else is there; else none."""
    if any(path.lower().endswith(_SAYS_MORE) for path in source.paths()):
        return []
    pictures = [path for path in source.paths() if path.lower().endswith(_PICTURES)]
    folders = {_class_of(path) for path in pictures}
    return pictures if len(folders) > 1 and None not in folders else []


def _class_of(path: str) -> str | None:
    """``cat`` for ``train/cat/1.jpg``; None where no folder tells, or where it says what its files are, not show."""
    folders = path.split("/")[:-1]
    if folders and folders[0].lower() in _SPLITS:
        folders = folders[1:]
    return folders[-1] if len(folders) in (1, 2) and folders[-1].lower() not in _NO_CLASSES else None


def _of_folder(source: Source, place: Place, task: DatasetType, table: Table) -> Iterator[Row]:
    row = {"class": _class_of(place.file) or ""}
    picture = source.image(place.file)
    yield from rows_of(row, place, task, table, name=place.file, picture=picture, identity=place.file)
