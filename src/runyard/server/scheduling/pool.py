"""Machines by what they are and by what is free on them.

Machines with equal labels, size and fabric form a group. A group keeps those that may take a run in
a sorted list for each number of free accelerators. So neither the fit of a requirement nor the best
machine for it needs a look at every machine. Everything is kept sorted, so equal contents answer
equally in whatever order they were added.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from runyard.server.scheduling.view import Labels, MachineCapacity, RunKey, WaitingRun, count_units

LOST_ELSEWHERE_MS = 60_000  # how long a run avoids the machines where it was lost
OVERDUE_MS = 60_000  # an attempt that should have ended is expected to end so much later
# Time limits are rounded up to one of these, so that runs with many different ones form few
# classes. Backfill counts with the rounded limit: later than the truth, never earlier.
LIMITS_S = (60, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400, 259200, 604800)

LabelKey = tuple[tuple[str, tuple[str, ...]], ...]
IsAllowed = Callable[[str], bool]


class Need(NamedTuple):
    """Requirements of a class of equal waiting runs. ``lost_on`` is part, as it is rare."""

    labels: LabelKey
    accelerators: int
    members: int
    preemptible: bool
    limit_ms: int | None
    lost_on: tuple[str, ...] = ()
    waiting_since_ms: int = 0

    @property
    def units(self) -> int:
        return count_units(self.accelerators, self.members)

    def list_avoided(self, now_ms: int) -> tuple[str, ...]:
        """Return the machines that lost the run, for its first minute of waiting."""
        is_recent = now_ms - self.waiting_since_ms < LOST_ELSEWHERE_MS
        return self.lost_on if is_recent else ()


class GroupKey(NamedTuple):
    """What makes machines equal."""

    labels: LabelKey
    slots: int
    accelerators: int
    fabric: str


@dataclass(slots=True, eq=False)
class PooledMachine:
    """A machine with what is free on it and who holds the rest."""

    machine: MachineCapacity
    group: "Group"
    free_slots: int
    free_accelerators: int
    attempts: set[RunKey] = field(default_factory=set)

    def count_members(self, need: Need) -> int:
        """Return how many members of a run fit on what is free."""
        return count_fitting(need, self.free_slots, self.free_accelerators)


class Group:
    """Equal machines. ``index[n]`` lists joined ones with a slot and n accelerators free."""

    def __init__(self, key: GroupKey) -> None:
        self.key = key
        self.labels = {name: frozenset(values) for name, values in key.labels}
        self.joined: list[str] = []
        self.index: list[list[str]] = [[] for _ in range(key.accelerators + 1)]
        self.ends: list[tuple[int, str, RunKey]] = []  # predicted ends of attempts, sorted

    def has_labels(self, need: Need) -> bool:
        """Return whether its machines have a listed value of each label."""
        return all(
            not self.labels.get(name, frozenset()).isdisjoint(values)
            for name, values in need.labels
        )


class Pool:
    """All machines, in groups."""

    def __init__(self) -> None:
        self.machines: dict[str, PooledMachine] = {}
        self.groups: dict[GroupKey, Group] = {}
        self._groups_of: dict[tuple[LabelKey, int], tuple[Group, ...]] = {}

    def put(self, machine: MachineCapacity) -> None:
        """Add a machine, or replace what is known of it; its attempts stay."""
        old = self.machines.get(machine.id)
        attempts, used = set[RunKey](), (0, 0)
        if old is not None:
            used = (
                old.machine.slots - old.free_slots,
                old.machine.accelerators - old.free_accelerators,
            )
            attempts = old.attempts
            self._unlist(old)
            _discard(old.group.joined, machine.id)
        key = GroupKey(
            build_label_key(machine.labels), machine.slots, machine.accelerators, machine.fabric
        )
        if (group := self.groups.get(key)) is None:
            group = self.groups[key] = Group(key)
            self._groups_of.clear()
        pooled = PooledMachine(
            machine, group, machine.slots - used[0], machine.accelerators - used[1], attempts
        )
        self.machines[machine.id] = pooled
        if old is not None and old.group is not group:
            moved = [end for end in old.group.ends if end[1] == machine.id]
            old.group.ends = [end for end in old.group.ends if end[1] != machine.id]
            for end in moved:
                insort(group.ends, end)
        if machine.state == "joined":
            insort(group.joined, machine.id)
        self._list(pooled)

    def remove(self, machine_id: str) -> None:
        """Forget a machine; call when the attempts on it have ended."""
        pooled = self.machines.pop(machine_id)
        self._unlist(pooled)
        _discard(pooled.group.joined, machine_id)

    def hold(self, run: RunKey, machine_id: str, accelerators: int, ends_ms: int | None) -> None:
        """Take a slot and accelerators of a machine for a member of a run."""
        if (pooled := self.machines.get(machine_id)) is not None:
            self._change(pooled, -1, -accelerators)
            pooled.attempts.add(run)
            if ends_ms is not None:
                insort(pooled.group.ends, (ends_ms, machine_id, run))

    def release(self, run: RunKey, machine_id: str, accelerators: int, ends_ms: int | None) -> None:
        """Give back what ``hold`` took."""
        if (pooled := self.machines.get(machine_id)) is not None:
            self._change(pooled, 1, accelerators)
            pooled.attempts.discard(run)
            if ends_ms is not None:
                _discard(pooled.group.ends, (ends_ms, machine_id, run))

    def list_groups(self, need: Need) -> tuple[Group, ...]:
        """Return the groups whose machines could take a member if nothing else ran there."""
        cache_key = (need.labels, need.accelerators)
        if (found := self._groups_of.get(cache_key)) is None:
            found = tuple(
                group
                for _, group in sorted(self.groups.items(), key=itemgetter(0))
                if group.has_labels(need) and count_fitting(need, *group.key[1:3]) > 0
            )
            self._groups_of[cache_key] = found
        return found

    def fits_in_principle(self, need: Need, *, without: Collection[str] = ()) -> bool:
        """Return whether the joined machines could take the run if nothing else ran there."""
        capacity = Counter[str]()
        for group in self.list_groups(need):
            count = len(group.joined)
            if without and count:
                count -= sum(_contains(group.joined, machine_id) for machine_id in set(without))
            if count > 0:
                capacity[group.key.fabric] += count * count_fitting(need, *group.key[1:3])
                if capacity[group.key.fabric] >= need.members:
                    return True
        return False

    def find_machines(self, need: Need, is_allowed: IsAllowed) -> tuple[str, ...] | None:
        """Return a machine for each member, or None if they do not all fit now.

        One machine for all of them comes first: the one with the fewest free accelerators that
        suffices. Otherwise those with the most free members, within one fabric, as few as possible.
        """
        groups = self.list_groups(need)
        found = self._find_single(need, groups, is_allowed)
        if found is not None or need.members == 1:
            return None if found is None else (found,) * need.members
        best: tuple[str, ...] | None = None
        for _, fabric_groups in group_by_fabric(groups):
            chosen = _fill(need, self._list_roomy(need, fabric_groups, is_allowed))
            if chosen is not None and (best is None or len(set(chosen)) < len(set(best))):
                best = chosen
        return best

    def list_joined(self, need: Need, is_allowed: IsAllowed) -> Iterator[PooledMachine]:
        """Yield the joined machines that could take a member if nothing else ran there."""
        for group in self.list_groups(need):
            yield from (self.machines[name] for name in group.joined if is_allowed(name))

    def find_earliest(
        self, need: Need, is_allowed: IsAllowed, accelerators_of: Callable[[RunKey], int]
    ) -> tuple[str, ...] | None:
        """Return the machines that are predicted to be free first, one for each member.

        Where no predictions suffice, those with the most free.
        """
        groups = self.list_groups(need)
        free: dict[str, tuple[int, int]] = {}
        members: dict[str, dict[str, int]] = {}
        if need.members > 1:
            for pooled in self.list_joined(need, is_allowed):
                fabric = members.setdefault(pooled.group.key.fabric, {})
                fabric[pooled.machine.id] = pooled.count_members(need)
        for _, name, run in merge(*(group.ends for group in groups)):
            pooled = self.machines[name]
            if pooled.machine.state != "joined" or not is_allowed(name):
                continue
            slots, accelerators = free.get(name, (pooled.free_slots, pooled.free_accelerators))
            free[name] = slots, accelerators = slots + 1, accelerators + accelerators_of(run)
            fabric = members.setdefault(pooled.group.key.fabric, {})
            fabric[name] = count_fitting(need, slots, accelerators)
            if fabric[name] >= need.members:
                return (name,) * need.members
            if need.members > 1 and sum(fabric.values()) >= need.members:
                return _fill(need, _sort_by_members(fabric))
        return self._find_largest(need, is_allowed)

    def predict_free(
        self,
        need: Need,
        machines: Iterable[str],
        now_ms: int,
        list_ends: Callable[[PooledMachine], Iterable[tuple[int | None, int]]],
    ) -> int | None:
        """Return when the run is predicted to fit on these machines; None if nothing predicts it.

        ``list_ends`` returns the predicted end of each attempt of a machine and its accelerators.
        """
        latest_ms = now_ms
        for name, count in Counter(machines).items():
            pooled = self.machines[name]
            slots, accelerators = pooled.free_slots, pooled.free_accelerators
            ends = sorted((end, freed) for end, freed in list_ends(pooled) if end is not None)
            for end_ms, freed in ends:
                if count_fitting(need, slots, accelerators) >= count:
                    break
                slots, accelerators = slots + 1, accelerators + freed
                overdue = end_ms if end_ms > now_ms else now_ms + OVERDUE_MS
                latest_ms = max(latest_ms, overdue)
            if count_fitting(need, slots, accelerators) < count:
                return None
        return latest_ms

    def _find_single(
        self, need: Need, groups: Iterable[Group], is_allowed: IsAllowed
    ) -> str | None:
        best: tuple[int, str] | None = None
        for group in groups:
            for free in range(need.accelerators * need.members, len(group.index)):
                if best is not None and free > best[0]:
                    break
                name = next(
                    (
                        name
                        for name in group.index[free]
                        if is_allowed(name) and self.machines[name].free_slots >= need.members
                    ),
                    None,
                )
                if name is not None:
                    best = min(best or (free, name), (free, name))
                    break
        return None if best is None else best[1]

    def _list_roomy(
        self, need: Need, groups: Iterable[Group], is_allowed: IsAllowed
    ) -> list[tuple[str, int]]:
        roomy = {
            name: count
            for group in groups
            for free in range(need.accelerators, len(group.index))
            for name in group.index[free]
            if is_allowed(name) and (count := self.machines[name].count_members(need))
        }
        return _sort_by_members(roomy)

    def _find_largest(self, need: Need, is_allowed: IsAllowed) -> tuple[str, ...] | None:
        best: tuple[str, ...] | None = None
        for _, groups in group_by_fabric(self.list_groups(need)):
            machines = [
                self.machines[name] for group in groups for name in group.joined if is_allowed(name)
            ]
            machines.sort(
                key=lambda pooled: (
                    -pooled.free_accelerators,
                    -pooled.free_slots,
                    pooled.machine.id,
                )
            )
            chosen = _fill(
                need,
                [
                    (pooled.machine.id, count_fitting(need, *pooled.group.key[1:3]))
                    for pooled in machines
                ],
            )
            if chosen is not None and (best is None or len(set(chosen)) < len(set(best))):
                best = chosen
        return best

    def _change(self, pooled: PooledMachine, slots: int, accelerators: int) -> None:
        self._unlist(pooled)
        pooled.free_slots += slots
        pooled.free_accelerators += accelerators
        self._list(pooled)

    def _list(self, pooled: PooledMachine) -> None:
        if _is_listed(pooled):
            insort(pooled.group.index[pooled.free_accelerators], pooled.machine.id)

    def _unlist(self, pooled: PooledMachine) -> None:
        if _is_listed(pooled):
            _discard(pooled.group.index[pooled.free_accelerators], pooled.machine.id)


def count_fitting(need: Need, slots: int, accelerators: int) -> int:
    """Return how many members fit on so many free slots and accelerators."""
    if need.accelerators:
        slots = min(slots, accelerators // need.accelerators)
    return max(0, slots)


def build_need(run: WaitingRun) -> Need:
    """Return the class of a waiting run."""
    limit_ms = None
    if run.limit_s is not None:
        place = bisect_left(LIMITS_S, run.limit_s)
        limit_ms = round(1000 * (LIMITS_S[place] if place < len(LIMITS_S) else run.limit_s))
    lost_on = tuple(sorted(set(run.lost_on)))
    return Need(
        build_label_key(run.labels),
        run.accelerators,
        run.members,
        run.preemptible,
        limit_ms,
        lost_on,
        run.waiting_since_ms if lost_on else 0,
    )


def build_label_key(labels: Labels) -> LabelKey:
    """Return labels in one order. A label without values requires nothing."""
    return tuple(
        (name, tuple(sorted(set(values)))) for name, values in sorted(labels.items()) if values
    )


def group_by_fabric(groups: Iterable[Group]) -> Iterator[tuple[str, list[Group]]]:
    """Yield the groups of each fabric, in order."""
    get_fabric = attrgetter("key.fabric")
    for fabric, found in groupby(sorted(groups, key=get_fabric), key=get_fabric):
        yield fabric, list(found)


def _fill(need: Need, roomy: Iterable[tuple[str, int]]) -> tuple[str, ...] | None:
    """Return a machine for each member, from machines with the most room first."""
    chosen: list[str] = []
    for name, count in roomy:
        chosen += [name] * min(count, need.members - len(chosen))
        if len(chosen) == need.members:
            return tuple(chosen)
    return None


def _sort_by_members(members: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(members.items(), key=lambda item: (-item[1], item[0]))


def _is_listed(pooled: PooledMachine) -> bool:
    is_joined = pooled.machine.state == "joined"
    return is_joined and pooled.free_slots > 0 and pooled.free_accelerators >= 0


def _contains(items: list[str], item: str) -> bool:
    place = bisect_left(items, item)
    return place < len(items) and items[place] == item


def _discard(items: list[Any], item: Any) -> None:
    place = bisect_left(items, item)
    if place < len(items) and items[place] == item:
        del items[place]
