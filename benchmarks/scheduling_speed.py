"""Placements per second of the queue, and the memory of a waiting run.

``make bench-queue`` fills a scheduler with a million waiting runs of 50 projects and 10,000
machines of three kinds, and lets virtual seconds pass: attempts end, and freed machines are given
to the next runs. Measured is the processor time inside the scheduler: the pass of each virtual
second and the events of ended attempts. The result is printed as a table for benchmarks/RESULTS.md.
"""

import argparse
import gc
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import heappop, heappush
from pathlib import Path
from random import Random

from runyard.server.scheduling.scheduler import Scheduler
from runyard.server.scheduling.view import (
    MachineCapacity,
    Place,
    Preempt,
    RunKey,
    Share,
    WaitingRun,
)

PROJECTS, ORGS = 50, 5
MEAN_DURATION_S = 1800.0
SAVING_MS = 10_000  # of an attempt that was asked to stop; its run does not wait again
KINDS = (
    ("h100", 8, 16, 60),  # name, accelerators, slots, percent of the machines
    ("l40s", 4, 8, 30),
    ("cpu", 0, 16, 10),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What one measurement found."""

    queued: int
    machines: int
    fill_s: float
    bytes_per_run: float
    first_pass_s: float
    first_placed: int
    placed: int
    passes: int
    scheduling_s: float
    longest_pass_s: float

    @property
    def placements_per_s(self) -> float:
        return self.placed / self.scheduling_s


def build_machines(count: int) -> list[MachineCapacity]:
    machines = []
    for number in range(count):
        part = number % 100
        kind = KINDS[0] if part < 60 else KINDS[1] if part < 90 else KINDS[2]
        name, accelerators, slots, _ = kind
        labels = {"kind": [name]}
        machines.append(
            MachineCapacity(
                id=f"m-{number:05}", labels=labels, slots=slots, accelerators=accelerators
            )
        )
    return machines


def build_run(random: Random, number: int) -> WaitingRun:
    accelerators = random.choices((0, 1, 2, 4, 8), (10, 50, 17, 15, 8))[0]
    kind = "cpu" if accelerators == 0 else "h100" if accelerators == 8 else ""
    if not kind and random.random() < 0.5:
        kind = random.choice(("h100", "l40s"))
    project = random.randrange(PROJECTS)
    return WaitingRun(
        org=f"org-{project % ORGS}",
        run_id=f"{number:026}",
        project=f"project-{project}",
        priority=random.choices((0, 1), (95, 5))[0],
        created_ms=number,
        labels={"kind": [kind]} if kind else {},
        accelerators=accelerators,
        limit_s=random.choice((None, 3600.0, 14400.0)),
        preemptible=random.random() < 0.1,
    )


def measure(queued: int, machines: int, *, placements: int, seed: int) -> Result:
    random = Random(seed)  # noqa: S311
    scheduler = Scheduler()
    for machine in build_machines(machines):
        scheduler.put_machine(machine)
    for project in range(PROJECTS):
        scheduler.put_share(
            Share(org=f"org-{project % ORGS}", project=f"project-{project}", weight=1 + project % 3)
        )
    gc.collect()
    before = _read_memory()
    began_s = time.process_time()
    # The ID is part of a run's own document; it is counted here all the same.
    scheduler.waiting.fill(build_run(random, number) for number in range(queued))
    fill_s = time.process_time() - began_s
    gc.collect()
    gc.freeze()
    bytes_per_run = (_read_memory() - before) / queued
    now_ms, ends = 1_000_000, list[tuple[int, RunKey]]()
    began_s = time.process_time()
    first_placed = _pass(scheduler, random, now_ms, ends)
    first_pass_s = time.process_time() - began_s
    placed, passes, scheduling_s, longest_s = 0, 0, 0.0, 0.0
    while placed < placements and ends:
        now_ms += 1000
        pass_s = 0.0
        due = []
        while ends and ends[0][0] <= now_ms:
            due.append(heappop(ends)[1])
        began_s = time.process_time()
        for run in due:
            if run in scheduler.running:
                scheduler.end_attempt(run, now_ms=now_ms)
        actions = scheduler.schedule(now_ms)
        pass_s = time.process_time() - began_s
        placed += _start(scheduler, random, now_ms, ends, actions)
        passes += 1
        scheduling_s += pass_s
        longest_s = max(longest_s, pass_s)
    gc.unfreeze()
    return Result(
        queued, machines, fill_s, bytes_per_run, first_pass_s, first_placed, placed, passes,
        scheduling_s, longest_s,
    )  # fmt: skip


def _pass(scheduler: Scheduler, random: Random, now_ms: int, ends: list[tuple[int, RunKey]]) -> int:
    return _start(scheduler, random, now_ms, ends, scheduler.schedule(now_ms))


def _start(
    scheduler: Scheduler,
    random: Random,
    now_ms: int,
    ends: list[tuple[int, RunKey]],
    actions: object,
) -> int:
    placed = 0
    assert isinstance(actions, list)
    for action in actions:
        if isinstance(action, Place):
            ends_ms = now_ms + 1000 + round(random.expovariate(1 / MEAN_DURATION_S) * 1000)
            heappush(ends, (ends_ms, action.run))
            scheduler.update_attempt(action.run, ends_ms=ends_ms)
            placed += 1
        elif isinstance(action, Preempt):
            heappush(ends, (now_ms + SAVING_MS, action.run))
    return placed


def _read_memory() -> int:
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def format_results(results: list[Result]) -> str:
    """Return the section of benchmarks/RESULTS.md."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg()[:2])
    python = ".".join(map(str, sys.version_info[:3]))
    lines = [
        "<!-- scheduling_speed -->",
        "## The queue: placements per second",
        "",
        f"`make bench-queue`, {datetime.now(UTC):%Y-%m-%d}, Python {python}, one core of "
        f"{os.cpu_count()} with other programs at work (load {load}). {PROJECTS} projects, three",
        "kinds of machines, attempts of half an hour on average. Times are processor time. The",
        "first pass fills the empty machines; after it, each virtual second frees some of them and",
        "has one pass. The memory includes the ID of a run.",
        "",
        "| queued | machines | first pass | placements/s, first pass | placements/s, after it "
        "| longest pass after it | bytes per queued run |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        first = result.first_placed / result.first_pass_s
        lines.append(
            f"| {result.queued:,} | {result.machines:,} | {result.first_pass_s:.2f} s "
            f"| {first:,.0f} | {result.placements_per_s:,.0f} "
            f"| {result.longest_pass_s * 1000:.0f} ms | {result.bytes_per_run:.0f} |"
        )
    return "\n".join([*lines, "<!-- end of scheduling_speed -->"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=1_000_000)
    parser.add_argument("--machines", type=int, default=10_000)
    parser.add_argument("--placements", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    small = max(1, options.queued // 10), max(1, options.machines // 10)
    results = [
        measure(*size, placements=options.placements, seed=options.seed)
        for size in (small, (options.queued, options.machines))
    ]
    print(format_results(results))


if __name__ == "__main__":
    main()
