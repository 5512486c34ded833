"""Break a running instance again and again, and see whether every run comes through: ``make chaos FAULTS=1000 SEED=1``.

A run is created, some faults strike it at chosen moments (some while another still lasts), and when it has ended it is
compared with an undisturbed run of the same recipe. Several instances, *worlds*, are broken side by side; each takes
its next run from one list, which is the same for the same seed. What the kernel's scheduler makes of it is its own.
Exits 0 when nothing was wrong, 1 otherwise; the folders and logs of what was wrong are kept.
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
import traceback
import uuid
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import disk as disks
import noticing
import nth
import saving
import trials
from checks import Reference, problems, reference_of
from faults import DATABASE, SHORT, WEIGHTS, Fault, Mend, draw_all, shares, strike, why_not
from world import RECIPE, RECIPE_STEPS, World, patiently, until_final

import vi

MOMENT_TIMEOUT_S = 25.0
END_TIMEOUT_S = 120.0
LOOK_EVERY_S, ASK_EVERY_S = 0.01, 0.5
KILL_SHARE = 0.1  # of the long form's runs are also killed by their user
TRIES_A_FAULT = 5  # one that found its target gone, or its moment past, strikes another run instead
WORLDS = 3
TRIALS = ("kill_server", "power_cuts", "checkpoint_cuts", "notice", "starve", "nth", "replays")
FAULTS_A_RUN = (1, 2, 3, 3, 4)


@dataclass(frozen=True)
class Plan:
    """One run, and what shall strike it."""

    kinds: tuple[str, ...]
    seed: str
    is_killed: bool = False
    tries: int = 1


@dataclass
class Tally:
    """What was done and what came of it, in all worlds; changed under ``lock``."""

    seed: int
    wanted: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    not_run: dict[str, str] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    runs: int = 0
    attempts: int = 0
    seconds: float = 0.0
    slowest_answer_s: float = 0.0
    began_s: float = field(default_factory=time.monotonic)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def faults(self) -> int:
        return sum(self.kinds.values())

    def count(self, fault: Fault) -> None:
        with self.lock:
            self.struck[f"{fault.kind}:{fault.what}"] += 1
            self.kinds[fault.kind] += 1
            self.phases[fault.phase] += 1

    def wrong(self, problem: str) -> None:
        with self.lock:
            self.problems.append(problem)
        print(f"\n{problem}", file=sys.stderr, flush=True)

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in ("lock", "began_s")}
        return plain | {"faults": self.faults}

    def progress(self) -> str:
        passed_s = time.monotonic() - self.began_s
        left_s = passed_s * (self.wanted - self.faults) / max(1, self.faults)
        return (
            f"{self.faults}/{self.wanted} faults, {self.runs} runs, {len(self.problems)} wrong, "
            f"{60 * self.faults / passed_s:.1f} a minute, {left_s / 60:.1f} minutes left"
        )


class Chaos:
    """One world and the faults it gets. A world in which something went wrong is looked at, ended and replaced."""

    def __init__(
        self,
        folder: Path,
        tally: Tally,
        *,
        number: int,
        is_short: bool,
        ends_at_s: float | None,
        on_postgresql: bool,
    ):
        self._on_postgresql = on_postgresql
        self._folder, self._tally, self._number, self._is_short = folder, tally, number, is_short
        self._longest_s = 1.0 if is_short else 5.0
        self._ends_at_s = ends_at_s
        self._mending: list[threading.Thread] = []
        self._created: list[str] = []
        self._lives = 0
        self._ends = contextlib.ExitStack()
        self._begin()

    def _begin(self) -> None:
        """A new world, with an undisturbed run for comparison unless there is one already."""
        self._lives += 1
        folder = self._folder / f"world-{self._number}-{self._lives}"
        folder.mkdir()
        reason = disks.why_not()
        disk = None if reason else _disk(folder)
        if disk is not None:
            self._ends.callback(disk.close)
        self._world = World(
            folder,
            disk=disk,
            seed=self._tally.seed + self._number,
            fakes_clock=True,
            on_postgresql=self._on_postgresql,
        )
        self._ends.callback(self._world.close)
        self._world.start()
        self._client = self._ends.enter_context(self._world.client())
        self._created.clear()

    def reference(self) -> Reference:
        """What an undisturbed run comes to; the same in every world."""
        run = self._client.runs.create(flow=RECIPE)
        self._created.append(run.run_id)
        ended = until_final(self._client, run.run_id, timeout_s=END_TIMEOUT_S)
        assert ended is not None, "the undisturbed run has not ended"
        return reference_of(self._client, ended)

    def work(self, plans: deque[Plan], reference: Reference) -> None:
        """Take plans from the list until there is none left, or time is up."""
        while plans and (self._ends_at_s is None or time.monotonic() < self._ends_at_s):
            with contextlib.suppress(IndexError):
                self._disturb(plans.popleft(), plans, reference)

    def finish(self) -> None:
        """What holds at the end: every run is listed and no other, and nothing is left over."""
        try:
            self._count_runs()
            for what in self._world.end():
                self._tally.wrong(f"left over at the end: {what}")
        finally:
            self.close()

    def close(self) -> None:
        self._mend_all()
        slowest_s = max(self._world.answered_after_s, default=0.0)
        with self._tally.lock:
            self._tally.slowest_answer_s = max(self._tally.slowest_answer_s, slowest_s)
        self._ends.close()

    def _count_runs(self) -> None:
        listed = {run.run_id for run in self._client.runs.list(pagination={"page_size": 1000}).all_items()}
        if lost := set(self._created) - listed:
            self._tally.wrong(f"{len(lost)} runs are lost: {sorted(lost)}")
        if more := listed - set(self._created):
            self._tally.wrong(f"{len(more)} runs nobody created: {sorted(more)}")

    def _disturb(self, plan: Plan, plans: deque[Plan], reference: Reference) -> None:
        story: list[str] = []
        began_s = time.monotonic()
        # The id is ours, so that a create whose answer is lost and that is repeated stays one run.
        run_id = str(uuid.uuid4())
        self._created.append(run_id)
        found: list[str] = []
        try:
            found = self._disturbed(run_id, plan, plans, reference, story)
        except Exception:
            found = [f"the trial cannot go on: {traceback.format_exc()}"]
        finally:
            self._mend_all()
        for problem in found:
            self._tally.wrong(f"{run_id} in world {self._number} after {'; '.join(story)}: {problem}")
        with self._tally.lock:
            self._tally.runs += 1
            print(f"\r{self._tally.progress()}   ", end="", file=sys.stderr, flush=True)
            with open(self._folder / "runs.txt", "a") as log:
                log.write(f"{time.monotonic() - began_s:6.1f} s {run_id} in world {self._number}: {'; '.join(story)}\n")
        if found:
            self._keep(run_id)
            self.close()
            self._begin()

    def _disturbed(
        self, run_id: str, plan: Plan, plans: deque[Plan], reference: Reference, story: list[str]
    ) -> list[str]:
        """Create, strike, wait, compare; answers what is wrong."""
        choose = random.Random(plan.seed)  # noqa: S311 - chooses faults, guards nothing
        drawn = draw_all(choose, plan.kinds, steps=RECIPE_STEPS, longest_s=self._longest_s)
        missed: list[Fault] = []
        patiently(lambda: self._client.runs.create(flow=RECIPE, run_id=run_id))
        for fault in drawn:
            if (reason := why_not(fault.kind, fault.what, self._world)) is not None:
                self._tally.not_run[f"{fault.kind}:{fault.what}"] = reason
            elif self._await(run_id, fault):
                story.append(str(fault))
                self._strike(fault, missed)
            else:
                missed.append(fault)
        if plan.is_killed:
            story.append("killed by its user")
            with contextlib.suppress(vi.ViConflictError):  # it had ended already
                patiently(lambda: self._client.runs.kill(run_id))
        self._mend_all()
        was_out_of_memory = any(fault.kind == "memory" and fault not in missed for fault in drawn)
        wrong = self._judge(run_id, reference, is_killed=plan.is_killed, was_out_of_memory=was_out_of_memory)
        self._repeat(plan, plans, missed)
        return wrong

    def _repeat(self, plan: Plan, plans: deque[Plan], missed: list[Fault]) -> None:
        """What has not struck strikes another run: the composition of a trial is what was asked for."""
        for fault in missed:
            self._tally.missed[f"{fault.kind}:{fault.what}"] += 1
            if plan.tries < TRIES_A_FAULT:
                plans.append(Plan((fault.kind,), f"{plan.seed} again {plan.tries} {fault}", tries=plan.tries + 1))

    def _strike(self, fault: Fault, missed: list[Fault]) -> None:
        if fault.kind == "power":
            self._mend_all()
        mend = strike(fault, self._world)
        if mend is None:
            missed.append(fault)
            return
        thread = threading.Thread(target=self._mend_later, args=(mend, fault, missed))
        thread.start()
        self._mending.append(thread)

    def _mend_later(self, mend: Mend, fault: Fault, missed: list[Fault]) -> None:
        time.sleep(fault.lasts_s)
        if mend():
            self._tally.count(fault)
        else:
            missed.append(fault)

    def _mend_all(self) -> None:
        for thread in self._mending:
            thread.join()
        self._mending.clear()

    def _await(self, run_id: str, fault: Fault) -> bool:
        """Wait for the fault's moment: a phase, or a step; False when the run has ended before."""
        deadline_s = time.monotonic() + MOMENT_TIMEOUT_S
        ask_at_s = 0.0
        while fault.phase != "Waiting" and time.monotonic() < deadline_s:
            events = self._world.events(run_id)
            step = max((event["step"] for event in events if event.get("ev") == "step"), default=0)
            phase = next((event["phase"] for event in reversed(events) if event.get("ev") == "phase"), "")
            if step >= RECIPE_STEPS and phase == "Saving":  # as late as can be
                return True
            if step >= fault.at_step if fault.phase == "Training" else phase == fault.phase:
                return True
            if time.monotonic() >= ask_at_s:
                with contextlib.suppress(vi.ViError):
                    run = self._client.runs.get(run_id)
                    if run.condition is not None and run.condition.is_final:
                        return False
                ask_at_s = time.monotonic() + ASK_EVERY_S
            time.sleep(LOOK_EVERY_S)
        return True

    def _judge(self, run_id: str, reference: Reference, *, is_killed: bool, was_out_of_memory: bool) -> list[str]:
        run = until_final(self._client, run_id, timeout_s=END_TIMEOUT_S)
        if run is None:
            last = patiently(lambda: self._client.runs.get(run_id)).status.conditions[-1]
            end, attempts = "not ended", 0
            wrong = [f"has not ended: {last.condition.value} ({last.reason}) {last.message}"]
        else:
            end, attempts = run.condition.value if run.condition else "?", len(run.status.attempts)
            wrong = problems(
                self._world,
                self._client,
                run,
                reference,
                was_killed=is_killed,
                was_out_of_memory=was_out_of_memory,
            )
        wrong += [f"two trainers: {pair}" for pair in self._world.twice]
        self._world.twice.clear()
        with self._tally.lock:
            self._tally.ends[end] += 1
            self._tally.attempts += attempts
        return wrong

    def _keep(self, run_id: str) -> None:
        """Keep what tells of a problem: the run's document and folder, and the logs of its world, without weights."""
        kept = self._folder / "problems" / run_id
        with contextlib.suppress(Exception):
            kept.mkdir(parents=True)
            shutil.copytree(self._world.logs, kept / "logs")
            shutil.copytree(
                self._world.attempts_folder(run_id),
                kept / "attempts",
                ignore=shutil.ignore_patterns("*.safetensors", "*.lock"),
            )
        with contextlib.suppress(Exception):
            (kept / "run.txt").write_text(repr(self._client.runs.get(run_id)))


def chaos(
    *,
    faults: int,
    seed: int,
    short: bool,
    folder: Path,
    minutes: float | None = None,
    only: str | None = None,
    worlds: int = WORLDS,
    on_postgresql: bool = False,
) -> Tally:
    """Run it all in a folder; leaves no process, mount, loop device or cgroup behind."""
    tally = Tally(seed)
    kinds = list(SHORT[:faults]) if short else [only] * faults if only else shares(faults)
    if on_postgresql:
        kinds += [DATABASE] * max(1, len(kinds) // 12)
    tally.wanted = len(kinds)
    ends_at_s = None if minutes is None else tally.began_s + minutes * 60
    with contextlib.ExitStack() as ends, ThreadPoolExecutor(worlds) as pool:

        def begin(number: int) -> Chaos:
            at_work = Chaos(
                folder, tally, number=number, is_short=short, ends_at_s=ends_at_s, on_postgresql=on_postgresql
            )
            ends.callback(at_work.close)
            return at_work

        at_work = list(pool.map(begin, range(worlds)))
        reference = at_work[0].reference()
        for plans in plan_all(kinds, seed=seed, is_short=short):
            try:
                list(pool.map(lambda one: one.work(plans, reference), at_work))  # noqa: B023
            except BaseException:
                plans.clear()  # told to end: each world finishes its run and begins no other
                raise
        list(pool.map(Chaos.finish, at_work))
    tally.seconds = time.monotonic() - tally.began_s
    return tally


def plan_all(kinds: list[str], *, seed: int, is_short: bool) -> tuple[deque[Plan], deque[Plan]]:
    """The runs of a trial, in two lists that follow each other: those with a memory fault, and all others.

    The kernel counts its kills for want of memory for the whole machine. A trainer that gets SIGKILL in one world while
    another world's runs out of memory would be taken for one that did, so these have a time of their own.
    """
    choose = random.Random(f"plans {seed}")  # noqa: S311 - chooses faults, guards nothing
    choose.shuffle(kinds)
    rest = deque(kind for kind in kinds if kind != "memory")
    first: deque[Plan] = deque()
    then: deque[Plan] = deque()
    for _ in range(len(kinds) - len(rest)):
        beside = [rest.popleft() for _ in range(choose.choice((0, 1, 1, 2))) if rest]
        first.append(Plan((*beside, "memory"), f"{seed} memory {len(first)}"))
    while rest:
        size = 4 if is_short else choose.choice(FAULTS_A_RUN)
        taken = tuple(rest.popleft() for _ in range(min(size, len(rest))))
        is_killed = not is_short and choose.random() < KILL_SHARE
        then.append(Plan(taken, f"{seed} {len(then)}", is_killed=is_killed))
    return first, then


def _disk(folder: Path) -> disks.Disk | None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return disks.Disk(folder)
    return None


def table(tally: Tally) -> str:
    lines = [f"seed {tally.seed}: {tally.faults} faults, {tally.runs} runs, {tally.attempts} attempts in "]
    lines[0] += f"{tally.seconds:.0f} s; {len(tally.problems)} problems"
    lines += [f"  {name:24} {count:5}" for name, count in sorted(tally.kinds.items())]
    lines += [f"    {name:22} {count:5}" for name, count in sorted(tally.struck.items())]
    lines += [f"  {name:24} not run: {reason}" for name, reason in sorted(tally.not_run.items())]
    lines += [f"  phases: {dict(tally.phases)}", f"  ends: {dict(tally.ends)}"]
    lines += [f"  missed, tried again with another run: {dict(tally.missed)}"] if tally.missed else []
    lines += [f"  server back at the latest after {tally.slowest_answer_s:.1f} s"]
    return "\n".join([*lines, *(f"  WRONG {problem}" for problem in tally.problems)])


def _trial(given: argparse.Namespace, folder: Path) -> int:
    if given.kill_server:
        numbers = trials.kill_server(folder, kills=given.kill_server, seed=given.seed)
    elif given.power_cuts:
        numbers = trials.power_cuts(folder, cuts=given.power_cuts, seed=given.seed)
    elif given.notice:
        numbers = noticing.notice(folder, times=given.notice, seed=given.seed)
    elif given.starve:
        numbers = noticing.starve(folder, seconds=given.starve, seed=given.seed)
    elif given.nth:
        numbers = nth.nth(folder, share=given.nth, seed=given.seed, only=given.operation or nth.OPERATIONS)
    elif given.checkpoint_cuts:
        numbers = saving.checkpoint_cuts(folder, cuts=given.checkpoint_cuts, seed=given.seed)
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
    parser.add_argument("--worlds", type=int, help=f"instances side by side; {WORLDS}, in the short form 1")
    parser.add_argument("--postgresql", action="store_true", help="the store is PostgreSQL, which is killed as well")
    parser.add_argument("--kill-server", type=int, metavar="N", help="instead: kill the server N times during one run")
    parser.add_argument("--power-cuts", type=int, metavar="N", help="instead: cut the database's power N times")
    parser.add_argument(
        "--checkpoint-cuts", type=int, metavar="N", help="instead: cut a saving trainer's power N times"
    )
    parser.add_argument("--notice", type=int, metavar="N", help="instead: how soon a death is told, N times each kind")
    parser.add_argument("--starve", type=float, metavar="SECONDS", help="instead: train beside twice the cores of load")
    parser.add_argument("--nth", type=float, metavar="SHARE", help="instead: fail every n-th system call, or a share")
    parser.add_argument("--operation", choices=list(nth.OPERATIONS), action="append", help="for --nth: these alone")
    parser.add_argument("--replays", type=int, metavar="N", help="instead: create one run N times, answers being lost")
    parser.add_argument("--threads", type=int, default=50, help="for --replays")
    parser.add_argument("--keep", action="store_true", help="keep the logs and say where they are")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that everything is ended and unmounted
    folder = Path(tempfile.mkdtemp(prefix="runyard-chaos-"))
    is_kept = given.keep
    try:
        if any(getattr(given, name) for name in TRIALS):
            return _trial(given, folder)
        tally = chaos(
            faults=given.faults,
            seed=given.seed,
            short=given.short,
            folder=folder,
            minutes=given.minutes,
            only=given.only,
            worlds=given.worlds or (1 if given.short else WORLDS),
            on_postgresql=given.postgresql,
        )
        is_kept |= bool(tally.problems)
        (folder / "table.txt").write_text(table(tally) + "\n")
    except BaseException:
        is_kept = True
        raise
    finally:
        print(file=sys.stderr)
        if is_kept:
            print(f"logs are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(tally.document()) if given.json else table(tally))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
