"""A gate that lets a write start only when the disk has space for it.

Space is checked before a checkpoint is written. When it is short, training waits. Ending the
attempt instead would lose the steps since the last checkpoint, and the next attempt would reload
everything and find the same full disk; see ``docs/decisions``. A stop request ends the waiting at
once: unsaved steps are trained again from the last checkpoint.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runyard import rundir

# Left free for other writers: events, logs, the supervisor's files, the server on this disk.
RESERVE_BYTES = 16 << 20
POLL_INTERVAL_S = 0.5
MAX_BACKOFF_S = 30.0  # between attempts when the disk refuses bytes that it reports as free


@dataclass(kw_only=True)
class DiskSpaceGate:
    """The free space below ``folder``. ``on_wait`` is called once per wait, with a message."""

    folder: Path
    should_stop: Callable[[], bool]
    on_wait: Callable[[str], None]
    free_bytes: Callable[[Path], int] = rundir.free_bytes
    sleep: Callable[[float], None] = time.sleep
    waited_s: float = 0.0
    refusals: int = 0

    def has_space(self, needed_bytes: int) -> bool:
        """Return whether ``needed_bytes`` are free now in addition to the reserve."""
        return self.free_bytes(self.folder) >= needed_bytes + RESERVE_BYTES

    def wait_for_space(self, needed_bytes: int, name: str) -> bool:
        """Wait until ``needed_bytes`` and the reserve are free; return False when stopped before.

        After a stop request nothing else will be written, so the reserve may be used.
        """
        is_reported = False
        while (free := self.free_bytes(self.folder)) < needed_bytes + RESERVE_BYTES:
            if self.should_stop():
                return free >= needed_bytes
            if not is_reported:
                self.on_wait(
                    f"{name} needs {needed_bytes} bytes plus {RESERVE_BYTES} in reserve, but only "
                    f"{free} are free; training resumes when there is space; try: free disk space"
                )
                is_reported = True
            self._pause(POLL_INTERVAL_S)
        return True

    def wait_after_refusal(self, needed_bytes: int, name: str) -> bool:
        """Back off after the disk refused bytes that it reported as free (a quota, another writer).

        Each wait is twice as long as the one before, up to ``MAX_BACKOFF_S``. Returns False when
        stopped.
        """
        free = self.free_bytes(self.folder)
        self.on_wait(
            f"{name} needs about {needed_bytes} bytes, but the disk refused them while reporting "
            f"{free} free; retrying; try: check quotas and other writers"
        )
        pause_s = min(POLL_INTERVAL_S * 2**self.refusals, MAX_BACKOFF_S)
        self.refusals += 1
        until_s = self.waited_s + pause_s
        while self.waited_s < until_s:
            if self.should_stop():
                return False
            self._pause(POLL_INTERVAL_S)
        return not self.should_stop()

    def _pause(self, seconds: float) -> None:
        self.sleep(seconds)
        self.waited_s += seconds


def as_system_error(error: Exception) -> OSError | None:
    """Return the operating system's error, also if a library has it only in a message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), str(error)) if found else None
