"""Lifecycle of keys: create, list, revoke, rotate, recover; and keeping the keyring like the store.

A change through this server is in the keyring before it is answered. A change by anybody else
(another process, a hand in the database) is found by ``refresh``, which reads all keys every
``REFRESH_BEATS`` seconds, off the event loop. Each organization keeps an admin key that does not
expire: a change that would remove the last one is refused. If it is lost, an operator with access
to the data folder can have a new one created: the file ``secrets/recover``, whatever its content,
requests an admin key in ``credentials.json``.

Rotation creates another key with the same name, role and lifetime, and lets the old one expire
after an overlap. The secret of a new key is in one response. If that is lost, nobody has it: revoke
that key and create another one.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.rundir import read_json
from runyard.security import key_format
from runyard.server.services import paging
from runyard.server.services.access.bootstrap import add_key
from runyard.server.services.access.keys import secret_mac
from runyard.server.services.access.secrets import write_private
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Problem, Refusal, not_found
from runyard.server.services.paging import PageRequest
from runyard.store import organizations
from runyard.store.access import keys as rows
from runyard.store.tables import AnyRow
from vi.api.resources.keys.responses import IssuedKey, Key, KeySpec, KeyStatus
from vi.api.responses import ResourceMetadata

log = logging.getLogger(__name__)

REFRESH_BEATS = 5
RECOVERY_FILE = "recover"
OPERATOR = "operator"


async def page(services: Services, *, org: str, page_request: PageRequest) -> bytes:
    """Return a page of keys as JSON, newest first."""

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(tx, org=org, after=after, limit=limit)

    def encode(row: AnyRow) -> bytes:
        return msgspec.json.encode(_to_document(services, row))

    return await paging.read(services, page_request, org=org, fetch=fetch, encode=encode)


def get(services: Services, *, org: str, key_id: str) -> Key:
    """Return a key.

    Raises:
        Refusal: NotFound.
    """
    return _to_document(
        services, services.store.read(lambda tx: _get_row(tx, org=org, key_id=key_id))
    )


async def create(
    services: Services, actor: Actor, *, name: str, role: str, expires: int | None
) -> IssuedKey:
    """Create a key; its secret is in what this returns and nowhere else.

    Raises:
        Refusal: InvalidBody (it would have expired already).
    """
    _check_expiry(services, expires)
    text = key_format.new_key()

    def insert_key(tx: Connection) -> AnyRow:
        new = _insert_key(services, tx, actor, text, name=name, role=role, expires=expires)
        services.audit(actor, "create key", f"{new.id} ({role})")(tx)
        return new

    row = await services.store.write(insert_key)
    services.keyring.put([row])
    return _to_issued_key(services, row, text)


async def revoke(services: Services, actor: Actor, key_id: str) -> Key:
    """Revoke a key now. One that is revoked already stays as it is.

    Raises:
        Refusal: NotFound, LastAdminKey.
    """
    now_ms = services.clock.now_ms()

    def revoke_key(tx: Connection) -> AnyRow:
        row = _get_row(tx, org=actor.org, key_id=key_id)
        if not rows.revoke(tx, org=actor.org, key_id=key_id, time_ms=now_ms):
            return row
        _check_admin_left(tx, row)
        services.audit(actor, "revoke key", key_id)(tx)
        return _get_row(tx, org=actor.org, key_id=key_id)

    row = await services.store.write(revoke_key)
    services.keyring.put([row])
    return _to_document(services, row)


async def rotate(
    services: Services, actor: Actor, key_id: str, *, overlap_ms: int, expires: int | None = None
) -> IssuedKey:
    """Create a replacement of a key, which stays valid for ``overlap_ms``.

    Without ``expires`` the new key gets the lifetime that the old one had at its creation.

    Raises:
        Refusal: NotFound, KeyEnded, InvalidBody.
    """
    _check_expiry(services, expires)
    now_ms = services.clock.now_ms()
    text = key_format.new_key()

    def replace_key(tx: Connection) -> tuple[AnyRow, AnyRow]:
        old = _get_row(tx, org=actor.org, key_id=key_id)
        if _get_state(old, now_ms) != "Active":
            raise Refusal(
                "KeyEnded",
                f"key {key_id!r} is {_get_state(old, now_ms).lower()}; try: create a new key",
            )
        # A key that is being replaced expires soon; its replacement has its original lifetime.
        like = rows.get(tx, org=actor.org, key_id=old.replaced_by or key_id) or old
        lifetime_ms = None if like.expires is None else like.expires - like.time_created
        until = expires if expires is not None or lifetime_ms is None else now_ms + lifetime_ms
        new = _insert_key(services, tx, actor, text, name=old.name, role=old.role, expires=until)
        ends = now_ms + overlap_ms if old.expires is None else min(old.expires, now_ms + overlap_ms)
        values = {"replaced_by": new.id, "expires": ends} | (
            {} if overlap_ms else {"revoked": now_ms}
        )
        rows.change(tx, org=actor.org, key_id=key_id, values=values)
        _check_admin_left(tx, old)
        services.audit(actor, "rotate key", f"{key_id} to {new.id}")(tx)
        return _get_row(tx, org=actor.org, key_id=key_id), new

    old, new = await services.store.write(replace_key)
    services.keyring.put([old, new])
    return _to_issued_key(services, new, text)


async def refresh(services: Services) -> None:
    """Read the keys that others changed in the store, and handle the recovery file."""
    try:
        await recover(services)
    except OSError as error:
        log.error("no admin key could be written to the credentials file: %s", error)
    version = services.keyring.version
    found = await services.store.read_in_thread(rows.list_all)
    # Else these rows may be older than what the keyring holds.
    if services.keyring.version == version:
        services.keyring.replace_all(found)


async def write_usage(services: Services) -> None:
    """Store when keys were last used, and which were rejected."""
    used = services.keyring.used_ms
    if used:
        await services.store.write(lambda tx: rows.set_last_used(tx, used))
        services.keyring.forget_used(used)
    await services.wrong_keys.write(services.store)


async def recover(services: Services) -> None:
    """Ensure that ``credentials.json`` holds a valid admin key, if the recovery file exists.

    Then remove the file. The credentials are written before the row, as at the first start: a crash
    in between leaves a key that the next call adopts, never a row with an unknown secret.
    """
    marker = services.settings.secrets_dir / RECOVERY_FILE
    if not marker.exists():
        return
    org = services.store.read(organizations.list_ids)[0]
    file, now_ms = services.settings.credentials_file, services.clock.now_ms()
    document = read_json(file) or {}
    parts = key_format.parse(str(document.get("secret_key")))
    known = {row.id: row for row in services.store.read(rows.list_all)}
    row = known.get(parts.key_id) if parts else None
    if parts is None or (row is not None and not _is_permanent_admin(services, row, parts, org)):
        document |= {"organization_id": org, "secret_key": key_format.new_key()}
        write_private(file, json.dumps({"endpoint": "", **document}, indent=2) + "\n")
        row = None
    if row is None:
        actor = Actor(org=org, name=OPERATOR, role="admin", address="")

        def insert_recovered_key(tx: Connection) -> str:
            key_id = add_key(
                tx,
                document["secret_key"],
                services.pepper,
                org=org,
                role="admin",
                name="recovered key",
                now_ms=now_ms,
                created_by=OPERATOR,
            )
            services.audit(actor, "recover key", key_id)(tx)
            return key_id

        key_id = await services.store.write(insert_recovered_key)
        services.keyring.put([services.store.read(lambda tx: _get_row(tx, org=org, key_id=key_id))])
        log.warning("created admin key %s, as %s requests; it is in %s", key_id, marker, file)
    marker.unlink(missing_ok=True)


def _insert_key(
    services: Services,
    tx: Connection,
    actor: Actor,
    text: str,
    *,
    name: str,
    role: str,
    expires: int | None,
) -> AnyRow:
    key_id = add_key(
        tx,
        text,
        services.pepper,
        org=actor.org,
        role=role,
        name=name,
        now_ms=services.clock.now_ms(),
        created_by=actor.name,
        expires=expires,
    )
    return _get_row(tx, org=actor.org, key_id=key_id)


def _get_row(tx: Connection, *, org: str, key_id: str) -> AnyRow:
    row = rows.get(tx, org=org, key_id=key_id)
    if row is None:
        raise not_found("key", key_id)
    return row


def _check_expiry(services: Services, expires: int | None) -> None:
    now_ms = services.clock.now_ms()
    if expires is not None and expires <= now_ms:
        message = (
            f"/spec/expires is {expires}, which is in the past (now: {now_ms}); give a later time "
            "in epoch milliseconds"
        )
        problem = Problem(
            path="/spec/expires", given=expires, allowed=f"more than {now_ms}", message=message
        )
        raise Refusal("InvalidBody", message, problems=[problem])


def _check_admin_left(tx: Connection, changed: AnyRow) -> None:
    """Check that a change of an admin key leaves the organization with one that does not expire."""
    if changed.role == "admin" and rows.count_permanent_admins(tx, org=changed.org) == 0:
        raise Refusal(
            "LastAdminKey",
            f"key {changed.id!r} is the last admin key that does not expire, and without one no "
            "key could be managed; try: create another admin key first",
        )


def _is_permanent_admin(
    services: Services, row: AnyRow, parts: key_format.KeyParts, org: str
) -> bool:
    is_right = bytes(row.secret_mac) == secret_mac(services.pepper, parts.secret)
    return (
        is_right
        and row.org == org
        and row.role == "admin"
        and row.revoked is None
        and row.expires is None
    )


def _get_state(row: AnyRow, now_ms: int) -> str:
    if row.revoked is not None:
        return "Revoked"
    return "Active" if row.expires is None or now_ms < row.expires else "Expired"


def _to_document(services: Services, row: AnyRow) -> Key:
    return Key(**_build_fields(services, row))


def _to_issued_key(services: Services, row: AnyRow, text: str) -> IssuedKey:
    return IssuedKey(**_build_fields(services, row), secret_key=text)


def _build_fields(services: Services, row: AnyRow) -> dict[str, Any]:
    used = (row.last_used, services.keyring.last_used(row.id))
    return {
        "organization_id": row.org,
        "key_id": row.id,
        "spec": KeySpec(name=row.name, role=row.role, expires=row.expires),
        "status": KeyStatus(
            state=_get_state(row, services.clock.now_ms()),
            revoked=row.revoked,
            last_used=max((time_ms for time_ms in used if time_ms is not None), default=None),
            created_by=row.created_by,
            replaced_by=row.replaced_by,
        ),
        "metadata": ResourceMetadata(
            time_created=row.time_created, last_updated=row.revoked or row.time_created
        ),
        "self_link": f"/workspaces/{row.org}/keys/{row.id}",
    }
