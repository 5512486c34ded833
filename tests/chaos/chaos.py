"""Injects faults into running instances and checks every run: ``make chaos FAULTS=1000 SEED=1``.

A run is created, and faults are injected at chosen moments, some while another still lasts. When
the run has ended, it is compared with an undisturbed run of the same flow. Several instances
run in parallel and take their next run from one list, which is the same for the same
seed; only the kernel's scheduling differs. Exits 0 without problems and 1 otherwise, and then keeps
folders and logs.
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

import vi
from tests.chaos import checkpoint_cuts, detection, syscall_faults, trials
from tests.chaos import disk as disks
from tests.chaos.checks import Reference, find_problems, measure_reference
from tests.chaos.faults import (
    DATABASE,
    RANK,
    SHORT_KINDS,
    WEIGHTS,
    Fault,
    Repair,
    apportion_kinds,
    draw_faults,
    find_missing_requirement,
    inject,
)
from tests.chaos.instance import (
    FLOW,
    FLOW_OF_RANKS,
    FLOW_STEPS,
    ChaosInstance,
    retry_until_answered,
    wait_until_final,
)

MOMENT_TIMEOUT_S = 25.0
END_TIMEOUT_S = 120.0
POLL_EVERY_S, ASK_EVERY_S = 0.01, 0.5
KILL_SHARE = 0.1  # of the long form's runs are also killed by their user
# A fault whose target was gone, or whose moment had passed, is moved to another run
TRIES_A_FAULT = 5
INSTANCES = 3
TRIALS = ("kill_server", "power_cuts", "checkpoint_cuts", "notice", "starve", "nth", "replays")
FAULTS_A_RUN = (1, 2, 3, 3, 4)


@dataclass(frozen=True)
class RunPlan:
    """One run, and the kinds of faults to inject."""

    kinds: tuple[str, ...]
    seed: str
    is_killed: bool = False
    tries: int = 1

    @property
    def flow(self) -> dict[str, Any]:
        return FLOW_OF_RANKS if RANK in self.kinds else FLOW


@dataclass
class Tally:
    """Counts and problems of all instances; changed under ``lock``."""

    seed: int
    planned: int = 0
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

    def count_fault(self, fault: Fault) -> None:
        with self.lock:
            self.struck[f"{fault.kind}:{fault.what}"] += 1
            self.kinds[fault.kind] += 1
            self.phases[fault.phase] += 1

    def add_problem(self, problem: str) -> None:
        with self.lock:
            self.problems.append(problem)
        print(f"\n{problem}", file=sys.stderr, flush=True)

    def to_document(self) -> dict[str, Any]:
        """Return the tally as JSON."""
        plain = {
            name: value for name, value in vars(self).items() if name not in ("lock", "began_s")
        }
        return plain | {"faults": self.faults}

    def format_progress(self) -> str:
        passed_s = time.monotonic() - self.began_s
        left_s = passed_s * (self.planned - self.faults) / max(1, self.faults)
        return (
            f"{self.faults}/{self.planned} faults, {self.runs} runs, {len(self.problems)} wrong, "
            f"{60 * self.faults / passed_s:.1f} a minute, {left_s / 60:.1f} minutes left"
        )


References = dict[bool, Reference]  # by whether the run has several ranks


class ChaosWorker:
    """A worker with one instance. After a problem it keeps the evidence and starts a new one."""

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
        self._repairs: list[threading.Thread] = []
        self._created: list[str] = []
        self._lives = 0
        self._ends = contextlib.ExitStack()
        self._start_world()

    def _start_world(self) -> None:
        """Start a new instance."""
        self._lives += 1
        folder = self._folder / f"instance-{self._number}-{self._lives}"
        folder.mkdir()
        reason = disks.find_missing_requirement()
        disk = None if reason else _create_disk(folder)
        if disk is not None:
            self._ends.callback(disk.close)
        self._world = ChaosInstance(
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

    def run_reference(self, flow: dict[str, Any]) -> Reference:
        """Return the results of an undisturbed run, which are the same in every instance."""
        run = self._client.runs.create(flow=flow)
        self._created.append(run.run_id)
        ended = wait_until_final(self._client, run.run_id, timeout_s=END_TIMEOUT_S)
        assert ended is not None, "the undisturbed run has not ended"
        return measure_reference(self._client, ended)

    def run_plans(self, plans: deque[RunPlan], references: References) -> None:
        """Run plans from the list until it is empty or the time is over."""
        while plans and (self._ends_at_s is None or time.monotonic() < self._ends_at_s):
            with contextlib.suppress(IndexError):
                plan = plans.popleft()
                self._run_plan(plan, plans, references[RANK in plan.kinds])

    def check_end(self) -> None:
        """Check that exactly the created runs are listed and that no process is left over."""
        try:
            self._count_runs()
            for what in self._world.shut_down():
                self._tally.add_problem(f"left over at the end: {what}")
        finally:
            self.close()

    def close(self) -> None:
        self._repair_all()
        slowest_s = max(self._world.answered_after_s, default=0.0)
        with self._tally.lock:
            self._tally.slowest_answer_s = max(self._tally.slowest_answer_s, slowest_s)
        self._ends.close()

    def _count_runs(self) -> None:
        listed = {
            run.run_id for run in self._client.runs.list(pagination={"page_size": 1000}).all_items()
        }
        if lost := set(self._created) - listed:
            self._tally.add_problem(f"{len(lost)} runs are lost: {sorted(lost)}")
        if more := listed - set(self._created):
            self._tally.add_problem(f"{len(more)} unknown runs: {sorted(more)}")

    def _run_plan(self, plan: RunPlan, plans: deque[RunPlan], reference: Reference) -> None:
        history: list[str] = []
        began_s = time.monotonic()
        # Choose the id, so that a create repeated after a lost answer stays one run.
        run_id = str(uuid.uuid4())
        self._created.append(run_id)
        found: list[str] = []
        try:
            found = self._inject_and_check(run_id, plan, plans, reference, history)
        except Exception:
            found = [f"the trial failed: {traceback.format_exc()}"]
        finally:
            self._repair_all()
        for problem in found:
            self._tally.add_problem(
                f"{run_id} in instance {self._number} after {'; '.join(history)}: {problem}"
            )
        with self._tally.lock:
            self._tally.runs += 1
            print(f"\r{self._tally.format_progress()}   ", end="", file=sys.stderr, flush=True)
            with open(self._folder / "runs.txt", "a") as log:
                log.write(
                    f"{time.monotonic() - began_s:6.1f} s {run_id} in instance {self._number}: "
                    f"{'; '.join(history)}\n"
                )
        if found:
            self._save_evidence(run_id)
            self.close()
            self._start_world()

    def _inject_and_check(
        self,
        run_id: str,
        plan: RunPlan,
        plans: deque[RunPlan],
        reference: Reference,
        history: list[str],
    ) -> list[str]:
        """Create a run, inject faults, wait, and compare; return the problems."""
        choose = random.Random(plan.seed)  # noqa: S311 - chooses faults, guards nothing
        drawn = draw_faults(choose, plan.kinds, steps=FLOW_STEPS, longest_s=self._longest_s)
        missed: list[Fault] = []
        retry_until_answered(lambda: self._client.runs.create(flow=plan.flow, run_id=run_id))
        for fault in drawn:
            if (
                reason := find_missing_requirement(fault.kind, fault.what, self._world)
            ) is not None:
                self._tally.not_run[f"{fault.kind}:{fault.what}"] = reason
            elif self._wait_for_moment(run_id, fault):
                history.append(str(fault))
                self._inject_fault(fault, missed)
            else:
                missed.append(fault)
        if plan.is_killed:
            history.append("killed by its user")
            with contextlib.suppress(vi.ViConflictError):  # it had ended already
                retry_until_answered(lambda: self._client.runs.kill(run_id))
        self._repair_all()
        was_out_of_memory = any(fault.kind == "memory" and fault not in missed for fault in drawn)
        wrong = self._check_run(
            run_id, reference, is_killed=plan.is_killed, was_out_of_memory=was_out_of_memory
        )
        self._requeue_missed(plan, plans, missed)
        return wrong

    def _requeue_missed(self, plan: RunPlan, plans: deque[RunPlan], missed: list[Fault]) -> None:
        """Move missed faults to other runs, so that the trial has the requested composition."""
        for fault in missed:
            self._tally.missed[f"{fault.kind}:{fault.what}"] += 1
            if plan.tries < TRIES_A_FAULT:
                plans.append(
                    RunPlan(
                        (fault.kind,),
                        f"{plan.seed} again {plan.tries} {fault}",
                        tries=plan.tries + 1,
                    )
                )

    def _inject_fault(self, fault: Fault, missed: list[Fault]) -> None:
        if fault.kind == "power":
            self._repair_all()
        repair = inject(fault, self._world)
        if repair is None:
            missed.append(fault)
            return
        thread = threading.Thread(target=self._repair_later, args=(repair, fault, missed))
        thread.start()
        self._repairs.append(thread)

    def _repair_later(self, repair: Repair, fault: Fault, missed: list[Fault]) -> None:
        time.sleep(fault.lasts_s)
        if repair():
            self._tally.count_fault(fault)
        else:
            missed.append(fault)

    def _repair_all(self) -> None:
        for thread in self._repairs:
            thread.join()
        self._repairs.clear()

    def _wait_for_moment(self, run_id: str, fault: Fault) -> bool:
        """Wait for the fault's phase or step; return False if the run ends before."""
        deadline_s = time.monotonic() + MOMENT_TIMEOUT_S
        ask_at_s = 0.0
        while fault.phase != "Waiting" and time.monotonic() < deadline_s:
            events = self._world.list_events(run_id)
            step = max((event["step"] for event in events if event.get("ev") == "step"), default=0)
            phase = next(
                (event["phase"] for event in reversed(events) if event.get("ev") == "phase"), ""
            )
            if step >= FLOW_STEPS and phase == "Saving":  # the latest possible moment
                return True
            if step >= fault.at_step if fault.phase == "Training" else phase == fault.phase:
                return True
            if time.monotonic() >= ask_at_s:
                with contextlib.suppress(vi.ViError):
                    run = self._client.runs.get(run_id)
                    if run.condition is not None and run.condition.is_final:
                        return False
                ask_at_s = time.monotonic() + ASK_EVERY_S
            time.sleep(POLL_EVERY_S)
        return True

    def _check_run(
        self, run_id: str, reference: Reference, *, is_killed: bool, was_out_of_memory: bool
    ) -> list[str]:
        run = wait_until_final(self._client, run_id, timeout_s=END_TIMEOUT_S)
        if run is None:
            last = retry_until_answered(lambda: self._client.runs.get(run_id)).status.conditions[-1]
            end, attempts = "not ended", 0
            wrong = [f"has not ended: {last.condition.value} ({last.reason}) {last.message}"]
        else:
            end, attempts = run.condition.value if run.condition else "?", len(run.status.attempts)
            wrong = find_problems(
                self._world,
                self._client,
                run,
                reference,
                was_killed=is_killed,
                was_out_of_memory=was_out_of_memory,
            )
        wrong += [f"two trainers: {pair}" for pair in self._world.double_trainings]
        self._world.double_trainings.clear()
        with self._tally.lock:
            self._tally.ends[end] += 1
            self._tally.attempts += attempts
        return wrong

    def _save_evidence(self, run_id: str) -> None:
        """Keep the evidence of a problem: document and folder of the run, logs of the instance."""
        kept = self._folder / "problems" / run_id
        with contextlib.suppress(Exception):
            kept.mkdir(parents=True)
            shutil.copytree(self._world.logs, kept / "logs")
            shutil.copytree(
                self._world.locate_attempts(run_id),
                kept / "attempts",
                ignore=shutil.ignore_patterns("*.safetensors", "*.lock"),
            )
        with contextlib.suppress(Exception):
            (kept / "run.txt").write_text(repr(self._client.runs.get(run_id)))


def run_chaos(
    *,
    faults: int,
    seed: int,
    short: bool,
    folder: Path,
    minutes: float | None = None,
    only: str | None = None,
    instances: int = INSTANCES,
    on_postgresql: bool = False,
) -> Tally:
    """Run a trial in a folder, and leave no process, mount, loop device, or cgroup behind."""
    tally = Tally(seed)
    kinds = (
        list(SHORT_KINDS[:faults])
        if short
        else [only] * faults
        if only
        else apportion_kinds(faults)
    )
    if on_postgresql:
        kinds += [DATABASE] * max(1, len(kinds) // 12)
    tally.planned = len(kinds)
    ends_at_s = None if minutes is None else tally.began_s + minutes * 60
    with contextlib.ExitStack() as ends, ThreadPoolExecutor(instances) as pool:

        def begin(number: int) -> ChaosWorker:
            workers = ChaosWorker(
                folder,
                tally,
                number=number,
                is_short=short,
                ends_at_s=ends_at_s,
                on_postgresql=on_postgresql,
            )
            ends.callback(workers.close)
            return workers

        workers = list(pool.map(begin, range(instances)))
        references = {False: workers[0].run_reference(FLOW)}
        if RANK in kinds:
            references[True] = workers[0].run_reference(FLOW_OF_RANKS)
        for plans in plan_runs(kinds, seed=seed, is_short=short):
            try:
                list(pool.map(lambda one: one.run_plans(plans, references), workers))  # noqa: B023
            except BaseException:
                plans.clear()  # interrupted: each worker finishes its run and starts no other
                raise
        list(pool.map(ChaosWorker.check_end, workers))
    tally.seconds = time.monotonic() - tally.began_s
    return tally


def plan_runs(
    kinds: list[str], *, seed: int, is_short: bool
) -> tuple[deque[RunPlan], deque[RunPlan]]:
    """Return the runs of a trial in two consecutive lists: those with a memory fault, and all
    others.

    The kernel counts its out-of-memory kills for the entire machine. A trainer that gets SIGKILL in
    one instance while another instance runs out of memory would be taken for one that did, so these
    run separately.
    """
    choose = random.Random(f"plans {seed}")  # noqa: S311 - chooses faults, guards nothing
    choose.shuffle(kinds)
    rest = deque(kind for kind in kinds if kind not in ("memory", RANK))
    first: deque[RunPlan] = deque()
    then: deque[RunPlan] = deque()
    for _ in range(kinds.count("memory")):
        simultaneous = [rest.popleft() for _ in range(choose.choice((0, 1, 1, 2))) if rest]
        first.append(RunPlan((*simultaneous, "memory"), f"{seed} memory {len(first)}"))
    # A rank does not die next to a memory fault, for the same reason.
    rest.extend(kind for kind in kinds if kind == RANK)
    choose.shuffle(rest)
    while rest:
        size = 4 if is_short else choose.choice(FAULTS_A_RUN)
        taken = tuple(rest.popleft() for _ in range(min(size, len(rest))))
        is_killed = not is_short and choose.random() < KILL_SHARE
        then.append(RunPlan(taken, f"{seed} {len(then)}", is_killed=is_killed))
    return first, then


def _create_disk(folder: Path) -> disks.Disk | None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return disks.Disk(folder)
    return None


def format_table(tally: Tally) -> str:
    lines = [
        f"seed {tally.seed}: {tally.faults} faults, {tally.runs} runs, {tally.attempts} attempts "
        "in "
    ]
    lines[0] += f"{tally.seconds:.0f} s; {len(tally.problems)} problems"
    lines += [f"  {name:24} {count:5}" for name, count in sorted(tally.kinds.items())]
    lines += [f"    {name:22} {count:5}" for name, count in sorted(tally.struck.items())]
    lines += [f"  {name:24} not run: {reason}" for name, reason in sorted(tally.not_run.items())]
    lines += [f"  phases: {dict(tally.phases)}", f"  ends: {dict(tally.ends)}"]
    lines += (
        [f"  missed, tried again with another run: {dict(tally.missed)}"] if tally.missed else []
    )
    lines += [f"  server back at the latest after {tally.slowest_answer_s:.1f} s"]
    return "\n".join([*lines, *(f"  WRONG {problem}" for problem in tally.problems)])


def _run_trial(arguments: argparse.Namespace, folder: Path) -> int:
    if arguments.kill_server:
        numbers = trials.kill_server_repeatedly(
            folder, kills=arguments.kill_server, seed=arguments.seed
        )
    elif arguments.power_cuts:
        numbers = trials.cut_power_while_writing(
            folder, cuts=arguments.power_cuts, seed=arguments.seed
        )
    elif arguments.notice:
        numbers = detection.measure_detection(folder, times=arguments.notice, seed=arguments.seed)
    elif arguments.starve:
        numbers = detection.run_starved(folder, seconds=arguments.starve, seed=arguments.seed)
    elif arguments.nth:
        numbers = syscall_faults.inject_nth_failures(
            folder,
            share=arguments.nth,
            seed=arguments.seed,
            only=arguments.operation or syscall_faults.OPERATIONS,
        )
    elif arguments.checkpoint_cuts:
        numbers = checkpoint_cuts.cut_power_while_saving(
            folder, cuts=arguments.checkpoint_cuts, seed=arguments.seed
        )
    else:
        numbers = trials.repeat_create(
            folder, creates=arguments.replays, threads=arguments.threads, seed=arguments.seed
        )
    print(json.dumps(numbers))
    return 1 if numbers["problems"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--short", action="store_true", help="a dozen of eight kinds, in half a minute"
    )
    parser.add_argument(
        "--minutes", type=float, help="end after that long, with the numbers so far"
    )
    parser.add_argument("--only", choices=list(WEIGHTS), help="faults of one kind")
    parser.add_argument(
        "--instances", type=int, help=f"instances in parallel; {INSTANCES}, in the short form 1"
    )
    parser.add_argument(
        "--postgresql", action="store_true", help="the store is PostgreSQL, which is killed as well"
    )
    parser.add_argument(
        "--kill-server",
        type=int,
        metavar="N",
        help="instead: kill the server N times during one run",
    )
    parser.add_argument(
        "--power-cuts", type=int, metavar="N", help="instead: cut the database's power N times"
    )
    parser.add_argument(
        "--checkpoint-cuts",
        type=int,
        metavar="N",
        help="instead: cut a saving trainer's power N times",
    )
    parser.add_argument(
        "--notice",
        type=int,
        metavar="N",
        help="instead: measure how soon a death is reported, N times each kind",
    )
    parser.add_argument(
        "--starve",
        type=float,
        metavar="SECONDS",
        help="instead: train under a load of twice the cores",
    )
    parser.add_argument(
        "--nth",
        type=float,
        metavar="SHARE",
        help="instead: fail every n-th system call, or a share",
    )
    parser.add_argument(
        "--operation",
        choices=list(syscall_faults.OPERATIONS),
        action="append",
        help="for --nth: these alone",
    )
    parser.add_argument(
        "--replays",
        type=int,
        metavar="N",
        help="instead: create one run N times while answers are lost",
    )
    parser.add_argument("--threads", type=int, default=50, help="for --replays")
    parser.add_argument("--keep", action="store_true", help="keep the logs and say where they are")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # So that processes end and disks are unmounted
        signal.signal(number, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="runyard-chaos-"))
    is_kept = arguments.keep
    try:
        if any(getattr(arguments, name) for name in TRIALS):
            return _run_trial(arguments, folder)
        tally = run_chaos(
            faults=arguments.faults,
            seed=arguments.seed,
            short=arguments.short,
            folder=folder,
            minutes=arguments.minutes,
            only=arguments.only,
            instances=arguments.instances or (1 if arguments.short else INSTANCES),
            on_postgresql=arguments.postgresql,
        )
        is_kept |= bool(tally.problems)
        (folder / "table.txt").write_text(format_table(tally) + "\n")
    except BaseException:
        is_kept = True
        raise
    finally:
        print(file=sys.stderr)
        if is_kept:
            print(f"logs are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(tally.to_document()) if arguments.json else format_table(tally))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
