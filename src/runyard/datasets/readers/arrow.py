"""Rows of Parquet and Arrow files with pictures in them, or with their names.

A row has a picture, as ``{bytes, path}`` or as the name of a file that was sent, and columns as in columns.py. Where
the schema carries the features of ``datasets``, they say which column is the picture and what the numbers of classes
mean. Rows are read a few at a time, so the memory that is needed is that of a column chunk's pages and a small batch.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from runyard.datasets.findings import Say
from runyard.datasets.images import mime_of
from runyard.datasets.packs import is_safe
from runyard.datasets.readers import Row
from runyard.datasets.readers.columns import Table, rows_of
from runyard.datasets.readers.places import Place
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import ImageFacts, Source

IMAGES = ("image", "images", "img", "picture", "jpg", "png", "image_path", "file_name", "filename")
_ENDINGS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif", "image/bmp": "bmp"}
_BATCH_ROWS = 32
# pyarrow's own allocator reserves a GiB of addresses, which counts against the limit that an import runs with.
pa.set_memory_pool(pa.system_memory_pool())
_BROKEN = (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, MemoryError)


def rows_of_files(source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
    """All rows of the files, as ``readers.Reader.read`` gives them."""
    taken = _Pictures(source)
    for file in files:
        place, rows = Place(file, say), 0
        if not source.size_bytes(file):
            place.say("FileEmpty", "the file has no bytes", action="FileRejected")
            continue
        try:
            with source.open(file) as opened:
                for found in _file_rows(opened, place, task, taken):
                    yield from found
                    rows += 1
        except _BROKEN as error:
            cause = _first_line(error) + (f"; the {rows} rows before it were read" if rows else "")
            place.say("FileUnreadable", cause, action="RowRejected" if rows else "FileRejected")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _file_rows(opened: BinaryIO, place: Place, task: DatasetType, taken: "_Pictures") -> Iterator[Iterator[Row]]:
    schema, batches = _batches(opened, place)
    features = _features(schema)
    column = _image_column(schema, features)
    if column is None:
        columns = ", ".join(schema.names[:12])
        place.say("FieldMissing", f"no column holds pictures; there are: {columns}", action="FileRejected")
        return
    table, number = Table(_class_names(features)), 0
    for batch in batches:
        batch.validate(full=True)
        for row in batch.to_pylist():
            number += 1
            yield _row(row, column, place.at(line=number), task, table, taken)
            if table.is_unfit:
                return  # all rows have the same columns


def _batches(opened: BinaryIO, place: Place) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if not place.file.lower().endswith(".arrow"):
        file = parquet.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False)
        return file.schema_arrow, file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
    try:
        stream = pa.ipc.open_stream(opened)
    except pa.ArrowInvalid:
        opened.seek(0)
        indexed = pa.ipc.open_file(opened)
        return indexed.schema, (indexed.get_batch(number) for number in range(indexed.num_record_batches))
    return stream.schema, _small(iter(stream))


def _small(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)


# -- what the schema says ----------------------------------------------------------------------------------------------


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The features that ``datasets`` wrote into the schema; empty when there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _image_column(schema: pa.Schema, features: Mapping[str, Any]) -> str | None:
    """The column with the picture: as the features say, by its shape, by its name."""
    for name in schema.names:
        if _kind(_inner(features.get(name))) == "Image":
            return str(name)
    for name in schema.names:
        kind = schema.field(name).type
        if pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}:
            return str(name)
    return next((name for name in IMAGES if name in schema.names), None)


def _kind(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, Mapping) else None


def _inner(feature: Any) -> Any:
    """What a list is a list of, in each of the ways in which ``datasets`` writes that."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif _kind(feature) in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
        else:
            return feature


def _class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of class numbers: ``label``, and within structs ``objects.category``."""
    names: dict[str, list[str]] = {}
    for column, outer in features.items():
        feature = _inner(outer)
        nested = feature if isinstance(feature, Mapping) and _kind(feature) is None else {}
        for name, inner in {
            column: feature,
            **{f"{column}.{key}": _inner(value) for key, value in nested.items()},
        }.items():
            if _kind(inner) == "ClassLabel" and isinstance(inner.get("names"), list):
                names[name] = [str(word) for word in inner["names"]]
    return names


# -- rows --------------------------------------------------------------------------------------------------------------


class _Pictures:
    """Pictures that the tables carry, each taken once: rows of several questions repeat it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[str, bytes] = {}  # name: digest
        self._facts: dict[str, ImageFacts | None] = {}

    def take(self, value: Any, place: Place) -> tuple[str, ImageFacts | None] | None:
        """The picture's name, and what is known of it; None when the cell holds none, which has been told."""
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str) and value:
            return value, self._source.image(value, beside=place.file)
        if isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        if not isinstance(value, Mapping) or not (value.get("bytes") or value.get("path")):
            place.say("FieldInvalid" if value else "ImageMissing", "the row holds no picture", value=_short(value))
            return None
        data, path = value.get("bytes"), value.get("path")
        if not isinstance(data, bytes) or not data:
            return str(path), self._source.image(str(path), beside=place.file)
        return self._add(path, data, place)

    def _add(self, path: Any, data: bytes, place: Place) -> tuple[str, ImageFacts | None]:
        digest = hashlib.sha256(data).digest()
        name = path if isinstance(path, str) and is_safe(path) else None
        beside = f"{place.file.rpartition('.')[0]}/{place.line:06d}.{_ENDINGS.get(mime_of(data[:16]) or '', 'img')}"
        if name is None or self._known.get(name, digest) != digest:
            name = beside if name is None else f"{beside.rpartition('.')[0]}-{name.rpartition('/')[2]}"
        if name not in self._known:
            self._known[name] = digest
            self._facts[name] = self._source.add_image(name, data, found_in=place.file, line=place.line)
        return name, self._facts[name]


def _short(value: Any) -> str:
    return f"{len(value)} pictures" if isinstance(value, list) else repr(value)[:80]


def _row(
    row: dict[str, Any], column: str, place: Place, task: DatasetType, table: Table, taken: _Pictures
) -> Iterator[Row]:
    found = taken.take(row.pop(column), place)
    if found is None:
        return
    name, picture = found
    if row.get("type", "") is None and "sha256" in row:
        return  # our own export of a picture of which nothing is said
    identity = f"{place.file}:{place.line}"
    yield from rows_of(row, place, task, table, name=name, picture=picture, identity=identity)
