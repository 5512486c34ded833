"""Rows of Parquet and Arrow files that contain images or their names.

A row has an image, as ``{bytes, path}`` or as the name of a sent file, and columns as in
columns.py. If the schema carries the features of ``datasets``, they identify the image column and
the class names. Rows are read in small batches, so the memory needed is that of a column chunk's
pages and one batch.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from runyard.datasets.findings import ReportFinding
from runyard.datasets.naming.image_names import ImageFacts
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.columns import (
    Table,
    build_rows,
    normalize_column,
    normalize_columns,
)
from runyard.datasets.readers.frames import choose_frame
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.tables.class_names import (
    find_class_names,
    get_type,
    read_names,
    unwrap_feature,
)
from runyard.datasets.readers.tables.objects import find_other_frame, has_boxes
from runyard.datasets.readers.tables.row_images import IDENTIFIERS, IMAGES, RowImage, RowImages
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

_MAX_UNFIT = 100  # rows without contents of the dataset type, after which a file is given up
_BATCH_ROWS = 32
# pyarrow's own allocator reserves a GiB of address space, which counts against the memory limit of
# an import.
pa.set_memory_pool(pa.system_memory_pool())
_READ_ERRORS = (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, MemoryError)


def read_files(
    source: Source,
    files: list[str],
    task: DatasetType,
    report: ReportFinding,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> Iterator[Row]:
    """Yield all rows of the files; see ``base.Reader.read``."""
    images = RowImages(source)
    for file in files:
        location, rows = SourceLocation(file, report), 0
        if not source.size_bytes(file):
            location.report("FileEmpty", "the file has no bytes", action="FileRejected")
            continue
        by_column, names = read_names(source, file)
        table = Table(by_column, names, choose_frame(options, "pixel", "size"))
        try:
            other = None
            if task == "phrase-grounding":
                sized = _iter_sized(source, location, images)
                other = find_other_frame(sized, table.frame, options, file=file)
            if other is not None:
                report(other)
                continue
            with source.open(file) as opened:
                for found in _read_file(opened, location, task, table, images):
                    yield from found
                    rows += 1
        except _READ_ERRORS as error:
            cause = _format_error(error) + (
                f"; the {rows} rows before it were read" if rows else ""
            )
            location.report(
                "FileUnreadable", cause, action="RowRejected" if rows else "FileRejected"
            )
        table.report_collected()


def _format_error(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _read_file(
    opened: BinaryIO, location: SourceLocation, task: DatasetType, table: Table, images: RowImages
) -> Iterator[Iterator[Row]]:
    opened_file = _open_batches(opened, location)
    features = _read_features(opened_file.schema)
    columns = opened_file.schema.names
    column = _find_image_column(opened_file.schema, features)
    plain = map(normalize_column, columns)
    if column is None and set(plain).isdisjoint((*IMAGES, *IDENTIFIERS)):
        cause = (
            f"no column holds images; the columns are: {', '.join(columns[:12])}; expected: image "
            "with bytes, or file_name with the name of a file"
        )
        location.report(
            "FieldMissing", cause, action="FileRejected", rows=opened_file.count_rows(0)
        )
        return
    table.names = {**table.names, **find_class_names(features)}
    number, fitting = 0, 0
    for batch in opened_file.batches:
        batch.validate(full=True)
        for row in batch.to_pylist():
            number += 1
            mismatches = table.mismatches
            yield _build_rows(row, column, location.at(line=number), task, table, images)
            fitting += table.mismatches == mismatches
        if number >= _MAX_UNFIT and not fitting:
            # All rows have the same columns, so the others do not fit either.
            table.mismatches = opened_file.count_rows(number)
            return


def _iter_sized(
    source: Source, location: SourceLocation, images: RowImages
) -> Iterator[tuple[dict[str, Any], ImageFacts | None]]:
    """Yield each row with the facts of its image, if the file has a column of boxes."""
    silent = replace(location, report_finding=lambda _: None)
    with source.open(location.file) as opened:
        file = _open_batches(opened, location)
        if not has_boxes(dict.fromkeys(map(normalize_column, file.schema.names), True)):
            return
        column, number = _find_image_column(file.schema, _read_features(file.schema)), 0
        for batch in file.batches:
            for row in batch.to_pylist():
                number += 1
                image = _find_image(row, column, silent.at(line=number), images)
                yield normalize_columns(row), None if image is None else image.facts


def _find_image(
    row: dict[str, Any], column: str | None, location: SourceLocation, images: RowImages
) -> RowImage | None:
    number = location.line or 1
    if column is None:
        return images.find(normalize_columns(row), location, number)
    return images.read(column, row.get(column), location, number)


class _File(NamedTuple):
    """An open file. ``rows`` is the number of its rows, if it is known without reading them."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    rows: int | None

    def count_rows(self, read: int) -> int:
        """Count the rows of the file, of which some were read."""
        if self.rows is not None:
            return self.rows
        return read + sum(int(batch.num_rows) for batch in self.batches)


def _open_batches(opened: BinaryIO, location: SourceLocation) -> _File:
    if not location.file.lower().endswith(".arrow"):
        file = parquet.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False)
        batches = file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
        return _File(file.schema_arrow, batches, file.metadata.num_rows)
    try:
        stream = pa.ipc.open_stream(opened)
    except pa.ArrowInvalid:
        opened.seek(0)
        indexed = pa.ipc.open_file(opened)
        numbers = range(indexed.num_record_batches)
        return _File(indexed.schema, (indexed.get_batch(number) for number in numbers), None)
    return _File(stream.schema, _slice_batches(iter(stream)), None)


def _slice_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)


# -- schema ----------------------------------------------------------------------------------------


def _read_features(schema: pa.Schema) -> dict[str, Any]:
    """Read the features that ``datasets`` wrote into the schema; empty if there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _find_image_column(schema: pa.Schema, features: Mapping[str, Any]) -> str | None:
    """Find the column with the image: by the features, else by its type."""
    for name in schema.names:
        if get_type(unwrap_feature(features.get(name))) == "Image":
            return str(name)
    for name in schema.names:
        kind = schema.field(name).type
        if pa.types.is_struct(kind) and {"bytes", "path"} <= {
            kind.field(i).name for i in range(kind.num_fields)
        }:
            return str(name)
    return None


# -- rows ------------------------------------------------------------------------------------------


def _build_rows(
    row: dict[str, Any],
    column: str | None,
    location: SourceLocation,
    task: DatasetType,
    table: Table,
    images: RowImages,
) -> Iterator[Row]:
    image = _find_image(row, column, location, images)
    if image is None:
        return
    if row.get("type", "") is None and "sha256" in row:
        return  # our own export of an image without records
    columns = normalize_columns(row)
    columns.pop(column or image.column, None)
    yield from build_rows(
        columns,
        location,
        task,
        table,
        name=image.name,
        image=image.facts,
        identity=f"{location.file}:{location.line}",
    )
