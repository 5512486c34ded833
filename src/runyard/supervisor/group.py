"""The processes of one attempt, and the proof that none of them is alive.

They are found in three ways, because each alone misses some (see ``runyard.processes``): as
descendants of this supervisor, by the attempt's mark, and by holding the run's lock. The group
counts as empty only after the kernel has answered ECHILD, so that every descendant has ended and
been reaped, and two scans in a row have found nothing.
"""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from runyard import processes as machine
from runyard.ports import Identity, Processes
from runyard.rundir import AttemptDir
from runyard.supervisor.launch import RunLock

_MARKS = (machine.ATTEMPT_MARK, machine.SUPERVISOR_MARK)


@dataclass(slots=True)
class ProcessGroup:
    """The processes of one attempt, as its supervisor finds them."""

    mark: str
    folder: Path
    processes: Processes = machine
    _ended: list[tuple[int, int]] = field(default_factory=list)

    def reap(self) -> list[tuple[int, int]]:
        """Return the children that have ended since the last call, as (process id, wait status)."""
        self._reap_all()
        ended, self._ended = self._ended, []
        return ended

    def kill(self) -> bool:
        """Send SIGKILL to every process left; return whether provably none is alive."""
        for identity in self._list_living():
            self.processes.send_signal(identity, signal.SIGKILL)
        return not self._has_children() and not self._list_living() and not self._list_living()

    def _list_living(self) -> list[Identity]:
        below = self.processes.list_descendants(os.getpid())
        marked = self.processes.find_marked(machine.ATTEMPT_MARK, self.mark.__eq__)
        found = {*below, *(identity for identity, _ in marked)}
        return [
            *found,
            *(identity for identity in self._list_lock_holders() if identity not in found),
        ]

    def _list_lock_holders(self) -> list[Identity]:
        """Return the holders of the run's lock, except processes marked as another attempt's."""
        lock = RunLock.open(self.folder)
        try:
            if lock.acquire():
                return []
        finally:
            lock.close()
        path = AttemptDir(self.folder).run_lock
        others = {
            identity
            for name in _MARKS
            for identity, _ in self.processes.find_marked(name, self._is_other)
        }
        return [
            identity for identity in self.processes.list_holders(path) if identity not in others
        ]

    def _is_other(self, mark: str) -> bool:
        return mark != self.mark

    def _has_children(self) -> bool:
        return not self._reap_all()

    def _reap_all(self) -> bool:
        """Reap children that have ended; return whether no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            self._ended.append((pid, status))
