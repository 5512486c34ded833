"""Secret keys: how they are made, checked and kept.

A key is ``dtvi_`` + version (2) + key id (16) + secret (74) + checksum (6), 103 characters of base 62 after the prefix;
the published client accepts nothing else. The checksum refuses a mistyped key without a look at any store. Kept is the
HMAC of the secret under a pepper that lies outside the database, so a stolen database holds no usable key. A fast hash
is right here, since the secret has more than 400 random bits: there is nothing to guess.
"""

import hmac
import secrets
import string
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX = "dtvi_"
VERSION = "01"
ID_LENGTH, SECRET_LENGTH, CHECKSUM_LENGTH = 16, 74, 6
LENGTH = len(PREFIX) + len(VERSION) + ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH

# Every role and what it may do; the controller's key opens its own routes and nothing else.
ROLES = {"viewer": "read", "member": "read and change", "admin": "read and change", "controller": "claim attempts"}


@dataclass(frozen=True)
class KeyParts:
    """A well-formed key taken apart."""

    key_id: str
    secret: str


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as the store knows it."""

    id: str
    org: str | None
    role: str
    secret_mac: bytes
    expires: int | None
    revoked: int | None


def new_key() -> str:
    """A fresh key. The caller shows it once and stores only ``secret_mac``."""
    body = VERSION + _random(ID_LENGTH) + _random(SECRET_LENGTH)
    return PREFIX + body + _checksum(body)


def parse(key: str) -> KeyParts | None:
    """The parts of a well-formed key; None for anything else."""
    if len(key) != LENGTH or not key.startswith(PREFIX) or not key.isascii():
        return None
    body, checksum = key[len(PREFIX) : -CHECKSUM_LENGTH], key[-CHECKSUM_LENGTH:]
    if not hmac.compare_digest(checksum, _checksum(body)):
        return None
    start = len(VERSION)
    return KeyParts(key_id=body[start : start + ID_LENGTH], secret=body[start + ID_LENGTH :])


def secret_mac(pepper: bytes, secret: str) -> bytes:
    """What is stored in place of a secret."""
    return hmac.digest(pepper, secret.encode(), "sha256")


class Keyring:
    """All keys in memory, since every request asks; filled at start, changed with the store."""

    def __init__(self, pepper: bytes, rows: Iterable[Any]) -> None:
        self._pepper = pepper
        self._keys: dict[str, Key] = {}
        # Compared with when the id is unknown, so that both wrong answers take the same time.
        self._nobody = secret_mac(pepper, "nobody")
        for row in rows:
            self.add(
                Key(
                    id=row.id,
                    org=row.org,
                    role=row.role,
                    secret_mac=bytes(row.secret_mac),
                    expires=row.expires,
                    revoked=row.revoked,
                )
            )

    def add(self, key: Key) -> None:
        self._keys[key.id] = key

    def find(self, text: str, *, now_ms: int) -> Key | None:
        """The key that ``text`` is, if it is a good one now."""
        parts = parse(text)
        if parts is None:
            return None
        key = self._keys.get(parts.key_id)
        known = key.secret_mac if key else self._nobody
        is_right = hmac.compare_digest(known, secret_mac(self._pepper, parts.secret))
        if key is None or not is_right or key.revoked is not None:
            return None
        return None if key.expires is not None and key.expires <= now_ms else key


def _random(length: int) -> str:
    return "".join(secrets.choice(BASE62) for _ in range(length))


def _checksum(body: str) -> str:
    value = zlib.crc32(body.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        value, digit = divmod(value, 62)
        digits = BASE62[digit] + digits
    return digits
