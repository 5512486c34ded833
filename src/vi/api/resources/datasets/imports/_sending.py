"""How far the sending of an import has got: counts that several uploads add to at once."""

import threading
import time
from collections.abc import Callable

import msgspec

from vi.api.resources.datasets.responses import DatasetImport, ImportProgress


class Sending:
    """Counts files and bytes; ``told`` puts them where the server's own counts stand later."""

    def __init__(self, *, files: int, size_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._files, self._size_bytes = files, size_bytes
        self._clock, self._began_s = clock, clock()
        self._lock = threading.Lock()
        self._files_done = self._bytes_done = self._bytes_found = 0
        self._under_way: dict[str, int] = {}
        self.packs: list[str] = []

    def sent(self, sha256: str, sent_bytes: int) -> None:
        """So much of a pack is under way; a repeat begins at nothing again."""
        with self._lock:
            self._under_way[sha256] = sent_bytes

    def arrived(self, sha256: str, size_bytes: int, *, files: int, was_there: bool) -> None:
        """The server has a pack."""
        with self._lock:
            self._under_way.pop(sha256, None)
            self.packs.append(sha256)
            self._files_done += files
            self._bytes_done += size_bytes
            self._bytes_found += size_bytes if was_there else 0

    def told(self, imported: DatasetImport) -> DatasetImport:
        """The import as it was, with where the sending stands; bytes a second are those that really went."""
        with self._lock:
            done_bytes = self._bytes_done + sum(self._under_way.values())
            rate = (done_bytes - self._bytes_found) / max(self._clock() - self._began_s, 1e-3)
            left_s = max(0, self._size_bytes - done_bytes) / rate if rate else None
            progress = ImportProgress(
                phase="Sending",
                files=self._files,
                files_done=self._files_done,
                bytes_done=done_bytes,
                per_second=rate,
                seconds_left=left_s,
            )
        return msgspec.structs.replace(imported, status=msgspec.structs.replace(imported.status, progress=progress))
