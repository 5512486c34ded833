"""The queue: which waiting run starts where, and which running one makes way.

``schedule(view)`` is a pure function. ``Scheduler`` is the same with memory: it takes changes one
by one and decides as it would from a view of its contents.

A pass visits waiting runs in the order of the queue: priority; then runs that hold a reservation;
then the project with the least weighted recent use; then age. Within a pass capacity only shrinks,
so a class of equal needs that did not fit once is not tried again. The first run that does not fit,
of each group of classes that compete for the same machines, reserves machines. A run behind it uses
those only if its time limit ends before the reservation begins, or if it is preemptible; then it
borrows them. A reservation is held until its run starts or a run of higher priority needs the
machines: if use could move other projects past it, runs that backfill could delay it for ever.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace

from runyard.server.scheduling.explanations import explain_queue, explain_run
from runyard.server.scheduling.pool import Group, Need
from runyard.server.scheduling.preemption import MIN_RUN_MS, VictimSet, find_victims
from runyard.server.scheduling.state import SchedulerState, find_obstacle
from runyard.server.scheduling.view import (
    Action,
    Decision,
    Explain,
    Place,
    Preempt,
    ProjectKey,
    Reservation,
    Reserve,
    RunKey,
    RunningAttempt,
    Unreserve,
    View,
)
from runyard.server.scheduling.waiting import Entry, NeedClass, Queue

STOPPING_MS = 30_000  # how long an attempt is expected to save after it was asked to stop
MAX_PREEMPTING = 16  # waiting runs for which attempts are stopping at the same time
SEARCH_AGAIN_MS = 30_000  # after a search for attempts to preempt that found none
RESERVATION_SHIFT_MS = 60_000  # a smaller change of the expected time is not announced


def schedule(view: View) -> list[Decision]:
    """Return what to do now, and why each class of waiting runs waits."""
    scheduler = Scheduler()
    scheduler.load(view)
    return [*scheduler.schedule(view.now_ms), *scheduler.explain(view.now_ms)]


class Scheduler(SchedulerState):
    """The queue with memory. It applies its own decisions to what it knows.

    An attempt that could not be started after all is ended with ``end_attempt`` and its run added
    again.
    """

    def schedule(self, now_ms: int) -> list[Action]:
        """Decide, apply the decisions to this state and return them in order."""
        return _Pass(self, now_ms).run()

    def explain(self, now_ms: int) -> list[Explain]:
        """Explain every class of waiting runs, as of the last pass."""
        queues = sorted(self.waiting.list_queues(), key=lambda queue: queue.sort_key)
        return [explain_queue(self, queue, now_ms) for queue in queues]

    def explain_run(self, run: RunKey, now_ms: int) -> tuple[str, str]:
        """Return reason and message of one waiting run, with its position.

        Raises:
            KeyError: the run does not wait.
        """
        return explain_run(self, run, now_ms)


class _Pass:
    """One walk through the queue.

    Classes of needs that can change nothing more are dropped on the way. So once the machines are
    full the walk ends, however many runs wait.
    """

    def __init__(self, state: SchedulerState, now_ms: int) -> None:
        self.state, self.now_ms = state, now_ms
        self.actions: list[Action] = []
        self.reserved: dict[str, int | None] = {}  # machine -> when its reservation begins
        self.covered = set[Group]()  # groups whose first run that does not fit has been visited
        self.unfit = set[Need]()
        self.without_victims = set[tuple[Need, ProjectKey | None, int]]()
        self.set_aside: list[Entry] = []  # visited out of the order of their queue
        self.visited = set[RunKey]()
        self.weighted = {
            project: state.get_use(project).compute_weighted_use(now_ms)
            for project in state.waiting.projects
        }
        self.order = sorted((use, project) for project, use in self.weighted.items())
        state.preemptable.ripen(state.running, now_ms=now_ms)
        self.lowest_priority = min(state.preemptable.by_priority, default=None)
        self.may_search = now_ms >= state.victims_from_ms
        self.may_reclaim = state.has_guarantees and bool(state.preemptable.borrowers)

    def run(self) -> list[Action]:
        """Visit every run that may start or reserve."""
        holders = self._list_holders()
        active, skipped = self._split_classes()
        levels = {priority for of_need in (*active, *skipped) for priority in of_need.counts}
        for level in sorted(levels.union(priority for priority, _ in holders)):
            for priority, run in holders:
                if priority == level:
                    self._visit_holder(run)
                    if run not in self.state.reservations:  # it covers what was skipped no longer
                        active, skipped = active + skipped, []
            self._walk_level(level, active)
        for entry in self.set_aside:
            heappush(entry[3].heap, entry)
        return self.actions

    def _list_holders(self) -> list[tuple[int, RunKey]]:
        holders: list[tuple[int, RunKey]] = []
        for run in sorted(self.state.reservations):
            entry = self.state.waiting.get(run)
            if entry is None:
                self._unreserve(run)
            else:
                holders.append((entry[0], run))
        return holders

    def _split_classes(self) -> tuple[list[NeedClass], list[NeedClass]]:
        """Return the classes that may change anything, and the others.

        The others neither fit nor may preempt, and a holder that does not fit either comes before
        them and covers their machines.
        """
        pool, stuck = self.state.pool, self._list_stuck_holders()
        active, skipped = list[NeedClass](), list[NeedClass]()
        for need, of_need in self.state.waiting.classes.items():
            if pool.find_machines(need, _is_any) is None:
                self.unfit.add(need)
                first, groups = min(of_need.counts), pool.list_groups(need)
                is_covered = not groups or any(
                    priority <= first and not covered.isdisjoint(groups)
                    for priority, covered in stuck
                )
                if is_covered and not self._may_preempt(first):
                    skipped.append(of_need)
                    continue
            active.append(of_need)
        return active, skipped

    def _list_stuck_holders(self) -> list[tuple[int, frozenset[Group]]]:
        """Return the holders that do not fit: negative priority and groups of each."""
        stuck, state = [], self.state
        for run in state.reservations:
            entry = state.waiting.get(run)
            if entry is not None and not find_obstacle(state, entry[3]):
                need = entry[3].need
                if state.pool.find_machines(need, _is_any) is None:
                    stuck.append((entry[0], frozenset(state.pool.list_groups(need))))
        return stuck

    def _may_preempt(self, negative_priority: int) -> bool:
        """Return whether any attempt could make way for a run of this priority."""
        if not self.may_search or len(self.state.stopping_for) >= MAX_PREEMPTING:
            return False
        lowest = self.lowest_priority
        return self.may_reclaim or (lowest is not None and lowest < -negative_priority)

    def _is_hopeless(self, need: Need, level: int) -> bool:
        """Return whether no further run of a class, at this priority, can change anything."""
        return (
            need in self.unfit
            and not self._may_preempt(level)
            and not self.covered.isdisjoint(self.state.pool.list_groups(need))
        )

    def _walk_level(self, level: int, active: list[NeedClass]) -> None:
        """Visit the runs of one priority, by use of their project and age."""
        of_level = {of_need.need: of_need for of_need in active if level in of_need.counts}
        order = self.order.copy()  # a sorted list is a heap
        heads: dict[ProjectKey, list[Entry]] = {}
        while order and of_level:
            use, project = order[0]
            if use < self.weighted[project]:
                heapreplace(order, (self.weighted[project], project))  # a holder has started
            elif project not in heads:
                heads[project] = self._list_heads(project, level, of_level)
            elif not heads[project]:
                heappop(order)
            else:
                self._visit_first(heads[project], level)

    def _list_heads(
        self, project: ProjectKey, level: int, of_level: dict[Need, NeedClass]
    ) -> list[Entry]:
        """Return the first run of each class of a project, as a heap; drop hopeless classes."""
        heads: list[Entry] = []
        for need, of_need in list(of_level.items()):
            if self._is_hopeless(need, level):
                del of_level[need]
                continue
            queue = of_need.queues.get(project)
            if queue is not None and level in queue.counts:
                entry = self._peek(queue)
                if entry is not None and entry[0] == level:
                    heads.append(entry)
        heapify(heads)
        return heads

    def _visit_first(self, heads: list[Entry], level: int) -> None:
        """Visit the first run, and put the next one of its queue in its place."""
        queue = heads[0][3]
        entry = None
        if not self._is_hopeless(queue.need, level) and self._visit(queue, heads[0]):
            entry = self._peek(queue)
        if entry is not None and entry[0] == level:
            heapreplace(heads, entry)
        else:
            heappop(heads)

    def _peek(self, queue: Queue) -> Entry | None:
        """Return the first run of a queue that was not visited."""
        entry = queue.peek()
        while self.visited and entry is not None and queue.get_run(entry) in self.visited:
            self.set_aside.append(heappop(queue.heap))
            entry = queue.peek()
        return entry

    def _visit_holder(self, run: RunKey) -> None:
        entry = self.state.waiting.get(run)
        if entry is None:
            return
        self.visited.add(run)
        queue = entry[3]
        if self._place(run, entry):
            return
        if find_obstacle(self.state, queue):
            self._unreserve(run)
            return
        held = self.state.reservations[run]
        is_first = self.covered.isdisjoint(self.state.pool.list_groups(queue.need))
        is_preempting = self.state.stopping_for[run] > 0
        is_valid = self._can_hold(queue.need, held)
        if self._preempt(run, entry, held if is_valid else None):
            return
        if is_valid and (is_first or is_preempting):
            self._reserve(run, queue, held.machines)
        elif not (is_first and self._reserve_earliest(run, queue)):
            self._unreserve(run)

    def _visit(self, queue: Queue, entry: Entry) -> bool:
        """Start a run, or prepare its start; return whether the run behind it may be next."""
        run = queue.get_run(entry)
        if self._place(run, entry):
            return True
        if find_obstacle(self.state, queue) is not None:
            return False
        if self._may_preempt(entry[0]) and self._preempt(run, entry, None):
            self.visited.add(run)
            return True
        groups = self.state.pool.list_groups(queue.need)
        if self.covered.isdisjoint(groups):
            self._reserve_earliest(run, queue)
            self.covered.update(groups)
        return False  # the runs behind it have the same needs

    def _place(self, run: RunKey, entry: Entry) -> bool:
        """Start a run if it may and fits."""
        queue, state = entry[3], self.state
        need = queue.need
        if need in self.unfit or find_obstacle(self.state, queue):
            return False
        machines = self._find_machines(need)
        if machines is None:
            self.unfit.add(need)
            return False
        is_backfill = any(
            name in self.reserved and not self._ends_in_time(need, self.reserved[name])
            for name in machines
        )
        attempt = RunningAttempt(
            org=run.org,
            run_id=run.run_id,
            project=queue.project.project,
            priority=-entry[0],
            machines=machines,
            accelerators=need.accelerators,
            started_ms=self.now_ms,
            ends_ms=None if need.limit_ms is None else self.now_ms + need.limit_ms,
            checkpoint_ms=self.now_ms,
            preemptible=need.preemptible,
            borrows=is_backfill or state.would_borrow(queue.project, need.units),
        )
        state.waiting.remove(run)
        state.start_attempt(attempt, now_ms=self.now_ms)
        self._reorder(queue.project)
        self.actions.append(Place(run, machines, attempt.borrows))
        if run in state.reservations:
            self._unreserve(run)
        return True

    def _reorder(self, project: ProjectKey) -> None:
        """Move a project to its new place in the order."""
        old = (self.weighted[project], project)
        del self.order[bisect_left(self.order, old)]
        use = self.state.get_use(project).compute_weighted_use(self.now_ms)
        self.weighted[project] = use
        insort(self.order, (use, project))

    def _find_machines(self, need: Need) -> tuple[str, ...] | None:
        avoided = need.lost_on
        if avoided and self.state.pool.fits_in_principle(need, without=avoided):
            found = self.state.pool.find_machines(
                need, lambda name: name not in avoided and self._is_open(need, name)
            )
            if found is not None or need.list_avoided(self.now_ms):
                return found
        return self.state.pool.find_machines(need, lambda name: self._is_open(need, name))

    def _is_open(self, need: Need, name: str) -> bool:
        if name not in self.reserved:
            return True
        from_ms = self.reserved[name]
        if self._ends_in_time(need, from_ms):
            return True
        # A preemptible run makes way, though not in its first ten minutes.
        return need.preemptible and (from_ms is None or self.now_ms + MIN_RUN_MS <= from_ms)

    def _ends_in_time(self, need: Need, from_ms: int | None) -> bool:
        is_known = need.limit_ms is not None and from_ms is not None
        return is_known and self.now_ms + (need.limit_ms or 0) <= (from_ms or 0)

    def _may_reserve(self, need: Need, name: str) -> bool:
        return name not in self.reserved and name not in self._list_avoided(need)

    def _list_avoided(self, need: Need) -> tuple[str, ...]:
        avoided = need.list_avoided(self.now_ms)
        if avoided and not self.state.pool.fits_in_principle(need, without=avoided):
            return ()
        return avoided

    def _can_hold(self, need: Need, held: Reservation) -> bool:
        machines = self.state.pool.machines
        return all(
            name in machines
            and machines[name].machine.state == "joined"
            and machines[name].group in self.state.pool.list_groups(need)
            and self._may_reserve(need, name)
            for name in held.machines
        )

    def _reserve_earliest(self, run: RunKey, queue: Queue) -> bool:
        machines = self.state.pool.find_earliest(
            queue.need,
            lambda name: self._may_reserve(queue.need, name),
            lambda key: self.state.running[key].accelerators,
        )
        if machines is not None:
            self._reserve(run, queue, machines)
        return machines is not None

    def _reserve(self, run: RunKey, queue: Queue, machines: tuple[str, ...]) -> None:
        from_ms = self.state.pool.predict_free(
            queue.need, machines, self.now_ms, self.state.list_ends
        )
        self.covered.update(self.state.pool.list_groups(queue.need))
        self.reserved.update(dict.fromkeys(machines, from_ms))
        old = self.state.reservations.get(run)
        if old is not None and old.machines == machines and _is_close(old.from_ms, from_ms):
            return
        self.state.reservations[run] = Reservation(
            org=run.org, run_id=run.run_id, machines=machines, from_ms=from_ms
        )
        self.actions.append(Reserve(run, machines, from_ms))

    def _unreserve(self, run: RunKey) -> None:
        del self.state.reservations[run]
        self.actions.append(Unreserve(run))

    def _preempt(self, run: RunKey, entry: Entry, held: Reservation | None) -> bool:
        """Ask attempts to make way for a run, and reserve their machines for it."""
        queue, state = entry[3], self.state
        is_busy = state.stopping_for[run] or len(state.stopping_for) >= MAX_PREEMPTING
        if is_busy or not self.may_search:
            return False
        # Neither the time limit nor being preemptible changes what is found.
        shape = queue.need._replace(preemptible=False, limit_ms=None)
        memo = (shape, queue.project if self.may_reclaim else None, entry[0])
        if held is None and memo in self.without_victims:
            return False
        found = self._find_victims(entry, held)
        if found is None:
            self.without_victims.add(memo)
            state.victims_from_ms = self.now_ms + SEARCH_AGAIN_MS
            return False
        for victim in found.victims:
            key = RunKey(victim.org, victim.run_id)
            ends_ms = self.now_ms + STOPPING_MS
            if victim.ends_ms is not None and self.now_ms < victim.ends_ms < ends_ms:
                ends_ms = victim.ends_ms
            state.preempt(key, run, ends_ms=ends_ms)
            self.actions.append(Preempt(key, run))
        self._reserve(run, queue, found.machines)
        return True

    def _find_victims(self, entry: Entry, held: Reservation | None) -> VictimSet | None:
        need = entry[3].need
        return find_victims(
            self.state.pool,
            need,
            self._list_victims(entry, held),
            lambda name: self._may_reserve(need, name),
            now_ms=self.now_ms,
        )

    def _list_victims(self, entry: Entry, held: Reservation | None) -> Iterator[RunningAttempt]:
        state, queue, priority = self.state, entry[3], -entry[0]
        pending = state.count_pending_units(queue.project)
        is_guaranteed = state.is_guaranteed(queue.project, pending + queue.need.units)
        reserved = set(held.machines) if held is not None else set()
        for key in state.preemptable.list_candidates(priority):
            attempt = state.running[key]
            project = ProjectKey(attempt.org, attempt.project)
            is_protected = (
                state.has_guarantees and project != queue.project and state.is_protected(project)
            )
            is_lower = attempt.priority < priority and (is_guaranteed or not is_protected)
            is_reclaimed = attempt.borrows and is_guaranteed and not is_protected
            is_backfill = (
                attempt.borrows
                and attempt.preemptible
                and attempt.priority <= priority
                and not reserved.isdisjoint(attempt.machines)
            )
            if is_lower or is_reclaimed or is_backfill:
                yield attempt


def _is_close(old_ms: int | None, new_ms: int | None) -> bool:
    if old_ms is None or new_ms is None:
        return old_ms is new_ms
    return abs(new_ms - old_ms) < RESERVATION_SHIFT_MS


def _is_any(_name: str) -> bool:
    return True
