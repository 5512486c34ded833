"""Secret keys: roles, verification, and the keyring in memory.

What is stored of a key is the HMAC of its secret under a pepper outside the database, so a stolen
database holds no usable key. A fast hash is sufficient, since the secret has more than 400 random
bits: there is nothing to guess.
"""

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runyard.security.key_format import KeyParts, parse

# Every role with its permissions. Each of the first three includes those before it.
# The keys of controllers are only valid for their own routes: that of the instance, and those of
# machines that have joined.
ROLES = {
    "viewer": "read",
    "member": "read and change",
    "admin": "read and change, manage keys and storage, read the audit log",
    "controller": "claim attempts",
    "machine": "claim attempts for one machine",
}
_RANKS = {"viewer": 0, "member": 1, "admin": 2}


def role_allows(role: str, minimum: str) -> bool:
    """Return whether a role includes another one."""
    return _RANKS.get(role, -1) >= _RANKS[minimum]


@dataclass(frozen=True, kw_only=True)
class StoredKey:
    """A key as the store knows it."""

    id: str
    org: str | None
    role: str
    secret_mac: bytes
    expires: int | None
    revoked: int | None

    def is_valid(self, now_ms: int) -> bool:
        return self.revoked is None and (self.expires is None or now_ms < self.expires)


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """The reason why a credential is invalid, and the key it names.

    It contains no part of the secret.
    """

    org: str | None
    key_id: str | None
    reason: str

    @property
    def target(self) -> str:
        return self.reason if self.key_id is None else f"key {self.key_id}: {self.reason}"


def secret_mac(pepper: bytes, secret: str) -> bytes:
    """Return what is stored in place of a secret."""
    return hmac.digest(pepper, secret.encode(), "sha256")


class Keyring:
    """All keys in memory, since every request needs them; filled at start, changed with the store.

    ``version`` counts the changes, so that rows read before one do not undo it. Belongs to the
    event loop's thread.
    """

    def __init__(self, pepper: bytes, rows: Iterable[Any]) -> None:
        self._pepper = pepper
        self._keys: dict[str, StoredKey] = {}
        self._used_ms: dict[str, int] = {}
        self.version = 0
        # Compared with when the id is unknown, so that both wrong answers take the same time.
        self._nobody = secret_mac(pepper, "nobody")
        self.replace_all(rows)

    def replace_all(self, rows: Iterable[Any]) -> None:
        """Replace all keys by those of these rows."""
        self._keys = {row.id: _from_row(row) for row in rows}
        self.version += 1

    def put(self, rows: Iterable[Any]) -> None:
        """Add or change the keys of these rows."""
        for row in rows:
            self.add(_from_row(row))

    def add(self, key: StoredKey) -> None:
        self._keys[key.id] = key
        self.version += 1

    def find(self, text: str, *, now_ms: int) -> StoredKey | None:
        """Return the key of the credential ``text``, if it is valid now."""
        parts = parse(text)
        if parts is None:
            return None
        key, is_right = self._compare(parts)
        if key is None or not is_right or not key.is_valid(now_ms):
            return None
        self._used_ms[key.id] = now_ms
        return key

    def is_valid(self, key_id: str, *, now_ms: int) -> bool:
        """Return whether a key that was found earlier is still valid."""
        key = self._keys.get(key_id)
        return key is not None and key.is_valid(now_ms)

    def get(self, key_id: str, *, now_ms: int) -> StoredKey | None:
        """Return a key by its id if it is still valid."""
        key = self._keys.get(key_id)
        return key if key is not None and key.is_valid(now_ms) else None

    def explain(self, text: str) -> Rejection:
        """Return why ``find`` found nothing, for the audit log; never shown to the sender."""
        if not text:
            return Rejection(org=None, key_id=None, reason="no key")
        parts = parse(text)
        if parts is None:
            return Rejection(org=None, key_id=None, reason="malformed key")
        key, is_right = self._compare(parts)
        if key is None:
            return Rejection(org=None, key_id=parts.key_id, reason="unknown")
        ended = "revoked" if key.revoked is not None else "expired"
        return Rejection(org=key.org, key_id=key.id, reason=ended if is_right else "wrong secret")

    def _compare(self, parts: KeyParts) -> tuple[StoredKey | None, bool]:
        """Return the key of an id, and whether the secret is its own.

        An unknown id takes as much time as a known one.
        """
        key = self._keys.get(parts.key_id)
        known = key.secret_mac if key else self._nobody
        return key, hmac.compare_digest(known, secret_mac(self._pepper, parts.secret))

    @property
    def used_ms(self) -> dict[str, int]:
        """Return when keys were last used, by id, as far as that has not been stored."""
        return dict(self._used_ms)

    def last_used(self, key_id: str) -> int | None:
        """Return when a key was last used, as far as that has not been stored."""
        return self._used_ms.get(key_id)

    def forget_used(self, written_ms: Mapping[str, int]) -> None:
        """Forget uses that have been stored; later ones stay."""
        for key_id, time_ms in written_ms.items():
            if self._used_ms.get(key_id) == time_ms:
                del self._used_ms[key_id]


def _from_row(row: Any) -> StoredKey:
    return StoredKey(
        id=row.id,
        org=row.org,
        role=row.role,
        secret_mac=bytes(row.secret_mac),
        expires=row.expires,
        revoked=row.revoked,
    )
