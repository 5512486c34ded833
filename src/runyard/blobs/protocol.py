"""The seam between the server and wherever bytes are kept.

A blob is named by the SHA-256 of its content and by nothing else, so it can be stored once for many owners, never
changes, and no caller's name ever becomes a path. The embedded store is a folder; an object store has the same
methods. Every method may block: asynchronous callers use a thread.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol


class Upload(Protocol):
    """One blob on its way in."""

    def write(self, chunk: bytes) -> None:
        """Take the next bytes; raises BlobMismatch as soon as more come than were announced."""
        ...


class Blobs(Protocol):
    """Bytes by content hash."""

    def put(self, stream: BinaryIO, *, sha256: str, size_bytes: int) -> None:
        """Store what the stream holds; when this returns it survives a loss of power. Raises BlobMismatch."""
        ...

    def receive(self, *, sha256: str, size_bytes: int) -> AbstractContextManager[Upload]:
        """As ``put``, fed by ``write``: leaving the block stores the blob, an error inside it leaves nothing."""
        ...

    def has(self, sha256: str) -> bool:
        """Whether something is stored under this hash."""
        ...

    def size_bytes(self, sha256: str) -> int:
        """Length of a blob. Raises BlobMissing."""
        ...

    def open(self, sha256: str) -> BinaryIO:
        """A seekable reader; each read raises BlobDamaged rather than return bytes that changed at rest."""
        ...

    def verify(self, sha256: str) -> bool:
        """Read the whole blob and say whether it still has its hash. Raises BlobMissing."""
        ...

    def delete(self, sha256: str) -> None:
        """Remove a blob; one that is not there is no error, so a half-done deletion can be repeated.

        Raises BlobHeld.
        """
        ...

    def hashes(self) -> Iterator[str]:
        """Every stored hash, in no particular order."""
        ...
