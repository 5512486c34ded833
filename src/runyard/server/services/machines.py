"""Which machines are connected, and what they have: what their controllers have said lately.

Kept in memory, because every controller says it again each half minute: after a restart the server knows all of it a
moment later. A machine that has been silent for ``HEARD_WITHIN_S`` of the server's own time is gone, and with it what
it had; it is back with its next word.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from runyard.protocol import Claim, MachineReport

HEARD_WITHIN_S = 120.0
MOST = 10_000  # machines; a controller's key is trusted, but not without end
# Controllers with free slots claim again a second after the server is back; others report every half minute.
FREE_ONES_HEARD_AFTER_S, ALL_HEARD_AFTER_S = 5.0, 40.0
# A slot that is free for less long is just being taken: runs behind the one that takes it are not rewritten for it.
FREE_FOR_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine's last word, with the times of the first and the last one."""

    report: MachineReport
    first_ms: int
    last_ms: int
    heard_s: float
    lacks_disk: bool = False
    busy_s: list[float] = field(default_factory=list, compare=False)  # when it was last seen without a free slot

    def is_full(self, busy: int, *, now_s: float) -> bool:
        """Whether it has had no free slot lately. One that has not reported its slots counts as having room."""
        if self.report.slots is not None and busy >= self.report.slots:
            self.busy_s[:] = [now_s]
        return bool(self.busy_s) and now_s - self.busy_s[0] < FREE_FOR_S


@dataclass(kw_only=True)
class Explained:
    """How far the reasons of waiting runs are right: for which offers, up to which key; and the rounds left."""

    event: asyncio.Event | None = None
    offers: Sequence[object] = ()
    after: str = ""
    rounds_left: int = 0
    # How many attempts each machine had, and when that was counted.
    busy: Mapping[str, int] = field(default_factory=dict)
    counted_s: float = float("-inf")


@dataclass
class Machines:
    """Every machine that was heard from lately. Belongs to the event loop."""

    _known: dict[str, Machine] = field(default_factory=dict)
    _began_s: float = math.inf

    def hear(self, machine_id: str, report: MachineReport, *, now_ms: int, lived_s: float) -> None:
        """Take in what a machine reports of itself."""
        before = self._known.get(machine_id)
        self._keep(machine_id, report, now_ms, lived_s, lacks_disk=before is not None and before.lacks_disk)

    def hear_claim(self, offer: Claim, *, now_ms: int, lived_s: float) -> bool:
        """Take in what a claim says of its machine; whether that is news."""
        before = self._known.get(offer.machine_id)
        if before is None:
            report = MachineReport(host=offer.host, labels=offer.labels, accelerators=[])
        else:
            report = msgspec.structs.replace(before.report, host=offer.host, labels=offer.labels)
        self._keep(offer.machine_id, report, now_ms, lived_s, lacks_disk=offer.lacks_disk)
        return before is None or (before.report, before.lacks_disk) != (report, offer.lacks_disk)

    def living(self, *, lived_s: float) -> Sequence[Machine]:
        return [machine for _, machine in self.living_by_id(lived_s=lived_s)]

    def living_by_id(self, *, lived_s: float) -> Sequence[tuple[str, Machine]]:
        self._forget(lived_s)
        return sorted(self._known.items())

    def has_heard_all(self, *, lived_s: float, busy: Iterable[str]) -> bool:
        """Whether every controller that is connected must have been heard since the server started.

        ``busy`` are machines with open attempts: where one has no free slot, its controller only reports now and then.
        """
        self._forget(lived_s)
        up_s = lived_s - self._began_s
        return up_s >= (FREE_ONES_HEARD_AFTER_S if set(busy) <= set(self._known) else ALL_HEARD_AFTER_S)

    def _keep(self, machine_id: str, report: MachineReport, now_ms: int, lived_s: float, *, lacks_disk: bool) -> None:
        self._forget(lived_s)
        before = self._known.get(machine_id)
        if before is not None:
            changes = {"report": report, "last_ms": now_ms, "heard_s": lived_s, "lacks_disk": lacks_disk}
            self._known[machine_id] = replace(before, **changes)  # type: ignore[arg-type]
        elif len(self._known) < MOST:
            self._known[machine_id] = Machine(
                report=report, first_ms=now_ms, last_ms=now_ms, heard_s=lived_s, lacks_disk=lacks_disk
            )

    def _forget(self, lived_s: float) -> None:
        self._began_s = min(self._began_s, lived_s)
        for machine_id, machine in list(self._known.items()):
            if lived_s - machine.heard_s > HEARD_WITHIN_S:
                del self._known[machine_id]
