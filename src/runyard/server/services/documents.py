"""Flows and training projects: documents that users create, change and delete under their own ids.

PUT creates a document, and clients repeat it when its response got lost. So a body that created the
document already changes nothing; any other body replaces the spec. A deleted id stays deleted: a
late repeat must not restore it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Table

from runyard import limits
from runyard.server.services import etags, events, paging
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Problem, Refusal, not_found
from runyard.server.services.paging import PageRequest
from runyard.server.services.validation import check_id
from runyard.store import documents as rows
from runyard.store import tombstones
from runyard.store.tables import AnyRow
from vi.api.responses import ResourceMetadata


@dataclass(frozen=True)
class DocumentKind:
    """The differences between flows and training projects.

    They are the name, the kind of their events, the path, table, wire type, and constructor.
    """

    name: str
    event_kind: str
    path: str
    table: Table
    document: type[Any]
    new: Callable[[str, str], Any]


def get(services: Services, kind: DocumentKind, *, org: str, id: str) -> tuple[bytes, str]:
    """Return the stored JSON and its etag.

    Raises:
        Refusal: NotFound.
    """
    row = services.store.read(lambda tx: rows.get(tx, kind.table, org=org, id=id))
    if row is None:
        raise not_found(kind.name, id)
    return row.document, row.etag


async def page(
    services: Services, kind: DocumentKind, *, org: str, page_request: PageRequest
) -> bytes:
    """Return a page of documents as JSON, newest first."""

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(tx, kind.table, org=org, after=after, limit=limit)

    return await paging.read(services, page_request, org=org, fetch=fetch, is_indexed=True)


async def put(
    services: Services,
    kind: DocumentKind,
    actor: Actor,
    id: str,
    *,
    body: bytes,
    spec: Any,
    attributes: Mapping[str, str],
    if_match: str | None,
) -> tuple[bytes, str, bool]:
    """Create or replace a document; return (JSON, etag, whether it is new).

    Raises:
        Refusal: InvalidId, IdDeleted, EtagMismatch.
    """
    check_id(kind.name, id)
    body_sha256 = hashlib.sha256(body).digest()
    now_ms = services.clock.now_ms()

    def insert_or_update_document(tx: Connection) -> tuple[bytes, str, bool]:
        row = rows.get(tx, kind.table, org=actor.org, id=id)
        if row is not None:
            etags.check(if_match, row.etag)
            if row.body_sha256 == body_sha256 and row.generation == 1:
                return row.document, row.etag, False
            document = msgspec.json.decode(row.document, type=kind.document)
            return *_change_document(
                services, kind, actor, tx, id, document, spec, dict(attributes), now_ms
            ), False
        if if_match is not None:
            raise Refusal(
                "EtagMismatch",
                f"{kind.name} {id!r} does not exist, so no etag matches {if_match[:80]}",
            )
        if tombstones.exists(tx, org=actor.org, kind=kind.name, id=id):
            raise Refusal(
                "IdDeleted",
                f"{kind.name} {id!r} was deleted and its id cannot be used again; try: choose "
                "another id",
            )
        document = kind.new(actor.org, id)
        document.spec = spec
        document.metadata = ResourceMetadata(
            time_created=now_ms, last_updated=now_ms, generation=1, attributes=dict(attributes)
        )
        encoded, etag = etags.seal(document)
        rows.add(
            tx,
            kind.table,
            org=actor.org,
            id=id,
            document=encoded,
            etag=etag,
            body_sha256=body_sha256,
            time_ms=now_ms,
        )
        _record(tx, kind, actor, id, "created", now_ms)
        services.audit(actor, f"create {kind.name}", id)(tx)
        return encoded, etag, True

    return await services.store.write(insert_or_update_document)


async def patch(
    services: Services,
    kind: DocumentKind,
    actor: Actor,
    id: str,
    *,
    new_spec: Callable[[Any], Any],
    attributes: Mapping[str, str | None],
    if_match: str | None,
) -> tuple[bytes, str]:
    """Change a document.

    ``new_spec`` is given the old spec; attributes are merged, and null removes one.
    """
    now_ms = services.clock.now_ms()

    def update_document(tx: Connection) -> tuple[bytes, str]:
        row = rows.get(tx, kind.table, org=actor.org, id=id)
        if row is None:
            raise not_found(kind.name, id)
        etags.check(if_match, row.etag)
        document = msgspec.json.decode(row.document, type=kind.document)
        merged = merge_attributes(document.metadata.attributes, attributes)
        return _change_document(
            services, kind, actor, tx, id, document, new_spec(document.spec), merged, now_ms
        )

    return await services.store.write(update_document)


async def delete(
    services: Services, kind: DocumentKind, actor: Actor, id: str, *, if_match: str | None
) -> None:
    """Delete a document; its id stays unused.

    Raises:
        Refusal: NotFound, EtagMismatch.
    """
    now_ms = services.clock.now_ms()

    def delete_document(tx: Connection) -> None:
        row = rows.get(tx, kind.table, org=actor.org, id=id)
        if row is None:
            raise not_found(kind.name, id)
        etags.check(if_match, row.etag)
        rows.remove(tx, kind.table, org=actor.org, id=id)
        tombstones.add(tx, org=actor.org, kind=kind.name, id=id, time_ms=now_ms)
        _record(tx, kind, actor, id, "deleted", now_ms)
        services.audit(actor, f"delete {kind.name}", id)(tx)

    await services.store.write(delete_document)


def merge_attributes(old: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return the attributes after a PATCH: given ones replace, null removes.

    Raises:
        Refusal: InvalidBody (they are more, or larger, than one resource may have).
    """
    merged = {key: value for key, value in {**old, **changes}.items() if value is not None}
    # Attributes that an older version accepted may be changed and made smaller, not larger.
    if len(merged) > max(limits.ATTRIBUTES.value, len(old)):
        raise _too_many_attributes(
            f"{len(merged)} attributes; at most {limits.ATTRIBUTES.value} are allowed"
        )
    if (size_bytes := _size_bytes(merged)) > max(limits.ATTRIBUTES_TOTAL.value, _size_bytes(old)):
        allowed = limits.ATTRIBUTES_TOTAL.value
        raise _too_many_attributes(
            f"attributes of {size_bytes:,} bytes in total; at most {allowed:,} are allowed"
        )
    return merged


def _size_bytes(attributes: Mapping[str, str]) -> int:
    return sum(len(key.encode()) + len(value.encode()) for key, value in attributes.items())


def _too_many_attributes(what: str) -> Refusal:
    message = (
        f"the resource would have {what}; try: remove some by setting them to null, or store the "
        "data elsewhere"
    )
    problem = Problem(
        path="/metadata/attributes", given=None, allowed="fewer attributes", message=message
    )
    return Refusal("InvalidBody", message, problems=[problem])


def _change_document(
    services: Services,
    kind: DocumentKind,
    actor: Actor,
    tx: Connection,
    id: str,
    document: Any,
    spec: Any,
    attributes: dict[str, str],
    now_ms: int,
) -> tuple[bytes, str]:
    if spec == document.spec and attributes == document.metadata.attributes:
        return msgspec.json.encode(document), document.etag
    if spec != document.spec:
        document.metadata.generation += 1
    document.spec = spec
    document.metadata.attributes = attributes
    document.metadata.last_updated = now_ms
    encoded, etag = etags.seal(document)
    generation = document.metadata.generation
    rows.replace(
        tx, kind.table, org=actor.org, id=id, document=encoded, etag=etag, generation=generation
    )
    _record(tx, kind, actor, id, "updated", now_ms)
    services.audit(actor, f"update {kind.name}", id)(tx)
    return encoded, etag


def _record(
    tx: Connection, kind: DocumentKind, actor: Actor, id: str, what: str, now_ms: int
) -> None:
    events.record_by(tx, actor, now_ms=now_ms, kind=kind.event_kind, target=id, what=what)
