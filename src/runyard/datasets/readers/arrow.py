"""Rows of Parquet and Arrow files that contain images or their names.

A row has an image, as ``{bytes, path}`` or as the name of a sent file, and columns as in
columns.py. If the schema carries the features of ``datasets``, they identify the image column and
the class names. Rows are read in small batches, so the memory needed is that of a column chunk's
pages and one batch.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from runyard.datasets.findings import ReportFinding
from runyard.datasets.image_names import ImageFacts
from runyard.datasets.images import detect_mime
from runyard.datasets.packs import is_safe
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.columns import Table, build_rows
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

IMAGES = ("image", "images", "img", "picture", "jpg", "png", "image_path", "file_name", "filename")
_ENDINGS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
}
_BATCH_ROWS = 32
# pyarrow's own allocator reserves a GiB of address space, which counts against the memory limit of
# an import.
pa.set_memory_pool(pa.system_memory_pool())
_READ_ERRORS = (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, MemoryError)


def read_files(
    source: Source, files: list[str], task: DatasetType, report: ReportFinding
) -> Iterator[Row]:
    """Yield all rows of the files; see ``base.Reader.read``."""
    embedded = _EmbeddedImages(source)
    for file in files:
        location, rows = SourceLocation(file, report), 0
        if not source.size_bytes(file):
            location.report("FileEmpty", "the file has no bytes", action="FileRejected")
            continue
        try:
            with source.open(file) as opened:
                for found in _read_file(opened, location, task, embedded):
                    yield from found
                    rows += 1
        except _READ_ERRORS as error:
            cause = _format_error(error) + (
                f"; the {rows} rows before it were read" if rows else ""
            )
            location.report(
                "FileUnreadable", cause, action="RowRejected" if rows else "FileRejected"
            )


def _format_error(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _read_file(
    opened: BinaryIO, location: SourceLocation, task: DatasetType, embedded: "_EmbeddedImages"
) -> Iterator[Iterator[Row]]:
    schema, batches = _open_batches(opened, location)
    features = _read_features(schema)
    column = _find_image_column(schema, features)
    if column is None:
        columns = ", ".join(schema.names[:12])
        location.report(
            "FieldMissing",
            f"no column holds images; the columns are: {columns}",
            action="FileRejected",
        )
        return
    table, number = Table(_find_class_names(features)), 0
    for batch in batches:
        batch.validate(full=True)
        for row in batch.to_pylist():
            number += 1
            yield _build_rows(row, column, location.at(line=number), task, table, embedded)
            if table.has_mismatch:
                return  # all rows have the same columns


def _open_batches(
    opened: BinaryIO, location: SourceLocation
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if not location.file.lower().endswith(".arrow"):
        file = parquet.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False)
        return file.schema_arrow, file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
    try:
        stream = pa.ipc.open_stream(opened)
    except pa.ArrowInvalid:
        opened.seek(0)
        indexed = pa.ipc.open_file(opened)
        return indexed.schema, (
            indexed.get_batch(number) for number in range(indexed.num_record_batches)
        )
    return stream.schema, _slice_batches(iter(stream))


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
    """Find the column with the image: by the features, else by its type, else by its name."""
    for name in schema.names:
        if _feature_type(_unwrap(features.get(name))) == "Image":
            return str(name)
    for name in schema.names:
        kind = schema.field(name).type
        if pa.types.is_struct(kind) and {"bytes", "path"} <= {
            kind.field(i).name for i in range(kind.num_fields)
        }:
            return str(name)
    return next((name for name in IMAGES if name in schema.names), None)


def _feature_type(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, Mapping) else None


def _unwrap(feature: Any) -> Any:
    """Return the element type of a list, in each of the forms that ``datasets`` writes."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif _feature_type(feature) in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
        else:
            return feature


def _find_class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Find the names of class numbers by column: ``label``, or ``objects.category`` in structs."""
    names: dict[str, list[str]] = {}
    for column, outer in features.items():
        feature = _unwrap(outer)
        nested = feature if isinstance(feature, Mapping) and _feature_type(feature) is None else {}
        for name, inner in {
            column: feature,
            **{f"{column}.{key}": _unwrap(value) for key, value in nested.items()},
        }.items():
            if _feature_type(inner) == "ClassLabel" and isinstance(inner.get("names"), list):
                names[name] = [str(word) for word in inner["names"]]
    return names


# -- rows ------------------------------------------------------------------------------------------


class _EmbeddedImages:
    """The images embedded in the tables, each added once: rows with several questions repeat it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[str, bytes] = {}  # digest by name
        self._facts: dict[str, ImageFacts | None] = {}

    def resolve(self, value: Any, location: SourceLocation) -> tuple[str, ImageFacts | None] | None:
        """Return the image's name and facts; None if the cell holds no image, which is reported."""
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str) and value:
            return value, self._source.find_image(value, relative_to=location.file)
        if isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        if not isinstance(value, Mapping) or not (value.get("bytes") or value.get("path")):
            location.report(
                "FieldInvalid" if value else "ImageMissing",
                "the row has no image",
                value=_summarize(value),
            )
            return None
        data, path = value.get("bytes"), value.get("path")
        if not isinstance(data, bytes) or not data:
            return str(path), self._source.find_image(str(path), relative_to=location.file)
        return self._add(path, data, location)

    def _add(
        self, path: Any, data: bytes, location: SourceLocation
    ) -> tuple[str, ImageFacts | None]:
        digest = hashlib.sha256(data).digest()
        name = path if isinstance(path, str) and is_safe(path) else None
        ending = _ENDINGS.get(detect_mime(data[:16]) or "", "img")
        own_name = f"{location.file.rpartition('.')[0]}/{location.line:06d}"
        if name is None or self._known.get(name, digest) != digest:
            name = (
                f"{own_name}.{ending}" if name is None else f"{own_name}-{name.rpartition('/')[2]}"
            )
        if name not in self._known:
            self._known[name] = digest
            self._facts[name] = self._source.add_image(
                name, data, found_in=location.file, line=location.line
            )
        return name, self._facts[name]


def _summarize(value: Any) -> str:
    return f"{len(value)} images" if isinstance(value, list) else repr(value)[:80]


def _build_rows(
    row: dict[str, Any],
    column: str,
    location: SourceLocation,
    task: DatasetType,
    table: Table,
    embedded: _EmbeddedImages,
) -> Iterator[Row]:
    found = embedded.resolve(row.pop(column), location)
    if found is None:
        return
    name, image = found
    if row.get("type", "") is None and "sha256" in row:
        return  # our own export of an image without records
    identity = f"{location.file}:{location.line}"
    yield from build_rows(row, location, task, table, name=name, image=image, identity=identity)
