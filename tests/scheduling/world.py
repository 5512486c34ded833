"""A small cluster that obeys the scheduler, and an oracle that judges each pass by brute force.

Events are tuples of small numbers, so that Hypothesis can shrink a failing list of them. The oracle
keeps books of its own and shares nothing with the scheduler but the plain data of the view.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import product
from random import Random
from typing import TypeVar

from runyard.server.scheduling.scheduler import Scheduler, schedule
from runyard.server.scheduling.view import (
    Action,
    Explain,
    MachineCapacity,
    Place,
    Preempt,
    ProjectKey,
    Reserve,
    RunKey,
    RunningAttempt,
    Share,
    Unreserve,
    View,
    WaitingRun,
    count_units,
)

T = TypeVar("T")
Event = tuple[int, int, int, int]
ORGS, PROJECTS = ("north", "south"), ("a", "b")
KINDS: tuple[dict[str, list[str]], ...] = ({"gpu": ["h100"]}, {"gpu": ["l40s"], "disk": ["ssd"]})
WANTED: tuple[dict[str, list[str]], ...] = (
    {},
    {"gpu": ["h100"]},
    {"gpu": ["l40s", "h100"]},
    {"gpu": ["b200"]},
    {"disk": ["ssd"], "cpu": []},
)
MIN_RUN_MS, LOST_ELSEWHERE_MS = 600_000, 60_000  # written again, so that a change is noticed
FREE = re.compile(r"(\S+) has (\d+) of (\d+) accelerators and (\d+) of (\d+) slots free")


@dataclass(slots=True)
class World:
    """Books of machines, runs and attempts, with the scheduler under test."""

    scheduler: Scheduler = field(default_factory=Scheduler)
    now_ms: int = 1_000_000_000
    machines: dict[str, MachineCapacity] = field(default_factory=dict)
    waiting: dict[RunKey, WaitingRun] = field(default_factory=dict)
    running: dict[RunKey, RunningAttempt] = field(default_factory=dict)
    reserved: dict[RunKey, tuple[str, ...]] = field(default_factory=dict)
    runs_of: dict[RunKey, WaitingRun] = field(default_factory=dict)
    shares: dict[ProjectKey, Share] = field(default_factory=dict)
    created: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def apply(self, event: Event) -> None:
        """Let one event happen."""
        kind, a, b, c = event
        self.now_ms += (0, 1000, 30_000, 400_000)[a % 4]
        if kind < 9:
            self.submit(a, b, c)
        elif kind < 13:
            self.end(a, b)
        elif kind < 15:
            self.put_machine(a, b, c)
        elif kind == 15:
            self.put_share(a, b, c)
        elif kind == 16:
            self.kill(a)
        elif kind == 17:
            self.lose(a)
        else:
            self.progress(a, b)

    def submit(self, a: int, b: int, c: int) -> None:
        run = WaitingRun(
            org=ORGS[a % 2],
            run_id=f"r{self.created:05}",
            project=PROJECTS[b % 2],
            priority=(0, 0, 0, 1, 5)[c % 5],
            created_ms=self.now_ms - 1000 * (c % 3),
            labels=WANTED[(a + b) % 5],
            accelerators=(0, 1, 1, 2, 3, 4, 7)[(b + c) % 7],
            members=(1, 1, 1, 1, 2, 3)[(a * 3 + c) % 6],
            preemptible=b % 3 == 0,
            limit_s=(None, 30.0, 500.0, 5000.0)[c % 4],
            waiting_since_ms=self.now_ms,
        )
        self.created += 1
        self.add(run)

    def add(self, run: WaitingRun) -> None:
        key = RunKey(run.org, run.run_id)
        self.waiting[key] = self.runs_of[key] = run
        self.scheduler.add_run(run)

    def end(self, a: int, b: int) -> None:
        stopping = [key for key, held in self.running.items() if held.preempted_for is not None]
        if stopping and b % 2:
            key = stopping[a % len(stopping)]
            self.close(key)
            self.add(replace(self.runs_of[key], was_preempted=True, waiting_since_ms=self.now_ms))
        elif self.running:
            self.close(sorted(self.running)[a % len(self.running)])

    def close(self, key: RunKey) -> None:
        del self.running[key]
        self.scheduler.end_attempt(key, now_ms=self.now_ms)

    def put_machine(self, a: int, b: int, c: int) -> None:
        known = sorted(self.machines)
        if known and (len(known) >= 6 or c % 3):
            name = known[a % len(known)]
            states = ("joined", "joined", "joined", "draining", "suspect", "excluded")
            machine = replace(self.machines[name], state=states[b % 6])  # type: ignore[arg-type]
        else:
            machine = MachineCapacity(
                id=f"m{len(known)}",
                labels=KINDS[a % 2],
                slots=(1, 2, 4)[b % 3],
                accelerators=(0, 1, 2, 4)[c % 4],
                fabric=("", "", "x")[a % 3],
            )
        self.machines[machine.id] = machine
        self.scheduler.put_machine(machine)

    def put_share(self, a: int, b: int, c: int) -> None:
        share = Share(
            org=ORGS[a % 2],
            project=(*PROJECTS, "")[b % 3],
            weight=(1.0, 2.0)[c % 2],
            guaranteed=(0, 0, 2, 3)[(a + c) % 4],
            limit=(None, None, 3, 6)[c % 4],
        )
        self.shares[ProjectKey(share.org, share.project)] = share
        self.scheduler.put_share(share)

    def kill(self, a: int) -> None:
        if self.waiting:
            key = sorted(self.waiting)[a % len(self.waiting)]
            del self.waiting[key]
            self.scheduler.remove_run(key)

    def lose(self, a: int) -> None:
        if self.running:
            key = sorted(self.running)[a % len(self.running)]
            machines = self.running[key].machines
            self.close(key)
            run = self.runs_of[key]
            lost_on = (*run.lost_on, *machines)
            self.add(replace(run, lost_on=lost_on, waiting_since_ms=self.now_ms))

    def progress(self, a: int, b: int) -> None:
        if self.running:
            key = sorted(self.running)[a % len(self.running)]
            ends_ms = None if b % 4 == 0 else self.now_ms + 100_000 * b
            changed = replace(self.running[key], ends_ms=ends_ms, checkpoint_ms=self.now_ms)
            self.running[key] = changed
            self.scheduler.update_attempt(key, ends_ms=ends_ms, checkpoint_ms=self.now_ms)

    def decide(self, *, shuffle: Random | None = None) -> list[Action]:
        """Let the scheduler decide, judge the decisions and obey them."""
        view = self.scheduler.to_view(self.now_ms)
        expected = schedule(view if shuffle is None else shuffle_view(view, shuffle))
        holders, before = set(self.reserved), dict(self.waiting)
        actions = self.scheduler.schedule(self.now_ms)
        explained = self.scheduler.explain(self.now_ms)
        assert [*actions, *explained] == expected
        asked: dict[RunKey, set[RunKey]] = {}
        for action in (*actions, None):
            if isinstance(action, Reserve):
                assert action.run in self.waiting
                self.reserved[action.run] = action.machines
            for wanting in list(asked):
                if not (isinstance(action, Preempt) and action.wanted_by == wanting):
                    self.check_victims_are_needed(wanting, asked.pop(wanting))
            self.counts[type(action).__name__] += 1
            if isinstance(action, Place):
                self.check_place(action)
            elif isinstance(action, Preempt):
                self.check_preempt(action)
                asked.setdefault(action.wanted_by, set()).add(action.run)
            elif isinstance(action, Unreserve):
                del self.reserved[action.run]
        self.check_order(actions, before, holders)
        assert not asked, "a run for which others stop has reserved their machines"
        self.check_nothing_that_fits_waits()
        self.check_reservations()
        self.check_explanations(explained)
        return actions

    def get_free(self, name: str, without: frozenset[RunKey] = frozenset()) -> tuple[int, int]:
        """Return the free slots and accelerators of a machine."""
        slots, accelerators = self.machines[name].slots, self.machines[name].accelerators
        for key, attempt in self.running.items():
            if key not in without:
                members = attempt.machines.count(name)
                slots, accelerators = slots - members, accelerators - members * attempt.accelerators
        return slots, accelerators

    def count_used(self, org: str, project: str | None) -> int:
        """Return the units that a project, or with None an organization, holds."""
        return sum(
            count_units(attempt.accelerators, len(attempt.machines))
            for attempt in self.running.values()
            if attempt.org == org and project in (None, attempt.project)
        )

    def fits_on(self, run: WaitingRun, free: dict[str, tuple[int, int]]) -> bool:
        """Return whether all members fit on these free slots and accelerators of one fabric."""
        members = Counter[str]()
        for name, (slots, accelerators) in free.items():
            machine = self.machines[name]
            has_labels = all(
                not values or set(values) & set(machine.labels.get(label, ()))
                for label, values in run.labels.items()
            )
            if has_labels and machine.state == "joined":
                count = slots
                while count > 0 and count * run.accelerators > accelerators:
                    count -= 1
                members[machine.fabric] += max(0, count)
        return any(count >= run.members for count in members.values())

    def fits_in_principle(self, run: WaitingRun, without: tuple[str, ...] = ()) -> bool:
        return self.fits_on(
            run,
            {
                name: (machine.slots, machine.accelerators)
                for name, machine in self.machines.items()
                if name not in without
            },
        )

    def is_over_limit(self, run: WaitingRun) -> bool:
        units = count_units(run.accelerators, run.members)
        for project in (run.project, ""):
            share = self.shares.get(ProjectKey(run.org, project))
            used = self.count_used(run.org, project or None)
            if share is not None and share.limit is not None and used + units > share.limit:
                return True
        return False

    def is_guaranteed(self, org: str, project: str, units: int) -> bool:
        for name in (project, ""):
            share = self.shares.get(ProjectKey(org, name))
            if share is not None and self.count_used(org, name or None) + units <= share.guaranteed:
                return True
        return False

    def list_avoided(self, run: WaitingRun) -> tuple[str, ...]:
        if self.now_ms - run.waiting_since_ms >= LOST_ELSEWHERE_MS:
            return ()
        lost_on = tuple(run.lost_on)
        return lost_on if self.fits_in_principle(run, lost_on) else ()

    def check_place(self, action: Place) -> None:
        run = self.waiting.pop(action.run)
        assert len(action.machines) == run.members
        assert not self.is_over_limit(run)
        assert not set(action.machines) & set(self.list_avoided(run))
        assert len({self.machines[name].fabric for name in action.machines}) == 1
        for name in action.machines:
            machine = self.machines[name]
            assert machine.state == "joined"
            for label, values in run.labels.items():
                assert not values or set(values) & set(machine.labels.get(label, ()))
            for holder, machines in self.reserved.items():
                assert holder == action.run or name not in machines or self.may_use(run, holder)
        placed = self.scheduler.running.get(action.run)
        self.running[action.run] = RunningAttempt(
            org=run.org,
            run_id=run.run_id,
            project=run.project,
            priority=run.priority,
            machines=action.machines,
            accelerators=run.accelerators,
            started_ms=self.now_ms,
            ends_ms=placed.ends_ms if placed else None,
            checkpoint_ms=self.now_ms,
            preemptible=run.preemptible,
            borrows=action.borrows,
        )
        for name in action.machines:
            assert min(self.get_free(name)) >= 0

    def may_use(self, run: WaitingRun, holder: RunKey) -> bool:
        """Return whether a run may use a machine that is reserved: those before the holder may."""
        waiting = self.waiting.get(holder)
        if waiting is None or run.priority > waiting.priority:
            return True
        if run.priority == waiting.priority and RunKey(run.org, run.run_id) in self.reserved:
            return True
        return run.preemptible or run.limit_s is not None

    def check_preempt(self, action: Preempt) -> None:
        victim, wanting = self.running[action.run], self.waiting[action.wanted_by]
        assert victim.preempted_for is None
        assert self.now_ms - victim.started_ms >= MIN_RUN_MS
        assert victim.priority < wanting.priority or victim.borrows
        self.running[action.run] = replace(victim, preempted_for=action.wanted_by)

    def check_victims_are_needed(self, wanting: RunKey, asked: set[RunKey]) -> None:
        """With its victims gone a run fits; with one of them left it does not."""
        earlier = {
            key
            for key, attempt in self.running.items()
            if attempt.preempted_for == wanting and key not in asked
        }
        assert not earlier, "one set of victims at a time"
        machines = set(self.reserved[wanting])
        run = self.waiting[wanting]
        for left in (None, *asked):
            without = frozenset(asked - {left})
            free = {name: self.get_free(name, without) for name in machines}
            assert self.fits_on(run, free) == (left is None)

    def check_order(
        self, actions: list[Action], before: dict[RunKey, WaitingRun], holders: set[RunKey]
    ) -> None:
        """No run starts before one with equal needs of its project that is first."""
        placed = [action.run for action in actions if isinstance(action, Place)]
        for key, other in product(placed, self.waiting):
            run, waits = before[key], before.get(other)
            if waits is None or key in holders or other in holders or run.lost_on or waits.lost_on:
                continue
            if describe_class(run) == describe_class(waits):
                assert (-run.priority, run.created_ms, run.run_id) < (
                    -waits.priority,
                    waits.created_ms,
                    waits.run_id,
                )

    def check_nothing_that_fits_waits(self) -> None:
        reserved = {name for machines in self.reserved.values() for name in machines}
        for run in self.waiting.values():
            closed = reserved | set(self.list_avoided(run))
            free = {name: self.get_free(name) for name in self.machines if name not in closed}
            if self.fits_on(run, free):
                assert self.is_over_limit(run)

    def check_reservations(self) -> None:
        """Reservations are of waiting runs, on joined machines, and no two share a machine."""
        held = [name for machines in self.reserved.values() for name in set(machines)]
        assert len(held) == len(set(held))
        assert all(key in self.waiting for key in self.reserved)
        assert all(self.machines[name].state == "joined" for name in held)
        for run in self.waiting.values():
            if self.fits_in_principle(run) and not self.is_over_limit(run):
                assert self.reserved, "the first run that does not fit reserves machines"

    def check_explanations(self, explained: list[Explain]) -> None:
        assert sum(explain.waiting for explain in explained) == len(self.waiting)
        for explain in explained:
            self.check_explanation(self.waiting[explain.first], explain.reason, explain.message)
        for key, run in self.waiting.items():
            reason, message = self.scheduler.explain_run(key, self.now_ms)
            self.check_explanation(run, reason, message)
            if reason != "WaitingForMachine":
                assert f"behind {self.count_ahead(key)} run" in message or (
                    "next in line" in message and self.count_ahead(key) == 0
                )

    def check_explanation(self, run: WaitingRun, reason: str, message: str) -> None:
        is_possible = self.fits_in_principle(run)
        assert (reason == "WaitingForMachine") == (not is_possible)
        assert ("can ever take it" in message or "never take all" in message) == (not is_possible)
        if is_possible:
            assert (reason == "QuotaReached") == self.is_over_limit(run)
        if run.accelerators:
            assert f"{run.accelerators} accelerator" in message
        for name, *numbers in FREE.findall(message):
            slots, accelerators = self.get_free(name)
            machine = self.machines[name]
            assert list(map(int, numbers)) == [
                accelerators,
                machine.accelerators,
                slots,
                machine.slots,
            ]
        if reason in ("WaitingForCapacity", "Preempted"):
            self.check_free_is_named(run, message)

    def check_free_is_named(self, run: WaitingRun, message: str) -> None:
        """A machine that could take a member and has a slot free is named, unless three are."""
        single = replace(run, members=1)
        named = {found[0] for found in FREE.findall(message)}
        for name, machine in self.machines.items():
            could = self.fits_on(single, {name: (machine.slots, machine.accelerators)})
            if could and self.get_free(name)[0] > 0:
                assert name in named or len(named) >= 3

    def count_ahead(self, key: RunKey) -> int:
        """Count the waiting runs that come first and could use a machine that this one could."""
        run = self.waiting[key]
        order = self.get_order(key)
        return sum(
            self.get_order(other) < order and self.do_compete(run, waits)
            for other, waits in self.waiting.items()
            if other != key
        )

    def get_order(self, key: RunKey) -> tuple[object, ...]:
        run = self.waiting[key]
        if key in self.reserved:
            return -run.priority, 0, key
        project = ProjectKey(run.org, run.project)
        use = self.scheduler.get_use(project).compute_weighted_use(self.now_ms)
        return -run.priority, 1, use, project, run.created_ms, run.run_id

    def do_compete(self, run: WaitingRun, other: WaitingRun) -> bool:
        if describe_class(run) == describe_class(other):
            return True
        return any(
            all(
                self.fits_on(
                    replace(either, members=1),
                    {name: (machine.slots, machine.accelerators)},
                )
                for either in (run, other)
            )
            for name, machine in self.machines.items()
            if machine.state == "joined"
        )


def describe_class(run: WaitingRun) -> tuple[object, ...]:
    labels = sorted((name, sorted(values)) for name, values in run.labels.items() if values)
    resources = run.accelerators, run.members, run.preemptible, run.limit_s
    return run.org, run.project, str(labels), resources


def shuffle_view(view: View, random: Random) -> View:
    """Return the same view with all of its lists in another order."""

    def shuffle(items: list[T]) -> list[T]:
        return random.sample(items, len(items))

    return replace(
        view,
        machines=shuffle(list(view.machines)),
        waiting=shuffle(list(view.waiting)),
        running=shuffle(list(view.running)),
        shares=shuffle(list(view.shares)),
        reservations=shuffle(list(view.reservations)),
    )


def make_event(random: Random) -> Event:
    return random.randrange(20), random.randrange(12), random.randrange(12), random.randrange(12)
