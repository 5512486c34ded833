"""Key documents: role and expiry of each key.

Only ``IssuedKey``, sent once, contains the secret.
"""

from typing import Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata

KeyRole = Literal["viewer", "member", "admin"]


class KeySpec(Document):
    """Name, role and expiry of a key.

    ``role`` is ``viewer``, ``member`` or ``admin``; ``expires`` is epoch milliseconds, or None for
    never.
    """

    name: str = ""
    role: str = "member"
    expires: int | None = None


class KeyStatus(Document):
    """State of a key: ``Active``, ``Expired`` or ``Revoked``.

    Times are epoch milliseconds; ``last_used`` is accurate to about a minute.
    """

    state: str = "Active"
    revoked: int | None = None
    last_used: int | None = None
    created_by: str | None = None
    replaced_by: str | None = None


class Key(Document):
    """Key without its secret."""

    kind: Literal["Key"] = "Key"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    key_id: str = ""
    spec: KeySpec = msgspec.field(default_factory=KeySpec)
    status: KeyStatus = msgspec.field(default_factory=KeyStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""


class IssuedKey(Key):
    """New key with its secret, which the server does not store and cannot show again."""

    secret_key: str = ""

    def __repr__(self) -> str:
        return f"IssuedKey(key_id={self.key_id!r}, secret_key=<hidden>)"
