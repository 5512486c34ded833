"""Parquet shards, written one group of rows at a time; parquet.py describes their content."""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from pyarrow import parquet

from runyard.datasets.records import Conversation, Record
from runyard.datasets.splits import Split
from runyard.datasets.writers.base import ExportedImage
from runyard.datasets.writers.files import find_further_images

SHARD_BYTES = 512 << 20
_GROUP_BYTES, _GROUP_ROWS = 32 << 20, 1000

_TEXT, _NUMBER = pa.string(), pa.int64()
_PHRASE = {
    "phrase": _TEXT,
    "start_token_index": _NUMBER,
    "end_token_index": _NUMBER,
    "bounds": pa.list_(pa.list_(pa.float64())),
}
_INTERACTION = {"order": _NUMBER, "question": _TEXT, "answer": _TEXT}
_COMMON = {
    "sha256": _TEXT,
    "width": _NUMBER,
    "height": _NUMBER,
    "type": _TEXT,
    "id": _TEXT,
    "category": _TEXT,
}
_TURN = {"role": _TEXT, "content": _TEXT}
_TURNS = {
    "turns": pa.list_(pa.struct(list(_TURN.items()))),
    "images": pa.list_(_TEXT),
    "is_text_only": pa.bool_(),
}
_QUESTIONS = {"interactions": pa.list_(pa.struct(list(_INTERACTION.items())))}
_TEXTS = {"prompt": _TEXT, "text": _TEXT}
# By the type of the first record. A dataset with conversations may be of two types.
_CONTENTS_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "phrase-grounding": {
        "caption": _TEXT,
        "grounded_phrases": pa.list_(pa.struct(list(_PHRASE.items()))),
    },
    "vqa": _QUESTIONS | _TURNS,
    "freeform": _TEXTS | _TURNS,
    "conversation": _QUESTIONS | _TEXTS | _TURNS,
}


def write_shards(items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
    """Write all items below ``folder/data``."""
    rows = _build_rows(items, with_images=with_images)
    pending: list[dict[str, Any]] = []
    for row in rows:  # the first record determines the columns
        pending.append(row)
        if row["type"] is not None or len(pending) == _GROUP_ROWS:
            break
    task = next((row["type"] for row in pending if row["type"] is not None), None)
    (folder / "data").mkdir()
    with contextlib.ExitStack() as stack:

        @functools.cache
        def open_shards(split: Split) -> _ShardWriter:
            writer = _ShardWriter(folder / "data", split, _build_schema(task))
            return stack.enter_context(contextlib.closing(writer))

        for row in chain(pending, rows):
            open_shards(row["split"] or "train").add(row)
        if not pending:
            open_shards("train")  # a file without rows


def _build_rows(items: Iterable[ExportedImage], *, with_images: bool) -> Iterator[dict[str, Any]]:
    """Build a row for each record, or for an image without records.

    Conversations about several images come last, after the rows that embed their images.
    """
    waiting: list[tuple[ExportedImage, bool]] = []  # whether there is a row with the image
    for item in items:
        about = None
        for record in item.records:
            if not record.further_images:
                about = about or _image_columns(item, with_images=with_images)
                yield about | _record_columns(record)
        if not item.records:
            yield _image_columns(item, with_images=with_images)
        elif any(record.further_images for record in item.records):
            waiting.append((item, about is not None))
    further = find_further_images(item for item, _ in waiting)
    for item, is_written in waiting:
        if item.asset.filename in further and not is_written:
            yield _image_columns(item, with_images=with_images)
    for item, _ in waiting:
        about = _image_columns(item, with_images=with_images)
        for record in item.records:
            if record.further_images:
                yield about | _record_columns(record)


def _image_columns(item: ExportedImage, *, with_images: bool) -> dict[str, Any]:
    return {
        "image": {"bytes": item.read() if with_images else None, "path": item.asset.filename},
        "sha256": item.sha256,
        "width": item.asset.width,
        "height": item.asset.height,
        "type": None,
        "split": item.split,  # no column; it decides the file
    }


def _record_columns(record: Record) -> dict[str, Any]:
    contents: dict[str, Any] = msgspec.structs.asdict(record.contents)
    is_conversation = isinstance(record.contents, Conversation)
    plain = {key: msgspec.to_builtins(value) for key, value in contents.items()}
    about: dict[str, Any] = {
        "type": "conversation" if is_conversation else record.dataset_types[0],
        "id": record.id,
        "category": record.category,
    }
    return about | {key: value for key, value in _to_snake_case(plain).items() if key != "type"}


def _to_snake_case(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_snake_case(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        "".join(f"_{c.lower()}" if c.isupper() else c for c in key): _to_snake_case(item)
        for key, item in value.items()
    }


class _ShardWriter:
    """The shards of one split, written one group of rows at a time."""

    def __init__(self, folder: Path, split: Split, schema: pa.Schema) -> None:
        self._folder, self._split, self._schema = folder, split, schema
        self._group: list[dict[str, Any]] = []
        self._group_bytes = self._shard_bytes = self._shard_count = 0
        self._file: parquet.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        size_bytes = len(row["image"]["bytes"] or b"")
        is_full = self._group_bytes + size_bytes > _GROUP_BYTES or len(self._group) == _GROUP_ROWS
        if self._group and is_full:
            self._write_group()
        self._group.append(row)
        self._group_bytes += size_bytes

    def close(self) -> None:
        self._write_group()
        self._close_shard()

    def _write_group(self) -> None:
        if self._shard_bytes and self._shard_bytes + self._group_bytes > SHARD_BYTES:
            self._close_shard()
        if self._file is None:
            path = self._folder / f"{self._split}-{self._shard_count:05d}.parquet"
            self._file = parquet.ParquetWriter(path, self._schema, compression="zstd")
            self._shard_count += 1
        self._file.write_table(pa.Table.from_pylist(self._group, self._schema))
        self._shard_bytes += max(self._group_bytes, 1)
        self._group, self._group_bytes = [], 0

    def _close_shard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._shard_bytes = None, 0


def _build_schema(task: str | None) -> pa.Schema:
    """Build the schema, with the features that mark ``image`` as an image for ``datasets``."""
    contents = (
        _CONTENTS_COLUMNS[task]
        if task
        else {
            name: kind for columns in _CONTENTS_COLUMNS.values() for name, kind in columns.items()
        }
    )
    columns = _COMMON | contents
    features = {"image": {"_type": "Image"}} | {
        name: _build_feature(kind) for name, kind in columns.items()
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([("image", image), *columns.items()], metadata=metadata)


def _build_feature(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [_build_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {
            kind.field(i).name: _build_feature(kind.field(i).type) for i in range(kind.num_fields)
        }
    return {"dtype": "float64" if pa.types.is_float64(kind) else str(kind), "_type": "Value"}
