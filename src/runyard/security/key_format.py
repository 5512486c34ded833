"""The format of secret keys, and their generation.

A key is ``dtvi_`` + version (2) + key id (16) + secret (74) + checksum (6), 103 characters of base
62 after the prefix; the published client accepts nothing else. The checksum rejects a mistyped key
without reading the store.
"""

import hmac
import secrets
import string
import zlib
from dataclasses import dataclass

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX = "dtvi_"
VERSION = "01"
ID_LENGTH, SECRET_LENGTH, CHECKSUM_LENGTH = 16, 74, 6
LENGTH = len(PREFIX) + len(VERSION) + ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH


@dataclass(frozen=True)
class KeyParts:
    """The parts of a well-formed key."""

    key_id: str
    secret: str


def new_key() -> str:
    """Generate a key. Its secret exists in clear only where the caller puts it."""
    body = VERSION + generate_characters(ID_LENGTH) + generate_characters(SECRET_LENGTH)
    return PREFIX + body + _compute_checksum(body)


def parse(key: str) -> KeyParts | None:
    """Return the parts of a well-formed key; None for anything else."""
    if len(key) != LENGTH or not key.startswith(PREFIX) or not key.isascii():
        return None
    body, checksum = key[len(PREFIX) : -CHECKSUM_LENGTH], key[-CHECKSUM_LENGTH:]
    if not hmac.compare_digest(checksum, _compute_checksum(body)):
        return None
    start = len(VERSION)
    return KeyParts(key_id=body[start : start + ID_LENGTH], secret=body[start + ID_LENGTH :])


def generate_characters(length: int) -> str:
    """Return random characters of base 62, for ids and secrets."""
    return "".join(secrets.choice(BASE62) for _ in range(length))


def _compute_checksum(body: str) -> str:
    value = zlib.crc32(body.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        value, digit = divmod(value, 62)
        digits = BASE62[digit] + digits
    return digits
