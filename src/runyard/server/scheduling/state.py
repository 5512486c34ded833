"""What a scheduler knows, kept up to date by events.

Every method is one event. Times never go back: ``now_ms`` of an event is at least that of the one
before.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from runyard.server.scheduling.pool import Pool, PooledMachine
from runyard.server.scheduling.preemption import Preemptable
from runyard.server.scheduling.usage import ProjectUse
from runyard.server.scheduling.view import (
    MachineCapacity,
    ProjectKey,
    Reservation,
    RunKey,
    RunningAttempt,
    Share,
    View,
    WaitingRun,
    count_units,
)
from runyard.server.scheduling.waiting import Queue, WaitingRuns

Obstacle = Literal["machines", "project limit", "organization limit"]


class SchedulerState:
    """Machines, waiting runs, running attempts, shares and reservations."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.waiting = WaitingRuns()
        self.running: dict[RunKey, RunningAttempt] = {}
        self.preemptable = Preemptable()
        self.reservations: dict[RunKey, Reservation] = {}
        self.stopping_for = Counter[RunKey]()  # victims that have not stopped yet, by wanting run
        self.stopping_units = Counter[ProjectKey]()  # that victims still hold, by owner
        self.victims_from_ms = 0
        self._uses: dict[ProjectKey, ProjectUse] = {}
        self._guarantees = set[ProjectKey]()

    def load(self, view: View) -> None:
        """Add the contents of a view."""
        for machine in view.machines:
            self.put_machine(machine)
        for share in view.shares:
            self.put_share(share)
        for attempt in sorted(
            view.running, key=lambda found: (found.started_ms, found.org, found.run_id)
        ):
            self._hold(attempt)
            units = count_units(attempt.accelerators, len(attempt.machines))
            for use in self._list_uses(attempt):
                use.restore(_get_key(attempt), units, started_ms=attempt.started_ms)
        self.waiting.fill(iter(view.waiting))
        self.victims_from_ms = view.victims_from_ms
        for reservation in view.reservations:
            self.reservations[RunKey(reservation.org, reservation.run_id)] = reservation

    def to_view(self, now_ms: int) -> View:
        """Return the contents as a view."""
        return View(
            now_ms=now_ms,
            machines=[pooled.machine for pooled in self.pool.machines.values()],
            waiting=list(self.waiting.list_runs()),
            running=list(self.running.values()),
            shares=[use.to_share() for use in self._uses.values()],
            reservations=list(self.reservations.values()),
            victims_from_ms=self.victims_from_ms,
        )

    def put_machine(self, machine: MachineCapacity) -> None:
        """Add a machine, or change its state or what it has."""
        self.pool.put(machine)

    def remove_machine(self, machine_id: str) -> None:
        """Forget a machine, after its attempts have ended."""
        self.pool.remove(machine_id)

    def put_share(self, share: Share) -> None:
        """Set weight, guaranteed share and limit of a project or an organization.

        The use that is given counts only for one that is not known yet.
        """
        key = ProjectKey(share.org, share.project)
        if key in self._uses:
            self._uses[key].configure(share)
        else:
            self._uses[key] = ProjectUse(share)
        self._guarantees.discard(key)
        if share.guaranteed:
            self._guarantees.add(key)

    def add_run(self, run: WaitingRun) -> None:
        """Add a waiting run."""
        self.waiting.add(run)

    def remove_run(self, run: RunKey) -> None:
        """Remove a run that waits no longer, such as one that was killed."""
        self.waiting.remove(run)

    def start_attempt(self, attempt: RunningAttempt, *, now_ms: int) -> None:
        """Let an attempt hold its machines."""
        self._hold(attempt)
        units = count_units(attempt.accelerators, len(attempt.machines))
        for use in self._list_uses(attempt):
            use.start(_get_key(attempt), units, started_ms=attempt.started_ms, now_ms=now_ms)

    def update_attempt(
        self, run: RunKey, *, ends_ms: int | None, checkpoint_ms: int | None = None
    ) -> None:
        """Record a newer prediction of the end, and the time of a newer checkpoint."""
        attempt = self.running[run]
        self._replace(
            attempt,
            replace(
                attempt,
                ends_ms=ends_ms,
                checkpoint_ms=attempt.checkpoint_ms if checkpoint_ms is None else checkpoint_ms,
            ),
        )

    def preempt(self, run: RunKey, wanted_by: RunKey, *, ends_ms: int) -> None:
        """Record that an attempt was asked to stop."""
        attempt = self.running[run]
        self._replace(attempt, replace(attempt, preempted_for=wanted_by, ends_ms=ends_ms))

    def end_attempt(self, run: RunKey, *, now_ms: int) -> None:
        """Free what an attempt held."""
        attempt = self.running[run]
        self._release(attempt)
        units = count_units(attempt.accelerators, len(attempt.machines))
        for use in self._list_uses(attempt):
            use.end(run, units, now_ms=now_ms)

    def get_use(self, project: ProjectKey) -> ProjectUse:
        """Return the use of a project; one without a share has weight 1 and no limit."""
        if (use := self._uses.get(project)) is None:
            use = self._uses[project] = ProjectUse(Share(org=project.org, project=project.project))
        return use

    def list_uses_of(self, project: ProjectKey) -> tuple[ProjectUse, ...]:
        """Return the use of a project and of its organization."""
        of_project, organization = self.get_use(project), ProjectKey(project.org, "")
        if project == organization:
            return (of_project,)
        return of_project, self.get_use(organization)

    @property
    def has_guarantees(self) -> bool:
        return bool(self._guarantees)

    def is_guaranteed(self, project: ProjectKey, units: int) -> bool:
        """Return whether so many more units are within a guaranteed share."""
        return any(use.running + units <= use.guaranteed for use in self.list_uses_of(project))

    def is_protected(self, project: ProjectKey) -> bool:
        """Return whether what a project keeps is within a guaranteed share."""
        return any(
            use.running - self.stopping_units[use.key] <= use.guaranteed
            for use in self.list_uses_of(project)
        )

    def count_pending_units(self, project: ProjectKey) -> int:
        """Return the units of waiting runs of a project for which attempts are stopping."""
        entries = map(self.waiting.get, self.stopping_for)
        queues = (entry[3] for entry in entries if entry is not None)
        return sum(queue.need.units for queue in queues if queue.project == project)

    def would_borrow(self, project: ProjectKey, units: int) -> bool:
        """Return whether so many more units are more than guaranteed while others are."""
        return self.has_guarantees and not self.is_guaranteed(project, units)

    def list_ends(self, pooled: PooledMachine) -> Iterator[tuple[int | None, int]]:
        """Yield the predicted end of each member on a machine, and its accelerators."""
        for run in pooled.attempts:
            attempt = self.running[run]
            for _ in range(attempt.machines.count(pooled.machine.id)):
                yield attempt.ends_ms, attempt.accelerators

    def _list_uses(self, attempt: RunningAttempt) -> tuple[ProjectUse, ...]:
        return self.list_uses_of(ProjectKey(attempt.org, attempt.project))

    def _replace(self, old: RunningAttempt, new: RunningAttempt) -> None:
        self._release(old)
        self._hold(new)

    def _hold(self, attempt: RunningAttempt) -> None:
        key = _get_key(attempt)
        self.running[key] = attempt
        for name in attempt.machines:
            self.pool.hold(key, name, attempt.accelerators, attempt.ends_ms)
        if attempt.preempted_for is None:
            self.preemptable.add(attempt)
        else:
            self.stopping_for[attempt.preempted_for] += 1
            self._count_stopping(attempt, 1)

    def _release(self, attempt: RunningAttempt) -> None:
        key = _get_key(attempt)
        del self.running[key]
        for name in attempt.machines:
            self.pool.release(key, name, attempt.accelerators, attempt.ends_ms)
        if attempt.preempted_for is None:
            self.preemptable.remove(attempt)
            return
        self._count_stopping(attempt, -1)
        self.stopping_for[attempt.preempted_for] -= 1
        if not self.stopping_for[attempt.preempted_for]:
            del self.stopping_for[attempt.preempted_for]

    def _count_stopping(self, attempt: RunningAttempt, sign: int) -> None:
        for use in self._list_uses(attempt):
            units = count_units(attempt.accelerators, len(attempt.machines))
            self.stopping_units[use.key] += sign * units


def find_obstacle(state: SchedulerState, queue: Queue) -> Obstacle | None:
    """Return what keeps the runs of a queue waiting even if every machine was free."""
    need = queue.need
    if not state.pool.fits_in_principle(need):
        return "machines"
    for use in state.list_uses_of(queue.project):
        if use.limit is not None and use.running + need.units > use.limit:
            return "project limit" if use.key.project else "organization limit"
    return None


def _get_key(attempt: RunningAttempt) -> RunKey:
    return RunKey(attempt.org, attempt.run_id)
