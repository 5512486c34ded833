"""Annotations: the records of a picture, told part by part and edited part by part.

A grounded caption is one annotation, and each of its boxes another; they share the record's id as their whole.
Questions and answers, and free texts, are one annotation whose text is the record's contents as JSON: the published
client knows no other shape. ``<number>`` names a record (or its caption), ``<number>-<n>`` its n-th box, counted from
0.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.datasets.records import (
    TYPE_OF,
    Box,
    Contents,
    GroundedPhrase,
    PhraseGrounding,
    char_span,
    word_span,
)
from runyard.server.services import etags, pages
from runyard.server.services.access.signing import Position
from runyard.server.services.context import Actor, Services
from runyard.server.services.datasets import assets, datasets
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.pages import PageRequest
from runyard.store import assets as rows
from runyard.store import datasets as dataset_rows
from runyard.store.tables import AnyRow
from vi.api.resources.annotations.responses import (
    Aggregation,
    Annotation,
    AnnotationPart,
    AnnotationSpec,
    AnnotationWhole,
    BoundingBox,
    Caption,
)
from vi.api.responses import ResourceMetadata

RECORDS_AT_ONCE = 20

_CONTENTS = msgspec.json.Decoder(Contents)
_ID = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,6}))?")


async def page(services: Services, *, org: str, dataset_id: str, asset_id: str, wanted: PageRequest) -> bytes:
    """Return annotations of a picture in the order in which they came.

    A position is the number of a record, and how many of its parts came before; a page may end inside a record.
    """
    after = pages.position(services, org=org, wanted=wanted)
    place: Any = {"org": org, "dataset_id": dataset_id}

    def work(connection: Connection) -> bytes:
        assets.found(connection, **place, asset_id=asset_id)
        start = (after[0], int(after[1])) if after else (0, 0)
        items, last, has_more = pages.gather(
            partial(_fetch_parts, connection, org=org, dataset_id=dataset_id, asset_id=asset_id),
            after=start,
            size=wanted.size,
            most_bytes=wanted.most_bytes,
            encode=lambda part: msgspec.json.encode(part[1]),
            place=lambda part: part[0],
        )
        further = None
        if has_more:
            number, shown = last[0]
            further = pages.page_token(services, Position(number, str(shown)), org=org, wanted=wanted)
        return pages.join(items, further)

    return await services.store.read_in_thread(work)


def _fetch_parts(
    connection: Connection, after: tuple[int, int], limit: int, *, org: str, dataset_id: str, asset_id: str
) -> list[tuple[tuple[int, int], Annotation]]:
    """Return up to ``limit`` parts after a position, each with the position that it ends at."""
    found: list[tuple[tuple[int, int], Annotation]] = []
    number, shown = after
    while len(found) < limit:
        records = rows.list_records_from(
            connection, org=org, dataset_id=dataset_id, asset_id=asset_id, number=number, limit=RECORDS_AT_ONCE
        )
        for record in records:
            parts = _parts(record)
            begin = shown if record.number == number else 0
            found += [((record.number, index), part) for index, part in enumerate(parts[begin:], begin + 1)]
        if len(records) < RECORDS_AT_ONCE:
            break
        number, shown = records[-1].number + 1, 0
    return found[:limit]


def get(services: Services, *, org: str, dataset_id: str, asset_id: str, annotation_id: str) -> Annotation:
    """Raises Refusal: NotFound."""

    def work(connection: Connection) -> Annotation:
        record, _ = _found(connection, org, dataset_id, asset_id, annotation_id)
        return _part(record, annotation_id)

    return services.store.read(work)


async def change(
    services: Services, actor: Actor, dataset_id: str, asset_id: str, annotation_id: str, *, given: Any
) -> Annotation:
    """Change one part of a record. ``given`` is an annotation, its spec, or that spec's contents alone.

    Raises:
        Refusal: NotFound, InvalidBody.
    """
    said = _given_contents(given)

    def edit(contents: Any, box: int | None) -> Any:
        return _with_caption(contents, said) if box is None else _with_box(contents, box, said)

    return await _edit(services, actor, dataset_id, asset_id, annotation_id, edit)


async def delete(services: Services, actor: Actor, dataset_id: str, asset_id: str, annotation_id: str) -> None:
    """Delete a box, or with its caption the whole record.

    Raises:
        Refusal: NotFound.
    """
    if "-" in annotation_id:
        await _edit(services, actor, dataset_id, asset_id, annotation_id, _without_box)
        return
    place: Any = {"org": actor.org, "dataset_id": dataset_id}

    def work(connection: Connection) -> None:
        record, asset = _found(connection, actor.org, dataset_id, asset_id, annotation_id)
        now_ms = services.clock.now_ms()
        rows.remove_records(connection, **place, numbers=[record.number])
        rows.add_record_counts(connection, **place, more={asset_id: -1}, time_ms=now_ms)
        is_last = asset.record_count == 1
        dataset_rows.adjust_counts(connection, **place, time_ms=now_ms, records=-1, annotated=-int(is_last))
        services.audit(actor, "delete annotation", f"{dataset_id}/{asset_id}/{annotation_id}")(connection)

    await services.store.write(work)


async def _edit(
    services: Services,
    actor: Actor,
    dataset_id: str,
    asset_id: str,
    annotation_id: str,
    edit: Callable[[Any, int | None], Any],
) -> Annotation:
    place: Any = {"org": actor.org, "dataset_id": dataset_id}
    is_removal = edit is _without_box

    def work(connection: Connection) -> Annotation:
        record, _ = _found(connection, actor.org, dataset_id, asset_id, annotation_id)
        dataset = datasets.found(connection, **place)
        _part(record, annotation_id)
        contents = edit(_CONTENTS.decode(record.contents), _box_number(annotation_id))
        if TYPE_OF.get(type(contents)) != dataset.type:
            raise _unfit(f"the dataset is of type {dataset.type}, and this is for {TYPE_OF.get(type(contents))}")
        now_ms = services.clock.now_ms()
        values = {"contents": msgspec.json.encode(contents), "generation": record.generation + 1}
        changes = [(record.number, {**values, "last_updated": now_ms})]
        rows.change_records(connection, **place, changes=changes)
        dataset_rows.adjust_counts(connection, **place, time_ms=now_ms)
        services.audit(actor, "change annotation", f"{dataset_id}/{asset_id}/{annotation_id}")(connection)
        changed, _ = _found(connection, actor.org, dataset_id, asset_id, annotation_id)
        return _part(changed, str(record.number) if is_removal else annotation_id)

    return await services.store.write(work)


def _found(
    connection: Connection, org: str, dataset_id: str, asset_id: str, annotation_id: str
) -> tuple[AnyRow, AnyRow]:
    """The record and the picture."""
    asset = assets.found(connection, org=org, dataset_id=dataset_id, asset_id=asset_id)
    named = _ID.fullmatch(annotation_id)
    record = None
    if named is not None:
        record = rows.get_record(connection, org=org, dataset_id=dataset_id, number=int(named.group(1)))
    if record is None or record.asset_id != asset_id:
        raise not_found(f"annotation of asset {asset_id!r}", annotation_id)
    return record, asset


def _box_number(annotation_id: str) -> int | None:
    named = _ID.fullmatch(annotation_id)
    return int(named.group(2)) if named is not None and named.group(2) is not None else None


def _parts(record: AnyRow) -> list[Annotation]:
    """Everything that a record says, the whole first."""
    contents = _CONTENTS.decode(record.contents)
    if not isinstance(contents, PhraseGrounding):
        return [_annotation(record, "", Caption(contents=bytes(record.contents).decode()))]
    parts = [_annotation(record, "", Caption(contents=contents.caption))]
    for number, (phrase, box) in enumerate(_boxes(contents)):
        span = char_span(contents.caption, phrase.phrase, near=phrase.start_token_index) or (0, 0)
        parts.append(_annotation(record, f"-{number}", BoundingBox(bound=_corners(box), target=span)))
    return parts


def _part(record: AnyRow, annotation_id: str) -> Annotation:
    for part in _parts(record):
        if part.annotation_id == annotation_id:
            return part
    raise not_found(f"annotation of asset {record.asset_id!r}", annotation_id)


def _annotation(record: AnyRow, suffix: str, contents: Caption | BoundingBox) -> Annotation:
    is_box = isinstance(contents, BoundingBox)
    told = Annotation(
        annotation_id=f"{record.number}{suffix}",
        asset_id=record.asset_id,
        organization_id=record.org,
        dataset_id=record.dataset_id,
        spec=AnnotationSpec(
            bound_type="Rectangle" if is_box else "Caption",
            aggregation=Aggregation(
                whole=AnnotationWhole(id=record.id),
                this_part=AnnotationPart(role="PhraseGroundingBoundingBox" if is_box else "Caption"),
            ),
            contents=contents,
        ),
        metadata=ResourceMetadata(
            time_created=record.time_created, last_updated=record.last_updated, generation=record.generation
        ),
        self_link=datasets.link(
            record.org, record.dataset_id, "assets", record.asset_id, "annotations", f"{record.number}{suffix}"
        ),
    )
    etags.sealed(told)
    return told


def _boxes(contents: PhraseGrounding) -> list[tuple[GroundedPhrase, Box]]:
    return [(phrase, box) for phrase in contents.grounded_phrases for box in phrase.bounds]


def _corners(box: Box) -> list[tuple[float, float]]:
    left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _given_contents(given: Any) -> dict[str, Any]:
    """The contents in a body, however much is wrapped round them."""
    found = given.get("spec", given) if isinstance(given, dict) else None
    found = found.get("contents", found) if isinstance(found, dict) else None
    if isinstance(found, str):
        found = {"contents": found}
    if not isinstance(found, dict):
        raise _unfit("it holds no contents")
    return found


def _with_caption(contents: Any, said: dict[str, Any]) -> Any:
    """The record with another text; every phrase must still be found in a caption."""
    text = said.get("contents")
    if not isinstance(text, str) or not text.strip():
        raise _unfit("contents.contents must be a text that is not empty")
    if not isinstance(contents, PhraseGrounding):
        try:
            return _CONTENTS.decode(text)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise _unfit(f"the text must be the record's contents as JSON: {error}") from error
    phrases = []
    for phrase in contents.grounded_phrases:
        span = word_span(text, phrase.phrase, near=phrase.start_token_index)
        if span is None:
            raise _unfit(f"the caption {text[:80]!r} does not hold the phrase {phrase.phrase!r}, which has a box")
        phrases.append(msgspec.structs.replace(phrase, start_token_index=span[0], end_token_index=span[1]))
    return PhraseGrounding(caption=text, grounded_phrases=phrases)


def _with_box(contents: Any, number: int, said: dict[str, Any]) -> Any:
    """The record with another box, and another phrase if ``target`` is given: characters of the caption."""
    phrases: list[GroundedPhrase] = []
    box = _given_box(said.get("bound"))
    target = _given_phrase(contents.caption, said.get("target"))
    place = 0
    for phrase in contents.grounded_phrases:
        bounds = list(phrase.bounds)
        if place <= number < place + len(bounds):
            bounds[number - place] = box or bounds[number - place]
            if target is not None and target[0] != phrase.phrase:
                moved = bounds.pop(number - place)
                text, span = target
                phrases.append(_phrase(text, span, moved))
        place += len(phrase.bounds)
        if bounds:
            phrases.append(msgspec.structs.replace(phrase, bounds=bounds))
    return msgspec.structs.replace(contents, grounded_phrases=phrases)


def _phrase(text: str, span: tuple[int, int], box: Box) -> GroundedPhrase:
    return GroundedPhrase(phrase=text, start_token_index=span[0], end_token_index=span[1], bounds=[box])


def _without_box(contents: Any, number: int | None) -> Any:
    phrases, place = [], 0
    for phrase in contents.grounded_phrases:
        bounds = [box for index, box in enumerate(phrase.bounds, place) if index != number]
        place += len(phrase.bounds)
        if bounds:
            phrases.append(msgspec.structs.replace(phrase, bounds=bounds))
    return msgspec.structs.replace(contents, grounded_phrases=phrases)


def _given_box(bound: Any) -> Box | None:
    """The box that the corners span."""
    if bound is None:
        return None
    try:
        corners = msgspec.convert(bound, list[tuple[float, float]])
    except msgspec.ValidationError as error:
        raise _unfit(f"bound must be a list of [x, y]: {error}") from error
    if len(corners) < 2:
        raise _unfit("bound must have four corners")
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    box = (min(xs), min(ys), max(xs), max(ys))
    if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise _unfit(f"the box {list(box)} does not lie in the picture; corners are shares of width and height, 0 to 1")
    return box


def _given_phrase(caption: str, target: Any) -> tuple[str, tuple[int, int]] | None:
    """The phrase that a target names, and the words it covers."""
    if target is None:
        return None
    try:
        start, end = msgspec.convert(target, tuple[int, int])
    except msgspec.ValidationError as error:
        raise _unfit(f"target must be [start, end]: {error}") from error
    text = caption[start:end] if 0 <= start < end <= len(caption) else ""
    near = len(caption[:start].split())
    span = word_span(caption, text, near=near) if text.strip() else None
    if span is None:
        raise _unfit(f"target {[start, end]} names no words of the caption, which has {len(caption)} characters")
    return text, span


def _unfit(why: str) -> Refusal:
    return Refusal("InvalidBody", f"the annotation cannot be changed so: {why}")
