"""Annotations: the records of an image, listed and edited part by part.

A grounded caption is one annotation, and each of its boxes another; they share the record's id as
their whole. Questions and answers, free texts and conversations are one annotation whose text is
the record's contents as JSON: the published client knows no other shape. ``<number>`` names a
record (or its caption), ``<number>-<n>`` its n-th box, counted from 0.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.datasets.records import (
    TYPES_OF,
    Box,
    Contents,
    Conversation,
    GroundedPhrase,
    PhraseGrounding,
    char_span,
    word_span,
)
from runyard.server.services import etags, paging
from runyard.server.services.access.signing import Position
from runyard.server.services.context import Actor, Services
from runyard.server.services.datasets import assets, conversations, datasets
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.paging import PageRequest
from runyard.store.datasets import assets as rows
from runyard.store.datasets import datasets as dataset_rows
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


async def page(
    services: Services, *, org: str, dataset_id: str, asset_id: str, page_request: PageRequest
) -> bytes:
    """Return annotations of an image in the order in which they were added.

    A position is the number of a record, and how many of its parts came before; a page may end
    inside a record.
    """
    after = paging.parse_position(services, org=org, page_request=page_request)
    key: Any = {"org": org, "dataset_id": dataset_id}

    def read_parts(tx: Connection) -> bytes:
        assets.get_row(tx, **key, asset_id=asset_id)
        start = (after[0], int(after[1])) if after else (0, 0)
        items, last, has_more = paging.gather(
            partial(_fetch_parts, tx, org=org, dataset_id=dataset_id, asset_id=asset_id),
            after=start,
            size=page_request.size,
            most_bytes=page_request.most_bytes,
            encode=lambda part: msgspec.json.encode(part[1]),
            get_position=lambda part: part[0],
        )
        further = None
        if has_more:
            number, shown = last[0]
            further = paging.page_token(
                services, Position(number, str(shown)), org=org, page_request=page_request
            )
        return paging.join(items, further)

    return await services.store.read_in_thread(read_parts)


def _fetch_parts(
    tx: Connection, after: tuple[int, int], limit: int, *, org: str, dataset_id: str, asset_id: str
) -> list[tuple[tuple[int, int], Annotation]]:
    """Return up to ``limit`` parts after a position, each with the position that it ends at."""
    found: list[tuple[tuple[int, int], Annotation]] = []
    number, shown = after
    while len(found) < limit:
        records = rows.list_records_from(
            tx,
            org=org,
            dataset_id=dataset_id,
            asset_id=asset_id,
            number=number,
            limit=RECORDS_AT_ONCE,
        )
        for record in records:
            parts = _build_parts(record)
            begin = shown if record.number == number else 0
            found += [
                ((record.number, index), part)
                for index, part in enumerate(parts[begin:], begin + 1)
            ]
        if len(records) < RECORDS_AT_ONCE:
            break
        number, shown = records[-1].number + 1, 0
    return found[:limit]


def get(
    services: Services, *, org: str, dataset_id: str, asset_id: str, annotation_id: str
) -> Annotation:
    """Return an annotation.

    Raises:
        Refusal: NotFound.
    """

    def find_part(tx: Connection) -> Annotation:
        record, _ = _get_record(tx, org, dataset_id, asset_id, annotation_id)
        return _get_part(record, annotation_id)

    return services.store.read(find_part)


async def change(
    services: Services,
    actor: Actor,
    dataset_id: str,
    asset_id: str,
    annotation_id: str,
    *,
    given: Any,
) -> Annotation:
    """Change one part of a record.

    ``given`` is an annotation, its spec, or that spec's contents alone.

    Raises:
        Refusal: NotFound, InvalidBody.
    """
    new = _unwrap_contents(given)

    def edit(contents: Any, box: int | None) -> Any:
        return _replace_caption(contents, new) if box is None else _replace_box(contents, box, new)

    return await _edit(services, actor, dataset_id, asset_id, annotation_id, edit)


async def delete(
    services: Services, actor: Actor, dataset_id: str, asset_id: str, annotation_id: str
) -> None:
    """Delete a box, or with its caption the whole record.

    Raises:
        Refusal: NotFound.
    """
    if "-" in annotation_id:
        await _edit(services, actor, dataset_id, asset_id, annotation_id, _remove_box)
        return
    key: Any = {"org": actor.org, "dataset_id": dataset_id}

    def delete_record(tx: Connection) -> None:
        record, asset = _get_record(tx, actor.org, dataset_id, asset_id, annotation_id)
        now_ms = services.clock.now_ms()
        rows.remove_records(tx, **key, numbers=[record.number])
        rows.add_record_counts(tx, **key, more={asset_id: -1}, time_ms=now_ms)
        is_last = asset.record_count == 1
        dataset_rows.adjust_counts(tx, **key, time_ms=now_ms, records=-1, annotated=-int(is_last))
        datasets.record_change(services, tx, actor, dataset_id, changed=["annotations"])
        services.audit(actor, "delete annotation", f"{dataset_id}/{asset_id}/{annotation_id}")(tx)

    await services.store.write(delete_record)


async def _edit(
    services: Services,
    actor: Actor,
    dataset_id: str,
    asset_id: str,
    annotation_id: str,
    edit: Callable[[Any, int | None], Any],
) -> Annotation:
    key: Any = {"org": actor.org, "dataset_id": dataset_id}
    is_removal = edit is _remove_box

    def update_record(tx: Connection) -> Annotation:
        record, asset = _get_record(tx, actor.org, dataset_id, asset_id, annotation_id)
        dataset = datasets.get_row(tx, **key)
        _get_part(record, annotation_id)
        contents = edit(_CONTENTS.decode(record.contents), _parse_box_number(annotation_id))
        if dataset.type not in TYPES_OF[type(contents)]:
            raise _annotation_invalid(
                f"the dataset is of type {dataset.type}, and the contents are of type "
                f"{' or '.join(TYPES_OF[type(contents)])}"
            )
        if isinstance(contents, Conversation):
            why = conversations.find_problem(tx, contents, **key, filename=asset.filename)
            if why is not None:
                raise _annotation_invalid(why)
        now_ms = services.clock.now_ms()
        values = {"contents": msgspec.json.encode(contents), "generation": record.generation + 1}
        changes = [(record.number, {**values, "last_updated": now_ms})]
        rows.change_records(tx, **key, changes=changes)
        dataset_rows.adjust_counts(tx, **key, time_ms=now_ms)
        datasets.record_change(services, tx, actor, dataset_id, changed=["annotations"])
        services.audit(actor, "change annotation", f"{dataset_id}/{asset_id}/{annotation_id}")(tx)
        changed, _ = _get_record(tx, actor.org, dataset_id, asset_id, annotation_id)
        return _get_part(changed, str(record.number) if is_removal else annotation_id)

    return await services.store.write(update_record)


def _get_record(
    tx: Connection, org: str, dataset_id: str, asset_id: str, annotation_id: str
) -> tuple[AnyRow, AnyRow]:
    """Return the rows of a record and of its image."""
    asset = assets.get_row(tx, org=org, dataset_id=dataset_id, asset_id=asset_id)
    named = _ID.fullmatch(annotation_id)
    record = None
    if named is not None:
        record = rows.get_record(tx, org=org, dataset_id=dataset_id, number=int(named.group(1)))
    if record is None or record.asset_id != asset_id:
        raise not_found(f"annotation of asset {asset_id!r}", annotation_id)
    return record, asset


def _parse_box_number(annotation_id: str) -> int | None:
    named = _ID.fullmatch(annotation_id)
    return int(named.group(2)) if named is not None and named.group(2) is not None else None


def _build_parts(record: AnyRow) -> list[Annotation]:
    """Return all annotations of a record, the whole first."""
    contents = _CONTENTS.decode(record.contents)
    if not isinstance(contents, PhraseGrounding):
        return [_to_document(record, "", Caption(contents=bytes(record.contents).decode()))]
    parts = [_to_document(record, "", Caption(contents=contents.caption))]
    for number, (phrase, box) in enumerate(_list_boxes(contents)):
        span = char_span(contents.caption, phrase.phrase, near=phrase.start_token_index) or (0, 0)
        parts.append(
            _to_document(record, f"-{number}", BoundingBox(bound=_to_corners(box), target=span))
        )
    return parts


def _get_part(record: AnyRow, annotation_id: str) -> Annotation:
    for part in _build_parts(record):
        if part.annotation_id == annotation_id:
            return part
    raise not_found(f"annotation of asset {record.asset_id!r}", annotation_id)


def _to_document(record: AnyRow, suffix: str, contents: Caption | BoundingBox) -> Annotation:
    is_box = isinstance(contents, BoundingBox)
    document = Annotation(
        annotation_id=f"{record.number}{suffix}",
        asset_id=record.asset_id,
        organization_id=record.org,
        dataset_id=record.dataset_id,
        spec=AnnotationSpec(
            bound_type="Rectangle" if is_box else "Caption",
            aggregation=Aggregation(
                whole=AnnotationWhole(id=record.id),
                this_part=AnnotationPart(
                    role="PhraseGroundingBoundingBox" if is_box else "Caption"
                ),
            ),
            contents=contents,
        ),
        metadata=ResourceMetadata(
            time_created=record.time_created,
            last_updated=record.last_updated,
            generation=record.generation,
        ),
        self_link=datasets.build_path(
            record.org,
            record.dataset_id,
            "assets",
            record.asset_id,
            "annotations",
            f"{record.number}{suffix}",
        ),
    )
    etags.seal(document)
    return document


def _list_boxes(contents: PhraseGrounding) -> list[tuple[GroundedPhrase, Box]]:
    return [(phrase, box) for phrase in contents.grounded_phrases for box in phrase.bounds]


def _to_corners(box: Box) -> list[tuple[float, float]]:
    left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _unwrap_contents(given: Any) -> dict[str, Any]:
    """Return the contents in a body, from an annotation, a spec, or the contents themselves."""
    found = given.get("spec", given) if isinstance(given, dict) else None
    found = found.get("contents", found) if isinstance(found, dict) else None
    if isinstance(found, str):
        found = {"contents": found}
    if not isinstance(found, dict):
        raise _annotation_invalid("the body has no contents")
    return found


def _replace_caption(contents: Any, given: dict[str, Any]) -> Any:
    """Return the record with another text; every phrase must still occur in a caption."""
    text = given.get("contents")
    if not isinstance(text, str) or not text.strip():
        raise _annotation_invalid("contents.contents must be a non-empty text")
    if not isinstance(contents, PhraseGrounding):
        try:
            return _CONTENTS.decode(text)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise _annotation_invalid(
                f"the text must be the record's contents as JSON: {error}"
            ) from error
    phrases = []
    for phrase in contents.grounded_phrases:
        span = word_span(text, phrase.phrase, near=phrase.start_token_index)
        if span is None:
            raise _annotation_invalid(
                f"the caption {text[:80]!r} does not contain the phrase {phrase.phrase!r}, which "
                "has a box"
            )
        phrases.append(
            msgspec.structs.replace(phrase, start_token_index=span[0], end_token_index=span[1])
        )
    return PhraseGrounding(caption=text, grounded_phrases=phrases)


def _replace_box(contents: Any, number: int, given: dict[str, Any]) -> Any:
    """Return the record with another box, and another phrase if ``target`` is given.

    ``target`` is a range of characters of the caption.
    """
    phrases: list[GroundedPhrase] = []
    box = _parse_box(given.get("bound"))
    target = _parse_target(contents.caption, given.get("target"))
    first = 0
    for phrase in contents.grounded_phrases:
        bounds = list(phrase.bounds)
        if first <= number < first + len(bounds):
            bounds[number - first] = box or bounds[number - first]
            if target is not None and target[0] != phrase.phrase:
                moved = bounds.pop(number - first)
                text, span = target
                phrases.append(_build_phrase(text, span, moved))
        first += len(phrase.bounds)
        if bounds:
            phrases.append(msgspec.structs.replace(phrase, bounds=bounds))
    return msgspec.structs.replace(contents, grounded_phrases=phrases)


def _build_phrase(text: str, span: tuple[int, int], box: Box) -> GroundedPhrase:
    return GroundedPhrase(
        phrase=text, start_token_index=span[0], end_token_index=span[1], bounds=[box]
    )


def _remove_box(contents: Any, number: int | None) -> Any:
    phrases, first = [], 0
    for phrase in contents.grounded_phrases:
        bounds = [box for index, box in enumerate(phrase.bounds, first) if index != number]
        first += len(phrase.bounds)
        if bounds:
            phrases.append(msgspec.structs.replace(phrase, bounds=bounds))
    return msgspec.structs.replace(contents, grounded_phrases=phrases)


def _parse_box(bound: Any) -> Box | None:
    """Return the box that the corners span."""
    if bound is None:
        return None
    try:
        corners = msgspec.convert(bound, list[tuple[float, float]])
    except msgspec.ValidationError as error:
        raise _annotation_invalid(f"bound must be a list of [x, y]: {error}") from error
    if len(corners) < 2:
        raise _annotation_invalid("bound must have four corners")
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    box = (min(xs), min(ys), max(xs), max(ys))
    if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise _annotation_invalid(
            f"the box {list(box)} is not inside the image; corners are fractions of width and "
            "height, 0 to 1"
        )
    return box


def _parse_target(caption: str, target: Any) -> tuple[str, tuple[int, int]] | None:
    """Return the phrase that a target names, and the words it covers."""
    if target is None:
        return None
    try:
        start, end = msgspec.convert(target, tuple[int, int])
    except msgspec.ValidationError as error:
        raise _annotation_invalid(f"target must be [start, end]: {error}") from error
    text = caption[start:end] if 0 <= start < end <= len(caption) else ""
    near = len(caption[:start].split())
    span = word_span(caption, text, near=near) if text.strip() else None
    if span is None:
        raise _annotation_invalid(
            f"target {[start, end]} covers no words of the caption, which has {len(caption)} "
            "characters"
        )
    return text, span


def _annotation_invalid(why: str) -> Refusal:
    return Refusal("InvalidBody", f"the annotation cannot be changed: {why}")
