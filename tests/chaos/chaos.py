"""Break a running instance again and again, and see whether every run comes through: ``make chaos FAULTS=1000 SEED=1``.

A run is created, one to three faults strike it at chosen moments (some while another still lasts), and when it has
ended it is compared with an undisturbed run of the same recipe. The same seed draws the same faults and moments; what
the kernel's scheduler makes of them is its own. Exits 0 when nothing was wrong, 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import disk as disks
import trials
from checks import Reference, problems, reference_of
from faults import SHORT, WEIGHTS, Fault, Mend, draw, strike, why_not
from world import RECIPE, RECIPE_STEPS, World, patiently, until_final

import vi

MOMENT_TIMEOUT_S = 25.0
END_TIMEOUT_S = 120.0
KILL_SHARE = 0.1  # of the long form's runs are also killed by their user


@dataclass
class Tally:
    """What was done and what came of it."""

    seed: int
    struck: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    not_run: dict[str, str] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    runs: int = 0
    attempts: int = 0
    seconds: float = 0.0
    slowest_answer_s: float = 0.0

    @property
    def faults(self) -> int:
        return sum(self.kinds.values())


class Chaos:
    """One instance and the faults it gets."""

    def __init__(self, world: World, client: vi.Client, tally: Tally, *, faults: int, is_short: bool):
        self._world, self._client, self._tally = world, client, tally
        self._choose = random.Random(tally.seed)  # noqa: S311 - chooses faults, guards nothing
        self._faults, self._is_short, self._longest_s = faults, is_short, 1.0 if is_short else 5.0
        self._mending: list[threading.Thread] = []
        self._created: list[str] = []

    def run(self, kinds: list[str]) -> None:
        run = self._client.runs.create(flow=RECIPE)
        ended = until_final(self._client, run.run_id, timeout_s=END_TIMEOUT_S)
        assert ended is not None, "the undisturbed run has not ended"
        self._created.append(run.run_id)
        reference = reference_of(self._world, self._client, ended)
        while kinds:
            size = 3 if self._is_short else self._choose.choice((1, 2, 3))
            batch, kinds = kinds[:size], kinds[size:]
            self._disturb(batch, reference)
        listed = {run.run_id for run in self._client.runs.list(pagination={"page_size": 1000}).all_items()}
        if lost := set(self._created) - listed:
            self._tally.problems.append(f"{len(lost)} runs are lost: {sorted(lost)}")
        if more := listed - set(self._created):
            self._tally.problems.append(f"{len(more)} runs nobody created")

    def _disturb(self, kinds: list[str], reference: Reference) -> None:
        drawn = [draw(self._choose, kind, steps=RECIPE_STEPS, longest_s=self._longest_s) for kind in kinds]
        is_killed = not self._is_short and self._choose.random() < KILL_SHARE
        run_id: str = patiently(lambda: self._client.runs.create(flow=RECIPE)).run_id
        self._created.append(run_id)
        story = []
        for fault in drawn:
            if (reason := why_not(fault.kind, fault.what, self._world)) is not None:
                self._tally.not_run[f"{fault.kind}:{fault.what}"] = reason
                continue
            self._await(run_id, fault)
            self._strike(fault)
            story.append(str(fault))
        if is_killed:
            story.append("killed by its user")
            with contextlib.suppress(vi.ViConflictError):  # it had ended already
                patiently(lambda: self._client.runs.kill(run_id))
        self._mend_all()
        self._judge(run_id, reference, story, is_killed=is_killed)

    def _strike(self, fault: Fault) -> None:
        if fault.kind == "power":
            self._mend_all()
        mend = strike(fault, self._world)
        self._tally.struck[f"{fault.kind}:{fault.what}"] += 1
        self._tally.kinds[fault.kind] += 1
        self._tally.phases[fault.phase] += 1
        if mend is not None:
            thread = threading.Thread(target=_mend_later, args=(mend, fault.lasts_s))
            thread.start()
            self._mending.append(thread)

    def _mend_all(self) -> None:
        for thread in self._mending:
            thread.join()
        self._mending.clear()

    def _await(self, run_id: str, fault: Fault) -> None:
        """Wait for the fault's moment: a phase, or a step; a run that ends before has missed it."""
        deadline_s = time.monotonic() + MOMENT_TIMEOUT_S
        while fault.phase != "Waiting" and time.monotonic() < deadline_s:
            events = self._world.events(run_id)
            step = max((event["step"] for event in events if event.get("ev") == "step"), default=0)
            phase = next((event["phase"] for event in reversed(events) if event.get("ev") == "phase"), "")
            is_done = step >= RECIPE_STEPS and phase == "Saving"
            if is_done or (phase == fault.phase and (phase != "Training" or step >= fault.at_step)):
                return
            time.sleep(0.005)

    def _judge(self, run_id: str, reference: Reference, story: list[str], *, is_killed: bool) -> None:
        run = until_final(self._client, run_id, timeout_s=END_TIMEOUT_S)
        if run is None:
            last = patiently(lambda: self._client.runs.get(run_id)).status.conditions[-1]
            wrong = [f"has not ended: {last.condition.value} ({last.reason}) {last.message}"]
            self._tally.ends["not ended"] += 1
            with contextlib.suppress(vi.ViError):
                self._client.runs.kill(run_id)
        else:
            wrong = problems(self._world, self._client, run, reference, was_killed=is_killed)
            self._tally.ends[run.condition.value if run.condition else "?"] += 1
            self._tally.attempts += len(run.status.attempts)
        wrong += [f"two trainers: {pair}" for pair in self._world.twice]
        self._world.twice.clear()
        self._tally.runs += 1
        self._tally.problems += [f"run {run_id} after {'; '.join(story)}: {problem}" for problem in wrong]
        for problem in wrong:
            print(f"\n{run_id} after {'; '.join(story)}: {problem}", file=sys.stderr)
        total = self._faults
        progress = f"{self._tally.faults}/{total} faults, {self._tally.runs} runs, {len(self._tally.problems)} wrong"
        print(f"\r{progress}   ", end="", file=sys.stderr, flush=True)


def _mend_later(mend: Mend, after_s: float) -> None:
    time.sleep(after_s)
    mend()


def chaos(
    *, faults: int, seed: int, short: bool, folder: Path, minutes: float | None = None, only: str | None = None
) -> Tally:
    """Run it all in a folder; leaves no process, mount, loop device or cgroup behind."""
    tally = Tally(seed)
    began_s = time.monotonic()
    choose = random.Random(f"kinds {seed}")  # noqa: S311
    if short:
        kinds = list(SHORT[:faults])
        choose.shuffle(kinds)
    else:
        kinds = [only] * faults if only else choose.choices(list(WEIGHTS), weights=list(WEIGHTS.values()), k=faults)
    with contextlib.ExitStack() as ends:
        reason = disks.why_not()
        disk = None if reason else _disk(folder)
        if disk is not None:
            ends.callback(disk.close)
        world = World(folder, disk=disk, seed=seed, fakes_clock=True)
        ends.callback(world.close)
        world.start()
        client = ends.enter_context(world.client())
        at_work = Chaos(world, client, tally, faults=len(kinds), is_short=short)
        if minutes is None:
            at_work.run(kinds)
        else:
            with _at_most(minutes * 60):
                at_work.run(kinds)
        tally.problems += [f"left over at the end: {what}" for what in world.end()]
        tally.slowest_answer_s = max(world.answered_after_s, default=0.0)
    tally.seconds = time.monotonic() - began_s
    return tally


class _TimeIsUp(Exception):
    pass


@contextlib.contextmanager
def _at_most(seconds: float) -> Any:
    """Leave the block when time is up; what was tallied until then stands."""

    def ring(*_: object) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(int(seconds))
    try:
        yield
    except _TimeIsUp:
        print("\ntime is up", file=sys.stderr)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _disk(folder: Path) -> disks.Disk | None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return disks.Disk(folder)
    return None


def table(tally: Tally) -> str:
    lines = [f"seed {tally.seed}: {tally.faults} faults, {tally.runs} runs, {tally.attempts} attempts in "]
    lines[0] += f"{tally.seconds:.0f} s; {len(tally.problems)} problems"
    lines += [f"  {name:24} {count:5}" for name, count in sorted(tally.struck.items())]
    lines += [f"  {name:24} not run: {reason}" for name, reason in sorted(tally.not_run.items())]
    lines += [f"  phases: {dict(tally.phases)}", f"  ends: {dict(tally.ends)}"]
    lines += [f"  server back at the latest after {tally.slowest_answer_s:.1f} s"]
    return "\n".join([*lines, *(f"  WRONG {problem}" for problem in tally.problems)])


def _trial(given: argparse.Namespace, folder: Path) -> int:
    if given.kill_server:
        numbers = trials.kill_server(folder, kills=given.kill_server, seed=given.seed)
    elif given.power_cuts:
        numbers = trials.power_cuts(folder, cuts=given.power_cuts, seed=given.seed)
    else:
        numbers = trials.replays(folder, creates=given.replays, threads=given.threads, seed=given.seed)
    print(json.dumps(numbers))
    return 1 if numbers["problems"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="a dozen of eight kinds, in half a minute")
    parser.add_argument("--minutes", type=float, help="end after that long, with the numbers so far")
    parser.add_argument("--only", choices=list(WEIGHTS), help="faults of one kind")
    parser.add_argument("--kill-server", type=int, metavar="N", help="instead: kill the server N times during one run")
    parser.add_argument("--power-cuts", type=int, metavar="N", help="instead: cut the database's power N times")
    parser.add_argument("--replays", type=int, metavar="N", help="instead: create one run N times, answers being lost")
    parser.add_argument("--threads", type=int, default=50, help="for --replays")
    parser.add_argument("--keep", action="store_true", help="keep the logs and say where they are")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that everything is ended and unmounted
    folder = Path(tempfile.mkdtemp(prefix="runyard-chaos-"))
    try:
        if given.kill_server or given.power_cuts or given.replays:
            return _trial(given, folder)
        tally = chaos(
            faults=given.faults,
            seed=given.seed,
            short=given.short,
            folder=folder,
            minutes=given.minutes,
            only=given.only,
        )
    finally:
        print(file=sys.stderr)
        if given.keep:
            print(f"logs are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(vars(tally) | {"faults": tally.faults}) if given.json else table(tally))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
