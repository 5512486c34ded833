"""Beats: what each rank of an attempt is doing, so that the supervisor finds one that hangs.

A rank overwrites one line in a file of its own whenever it begins a step and whenever it enters or
leaves an exchange with the other ranks. The thread that trains writes it, not a timer, so that a
rank that hangs writes nothing. An attempt with a single rank has no such file.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

# Computing a step; waiting in an exchange; doing what only takes part of the ranks, such as saving.
Activity = Literal["step", "waiting", "apart"]
_BY_NAME: dict[str, Activity] = {name: name for name in get_args(Activity)}


@dataclass(frozen=True, slots=True)
class Beat:
    """The last line of a rank: ``count`` grows with every line."""

    count: int
    step: int
    activity: Activity


class BeatWriter:
    """Writes the line of one rank; without a path it writes nothing."""

    def __init__(self, path: Path | None = None):
        self._path, self._descriptor = path, -1
        self._count = self._step = 0
        self._activity: Activity = "apart"

    def begin_step(self, step: int) -> None:
        self._step = step
        self.write("step")

    def write(self, activity: Activity) -> None:
        """Write what this rank does from now on."""
        self._activity = activity
        if self._path is None:
            return
        self._count += 1
        # Of a fixed length and not fsynced: on a full disk an existing file needs no space.
        line = f"{self._count:020d} {self._step:020d} {activity:<8}\n".encode()
        with contextlib.suppress(OSError):
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o600)
            os.pwrite(self._descriptor, line, 0)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Write that this rank waits for the others, and afterwards what it did before."""
        before = self._activity
        self.write("waiting")
        yield
        self.write(before)


def read_beat(path: Path) -> Beat:
    """Return the last line of a rank; before there is one, that it is preparing."""
    try:
        count, step, activity = path.read_text().split()
        return Beat(int(count), int(step), _BY_NAME[activity])
    except (OSError, ValueError, KeyError):
        return Beat(0, 0, "apart")
