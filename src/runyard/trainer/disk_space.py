"""Room on the disk: looked for before a checkpoint needs it, and waited for with the training state in memory.

Ending the attempt instead would lose the steps since the last checkpoint and load everything again only to find the
same disk as full; see ``docs/decisions``. A stop ends the waiting at once: what cannot be saved is trained again, from
the checkpoint that is there.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runyard import rundir

# Left free for what everybody else writes meanwhile: events, logs, the supervisor's files, the server on this disk.
RESERVE_BYTES = 16 << 20
LOOK_EVERY_S = 0.5
LONGEST_PAUSE_S = 30.0  # between saves that the disk refuses although it says that there is room


@dataclass(kw_only=True)
class Room:
    """Room below ``folder``. ``tell`` is told once, whenever waiting begins, what is needed and what is there."""

    folder: Path
    should_stop: Callable[[], bool]
    tell: Callable[[str], None]
    free_bytes: Callable[[Path], int] = rundir.free_bytes
    sleep: Callable[[float], None] = time.sleep
    waited_s: float = 0.0
    refusals: int = 0

    def is_there_for(self, needed_bytes: int) -> bool:
        """Whether ``needed_bytes`` fit beside the reserve now."""
        return self.free_bytes(self.folder) >= needed_bytes + RESERVE_BYTES

    def wait_for(self, needed_bytes: int, name: str) -> bool:
        """Wait until ``needed_bytes`` fit beside the reserve; False when told to stop before that.

        Whoever is stopping has nobody to keep a reserve for and takes what is there.
        """
        is_told = False
        while (free := self.free_bytes(self.folder)) < needed_bytes + RESERVE_BYTES:
            if self.should_stop():
                return free >= needed_bytes
            if not is_told:
                self.tell(
                    f"{name} needs {needed_bytes} bytes and {RESERVE_BYTES} in reserve, {free} are free; "
                    "goes on by itself when there are more"
                )
                is_told = True
            self._pause(LOOK_EVERY_S)
        return True

    def wait_after_refusal(self, needed_bytes: int, name: str) -> bool:
        """Wait a while, longer each time, after the disk has refused what it said it had room for (a quota, another
        writer); False when told to stop."""
        free = self.free_bytes(self.folder)
        self.tell(f"{name} needs about {needed_bytes} bytes, the disk refused them with {free} free; tries again")
        pause_s = min(LOOK_EVERY_S * 2**self.refusals, LONGEST_PAUSE_S)
        self.refusals += 1
        until_s = self.waited_s + pause_s
        while self.waited_s < until_s:
            if self.should_stop():
                return False
            self._pause(LOOK_EVERY_S)
        return not self.should_stop()

    def _pause(self, seconds: float) -> None:
        self.sleep(seconds)
        self.waited_s += seconds


def as_system_error(error: Exception) -> OSError | None:
    """What the system said, where a library in another language puts it into the words of an error of its own."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), str(error)) if found else None
