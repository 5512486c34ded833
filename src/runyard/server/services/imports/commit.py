"""From the lines that an import's worker wrote to rows of a dataset: a chunk a transaction, harmless to repeat.

A picture under a name that the dataset has takes the place of that picture: same bytes change nothing; other bytes
change it, and its records go if the session says so (``RemoveLinkedResource``). A record with an id that the dataset
has takes the place of that record if it is about the same picture; about another one it gets an id of its own, so that
files that all count from 1 lose nothing.
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
from runyard.store import assets as rows
from runyard.store import datasets as dataset_rows
from runyard.store import imports as import_rows
from runyard.store.tables import AnyRow

NOTHING = b"{}"
LONG_ID = Limit(480, "bytes", "what is kept of the id of a record that needs another one")


class ImageLine(msgspec.Struct, rename="camel", kw_only=True):
    """A line of ``images.jsonl``: one accepted picture, and where its bytes lie."""

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
    filename: str


class RecordLine(msgspec.Struct):
    """A line of ``records.jsonl``; what is said is kept as it was written."""

    id: str
    asset: AssetName
    contents: msgspec.Raw
    category: str | None = None


class RecordId(msgspec.Struct):
    id: str


_IMAGES = msgspec.json.Decoder(ImageLine)
_RECORDS = msgspec.json.Decoder(RecordLine)
_IDS = msgspec.json.Decoder(RecordId)


@dataclass(frozen=True)
class Taker:
    """How one kind of line is read, on any thread, and written, on the writer's."""

    read: Callable[[list[bytes]], Any]
    write: Callable[..., None]
    id_of: Callable[[bytes], str]


def _read_images(lines: list[bytes]) -> dict[str, ImageLine]:
    """By path; of two lines of one path the later."""
    return {line.path: line for line in map(_IMAGES.decode, lines)}


def _write_images(
    connection: Connection, *, row: AnyRow, prepared: dict[str, ImageLine], done: int, now_ms: int
) -> None:
    org, dataset_id = row.org, row.dataset_id
    if not _is_committing(connection, row):
        return
    _place_bytes(connection, org, prepared)
    known = rows.find_by_name(connection, org=org, dataset_id=dataset_id, names=prepared)
    dataset = dataset_rows.get(connection, org=org, dataset_id=dataset_id)
    assert dataset is not None  # noqa: S101 - the import names it
    new = [line for path, line in prepared.items() if path not in known]
    custom = _custom_of(connection, row)
    rows.add(
        connection,
        [
            {
                "org": org,
                "dataset_id": dataset_id,
                "id": f"{number:08x}{secrets.token_hex(4)}",  # growing: indexes are filled at one end
                "filename": line.path,
                "custom": custom.get(line.path, NOTHING),
                "inserted_by": row.user,
                "record_count": 0,
                "generation": 1,
                "time_created": now_ms,
                **_of_bytes(line, now_ms),
            }
            for number, line in enumerate(new, dataset.next_number)
        ],
    )
    changed = [(known[path], line) for path, line in prepared.items() if path in known]
    changed = [(asset, line) for asset, line in changed if asset.content != line.sha256]
    lost = _overwrite(connection, row, changed, now_ms) if changed else (0, 0)
    dataset_rows.adjust_counts(
        connection,
        org=org,
        dataset_id=dataset_id,
        time_ms=now_ms,
        assets=len(new),
        annotated=-lost[0],
        records=-lost[1],
        size_bytes=sum(line.size for line in new) + sum(line.size - asset.size_bytes for asset, line in changed),
        numbers=len(new),
    )
    _has_come(connection, row, images_done=done, now_ms=now_ms)


def _place_bytes(connection: Connection, org: str, prepared: dict[str, ImageLine]) -> None:
    by_content = {line.sha256: line for line in prepared.values()}
    here = rows.find_blob_spans(connection, org=org, hashes=by_content)
    rows.add_blob_spans(
        connection,
        [
            {"org": org, "content": content, "sha256": line.blob, "offset": line.offset, "size_bytes": line.size}
            for content, line in by_content.items()
            if content not in here
        ],
    )


def _of_bytes(line: ImageLine, now_ms: int) -> dict[str, Any]:
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


def _overwrite(
    connection: Connection, row: AnyRow, changed: list[tuple[AnyRow, ImageLine]], now_ms: int
) -> tuple[int, int]:
    """Give pictures other bytes; returns how many pictures lost their records, and how many records are gone."""
    place: Any = {"org": row.org, "dataset_id": row.dataset_id}
    dataset_rows.mark_unneeded_contents(connection, org=row.org, hashes={asset.content for asset, _ in changed})
    is_clearing = _spec(row).get("onAssetOverwritten", "").startswith("RemoveLinked")
    for asset, line in changed:
        values = {**_of_bytes(line, now_ms), "generation": asset.generation + 1}
        values |= {"record_count": 0} if is_clearing else {}
        rows.change(connection, **place, asset_id=asset.id, values=values)
    if not is_clearing:
        return 0, 0
    annotated = [asset for asset, _ in changed if asset.record_count]
    gone = rows.list_records(connection, **place, asset_ids=[asset.id for asset in annotated])
    rows.remove_records(connection, **place, numbers=[record.number for record in gone])
    return len(annotated), len(gone)


def _custom_of(connection: Connection, row: AnyRow) -> dict[str, bytes]:
    """What was announced with single files, by name."""
    if row.kind != "Ingestion":
        return {}
    files = import_rows.list_files(connection, org=row.org, import_id=row.id)
    return {file.name: file.custom for file in files if file.custom is not None}


def _read_records(lines: list[bytes]) -> dict[str, RecordLine]:
    """By id, as it can be stored; of two lines of one id the later."""
    return {_storable_id(line.id): line for line in map(_RECORDS.decode, lines)}


def _storable_id(id: str) -> str:
    """Return a record's id; one that no store could index is shortened, and a hash of all of it keeps it unique."""
    if limits.RECORD_ID.find_problem(id) is None:
        return id
    digest = hashlib.sha256(id.encode(errors="replace")).hexdigest()[:24]
    return f"{limits.clean_text(id, LONG_ID)}~{digest}"


def _write_records(
    connection: Connection, *, row: AnyRow, prepared: dict[str, RecordLine], done: int, now_ms: int
) -> None:
    place: Any = {"org": row.org, "dataset_id": row.dataset_id}
    if not _is_committing(connection, row):
        return
    names = {line.asset.filename for line in prepared.values()}
    pictures = rows.find_by_name(connection, **place, names=names)
    known = rows.find_records(connection, **place, ids=prepared)
    dataset = dataset_rows.get(connection, org=row.org, dataset_id=row.dataset_id)
    assert dataset is not None  # noqa: S101 - the import names it
    number = dataset.next_number
    new: list[dict[str, Any]] = []
    changes: list[tuple[int, dict[str, Any]]] = []
    more: Counter[str] = Counter()
    for id, line in prepared.items():
        picture = pictures.get(line.asset.filename)
        if picture is None:  # it was deleted since the worker looked
            continue
        category = None if line.category is None else limits.clean_text(line.category, limits.CATEGORY)
        said = {"contents": bytes(line.contents), "category": category, "last_updated": now_ms}
        there = known.get(id)
        if there is not None and there.asset_id == picture.id:
            if _spec(row).get("failurePolicies", {}).get("onOverwritten") != "RejectFile":
                changes.append((there.number, {**said, "generation": there.generation + 1}))
            continue
        own_id = id if there is None else f"{limits.clean_text(id, LONG_ID)}~{number}"
        new.append(
            {**place, "number": number, "id": own_id, "asset_id": picture.id, "generation": 1, "time_created": now_ms}
            | said
        )
        more[picture.id] += 1
        number += 1
    rows.add_records(connection, new)
    rows.change_records(connection, **place, changes=changes)
    rows.add_record_counts(connection, **place, more=more, time_ms=now_ms)
    bare = {picture.id for picture in pictures.values() if not picture.record_count}
    dataset_rows.adjust_counts(
        connection, **place, time_ms=now_ms, annotated=len(bare & set(more)), records=len(new), numbers=len(new)
    )
    _has_come(connection, row, records_done=done, now_ms=now_ms)


def _is_committing(connection: Connection, row: AnyRow) -> bool:
    """Whether the import still is what its task believes; it may have gone with its dataset."""
    now = import_rows.get(connection, org=row.org, import_id=row.id)
    return now is not None and now.state == "Committing"


def _has_come(connection: Connection, row: AnyRow, *, now_ms: int, **done: int) -> None:
    values = {**done, "last_updated": now_ms}
    import_rows.change(connection, org=row.org, import_id=row.id, values=values)


def _spec(row: AnyRow) -> dict[str, Any]:
    spec: dict[str, Any] = msgspec.json.decode(row.spec)
    return spec


take_images = Taker(_read_images, _write_images, lambda line: _IMAGES.decode(line).path)
take_records = Taker(_read_records, _write_records, lambda line: _storable_id(_IDS.decode(line).id))
