"""Which running attempts make way for a waiting run.

A victim has a lower priority than the run, or uses what it borrowed: a share that the run's project
is guaranteed, or a machine that is reserved for the run. A lower priority is not enough if the
victim's project is within its guaranteed share and the run's is not: the two would preempt each
other in turn. No attempt is preempted in its first ten minutes. Victims have the least work to lose
since their last checkpoint, and there are no more than the run needs.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from typing import Any

from runyard.server.scheduling.pool import (
    IsAllowed,
    Need,
    Pool,
    PooledMachine,
    count_fitting,
    group_by_fabric,
)
from runyard.server.scheduling.view import RunKey, RunningAttempt, count_units

MIN_RUN_MS = 600_000
MAX_CANDIDATES = 5_000  # considered for one waiting run in one pass

# Newest checkpoint first, then the newest attempt; organization and run.
_Rank = tuple[int, int, str, str]


@dataclass(slots=True)
class VictimSet:
    """Attempts to stop, and the machines on which the run then fits, one for each member."""

    victims: list[RunningAttempt]
    machines: tuple[str, ...]


@dataclass(slots=True)
class Preemptable:
    """Attempts that have not been asked to stop, those with the newest checkpoint first.

    In their first ten minutes they are kept apart, by start.
    """

    young: list[tuple[int, RunKey]] = field(default_factory=list)
    by_priority: dict[int, list[_Rank]] = field(default_factory=dict)
    borrowers: list[_Rank] = field(default_factory=list)  # once more

    def add(self, attempt: RunningAttempt) -> None:
        """Add an attempt."""
        insort(self.young, (attempt.started_ms, RunKey(attempt.org, attempt.run_id)))

    def remove(self, attempt: RunningAttempt) -> None:
        """Remove an attempt."""
        if _remove_sorted(self.young, (attempt.started_ms, RunKey(attempt.org, attempt.run_id))):
            return
        rank, of_priority = _get_rank(attempt), self.by_priority[attempt.priority]
        _remove_sorted(of_priority, rank)
        if not of_priority:
            del self.by_priority[attempt.priority]
        if attempt.borrows:
            _remove_sorted(self.borrowers, rank)

    def ripen(self, running: Mapping[RunKey, RunningAttempt], *, now_ms: int) -> None:
        """Let the attempts that have run for ten minutes be candidates."""
        count = bisect_right(self.young, (now_ms - MIN_RUN_MS + 1,))
        for _, run in self.young[:count]:
            attempt = running[run]
            rank = _get_rank(attempt)
            insort(self.by_priority.setdefault(attempt.priority, []), rank)
            if attempt.borrows:
                insort(self.borrowers, rank)
        del self.young[:count]

    def list_candidates(self, priority: int) -> Iterator[RunKey]:
        """Yield attempts of lower priority, and borrowers, by their last checkpoint."""
        lists = [found for of, found in self.by_priority.items() if of < priority]
        seen = set[RunKey]()
        for *_, org, run_id in merge(*lists, self.borrowers):
            run = RunKey(org, run_id)
            if run not in seen:
                seen.add(run)
                yield run


def find_victims(
    pool: Pool,
    need: Need,
    candidates: Iterable[RunningAttempt],
    is_allowed: IsAllowed,
    *,
    now_ms: int,
) -> VictimSet | None:
    """Return the victims with the least work to lose after which the run fits, if there are any.

    ``candidates`` come with the newest checkpoint first; no more than ``MAX_CANDIDATES`` are tried.
    """
    candidates = islice(candidates, MAX_CANDIDATES)
    if need.members == 1:
        return _find_on_one_machine(pool, need, candidates, is_allowed, now_ms=now_ms)
    ordered = list(candidates)
    best: tuple[int, int, VictimSet] | None = None
    for _, groups in group_by_fabric(pool.list_groups(need)):
        machines = [
            pool.machines[name] for group in groups for name in group.joined if is_allowed(name)
        ]
        found = _find_on_many(need, machines, ordered)
        if found is not None:
            loss = _measure_loss(found.victims, now_ms)
            if best is None or (loss, len(found.victims)) < best[:2]:
                best = (loss, len(found.victims), found)
    return None if best is None else best[2]


def _find_on_one_machine(
    pool: Pool,
    need: Need,
    ordered: Iterable[RunningAttempt],
    is_allowed: IsAllowed,
    *,
    now_ms: int,
) -> VictimSet | None:
    groups = set(pool.list_groups(need))
    tried: dict[str, list[RunningAttempt]] = {}  # those of each machine so far
    best: tuple[int, int, str, list[RunningAttempt]] | None = None
    for attempt in ordered:
        if best is not None and now_ms - attempt.checkpoint_ms > best[0]:
            break  # this one alone, and every one after it, loses more
        for name in sorted(set(attempt.machines)):
            pooled = pool.machines.get(name)
            if pooled is None or pooled.group not in groups or not is_allowed(name):
                continue
            of_machine = tried.setdefault(name, [])
            of_machine.append(attempt)
            if pooled.machine.state != "joined":
                continue
            victims = _choose(need, [pooled], of_machine)
            if victims is not None:
                loss = _measure_loss(victims, now_ms)
                best = min(best or (loss + 1, 0, "", []), (loss, len(victims), name, victims))
    return None if best is None else VictimSet(best[3], (best[2],))


def _find_on_many(
    need: Need, machines: Collection[PooledMachine], ordered: Iterable[RunningAttempt]
) -> VictimSet | None:
    victims = _choose(need, machines, ordered)
    if victims is None:
        return None
    free = _Free(need, machines)
    for victim in victims:
        free.change(victim, 1)
    return VictimSet(victims, free.list_machines())


def _choose(
    need: Need, machines: Collection[PooledMachine], ordered: Iterable[RunningAttempt]
) -> list[RunningAttempt] | None:
    """Take victims in order until the run fits, then spare those that turn out not to be needed."""
    free = _Free(need, machines)
    victims: list[RunningAttempt] = []
    for attempt in ordered:
        if free.count() >= need.members:
            break
        if free.change(attempt, 1):
            victims.append(attempt)
    if free.count() < need.members or not victims:
        return None
    for attempt in reversed(victims.copy()):
        free.change(attempt, -1)
        if free.count() >= need.members:
            victims.remove(attempt)
        else:
            free.change(attempt, 1)
    return victims


class _Free:
    """Free slots and accelerators of machines while victims are tried."""

    def __init__(self, need: Need, machines: Iterable[PooledMachine]) -> None:
        self.need = need
        self._free = {
            pooled.machine.id: [pooled.free_slots, pooled.free_accelerators] for pooled in machines
        }
        self._members = {name: count_fitting(need, *free) for name, free in self._free.items()}
        self._count = sum(self._members.values())

    def count(self) -> int:
        return self._count

    def change(self, attempt: RunningAttempt, sign: int) -> bool:
        """Free, or take again, what an attempt holds here; return whether it holds anything."""
        counts = Counter(name for name in attempt.machines if name in self._free)
        for name, members in counts.items():
            free = self._free[name]
            free[0] += sign * members
            free[1] += sign * members * attempt.accelerators
            fitting = count_fitting(self.need, *free)
            self._count += fitting - self._members[name]
            self._members[name] = fitting
        return bool(counts)

    def list_machines(self) -> tuple[str, ...]:
        """Return a machine for each member, those with the most members first."""
        chosen: list[str] = []
        for name, count in sorted(self._members.items(), key=lambda item: (-item[1], item[0])):
            chosen += [name] * min(count, self.need.members - len(chosen))
        return tuple(chosen)


def _measure_loss(victims: Iterable[RunningAttempt], now_ms: int) -> int:
    """Return the unit-milliseconds since the last checkpoint of each victim."""
    return sum(
        max(0, now_ms - victim.checkpoint_ms)
        * count_units(victim.accelerators, len(victim.machines))
        for victim in victims
    )


def _get_rank(attempt: RunningAttempt) -> _Rank:
    return -attempt.checkpoint_ms, -attempt.started_ms, attempt.org, attempt.run_id


def _remove_sorted(items: list[Any], item: Any) -> bool:
    place = bisect_left(items, item)
    if place == len(items) or items[place] != item:
        return False
    del items[place]
    return True
