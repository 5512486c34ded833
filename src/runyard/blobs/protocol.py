"""The port between the server and the storage of blobs.

A blob is named only by the SHA-256 of its content. So it can be stored once for many owners, never
changes, and no name from a caller becomes a path. The embedded store is a folder; an object store
has the same methods. Every method may block: asynchronous callers use a thread.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol


class Upload(Protocol):
    """One blob that is being received."""

    def write(self, chunk: bytes) -> None:
        """Write the next bytes; raise BlobMismatch as soon as there are more than announced."""
        ...


class Blobs(Protocol):
    """Bytes by content hash."""

    def put(self, stream: BinaryIO, *, sha256: str, size_bytes: int) -> None:
        """Store a stream durably. Raises BlobMismatch."""
        ...

    def receive(self, *, sha256: str, size_bytes: int) -> AbstractContextManager[Upload]:
        """Receive a blob by ``write``; leaving the block stores it unless an error occurred."""
        ...

    def has(self, sha256: str) -> bool:
        """Return whether a blob with this hash is stored."""
        ...

    def size_bytes(self, sha256: str) -> int:
        """Return the length of a blob. Raises BlobMissing."""
        ...

    def open(self, sha256: str) -> BinaryIO:
        """Return a seekable reader; a read of changed bytes raises BlobDamaged."""
        ...

    def verify(self, sha256: str) -> bool:
        """Read the whole blob; return whether it still has its hash. Raises BlobMissing."""
        ...

    def delete(self, sha256: str) -> None:
        """Remove a blob; a missing one is no error, so that a deletion can be repeated.

        Raises BlobHeld.
        """
        ...

    def hashes(self) -> Iterator[str]:
        """Yield every stored hash, in no particular order."""
        ...
