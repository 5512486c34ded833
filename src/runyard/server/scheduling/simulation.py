"""A cluster with a virtual clock, on which the scheduler decides as on a real one.

Time jumps from event to event, in whole steps of a second. An attempt ends by itself, or saves for
ten seconds after it was asked to stop and continues later from where it was. Trainers predict their
end correctly; waiting runs are known by their time limit alone. An attempt that reaches its limit
ends.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from time import perf_counter

from runyard.server.scheduling.loads import SimulatedRun, count_run_units
from runyard.server.scheduling.scheduler import Scheduler
from runyard.server.scheduling.view import (
    Action,
    MachineCapacity,
    Place,
    Preempt,
    RunKey,
    Share,
    WaitingRun,
)

ORG = "simulated"
TICK_MS = 1000
SAVING_MS = 10_000
MAX_SAMPLES = 2000  # of the curves; every second one is dropped when there are more


@dataclass(slots=True)
class _SimulatedState:
    """What is known of a run that has not ended."""

    run: SimulatedRun
    remaining_ms: int
    submitted_ms: int
    started_ms: int = -1
    attempt: int = 0
    has_started: bool = False


@dataclass(slots=True)
class Curves:
    """Utilization and queue length over time, at even distances."""

    times_s: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    every_ms: int = 60_000

    def add(self, now_ms: int, used: float, waiting: int) -> None:
        """Add a sample if the last one is old enough."""
        if self.times_s and now_ms - self.times_s[-1] * 1000 < self.every_ms:
            return
        self.times_s.append(now_ms / 1000)
        self.used.append(used)
        self.waiting.append(waiting)
        if len(self.times_s) > MAX_SAMPLES:
            for values in (self.times_s, self.used, self.waiting):
                del values[1::2]
            self.every_ms *= 2


@dataclass(slots=True)
class SimulationResult:
    """What a simulation measured. Waits are seconds until the first start."""

    runs: int = 0
    ended: int = 0
    never_placed: int = 0
    placements: int = 0
    preemptions: int = 0
    passes: int = 0
    virtual_s: float = 0.0
    scheduling_s: float = 0.0  # real time inside the scheduler
    utilization: float = 0.0  # of the capacity, until the last submission
    waits_s: dict[str, "array[float]"] = field(default_factory=dict)
    used_s: dict[str, float] = field(default_factory=dict)  # unit-seconds until the last submission
    weights: dict[str, float] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)

    @property
    def placements_per_s(self) -> float:
        return self.placements / self.scheduling_s if self.scheduling_s else 0.0


class Simulation:
    """One simulation; ``on_progress`` is called with the number of runs that have ended."""

    def __init__(
        self,
        machines: Iterable[MachineCapacity],
        shares: Iterable[Share] = (),
        *,
        on_progress: Callable[[int], None] = lambda _: None,
        on_decisions: Callable[[int, list[Action]], None] = lambda _now, _actions: None,
    ) -> None:
        self.scheduler = Scheduler()
        self.now_ms = 0
        self.result = SimulationResult()
        self._on_progress, self._on_decisions = on_progress, on_decisions
        self._capacity = self._used = 0
        self._progress: dict[str, _SimulatedState] = {}
        self._ends: list[tuple[int, str, int]] = []  # time, run, number of its attempt
        self._used_ms = 0  # unit-milliseconds
        self._used_of = Counter[str]()
        for machine in machines:
            self.scheduler.put_machine(machine)
            self._capacity += machine.accelerators or machine.slots
        for share in shares:
            self.scheduler.put_share(share)
            self.result.weights[share.project] = share.weight

    def run(self, runs: Iterable[SimulatedRun]) -> SimulationResult:
        """Simulate until no attempt runs and none is to come; ``runs`` by time of submission."""
        coming = iter(runs)
        upcoming = next(coming, None)
        while upcoming is not None or self._ends:
            self._advance(upcoming)
            while self._ends and self._ends[0][0] <= self.now_ms:
                self._end(*heappop(self._ends)[1:])
            while upcoming is not None and upcoming.submit_s * 1000 <= self.now_ms:
                self._submit(upcoming)
                upcoming = next(coming, None)
                if upcoming is None:
                    self._measure_shares()
            self._decide()
            if upcoming is not None:
                self.result.utilization = self._used_ms / max(1, self._capacity * self.now_ms)
        self.result.virtual_s = self.now_ms / 1000
        self.result.never_placed = sum(
            not progress.has_started for progress in self._progress.values()
        )
        return self.result

    def _advance(self, upcoming: SimulatedRun | None) -> None:
        times = [self._ends[0][0]] if self._ends else []
        if upcoming is not None:
            times.append(round(upcoming.submit_s * 1000))
        # Whole seconds, as the server decides once a second.
        now_ms = max(self.now_ms + TICK_MS, -(-min(times) // TICK_MS) * TICK_MS)
        self._used_ms += self._used * (now_ms - self.now_ms)
        self.now_ms = now_ms
        self.result.curves.add(
            now_ms, self._used / max(1, self._capacity), self.scheduler.waiting.count()
        )

    def _measure_shares(self) -> None:
        """Record what each project has used so far; later, the load is too low to compete."""
        used = Counter(self._used_of)
        for run in self.scheduler.running:
            progress = self._progress[run.run_id]
            elapsed_ms = self.now_ms - progress.started_ms
            used[progress.run.project] += count_run_units(progress.run) * elapsed_ms
        self.result.used_s = {name: of / 1000 for name, of in sorted(used.items())}

    def _submit(self, run: SimulatedRun) -> None:
        run_id = f"run-{self.result.runs:08}"
        self.result.runs += 1
        lasts_s = run.duration_s if run.limit_s is None else min(run.duration_s, run.limit_s)
        self._progress[run_id] = _SimulatedState(run, round(lasts_s * 1000), self.now_ms)
        self.scheduler.add_run(self._build_waiting(run_id))

    def _build_waiting(self, run_id: str, *, was_preempted: bool = False) -> WaitingRun:
        progress = self._progress[run_id]
        run = progress.run
        return WaitingRun(
            org=ORG,
            run_id=run_id,
            project=run.project,
            priority=run.priority,
            created_ms=progress.submitted_ms,
            accelerators=run.accelerators,
            members=run.members,
            preemptible=run.preemptible,
            limit_s=run.limit_s,
            waiting_since_ms=self.now_ms,
            was_preempted=was_preempted,
        )

    def _decide(self) -> None:
        began_s = perf_counter()
        actions = self.scheduler.schedule(self.now_ms)
        self.result.scheduling_s += perf_counter() - began_s
        self.result.passes += 1
        for action in actions:
            if isinstance(action, Place):
                self._start(action.run)
            elif isinstance(action, Preempt):
                self._stop(action.run)
        self._on_decisions(self.now_ms, actions)

    def _start(self, run: RunKey) -> None:
        progress = self._progress[run.run_id]
        progress.attempt += 1
        progress.started_ms = self.now_ms
        self._used += count_run_units(progress.run)
        self.result.placements += 1
        ends_ms = self.now_ms + progress.remaining_ms
        heappush(self._ends, (ends_ms, run.run_id, progress.attempt))
        self.scheduler.update_attempt(run, ends_ms=ends_ms)
        if not progress.has_started:
            progress.has_started = True
            wait_s = (self.now_ms - progress.submitted_ms) / 1000
            waits = self.result.waits_s.setdefault(name_class(progress.run), array("d"))
            waits.append(wait_s)

    def _stop(self, run: RunKey) -> None:
        progress = self._progress[run.run_id]
        self.result.preemptions += 1
        progress.remaining_ms -= self.now_ms - progress.started_ms
        progress.attempt += 1  # its planned end is void
        heappush(self._ends, (self.now_ms + SAVING_MS, run.run_id, progress.attempt))

    def _end(self, run_id: str, attempt: int) -> None:
        progress = self._progress.get(run_id)
        if progress is None or attempt != progress.attempt:
            return
        key = RunKey(ORG, run_id)
        was_preempted = self.scheduler.running[key].preempted_for is not None
        began_s = perf_counter()
        self.scheduler.end_attempt(key, now_ms=self.now_ms)
        self.result.scheduling_s += perf_counter() - began_s
        units = count_run_units(progress.run)
        self._used -= units
        self._used_of[progress.run.project] += units * (self.now_ms - progress.started_ms)
        if was_preempted and progress.remaining_ms > 0:
            self.scheduler.add_run(self._build_waiting(run_id, was_preempted=True))
            return
        del self._progress[run_id]
        self.result.ended += 1
        self._on_progress(self.result.ended)


def name_class(run: SimulatedRun) -> str:
    """Return the class by which waits are reported."""
    size = f"{run.members} x {run.accelerators}" if run.members > 1 else f"{run.accelerators}"
    return f"priority {run.priority}, {size} accelerators"
