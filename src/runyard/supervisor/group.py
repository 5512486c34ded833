"""Everything that belongs to one attempt, and the proof that nothing of it lives.

Three nets, because each alone has a hole (``runyard.processes`` tells which): descendants of this supervisor, carriers
of the attempt's mark, holders of the run's lock. *Empty* is said only after the kernel has answered ECHILD, so that
every descendant has ended and been reaped, and two scans in a row have found nothing.
"""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from runyard import processes as machine
from runyard import rundir
from runyard.ports import Identity, Processes
from runyard.supervisor.launch import RunLock

_MARKS = (machine.ATTEMPT_MARK, machine.SUPERVISOR_MARK)


@dataclass(slots=True)
class Group:
    """The processes of one attempt, seen from its supervisor."""

    mark: str
    folder: Path
    processes: Processes = machine
    _ended: list[tuple[int, int]] = field(default_factory=list)

    def reap(self) -> list[tuple[int, int]]:
        """Children that have ended since the last call, as (pid, wait status)."""
        self._reap_all()
        ended, self._ended = self._ended, []
        return ended

    def kill(self) -> bool:
        """SIGKILL to all that is left; True once nothing is, proven."""
        for identity in self._living():
            self.processes.send_signal(identity, signal.SIGKILL)
        return not self._has_children() and not self._living() and not self._living()

    def _living(self) -> list[Identity]:
        below = self.processes.descendants(os.getpid())
        marked = self.processes.marked(machine.ATTEMPT_MARK, self.mark.__eq__)
        found = {*below, *(identity for identity, _ in marked)}
        return [*found, *(identity for identity in self._lock_holders() if identity not in found)]

    def _lock_holders(self) -> list[Identity]:
        """Who keeps the run's lock, when it is one of ours without a mark; another attempt's trainer is not."""
        lock = RunLock.open(self.folder)
        try:
            if lock.take():
                return []
        finally:
            lock.close()
        path = self.folder.parent.parent / rundir.LOCK
        others = {identity for name in _MARKS for identity, _ in self.processes.marked(name, self._is_other)}
        return [identity for identity in self.processes.holders(path) if identity not in others]

    def _is_other(self, mark: str) -> bool:
        return mark != self.mark

    def _has_children(self) -> bool:
        return not self._reap_all()

    def _reap_all(self) -> bool:
        """Reap what has ended; True when the kernel says that there is no child any more."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            self._ended.append((pid, status))
