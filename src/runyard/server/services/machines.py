"""The machines in memory: what their controllers last reported, and the state in which they are.

A report is kept in memory alone, because every controller reports each half minute: after a restart
the server knows all of it a moment later. A machine that has been silent for ``HEARD_WITHIN_S`` of
the server's uptime is dropped with all it reported; its next report adds it again.

The state of a machine is a row (see ``membership``), of which ``Memberships`` is a copy.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from runyard import limits
from runyard.protocol import Claim, MachineReport, RunName
from runyard.store.requirements import Labels

HEARD_WITHIN_S = 120.0
JOINED, DRAINING, SUSPECT = "joined", "draining", "suspect"
EXCLUDED, REMOVED = "excluded", "removed"
CPU = "cpu"  # what machines without an accelerator report as one
MOST = 10_000  # machines; a controller's key is trusted, but its memory use is bounded
# Controllers with free slots claim again a second after a restart; others report each half minute.
FREE_ONES_HEARD_AFTER_S, ALL_HEARD_AFTER_S = 5.0, 40.0
# A slot that is free for a shorter time is just being claimed: the reasons of the runs queued
# behind the one that claims it are not rewritten for it.
FREE_FOR_S = 3.0


@dataclass(frozen=True, kw_only=True)
class ReportedMachine:
    """A machine's last report, with the times of the first and the last one."""

    report: MachineReport
    first_ms: int
    last_ms: int
    heard_s: float
    lacks_disk: bool = False
    # Runs that are not listed, deleted ones among them, whose folders it still holds.
    leftover_runs: tuple[RunName, ...] = ()
    # When it was last seen without a free slot.
    busy_s: list[float] = field(default_factory=list, compare=False)

    @property
    def accelerators(self) -> int:
        """The number of accelerators, busy ones included."""
        return sum(kind.count for kind in self.report.accelerators if kind.name != CPU)

    def is_full(self, busy: int, *, now_s: float) -> bool:
        """Return whether it has had no free slot lately.

        A machine that has not reported its slots counts as having a free one.
        """
        if self.report.slots is not None and busy >= self.report.slots:
            self.busy_s[:] = [now_s]
        return bool(self.busy_s) and now_s - self.busy_s[0] < FREE_FOR_S


@dataclass(kw_only=True)
class WaitingReasonsState:
    """Progress of refreshing the reasons of waiting runs: for which offers, and up to which key."""

    event: asyncio.Event | None = None
    offers: Sequence[object] = ()
    after: str = ""
    rounds_left: int = 0
    # How many attempts each machine had, and when that was counted.
    busy: Mapping[str, int] = field(default_factory=dict)
    counted_s: float = float("-inf")


@dataclass
class Machines:
    """Every machine that reported lately. Belongs to the event loop."""

    _known: dict[str, ReportedMachine] = field(default_factory=dict)
    _began_s: float = math.inf
    _approved: set[tuple[str, str]] = field(default_factory=set)

    def count_accelerators(self, machine_id: str) -> int:
        """Return how many accelerators a machine has, busy ones included; 0 if unknown."""
        machine = self._known.get(machine_id)
        return 0 if machine is None else machine.accelerators

    def record_report(
        self, machine_id: str, report: MachineReport, *, now_ms: int, uptime_s: float
    ) -> None:
        """Record what a machine reports about itself, without the names of its run folders."""
        before = self._known.get(machine_id)
        self._store(
            machine_id,
            msgspec.structs.replace(report, run_folders=[], continues_folders=False),
            now_ms,
            uptime_s,
            lacks_disk=before is not None and before.lacks_disk,
        )

    def record_leftover_runs(
        self, machine_id: str, found: Sequence[RunName], *, are_further: bool
    ) -> None:
        """Record runs that are not listed and have a folder on a machine that has just reported.

        ``are_further``: it has sent several reports, of which this is not the first.
        """
        machine = self._known.get(machine_id)
        if machine is not None:
            runs = (*(machine.leftover_runs if are_further else ()), *found)
            self._known[machine_id] = replace(
                machine, leftover_runs=runs[: limits.REPORT_ITEMS.value]
            )

    def approve_removals(self, runs: Iterable[tuple[str, str]]) -> None:
        """Let machines remove the folders of these runs, by organization and id, if no row exists.

        An operator has decided that nobody needs them. Until its next report a machine counts as
        without them: the server may have removed them from a data folder that they share.
        """
        self._approved = set(runs)
        for machine_id, machine in self._known.items():
            kept = tuple(
                run
                for run in machine.leftover_runs
                if not self.is_removal_approved(run.organization_id, run.run_id)
            )
            self._known[machine_id] = replace(machine, leftover_runs=kept)

    def is_removal_approved(self, org: str, run_id: str) -> bool:
        return (org, run_id) in self._approved

    def record_claim(self, offer: Claim, *, now_ms: int, uptime_s: float) -> bool:
        """Record what a claim reports about its machine; return whether that is new."""
        before = self._known.get(offer.machine_id)
        if before is None:
            report = MachineReport(host=offer.host, labels=offer.labels, accelerators=[])
        else:
            report = msgspec.structs.replace(before.report, host=offer.host, labels=offer.labels)
        self._store(offer.machine_id, report, now_ms, uptime_s, lacks_disk=offer.lacks_disk)
        return before is None or (before.report, before.lacks_disk) != (report, offer.lacks_disk)

    def list_connected(self, *, uptime_s: float) -> Sequence[ReportedMachine]:
        """Return the connected machines."""
        return [machine for _, machine in self.list_connected_by_id(uptime_s=uptime_s)]

    def list_connected_by_id(self, *, uptime_s: float) -> Sequence[tuple[str, ReportedMachine]]:
        """Return the connected machines with their ids, ordered by id."""
        self._drop_silent(uptime_s)
        return sorted(self._known.items())

    def has_heard_all(self, *, uptime_s: float, busy: Iterable[str]) -> bool:
        """Return whether every connected controller must have reported since the server started.

        ``busy`` are machines with open attempts: one without a free slot only reports now and then.
        """
        self._drop_silent(uptime_s)
        up_s = uptime_s - self._began_s
        return up_s >= (
            FREE_ONES_HEARD_AFTER_S if set(busy) <= set(self._known) else ALL_HEARD_AFTER_S
        )

    def forget(self, machine_id: str) -> None:
        """Forget what a machine reported that was removed."""
        self._known.pop(machine_id, None)

    def _store(
        self,
        machine_id: str,
        report: MachineReport,
        now_ms: int,
        uptime_s: float,
        *,
        lacks_disk: bool,
    ) -> None:
        self._drop_silent(uptime_s)
        before = self._known.get(machine_id)
        if before is not None:
            changes = {
                "report": report,
                "last_ms": now_ms,
                "heard_s": uptime_s,
                "lacks_disk": lacks_disk,
            }
            self._known[machine_id] = replace(before, **changes)  # type: ignore[arg-type]
        elif len(self._known) < MOST:
            self._known[machine_id] = ReportedMachine(
                report=report,
                first_ms=now_ms,
                last_ms=now_ms,
                heard_s=uptime_s,
                lacks_disk=lacks_disk,
            )

    def _drop_silent(self, uptime_s: float) -> None:
        self._began_s = min(self._began_s, uptime_s)
        for machine_id, machine in list(self._known.items()):
            if uptime_s - machine.heard_s > HEARD_WITHIN_S:
                del self._known[machine_id]


@dataclass(frozen=True, kw_only=True)
class Membership:
    """A machine's row as claims and reports need it."""

    machine_id: str
    name: str
    key_id: str
    state: str
    labels: Labels
    drain_by: int | None


class Memberships:
    """All machines that have joined, also those that are not connected.

    ``version`` counts the changes, so that rows read before one do not undo it. Belongs to the
    event loop's thread.
    """

    def __init__(self, rows: Iterable[Any] = ()) -> None:
        self._by_id: dict[str, Membership] = {}
        self._by_key: dict[str, str] = {}
        self.version = 0
        self.replace_all(rows)

    def replace_all(self, rows: Iterable[Any]) -> None:
        self._by_id, self._by_key = {}, {}
        self.put(rows)

    def put(self, rows: Iterable[Any]) -> None:
        """Add or change the machines of these rows."""
        for row in rows:
            self._by_id[row.id] = Membership(
                machine_id=row.id,
                name=row.name,
                key_id=row.key_id,
                state=row.state,
                labels=msgspec.json.decode(row.labels),
                drain_by=row.drain_by,
            )
            self._by_key[row.key_id] = row.id
        self.version += 1

    def get(self, machine_id: str) -> Membership | None:
        return self._by_id.get(machine_id)

    def find_by_key(self, key_id: str) -> str | None:
        """Return the id of the machine that a key belongs to."""
        return self._by_key.get(key_id)

    def get_state(self, machine_id: str) -> str:
        """Return the state of a machine; one without a row counts as joined."""
        known = self._by_id.get(machine_id)
        return JOINED if known is None else known.state

    def get_name(self, machine_id: str, host: str) -> str:
        """Return the name of a machine, or its host while it has no row."""
        known = self._by_id.get(machine_id)
        return host if known is None else known.name

    def must_stop_runs(self, machine_id: str, *, now_ms: int) -> bool:
        """Return whether a machine's runs are to save and stop, because it is drained."""
        known = self._by_id.get(machine_id)
        return known is not None and known.drain_by is not None and known.drain_by <= now_ms

    def add_labels(self, machine_id: str, reported: dict[str, list[str]]) -> dict[str, list[str]]:
        """Return what a machine reports with the labels of its invitation."""
        known = self._by_id.get(machine_id)
        if known is None or not known.labels:
            return reported
        return {name: list(values) for name, values in known.labels.items()} | reported
