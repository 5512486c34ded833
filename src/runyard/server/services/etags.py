"""Entity tags: a hash of the document, so that a write that changes nothing keeps the tag."""

import hashlib
from typing import Any

import msgspec

from runyard.server.services.errors import Refusal


def sealed(document: Any) -> tuple[bytes, str]:
    """Encode a document with its own etag inside; returns (JSON, etag)."""
    document.etag = ""
    document.etag = hashlib.blake2b(msgspec.json.encode(document), digest_size=8).hexdigest()
    return msgspec.json.encode(document), document.etag


def check(if_match: str | None, etag: str) -> None:
    """Refuse unless the caller's ``If-Match`` still holds.

    Raises:
        Refusal: EtagMismatch.
    """
    if if_match is None or if_match.strip() == "*":
        return
    given = [part.strip().removeprefix("W/").strip('"') for part in if_match.split(",")]
    if etag not in given:
        raise Refusal(
            "EtagMismatch",
            f'the resource is at etag "{etag}" now, not {if_match[:80]}; read it again, then repeat',
        )
