"""Holds on blobs that a backup reads or a restore has written; rows do not matter.

Holds are kept in memory: after a crash of the server there is no reader left. ``delete`` of a held
blob raises ``BlobHeld``; deletion and garbage collection try again later anyway.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


class Holds:
    """The held blobs, by path; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Path] = Counter()

    def acquire(self, paths: Iterable[Path]) -> "Hold":
        hold = Hold(self, list(paths))
        with self._lock:
            self._counts.update(hold.paths)
        return hold

    def has(self, path: Path) -> bool:
        return path in self._counts

    def _release(self, paths: list[Path]) -> None:
        with self._lock:
            self._counts.subtract(paths)
            for path in paths:
                if self._counts[path] <= 0:
                    del self._counts[path]


class Hold:
    """Blobs that one reader holds until it releases them; releasing twice is harmless."""

    def __init__(self, holds: Holds, paths: list[Path]) -> None:
        self._holds, self.paths = holds, paths

    def release(self) -> None:
        paths, self.paths = self.paths, []
        self._holds._release(paths)
