"""Bytes that must stay for a while, whatever rows say: those a backup is reading and those a restore has brought.

Kept in memory: a server that dies has no reader left. ``delete`` of a held blob raises ``BlobHeld``; whoever wanted it
gone comes back later, as deletion and garbage collection do anyway.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


class Holds:
    """Which blobs are held, by their paths; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Path] = Counter()

    def take(self, paths: Iterable[Path]) -> "Hold":
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
    """Blobs that one reader holds until it releases them; releasing again changes nothing."""

    def __init__(self, holds: Holds, paths: list[Path]) -> None:
        self._holds, self.paths = holds, paths

    def release(self) -> None:
        paths, self.paths = self.paths, []
        self._holds._release(paths)
