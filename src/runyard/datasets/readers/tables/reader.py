"""The reader of tables: rows about one image each, as tables that people write have them.

    metadata.jsonl, metadata.csv   Hugging Face ImageFolder, in any folder; a name is relative to
                                   the table's folder
    train.json                     an array of rows, an object with one list of rows, or one row
                                   per line
    train.jsonl, train.csv         of any name; also tab-separated, and text with bars
    captions.txt                   Flickr8k and Flickr30k: several captions of one image
    classes.txt                    the names of class numbers, one per line, from class 0

Columns are recognized by name: the image as in row_images.py, the rest as in columns.py. Boxes are
read twice: first as evidence of their frame, then as rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from runyard.datasets.findings import ReportFinding
from runyard.datasets.naming.image_names import ImageFacts
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.columns import Table, build_rows
from runyard.datasets.readers.frames import choose_frame
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.tables.class_names import INFO_FILES, find_names_files, read_names
from runyard.datasets.readers.tables.objects import find_other_frame, has_boxes
from runyard.datasets.readers.tables.row_forms import RowForm, find_form, find_tables, iter_rows
from runyard.datasets.readers.tables.row_images import RowImages
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source


class TableReader:
    """The reader of JSON, JSON Lines and text tables."""

    name = "Table"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def detect(self, source: Source) -> list[str]:
        tables = find_tables(source)
        side = {name for path in tables for name in find_names_files(source, path)}
        return sorted({*tables, *side})

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        images = RowImages(source)
        side = {name for path in files for name in find_names_files(source, path)}
        for file in files:
            form = None if file in side or file.endswith(INFO_FILES) else find_form(source, file)
            if form is not None:
                location = SourceLocation(file, report)
                yield from _read_table(source, form, location, task, options, images)


def _read_table(
    source: Source,
    form: RowForm,
    location: SourceLocation,
    task: DatasetType,
    options: ReadOptions,
    images: RowImages,
) -> Iterator[Row]:
    by_column, names = read_names(source, location.file)
    frame = choose_frame(options, "pixel", "size")
    table = Table(by_column, names, frame, has_text_cells=form.text is not None)
    if task == "phrase-grounding":
        sized = _iter_sized(source, form, location, images)
        other = find_other_frame(sized, frame, options, file=location.file)
        if other is not None:
            location.report_finding(other)
            return
    for number, (row_location, row) in enumerate(iter_rows(source, form, location), start=1):
        image = images.find(row, row_location, number)
        if image is None:
            continue
        columns = {key: value for key, value in row.items() if key != image.column}
        yield from build_rows(
            columns,
            row_location,
            task,
            table,
            name=image.name,
            image=image.facts,
            identity=f"{location.file}:{row_location.line or number}",
        )
    table.report_collected()


def _iter_sized(
    source: Source, form: RowForm, location: SourceLocation, images: RowImages
) -> Iterator[tuple[dict[str, Any], ImageFacts | None]]:
    """Yield each row with the facts of its image, which are needed only for boxes."""
    silent = replace(location, report_finding=lambda _: None)
    for number, (row_location, row) in enumerate(iter_rows(source, form, silent), start=1):
        image = images.find(row, row_location, number) if has_boxes(row) else None
        yield row, None if image is None else image.facts
