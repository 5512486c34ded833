"""Sessions of browsers: their secrets, their cookies' names, and the ones in memory.

A session begins with a key or with a one-time code that was made with one. It acts as that key, so
it ends with it, and at the latest after ``SESSION_MS``. The store keeps a keyed hash of each
secret. Each server remembers the sessions that it has read for ``RECHECK_S``, and so notices within
that time what another server ended; what it ends itself is forgotten at once.
"""

import hmac
import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

SESSION_MS = 12 * 3600 * 1000
CODE_MS = 10 * 60 * 1000
RECHECK_S = 10.0
SECRET_BYTES = 32
MOST_REMEMBERED = 10_000
MOST_PER_KEY = 100
COOKIE_PREFIX, SECURE_PREFIX = "runyard_", "__Host-"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")  # what ``new_secret`` returns


@dataclass(frozen=True, kw_only=True)
class Session:
    """A browser that is signed in."""

    id: str
    mac: bytes
    org: str
    key_id: str
    expires: int


def new_secret() -> str:
    """Generate the secret of a session or of a one-time code."""
    return secrets.token_urlsafe(SECRET_BYTES)


def is_secret(text: str) -> bool:
    """Return whether a text has the form of a secret."""
    return _SECRET.fullmatch(text) is not None


def secret_mac(pepper: bytes, purpose: str, secret: str) -> bytes:
    """Return what is stored in place of a secret; ``purpose`` is ``session`` or ``code``."""
    return hmac.digest(pepper, f"{purpose}\0{secret}".encode(), "sha256")


def name_cookie(org: str, *, is_secure: bool) -> str:
    """Return the name of an organization's cookie.

    It names the organization since cookies ignore ports: two instances may share a host. Under TLS
    the prefix ``__Host-`` keeps other hosts of the domain from setting it.
    """
    return f"{SECURE_PREFIX if is_secure else ''}{COOKIE_PREFIX}{org}"


def parse_cookies(header: str, *, is_secure: bool) -> dict[str, str]:
    """Return the secrets in a Cookie header, by organization."""
    prefix = name_cookie("", is_secure=is_secure)
    found: dict[str, str] = {}
    for part in header.split(";"):
        name, separator, value = part.strip().partition("=")
        if separator and name.startswith(prefix) and is_secret(value):
            found.setdefault(name.removeprefix(prefix), value)
    return found


class SessionCache:
    """Sessions in memory by the hash of their secret; belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[Session | None, float]] = OrderedDict()
        self._used_ms: dict[str, int] = {}
        # Those that ended while requests of theirs were in progress.
        self._ended: OrderedDict[str, None] = OrderedDict()

    def put(self, mac: bytes, session: Session | None, *, now_s: float) -> None:
        """Remember what the store says of a secret; None for one that is unknown."""
        known, _ = self._known.get(mac, (None, 0.0))
        if known is not None and session is None:
            self._end(known.id)
        self._known[mac] = (session, now_s)
        self._known.move_to_end(mac)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)

    def get(self, mac: bytes, *, now_s: float) -> tuple[Session | None, bool]:
        """Return the session of a secret as far as known, and whether that is fresh."""
        session, read_s = self._known.get(mac, (None, float("-inf")))
        return session, now_s - read_s < RECHECK_S

    def forget(self, session_id: str) -> None:
        """Forget a session that has ended."""
        for mac, (session, _) in list(self._known.items()):
            if session is not None and session.id == session_id:
                del self._known[mac]
        self._end(session_id)

    def clear(self) -> None:
        """End all: the store was replaced, and a restore brings no sessions."""
        for session, _ in self._known.values():
            if session is not None:
                self._end(session.id)
        self._known.clear()

    def has_ended(self, session_id: str) -> bool:
        """Return whether a session that was found earlier was ended."""
        return session_id in self._ended

    def note_use(self, session: Session, now_ms: int) -> None:
        self._used_ms[session.id] = now_ms

    def take_used(self) -> dict[str, int]:
        """Return when sessions were last used, by id, and forget it."""
        used, self._used_ms = self._used_ms, {}
        return used

    def _end(self, session_id: str) -> None:
        self._used_ms.pop(session_id, None)
        self._ended[session_id] = None
        if len(self._ended) > MOST_REMEMBERED:
            self._ended.popitem(last=False)


def from_row(row: Any) -> Session:
    return Session(
        id=row.id,
        mac=bytes(row.secret_mac),
        org=row.org,
        key_id=row.key_id,
        expires=row.expires,
    )
