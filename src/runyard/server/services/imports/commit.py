"""Apply the lines that an import's worker wrote to the rows of a dataset.

One chunk is one transaction, and a repeat is harmless. An image under a name that the dataset has
replaces that image: the same bytes change nothing; other bytes change it, and its records are
deleted if the session says so (``RemoveLinkedResource``). A record with an id that the dataset has
replaces that record if it belongs to the same image. Otherwise it gets another id, so that files
that all count from 1 lose nothing.
"""

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.limits import Limit
from runyard.server.services.datasets import conversations
from runyard.store.datasets import assets as rows
from runyard.store.datasets import datasets as dataset_rows
from runyard.store.datasets import imports as import_rows
from runyard.store.tables import AnyRow

NOTHING = b"{}"
SHORTENED_ID = Limit(480, "bytes", "the kept part of a record id that must be shortened or changed")


class ImportedImage(msgspec.Struct, rename="camel", kw_only=True):
    """A line of ``images.jsonl``: one accepted image, and the span of its bytes."""

    path: str
    sha256: str
    size: int
    width: int
    height: int
    mime: str
    blob: str
    offset: int
    crc32c: int = 0
    frames: int = 1
    is_turned: bool = False
    orientation: int = 1


class AssetName(msgspec.Struct):
    """The part of a record line that names its image."""

    filename: str


class RecordLine(msgspec.Struct):
    """A line of ``records.jsonl``; the contents are kept as they were written."""

    id: str
    asset: AssetName
    contents: msgspec.Raw
    category: str | None = None


class SplitLine(msgspec.Struct):
    """A line of ``splits.jsonl``: an image, and its new split."""

    path: str
    split: str | None = None


class RecordId(msgspec.Struct):
    """The part of a record line that holds its id."""

    id: str


_IMAGES = msgspec.json.Decoder(ImportedImage)
_RECORDS = msgspec.json.Decoder(RecordLine)
_IDS = msgspec.json.Decoder(RecordId)
_SPLITS = msgspec.json.Decoder(SplitLine)


@dataclass(frozen=True)
class RowApplier:
    """The functions for one kind of line: parsed on any thread, applied on the writer's."""

    parse: Callable[[list[bytes]], Any]
    apply: Callable[..., None]
    parse_id: Callable[[bytes], str]


def _parse_images(lines: list[bytes]) -> dict[str, ImportedImage]:
    """Return the lines by path; of two lines of one path, the later."""
    return {line.path: line for line in map(_IMAGES.decode, lines)}


def _apply_images(
    tx: Connection, *, row: AnyRow, prepared: dict[str, ImportedImage], done: int, now_ms: int
) -> None:
    org, dataset_id = row.org, row.dataset_id
    if not _is_committing(tx, row):
        return
    _insert_spans(tx, org, prepared)
    known = rows.find_by_name(tx, org=org, dataset_id=dataset_id, names=prepared)
    dataset = dataset_rows.get(tx, org=org, dataset_id=dataset_id)
    assert dataset is not None  # noqa: S101 - the import names it
    new = [line for path, line in prepared.items() if path not in known]
    custom = _load_custom_metadata(tx, row)
    rows.add(
        tx,
        [
            {
                "org": org,
                "dataset_id": dataset_id,
                # Ascending, so that indexes grow at one end.
                "id": f"{number:08x}{secrets.token_hex(4)}",
                "filename": line.path,
                "custom": custom.get(line.path, NOTHING),
                "inserted_by": row.user,
                "record_count": 0,
                "split": None,
                "generation": 1,
                "time_created": now_ms,
                **_build_content_columns(line, now_ms),
            }
            for number, line in enumerate(new, dataset.next_number)
        ],
    )
    changed = [(known[path], line) for path, line in prepared.items() if path in known]
    changed = [(asset, line) for asset, line in changed if asset.content != line.sha256]
    lost = _overwrite_images(tx, row, changed, now_ms) if changed else (0, 0)
    dataset_rows.adjust_counts(
        tx,
        org=org,
        dataset_id=dataset_id,
        time_ms=now_ms,
        assets=len(new),
        annotated=-lost[0],
        records=-lost[1],
        size_bytes=sum(line.size for line in new)
        + sum(line.size - asset.size_bytes for asset, line in changed),
        numbers=len(new),
    )
    _record_progress(tx, row, images_done=done, now_ms=now_ms)


def _insert_spans(tx: Connection, org: str, prepared: dict[str, ImportedImage]) -> None:
    by_content = {line.sha256: line for line in prepared.values()}
    known = rows.find_blob_spans(tx, org=org, hashes=by_content)
    rows.add_blob_spans(
        tx,
        [
            {
                "org": org,
                "content": content,
                "sha256": line.blob,
                "offset": line.offset,
                "size_bytes": line.size,
            }
            for content, line in by_content.items()
            if content not in known
        ],
    )


def _build_content_columns(line: ImportedImage, now_ms: int) -> dict[str, Any]:
    return {
        "content": line.sha256,
        "size_bytes": line.size,
        "width": line.width,
        "height": line.height,
        "mime": line.mime,
        "crc32c": line.crc32c,
        "frames": line.frames,
        "is_turned": line.is_turned,
        "orientation": line.orientation,
        "contents_updated": now_ms,
        "last_updated": now_ms,
    }


def _overwrite_images(
    tx: Connection, row: AnyRow, changed: list[tuple[AnyRow, ImportedImage]], now_ms: int
) -> tuple[int, int]:
    """Replace the bytes of images.

    Return how many images lost their records, and how many records are gone.
    """
    key: Any = {"org": row.org, "dataset_id": row.dataset_id}
    dataset_rows.mark_unneeded_contents(
        tx, org=row.org, hashes={asset.content for asset, _ in changed}
    )
    is_clearing = _decode_spec(row).get("onAssetOverwritten", "").startswith("RemoveLinked")
    for asset, line in changed:
        values = {**_build_content_columns(line, now_ms), "generation": asset.generation + 1}
        values |= {"record_count": 0} if is_clearing else {}
        rows.change(tx, **key, asset_id=asset.id, values=values)
    if not is_clearing:
        return 0, 0
    annotated = [asset for asset, _ in changed if asset.record_count]
    gone = rows.list_records(tx, **key, asset_ids=[asset.id for asset in annotated])
    rows.remove_records(tx, **key, numbers=[record.number for record in gone])
    bare, lost = conversations.remove_records(
        tx, **key, names={asset.filename for asset, _ in changed}, time_ms=now_ms
    )
    return len(annotated) + bare, len(gone) + lost


def _load_custom_metadata(tx: Connection, row: AnyRow) -> dict[str, bytes]:
    """Return the custom metadata announced with single files, by name."""
    if row.kind != "Ingestion":
        return {}
    files = import_rows.list_files(tx, org=row.org, import_id=row.id)
    return {file.name: file.custom for file in files if file.custom is not None}


def _parse_records(lines: list[bytes]) -> dict[str, RecordLine]:
    """Return the lines by id, as it can be stored; of two lines of one id, the later."""
    return {_shorten_id(line.id): line for line in map(_RECORDS.decode, lines)}


def _shorten_id(id: str) -> str:
    """Return a record's id, shortened if it is too long to be indexed.

    A hash of the whole id keeps a shortened one unique.
    """
    if limits.RECORD_ID.find_problem(id) is None:
        return id
    digest = hashlib.sha256(id.encode(errors="replace")).hexdigest()[:24]
    return f"{limits.clean_text(id, SHORTENED_ID)}~{digest}"


def _apply_records(
    tx: Connection, *, row: AnyRow, prepared: dict[str, RecordLine], done: int, now_ms: int
) -> None:
    key: Any = {"org": row.org, "dataset_id": row.dataset_id}
    if not _is_committing(tx, row):
        return
    shown = {
        id: {line.asset.filename, *conversations.list_further_images(bytes(line.contents))}
        for id, line in prepared.items()
    }
    images = rows.find_by_name(tx, **key, names=set().union(*shown.values()))
    known = rows.find_records(tx, **key, ids=prepared)
    dataset = dataset_rows.get(tx, org=row.org, dataset_id=row.dataset_id)
    assert dataset is not None  # noqa: S101 - the import names it
    number = dataset.next_number
    new: list[dict[str, Any]] = []
    changes: list[tuple[int, dict[str, Any]]] = []
    more: Counter[str] = Counter()
    for id, line in prepared.items():
        if not shown[id] <= images.keys():  # one was deleted since the worker read the dataset
            continue
        image = images[line.asset.filename]
        category = (
            None if line.category is None else limits.clean_text(line.category, limits.CATEGORY)
        )
        columns = {"contents": bytes(line.contents), "category": category, "last_updated": now_ms}
        existing = known.get(id)
        if existing is not None and existing.asset_id == image.id:
            if _decode_spec(row).get("failurePolicies", {}).get("onOverwritten") != "RejectFile":
                changes.append(
                    (existing.number, {**columns, "generation": existing.generation + 1})
                )
            continue
        own_id = id if existing is None else f"{limits.clean_text(id, SHORTENED_ID)}~{number}"
        new.append(
            {
                **key,
                "number": number,
                "id": own_id,
                "asset_id": image.id,
                "generation": 1,
                "time_created": now_ms,
            }
            | columns
        )
        more[image.id] += 1
        number += 1
    rows.add_records(tx, new)
    rows.change_records(tx, **key, changes=changes)
    rows.add_record_counts(tx, **key, more=more, time_ms=now_ms)
    bare = {image.id for image in images.values() if not image.record_count}
    dataset_rows.adjust_counts(
        tx,
        **key,
        time_ms=now_ms,
        annotated=len(bare & set(more)),
        records=len(new),
        numbers=len(new),
    )
    _record_progress(tx, row, records_done=done, now_ms=now_ms)


def _parse_splits(lines: list[bytes]) -> dict[str, str | None]:
    """Return the split of each image, by path."""
    return {line.path: line.split for line in map(_SPLITS.decode, lines)}


def _apply_splits(
    tx: Connection, *, row: AnyRow, prepared: dict[str, str | None], done: int, now_ms: int
) -> None:
    key: Any = {"org": row.org, "dataset_id": row.dataset_id}
    if not _is_committing(tx, row):
        return
    for split in dict.fromkeys(prepared.values()):
        names = [path for path, wanted in prepared.items() if wanted == split]
        rows.set_split(tx, **key, names=names, split=split)
    dataset_rows.adjust_counts(tx, **key, time_ms=now_ms)


def _is_committing(tx: Connection, row: AnyRow) -> bool:
    """Return whether the import is still being committed; it may be gone with its dataset."""
    now = import_rows.get(tx, org=row.org, import_id=row.id)
    return now is not None and now.state == "Committing"


def _record_progress(tx: Connection, row: AnyRow, *, now_ms: int, **done: int) -> None:
    values = {**done, "last_updated": now_ms}
    import_rows.change(tx, org=row.org, import_id=row.id, values=values)


def _decode_spec(row: AnyRow) -> dict[str, Any]:
    spec: dict[str, Any] = msgspec.json.decode(row.spec)
    return spec


IMAGE_ROWS = RowApplier(_parse_images, _apply_images, lambda line: _IMAGES.decode(line).path)
RECORD_ROWS = RowApplier(
    _parse_records, _apply_records, lambda line: _shorten_id(_IDS.decode(line).id)
)
SPLIT_ROWS = RowApplier(_parse_splits, _apply_splits, lambda line: _SPLITS.decode(line).path)
