"""Session documents: browsers that are signed in."""

from typing import Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata


class BrowserSession(Document):
    """A browser that is signed in, and acts as the key with which it signed in.

    ``expires`` and ``last_used`` are epoch milliseconds; ``last_used`` is accurate to about a
    minute. ``agent`` is what the browser calls itself.
    """

    kind: Literal["Session"] = "Session"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    session_id: str = ""
    key_id: str = ""
    expires: int = 0
    last_used: int = 0
    address: str = ""
    agent: str = ""
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""


class SignInCode(Document):
    """One-time code as the server makes it."""

    code: str = ""
    path: str = ""
    expires: int = 0

    def __repr__(self) -> str:
        return f"SignInCode(code=<hidden>, expires={self.expires})"


class SignInLink(Document):
    """Link that signs one browser in, once; ``expires`` is epoch milliseconds."""

    url: str = ""
    expires: int = 0

    def __repr__(self) -> str:
        return f"SignInLink(url=<hidden>, expires={self.expires})"
