"""Parquet shards, written one group of rows at a time; parquet.py describes their content."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from pyarrow import parquet

from runyard.datasets.records import Conversation, Record
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
_TURNS = {"turns": pa.list_(pa.struct(list(_TURN.items()))), "images": pa.list_(_TEXT)}
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
    for number, shard in enumerate(_shards(_groups(chain(pending, rows)))):
        path = folder / "data" / f"train-{number:05d}.parquet"
        with parquet.ParquetWriter(path, _build_schema(task), compression="zstd") as writer:
            for group in shard:
                writer.write_table(pa.Table.from_pylist(group, _build_schema(task)))


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


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Group rows that are written together, with the number of image bytes in each group."""
    group: list[dict[str, Any]] = []
    held = 0
    for row in rows:
        size = len(row["image"]["bytes"] or b"")
        if group and (held + size > _GROUP_BYTES or len(group) == _GROUP_ROWS):
            yield group, held
            group, held = [], 0
        group.append(row)
        held += size
    yield group, held


def _shards(
    groups: Iterator[tuple[list[dict[str, Any]], int]],
) -> Iterator[Iterator[list[dict[str, Any]]]]:
    """Yield the groups of each shard; consume one shard before requesting the next."""
    pending = next(groups, None)

    def one() -> Iterator[list[dict[str, Any]]]:
        nonlocal pending
        held = 0
        while pending is not None and (not held or held + pending[1] <= SHARD_BYTES):
            group, size = pending
            pending = next(groups, None)
            held += max(size, 1)
            yield group

    while pending is not None:
        yield one()


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
