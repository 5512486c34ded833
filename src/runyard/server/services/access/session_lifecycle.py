"""Lifecycle of browser sessions: one-time codes, sign-in, lookup, list, revocation.

A key makes codes, and each code begins one session, within ``CODE_MS``. Both are rows, so that they
survive a restart.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.security.key_format import generate_characters
from runyard.server.services import paging
from runyard.server.services.access.keys import Rejection, StoredKey
from runyard.server.services.access.sessions import (
    CODE_MS,
    MOST_PER_KEY,
    SESSION_MS,
    Session,
    from_row,
    is_secret,
    new_secret,
    secret_mac,
)
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.paging import PageRequest
from runyard.store.access import sessions as rows
from runyard.store.tables import AnyRow
from vi.api.resources.sessions.responses import BrowserSession
from vi.api.responses import ResourceMetadata

MAX_AGENT_LENGTH = 300
INVALID_CODE = "invalid sign-in code"


async def create_code(services: Services, actor: Actor, key_id: str) -> tuple[str, int]:
    """Create a one-time code; return it, and when it expires.

    Raises:
        Refusal: TooManyRequests; the key has ``MOST_PER_KEY`` unused codes.
    """
    code = new_secret()
    now_ms = services.clock.now_ms()
    expires = now_ms + CODE_MS

    def insert_code(tx: Connection) -> None:
        rows.remove_ended(tx, now_ms=now_ms)
        if rows.count_codes(tx, org=actor.org, key_id=key_id) >= MOST_PER_KEY:
            raise Refusal(
                "TooManyRequests",
                f"this key has {MOST_PER_KEY} unused codes; try: use one, or wait ten minutes",
                retry_after_s=CODE_MS // 1000,
            )
        mac = secret_mac(services.pepper, "code", code)
        rows.add_code(tx, secret_mac=mac, org=actor.org, key_id=key_id, expires=expires)
        services.audit(actor, "create sign-in code", f"key {key_id}")(tx)

    await services.store.write(insert_code)
    return code, expires


async def begin_with_key(
    services: Services, key_text: str, *, address: str, agent: str
) -> tuple[str, Session]:
    """Begin a session with a key; return its secret, and the session.

    Raises:
        Refusal: Unauthorized, TooManyRequests.
    """
    key = services.keyring.find(key_text, now_ms=services.clock.now_ms())
    if key is None or key.org is None:
        raise _reject(services, address, services.keyring.explain(key_text))
    return await _begin(services, key, address=address, agent=agent, code_mac=None)


async def begin_with_code(
    services: Services, code: str, *, address: str, agent: str
) -> tuple[str, Session]:
    """Begin a session with a one-time code; return its secret, and the session.

    Raises:
        Refusal: InvalidCode, TooManyRequests.
    """
    mac = secret_mac(services.pepper, "code", code)
    now_ms = services.clock.now_ms()
    row = None
    if is_secret(code):
        row = await services.store.read_in_thread(lambda tx: rows.find_code(tx, secret_mac=mac))
    key = None if row is None else services.keyring.get(row.key_id, now_ms=now_ms)
    if row is None or key is None or row.expires <= now_ms:
        refusal = _reject(services, address, Rejection(org=None, key_id=None, reason=INVALID_CODE))
        raise refusal if refusal.code == "TooManyRequests" else _invalid_code()
    return await _begin(services, key, address=address, agent=agent, code_mac=mac)


async def find(services: Services, secret: str) -> Session | None:
    """Return the session of a cookie's value if it is valid now; None if not."""
    session = await _read(services, secret_mac(services.pepper, "session", secret))
    if session is None or not is_valid(services, session):
        return None
    services.sessions.note_use(session, services.clock.now_ms())
    return session


def is_valid(services: Services, session: Session) -> bool:
    """Return whether a session has neither ended nor expired, and its key is valid.

    What another server ended counts after the next ``recheck``.
    """
    now_ms = services.clock.now_ms()
    return (
        now_ms < session.expires
        and not services.sessions.has_ended(session.id)
        and services.keyring.is_valid(session.key_id, now_ms=now_ms)
    )


async def recheck(services: Services, session: Session) -> bool:
    """Return whether a session is still valid, by the store if that was not read lately."""
    return await _read(services, session.mac) is not None and is_valid(services, session)


async def _read(services: Services, mac: bytes) -> Session | None:
    session, is_fresh = services.sessions.get(mac, now_s=services.clock.monotonic_s())
    if not is_fresh:
        row = await services.store.read_in_thread(lambda tx: rows.find(tx, secret_mac=mac))
        session = None if row is None else from_row(row)
        services.sessions.put(mac, session, now_s=services.clock.monotonic_s())
    return session


async def page(services: Services, *, org: str, page_request: PageRequest) -> bytes:
    """Return a page of the sessions under way as JSON, newest first."""
    await write_usage(services)
    now_ms = services.clock.now_ms()

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(tx, org=org, now_ms=now_ms, after=after, limit=limit)

    def encode(row: AnyRow) -> bytes:
        return msgspec.json.encode(_to_document(row))

    return await paging.read(services, page_request, org=org, fetch=fetch, encode=encode)


async def revoke(services: Services, actor: Actor, session_id: str) -> None:
    """End a session now.

    Raises:
        Refusal: NotFound.
    """

    def remove_session(tx: Connection) -> None:
        if not rows.remove(tx, org=actor.org, session_id=session_id):
            raise not_found("session", session_id)
        services.audit(actor, "end session", session_id)(tx)

    await services.store.write(remove_session)
    services.sessions.forget(session_id)


async def write_usage(services: Services) -> None:
    """Store when sessions were last used."""
    used = services.sessions.take_used()
    if used:
        await services.store.write(lambda tx: rows.set_last_used(tx, used))


async def sweep(services: Services) -> None:
    """Store when sessions were last used, and remove what has expired."""
    await write_usage(services)
    now_ms = services.clock.now_ms()
    if await services.store.read_in_thread(lambda tx: rows.has_ended(tx, now_ms=now_ms)):
        await services.store.write(lambda tx: rows.remove_ended(tx, now_ms=now_ms))


async def _begin(
    services: Services, key: StoredKey, *, address: str, agent: str, code_mac: bytes | None
) -> tuple[str, Session]:
    assert key.org is not None  # noqa: S101 - only keys of organizations begin sessions
    secret, now_ms = new_secret(), services.clock.now_ms()
    mac = secret_mac(services.pepper, "session", secret)
    session = Session(
        id=generate_characters(16),
        mac=mac,
        org=key.org,
        key_id=key.id,
        expires=min(now_ms + SESSION_MS, key.expires or 2**62),
    )
    actor = Actor(org=key.org, name=f"key {key.id}", role=key.role, address=address)

    def insert_session(tx: Connection) -> None:
        if code_mac is not None and not rows.take_code(tx, secret_mac=code_mac):
            raise _invalid_code()  # somebody else took it meanwhile
        rows.add(
            tx,
            {
                "id": session.id,
                "secret_mac": mac,
                "org": session.org,
                "key_id": session.key_id,
                "time_created": now_ms,
                "expires": session.expires,
                "last_used": now_ms,
                "address": address,
                "agent": limits.clean_text(agent[:MAX_AGENT_LENGTH]),
            },
        )
        rows.remove_oldest(tx, org=session.org, key_id=session.key_id, kept=MOST_PER_KEY)
        services.audit(actor, "begin session", session.id)(tx)

    await services.store.write(insert_session)
    services.sessions.put(mac, session, now_s=services.clock.monotonic_s())
    return secret, session


def _invalid_code() -> Refusal:
    return Refusal(
        "InvalidCode",
        "this link is invalid, has expired or has been used; try: runyard open, which makes "
        "another one",
    )


def _reject(services: Services, address: str, rejection: Rejection) -> Refusal:
    clock = services.clock
    return services.wrong_keys.reject(
        address, rejection, now_ms=clock.now_ms(), now_s=clock.monotonic_s()
    )


def _to_document(row: AnyRow) -> BrowserSession:
    return BrowserSession(
        organization_id=row.org,
        session_id=row.id,
        key_id=row.key_id,
        expires=row.expires,
        last_used=row.last_used,
        address=row.address,
        agent=row.agent,
        metadata=ResourceMetadata(time_created=row.time_created, last_updated=row.last_used),
        self_link=f"/workspaces/{row.org}/sessions/{row.id}",
    )
