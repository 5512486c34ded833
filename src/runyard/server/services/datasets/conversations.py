"""Conversations about several images: what happens to them when one of their images changes.

A conversation is a record of its first image, and names the others by file name. So a renamed image
is renamed in them, and an image that they show cannot be deleted alone. A deletion of many images
also deletes the conversations that show one of them, and reports how many.

Their contents begin with ``SEVERAL_IMAGES``, by which they are found without reading all records.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.datasets.records import (
    SEVERAL_IMAGES,
    TYPES_OF,
    Conversation,
    find_mark_problem,
    find_turn_problem,
    rename_images,
)
from runyard.store.datasets import assets as rows
from runyard.store.datasets import datasets as dataset_rows
from runyard.store.tables import AnyRow

_CONVERSATIONS = msgspec.json.Decoder(Conversation)


class _Images(msgspec.Struct):
    """The part of contents that names images."""

    images: list[str] = []


_IMAGES = msgspec.json.Decoder(_Images)


def list_further_images(contents: bytes) -> list[str]:
    """Return the file names of a record's images after the first; its contents are JSON."""
    if not contents.startswith(SEVERAL_IMAGES):
        return []
    return _IMAGES.decode(contents).images[1:]


def find_records(
    tx: Connection, *, org: str, dataset_id: str, names: Collection[str]
) -> Iterator[AnyRow]:
    """Yield the records that show one of these images, also as their first.

    Columns number, asset_id, generation, contents.
    """
    dataset = dataset_rows.get(tx, org=org, dataset_id=dataset_id)
    if not names or dataset is None or dataset.type not in TYPES_OF[Conversation]:
        return
    found = rows.list_records_that_begin(tx, org=org, dataset_id=dataset_id, prefix=SEVERAL_IMAGES)
    for record in found:
        if not set(names).isdisjoint(_IMAGES.decode(record.contents).images):
            yield record


def remove_records(
    tx: Connection, *, org: str, dataset_id: str, names: Collection[str], time_ms: int
) -> tuple[int, int]:
    """Remove the records that show one of these images.

    Return how many images lost their last record, and how many records are gone. The caller adjusts
    the counts of the dataset.
    """
    key: Any = {"org": org, "dataset_id": dataset_id}
    lost = list(find_records(tx, **key, names=names))
    rows.remove_records(tx, **key, numbers=[record.number for record in lost])
    counts = Counter(str(record.asset_id) for record in lost)
    rows.add_record_counts(
        tx, **key, more={id: -count for id, count in counts.items()}, time_ms=time_ms
    )
    bare = 0
    for asset_id in counts:
        asset = rows.get(tx, **key, asset_id=asset_id)
        bare += asset is not None and not asset.record_count
    return bare, len(lost)


def rename_in_records(
    tx: Connection, *, org: str, dataset_id: str, names: Mapping[str, str], time_ms: int
) -> None:
    """Rename images in the records that show them."""
    key: Any = {"org": org, "dataset_id": dataset_id}
    changes = []
    for record in find_records(tx, **key, names=names):
        contents = rename_images(_CONVERSATIONS.decode(record.contents), names)
        values = {
            "contents": msgspec.json.encode(contents),
            "generation": record.generation + 1,
            "last_updated": time_ms,
        }
        changes.append((record.number, values))
    rows.change_records(tx, **key, changes=changes)


def find_problem(
    tx: Connection, contents: Conversation, *, org: str, dataset_id: str, filename: str
) -> str | None:
    """Return why a conversation cannot be a record of the image ``filename``; None if it can."""
    if problem := find_turn_problem(contents):
        cause, index = problem
        return f"turn {index + 1}: {cause}"
    for number, turn in enumerate(contents.turns, start=1):
        if not turn.content.strip():
            return f"turn {number} is empty"
    if contents.images and (len(contents.images) < 2 or contents.images[0] != filename):
        return f"images, if given, must be several and begin with {filename!r}"
    known = rows.find_by_name(tx, org=org, dataset_id=dataset_id, names=set(contents.images))
    for name in contents.images:
        if name not in known:
            return f"the dataset has no image {name!r}"
    return find_mark_problem(contents)
