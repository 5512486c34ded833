"""Entity tags: a hash of what users may change, so that ``If-Match`` detects other users' writes
only.

What the platform writes (``status``, counts, the time of the last change) is left out. A run that
trains changes several times a second, and nobody could change its attributes with a tag read a
moment before. A tag that an older version stored, computed over the whole document, stays valid
until the next write.
"""

import functools
import hashlib
from typing import Any

import msgspec

from runyard.server.services.errors import Refusal
from vi.api.resources.datasets.responses import Dataset

# Fields that only the platform writes. Every document has these two; a dataset also has counts.
_PLATFORM = frozenset({"status", "etag"})
_PLATFORM_OF: dict[type[Any], frozenset[str]] = {
    Dataset: _PLATFORM | {"statistic", "size_bytes", "version", "last_accessed"}
}


def seal(document: Any) -> tuple[bytes, str]:
    """Encode a document with its own etag inside; return (JSON, etag)."""
    kind: Any = type(document)
    part = {name: getattr(document, name) for name in _list_user_fields(kind)}
    part["metadata"] = msgspec.structs.replace(document.metadata, last_updated=0)
    document.etag = hashlib.blake2b(msgspec.json.encode(part), digest_size=8).hexdigest()
    return msgspec.json.encode(document), document.etag


@functools.cache
def _list_user_fields(kind: Any) -> tuple[str, ...]:
    """Return the names of the fields that users may change.

    Cached: listing the fields of a struct takes longer than encoding it.
    """
    platform = _PLATFORM_OF.get(kind, _PLATFORM)
    return tuple(field.name for field in msgspec.structs.fields(kind) if field.name not in platform)


def check(if_match: str | None, etag: str) -> None:
    """Check that the caller's ``If-Match`` still holds.

    Raises:
        Refusal: EtagMismatch.
    """
    if if_match is None or if_match.strip() == "*":
        return
    given = [part.strip().removeprefix("W/").strip('"') for part in if_match.split(",")]
    if etag not in given:
        raise Refusal(
            "EtagMismatch",
            f'the resource is at etag "{etag}" now, not {if_match[:80]}; try: read it again, then '
            "repeat",
        )
