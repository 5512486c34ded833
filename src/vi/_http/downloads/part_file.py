"""Partial file of a download, kept on disk across retries and processes."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from vi.errors import ViDownloadError

try:
    import fcntl
except ImportError:  # no file locks on this platform; the final hash still verifies the bytes
    fcntl = None  # type: ignore[assignment]

_CHUNK_BYTES = 1 << 20


class PartFile:
    """Contiguous bytes from the start of a download, hashed as they are written.

    ``identity`` identifies the exact content, such as by its hash. A partial file on disk is
    resumed only if its identity and size match; without an identity every download starts at zero.
    """

    def __init__(self, target: Path, *, identity: str | None, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.offset = 0
        self.was_resumed = False
        self._target = target
        self._path = target.with_name(target.name + ".part")
        self._state_path = target.with_name(target.name + ".part.json")
        self._state = {"identity": identity, "sizeBytes": size_bytes}
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._file = self._path.open("a+b")
        self._lock()
        if self._matches_state():
            self._hash_existing_bytes()
        else:
            self.restart()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def is_whole(self) -> bool:
        return self.offset == self.size_bytes

    def restart(self) -> None:
        """Discard all bytes and start at zero."""
        self._open_file.truncate(0)
        self._hash = hashlib.sha256()
        self.offset, self.was_resumed = 0, False
        # Written after the truncation: after a crash in between, no state describes foreign bytes.
        self._state_path.write_text(json.dumps(self._state), "utf-8")

    def write(self, chunk: bytes) -> None:
        """Append the next bytes.

        Raises:
            ViDownloadError: The server sends more bytes than announced.
        """
        if self.offset + len(chunk) > self.size_bytes:
            raise ViDownloadError(
                f"the server sends more than the announced {self.size_bytes} bytes"
            )
        self._open_file.write(chunk)
        self._hash.update(chunk)
        self.offset += len(chunk)

    def flush(self) -> None:
        """Write buffered bytes to the operating system, so that they survive this process."""
        self._open_file.flush()

    def has_hash(self, sha256: str | None) -> bool:
        """Return True if the bytes have this hash, or if no hash is given."""
        return sha256 is None or self._hash.hexdigest() == sha256.lower()

    def finish(self) -> None:
        """Rename the verified file to its final name."""
        self._open_file.flush()
        os.fsync(self._open_file.fileno())
        self._path.replace(self._target)
        self._state_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete the partial file and its state."""
        self._path.unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)

    @property
    def _open_file(self) -> BinaryIO:
        assert self._file is not None, "PartFile must be used in a with block"  # noqa: S101
        return self._file

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._open_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._open_file.close()
            raise ViDownloadError(
                f"another process is downloading {self._target}",
                suggestion="try: wait for it to finish, or use another folder",
                cause=error,
            ) from error

    def _matches_state(self) -> bool:
        if self._state["identity"] is None:
            return False
        with contextlib.suppress(OSError, ValueError):
            return bool(json.loads(self._state_path.read_text("utf-8")) == self._state)
        return False

    def _hash_existing_bytes(self) -> None:
        file = self._open_file
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            self._hash.update(chunk)
            self.offset += len(chunk)
        if self.offset > self.size_bytes:
            self.restart()
        self.was_resumed = self.offset > 0
