"""Which machines there are, and which accelerators: what their controllers have said lately.

Kept in memory, because every controller says it again each half minute: after a restart the server knows all of it a
moment later. A machine that has been silent for ``HEARD_WITHIN_S`` of the server's own time is gone, and with it what
it had; it is back with its next word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from runyard.protocol import MachineReport

HEARD_WITHIN_S = 120.0
MOST = 10_000  # machines; a controller's key is trusted, but not without end


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine's last word, with the times of the first and the last one."""

    report: MachineReport
    first_ms: int
    last_ms: int
    heard_s: float


@dataclass
class Machines:
    """Every machine that was heard from lately. Belongs to the event loop."""

    _known: dict[str, Machine] = field(default_factory=dict)

    def hear(self, machine_id: str, report: MachineReport, *, now_ms: int, lived_s: float) -> None:
        self._forget(lived_s)
        if machine_id not in self._known and len(self._known) >= MOST:
            return
        before = self._known.get(machine_id)
        first_ms = now_ms if before is None else before.first_ms
        self._known[machine_id] = Machine(report=report, first_ms=first_ms, last_ms=now_ms, heard_s=lived_s)

    def living(self, *, lived_s: float) -> Sequence[Machine]:
        self._forget(lived_s)
        return list(self._known.values())

    def _forget(self, lived_s: float) -> None:
        for machine_id, machine in list(self._known.items()):
            if lived_s - machine.heard_s > HEARD_WITHIN_S:
                del self._known[machine_id]
