"""Waiting runs, in one queue for each class of equal needs and each project.

Within such a queue no run differs from another for the machines, so if the first one does not fit,
none does. A run costs one tuple, an entry of a heap and one of a dictionary. Runs that are removed
leave their entry in the heap until it comes to the top.
"""

from collections import Counter
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any

from runyard.server.scheduling.pool import Need, build_need
from runyard.server.scheduling.view import ProjectKey, RunKey, WaitingRun

# Negative priority, time of creation, ID, queue. IDs are unique, so queues are never compared.
Entry = tuple[int, int, str, "Queue"]


class NeedClass:
    """All waiting runs with equal needs: a queue for each project."""

    __slots__ = ("counts", "need", "queues")

    def __init__(self, need: Need) -> None:
        self.need = need
        self.queues: dict[ProjectKey, Queue] = {}
        self.counts = Counter[int]()  # waiting runs by negative priority


class Queue:
    """Waiting runs of one project with equal needs, by priority and age."""

    __slots__ = ("_waiting", "counts", "heap", "need", "project")

    def __init__(self, need: Need, project: ProjectKey, waiting: dict[str, Any]) -> None:
        self.need, self.project = need, project
        self.heap: list[Entry] = []
        self.counts = Counter[int]()  # waiting runs by negative priority
        self._waiting = waiting

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Return a key that orders queues; their needs alone may not be comparable."""
        limit_ms = -1 if self.need.limit_ms is None else self.need.limit_ms
        return self.project, self.need._replace(limit_ms=limit_ms)

    def peek(self) -> Entry | None:
        """Return the first run that still waits."""
        heap = self.heap
        while heap and self._waiting.get(heap[0][2]) is not heap[0]:
            heappop(heap)
        return heap[0] if heap else None

    def list_entries(self) -> Iterator[Entry]:
        """Yield the runs that still wait, in no order."""
        return (entry for entry in self.heap if self._waiting.get(entry[2]) is entry)

    def get_run(self, entry: Entry) -> RunKey:
        return RunKey(self.project.org, entry[2])


class WaitingRuns:
    """All queues, and the entry of each run."""

    def __init__(self) -> None:
        self.classes: dict[Need, NeedClass] = {}
        self.projects = Counter[ProjectKey]()  # waiting runs of each
        self.preempted: set[RunKey] = set()
        self._entries: dict[str, dict[str, Entry]] = {}

    def add(self, run: WaitingRun) -> None:
        """Add a run; one that waits already is replaced."""
        queue, entry = self._build_entry(run)
        heappush(queue.heap, entry)

    def fill(self, runs: Iterator[WaitingRun]) -> None:
        """Add many runs at once, with one heapify for each queue."""
        filled = set[Queue]()
        for run in runs:
            queue, entry = self._build_entry(run)
            queue.heap.append(entry)
            filled.add(queue)
        for queue in filled:
            heapify(queue.heap)

    def remove(self, run: RunKey) -> Entry | None:
        """Remove a run and return its entry; None if it does not wait."""
        entry = self._entries.get(run.org, {}).pop(run.run_id, None)
        if entry is not None:
            queue = entry[3]
            of_need = self.classes[queue.need]
            _decrement(queue.counts, entry[0])
            _decrement(of_need.counts, entry[0])
            _decrement(self.projects, queue.project)
            self.preempted.discard(run)
            if not queue.counts:
                del of_need.queues[queue.project]
            if not of_need.queues:
                del self.classes[queue.need]
        return entry

    def get(self, run: RunKey) -> Entry | None:
        """Return the entry of a waiting run."""
        return self._entries.get(run.org, {}).get(run.run_id)

    def count(self) -> int:
        """Return the number of waiting runs."""
        return sum(map(len, self._entries.values()))

    def list_queues(self) -> Iterator[Queue]:
        """Yield every queue that has a run."""
        for of_need in self.classes.values():
            yield from of_need.queues.values()

    def list_runs(self) -> Iterator[WaitingRun]:
        """Yield every waiting run as part of a view."""
        for queue in self.list_queues():
            need = queue.need
            for entry in queue.list_entries():
                run = queue.get_run(entry)
                yield WaitingRun(
                    org=run.org,
                    run_id=run.run_id,
                    project=queue.project.project,
                    priority=-entry[0],
                    created_ms=entry[1],
                    labels=dict(need.labels),
                    accelerators=need.accelerators,
                    members=need.members,
                    preemptible=need.preemptible,
                    limit_s=None if need.limit_ms is None else need.limit_ms / 1000,
                    lost_on=need.lost_on,
                    waiting_since_ms=need.waiting_since_ms,
                    was_preempted=run in self.preempted,
                )

    def _build_entry(self, run: WaitingRun) -> tuple[Queue, Entry]:
        key = RunKey(run.org, run.run_id)
        if self.get(key) is not None:
            self.remove(key)
        need = build_need(run)
        project = ProjectKey(run.org, run.project)
        waiting = self._entries.setdefault(run.org, {})
        if (of_need := self.classes.get(need)) is None:
            of_need = self.classes[need] = NeedClass(need)
        if (queue := of_need.queues.get(project)) is None:
            queue = of_need.queues[project] = Queue(of_need.need, project, waiting)
        entry = (-run.priority, run.created_ms, run.run_id, queue)
        waiting[run.run_id] = entry
        queue.counts[-run.priority] += 1
        of_need.counts[-run.priority] += 1
        self.projects[project] += 1
        if run.was_preempted:
            self.preempted.add(key)
        return queue, entry


def _decrement(counts: Counter[Any], key: Any) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
