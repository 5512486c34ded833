"""Keys on the wire: who may do what, until when. The secret is in ``IssuedKey`` alone, which is sent once."""

from typing import Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata

KeyRole = Literal["viewer", "member", "admin"]


class KeySpec(Document):
    """``role`` is ``viewer``, ``member`` or ``admin``; ``expires`` in epoch milliseconds, None for never."""

    name: str = ""
    role: str = "member"
    expires: int | None = None


class KeyStatus(Document):
    """``state`` is ``Active``, ``Expired`` or ``Revoked``; ``last_used`` is accurate to about a minute."""

    state: str = "Active"
    revoked: int | None = None
    last_used: int | None = None
    created_by: str | None = None
    replaced_by: str | None = None


class Key(Document):
    """A key without its secret."""

    kind: Literal["Key"] = "Key"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    key_id: str = ""
    spec: KeySpec = msgspec.field(default_factory=KeySpec)
    status: KeyStatus = msgspec.field(default_factory=KeyStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""


class IssuedKey(Key):
    """A new key with its secret, which the server does not keep and cannot show again."""

    secret_key: str = ""

    def __repr__(self) -> str:
        return f"IssuedKey(key_id={self.key_id!r}, secret_key=<hidden>)"
