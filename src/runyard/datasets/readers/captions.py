"""Plain image folders: a text file per image, a table per folder, or a folder per class.

    a.jpg a.txt                       the text is the caption
    metadata.jsonl, metadata.csv      Hugging Face ImageFolder: ``file_name``, and columns as in
                                      columns.py; names are relative to the table's folder
    cat/1.jpg dog/2.jpg               the folder's name is the caption, or the answer

Folder names are classes only if there are no other annotations and at least two folders, directly
containing all images, below an optional ``train``, ``test`` or ``validation``. Only tables can have
boxes for phrase grounding.
"""

import csv
import io
from collections.abc import Iterator

from runyard.datasets.findings import ReportFinding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.columns import Table, build_rows
from runyard.datasets.readers.json_rows import read_json_rows
from runyard.datasets.readers.lines import open_text, read_head
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.text_labels.text_kinds import find_text_kinds, list_side_files
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

TABLES = ("metadata.jsonl", "metadata.csv")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_OTHER_ANNOTATIONS = (
    ".json",
    ".jsonl",
    ".csv",
    ".xml",
    ".txt",
    ".parquet",
    ".arrow",
    ".tar",
    ".tar.gz",
    ".tgz",
    ".zip",
)
_SPLITS = ("train", "training", "test", "val", "valid", "validation")
_MAX_TEXT = 1 << 20
_NAMES = ("file_name", "filename", "image", "path")  # the columns that may name the image
_NOT_CLASSES = ("images", "image", "pictures", "photos", "img", "imgs", "data", "assets", *_SPLITS)


class CaptionsReader:
    """The reader of text files, ImageFolder tables and class folders."""

    name = "Captions"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def detect(self, source: Source) -> list[str]:
        tables = [path for path in source.paths() if _is_table(source, path)]
        return tables or _find_side_files(source) or _find_class_folders(source)

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        folders = Table()
        for file in files:
            location = SourceLocation(file, report)
            kind = file.rpartition("/")[2].lower()
            if file.lower().endswith(_IMAGE_ENDINGS):
                yield from _read_class_folder(source, location, task, folders)
            elif not source.size_bytes(file):
                location.report("FileEmpty", "the file has no bytes", action="FileRejected")
            elif kind in TABLES:
                yield from _read_table(source, location, task)
            else:
                yield from _read_side_file(source, location, task)


def _is_table(source: Source, path: str) -> bool:
    return path.rpartition("/")[2].lower() in TABLES and b"file_name" in read_head(source, path)


# -- a text file per image -------------------------------------------------------------------------


def _find_side_files(source: Source) -> list[str]:
    """Find text files named like an image, unless most of them are labels."""
    texts = list_side_files(source)
    return texts if find_text_kinds(source).are_captions(texts) else []


def _read_side_file(source: Source, location: SourceLocation, task: DatasetType) -> Iterator[Row]:
    if source.size_bytes(location.file) > _MAX_TEXT:
        location.report(
            "FileUnreadable",
            f"a caption of more than {_MAX_TEXT:,} bytes is not supported",
            action="FileRejected",
        )
        return
    if find_text_kinds(source).forms[location.file].is_certain:
        location.report(
            "ContentsUnfit",
            "it has boxes, but most of the text files are captions",
            action="FileRejected",
        )
        return
    with open_text(source, location.file) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        location.report(
            "EncodingWrong", f"byte {error.start + 1} is not UTF-8", action="FileRejected"
        )
        return
    stem = location.file[:-4]
    name = next((stem + ending for ending in _find_endings(source, stem)), stem)
    yield from build_rows(
        {"text": text},
        location,
        task,
        Table(),
        name=name,
        image=source.find_image(name),
        identity=location.file,
    )


def _find_endings(source: Source, stem: str) -> Iterator[str]:
    for ending in _IMAGE_ENDINGS:
        for written in (ending, ending.upper()):
            if source.find_image(stem + written) is not None:
                yield written


# -- ImageFolder -----------------------------------------------------------------------------------


def _read_table(source: Source, location: SourceLocation, task: DatasetType) -> Iterator[Row]:
    rows = (
        read_csv_rows(source, location)
        if location.file.lower().endswith(".csv")
        else read_json_rows(source, location.file, location)
    )
    table = Table()
    folder = location.file.rpartition("/")[0]
    for number, (row_location, row) in enumerate(rows, start=1):
        key = next((key for key in _NAMES if row.get(key)), None)
        name = row[key] if key is not None else None
        if not isinstance(name, str):
            row_location.report(
                "FieldMissing" if name is None else "FieldInvalid",
                "the row does not name an image",
                field=key or _NAMES[0],
            )
            continue
        columns = {column: value for column, value in row.items() if column != key}
        image = source.find_image(f"{folder}/{name}" if folder else name) or source.find_image(
            name, relative_to=location.file
        )
        identity = f"{location.file}:{row_location.line or number}"
        yield from build_rows(
            columns, row_location, task, table, name=name, image=image, identity=identity
        )


def read_csv_rows(
    source: Source, location: SourceLocation
) -> Iterator[tuple[SourceLocation, dict[str, str]]]:
    """Read the rows of a UTF-8 table with a header, with their locations."""
    with (
        open_text(source, location.file) as file,
        io.TextIOWrapper(file, "utf-8-sig", newline="") as text,
    ):
        rows = csv.DictReader(text, strict=True)
        try:
            for row in rows:
                row_location = location.at(line=rows.line_num)
                if None in row or None in row.values():
                    row_location.report(
                        "RowInvalid",
                        f"the row does not have the {len(rows.fieldnames or ())} columns of the "
                        "header",
                    )
                else:
                    yield row_location, {str(key): value for key, value in row.items()}
        except UnicodeDecodeError:
            location.at(line=rows.line_num + 1).report(
                "EncodingWrong", "not UTF-8 at or soon after this line; the rest is not read"
            )
        except csv.Error as error:
            location.at(line=max(1, rows.line_num)).report(
                "FileUnreadable", f"{error}; the remaining rows are not read"
            )


# -- class folders ---------------------------------------------------------------------------------


def _find_class_folders(source: Source) -> list[str]:
    """List all images if each is in a class folder and there are no annotations; else none."""
    if any(path.lower().endswith(_OTHER_ANNOTATIONS) for path in source.paths()):
        return []
    images = [path for path in source.paths() if path.lower().endswith(_IMAGE_ENDINGS)]
    folders = {_find_class(path) for path in images}
    return images if len(folders) > 1 and None not in folders else []


def _find_class(path: str) -> str | None:
    """Return the class folder, such as ``cat`` for ``train/cat/1.jpg``.

    Return None if no folder names a class.
    """
    folders = path.split("/")[:-1]
    if folders and folders[0].lower() in _SPLITS:
        folders = folders[1:]
    return (
        folders[-1] if len(folders) in (1, 2) and folders[-1].lower() not in _NOT_CLASSES else None
    )


def _read_class_folder(
    source: Source, location: SourceLocation, task: DatasetType, table: Table
) -> Iterator[Row]:
    row = {"class": _find_class(location.file) or ""}
    image = source.find_image(location.file)
    yield from build_rows(
        row, location, task, table, name=location.file, image=image, identity=location.file
    )
