"""Progress of the upload phase of an import, updated by concurrent uploads."""

import threading
import time
from collections.abc import Callable

import msgspec

from vi.api.resources.datasets.responses import DatasetImport, ImportProgress

# An estimate from less is off by orders of magnitude.
MIN_ESTIMATE_S, MIN_ESTIMATE_SHARE = 2.0, 0.02


class UploadProgress:
    """Thread-safe counters of uploaded files and bytes, in the form of the server's progress."""

    def __init__(
        self, *, files: int, size_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files, self._size_bytes = files, size_bytes
        self._clock, self._began_s = clock, clock()
        self._lock = threading.Lock()
        self._files_done = self._bytes_done = self._bytes_found = 0
        self._under_way: dict[str, int] = {}
        self.packs: list[str] = []

    def record_sent(self, sha256: str, sent_bytes: int) -> None:
        """Record how many bytes of a pack were sent so far; a retry starts at 0 again."""
        with self._lock:
            self._under_way[sha256] = sent_bytes

    def record_stored(self, sha256: str, size_bytes: int, *, files: int, was_stored: bool) -> None:
        """Record that the server has a pack; ``was_stored`` if it had it before."""
        with self._lock:
            self._under_way.pop(sha256, None)
            self.packs.append(sha256)
            self._files_done += files
            self._bytes_done += size_bytes
            self._bytes_found += size_bytes if was_stored else 0

    def apply_to(self, imported: DatasetImport) -> DatasetImport:
        """Return the import with the progress of the upload.

        The rate counts only bytes sent now. The time left is None in the first seconds.
        """
        with self._lock:
            done_bytes = self._bytes_done + sum(self._under_way.values())
            elapsed_s, sent_bytes = self._clock() - self._began_s, done_bytes - self._bytes_found
            rate = sent_bytes / max(elapsed_s, 1e-3)
            is_known = elapsed_s >= MIN_ESTIMATE_S and sent_bytes > 0
            is_known = is_known and done_bytes >= MIN_ESTIMATE_SHARE * self._size_bytes
            left_s = max(0, self._size_bytes - done_bytes) / rate if is_known else None
            progress = ImportProgress(
                phase="Sending",
                files=self._files,
                files_done=self._files_done,
                bytes_done=done_bytes,
                per_second=rate,
                seconds_left=left_s,
            )
        return msgspec.structs.replace(
            imported, status=msgspec.structs.replace(imported.status, progress=progress)
        )
