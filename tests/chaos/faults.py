"""The faults: their kinds, how each is injected and repaired, and what it requires of the machine.

Faults are drawn from a seed. ``inject`` injects a fault now and returns its repair, or None if
there is no target, such as a process that is not alive. The repair returns whether the fault took
effect. For kinds that need special privileges, ``find_missing_requirement`` returns what is
missing; they count as not run.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runyard import processes
from runyard.ports import Identity
from tests.chaos.instance import CLOCK_STEPS_WITHIN_S, ChaosInstance
from tests.chaos.link import LINK_FAULTS

# The weight of each part as a target. A dead warm parent costs five seconds of imports and reveals
# least.
PARTS = {"server": 3, "controller": 2, "supervisor": 3, "trainer": 3, "warm": 1}
# The weight of each kind, in thousandths.
WEIGHTS = {
    "kill": 270,
    "rank": 30,
    "stop": 200,
    "link": 200,
    "power": 100,
    "disk": 80,
    "memory": 40,
    "clock": 40,
    "abort": 40,
}
# Added to the others on PostgreSQL, whose server process gets SIGKILL.
DATABASE = "database"
# SIGKILL to a rank that does not lead, of a run with several.
RANK = "rank"
SHORT_KINDS = (
    "kill",
    "stop",
    "link",
    "memory",
    "disk",
    "rank",
    "clock",
    "link",
    "abort",
    "stop",
    "kill",
    "power",
)
PARTS_WITHOUT_RUN = ("server", "controller", "warm")
PHASES = ("Waiting", "Preparing", "Training", "Training", "Evaluating", "Saving", "Reporting")
MEMORY = Path("/sys/fs/cgroup/memory")
Repair = Callable[[], bool]  # returns whether the fault took effect
INJECT_TIMEOUT_S = 5.0  # how long a fault waits for its target's next step or save


@dataclass(frozen=True)
class Fault:
    """A fault to inject. ``what`` refines the kind: the target part, or the fault of the link."""

    kind: str
    what: str
    phase: str
    at_step: int
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.what} at {self.phase}" + (
            f" {self.at_step}" if self.phase == "Training" else ""
        )


def apportion_kinds(faults: int) -> list[str]:
    """Return kinds in the proportions of ``WEIGHTS``, rounded by largest remainders."""
    exact = {kind: faults * weight / sum(WEIGHTS.values()) for kind, weight in WEIGHTS.items()}
    counts = {kind: int(share) for kind, share in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: counts[kind] - exact[kind])
    for kind in by_remainder[: faults - sum(counts.values())]:
        counts[kind] += 1
    return [kind for kind, count in counts.items() for _ in range(count)]


def draw_faults(
    choose: random.Random, kinds: tuple[str, ...], *, steps: int, longest_s: float
) -> list[Fault]:
    """Return the faults of one run in order of time; a memory fault, which ends the run, is last.

    A run with a memory fault gets no other SIGKILL to a trainer, because the kernel counts
    out-of-memory kills for the whole machine.
    """
    ends_by_memory = "memory" in kinds
    drawn = [
        _draw_fault(choose, kind, ends_by_memory, steps=steps, longest_s=longest_s)
        for kind in kinds
    ]
    return sorted(
        drawn, key=lambda fault: (fault.kind == "memory", PHASES.index(fault.phase), fault.at_step)
    )


def _draw_fault(
    choose: random.Random, kind: str, ends_by_memory: bool, *, steps: int, longest_s: float
) -> Fault:
    """Draw one fault of a kind, with target, moment, and duration."""
    phase = choose.choice(PHASES[:4] if ends_by_memory else PHASES)
    if kind == RANK:
        phase = choose.choice(PHASES[1:6])  # while the trainers live
    at_step = choose.randrange(1, steps // 4) if ends_by_memory else choose.randrange(1, steps)
    if kind == "memory":
        phase, at_step = "Training", choose.randrange(steps // 4, steps // 2)
    parts = [part for part in PARTS if part in PARTS_WITHOUT_RUN or phase != "Waiting"]
    parts = [part for part in parts if part != "trainer" or phase != "Reporting"]
    draws: dict[str, Callable[[], str]] = {
        "kill": lambda: _draw_part(
            choose, [part for part in parts if not ends_by_memory or part in PARTS_WITHOUT_RUN]
        ),
        "stop": lambda: _draw_part(choose, parts),
        "link": lambda: choose.choice(LINK_FAULTS),
        "disk": lambda: choose.choice(("full", "eio-trainer", "eio-server")),
        "clock": lambda: choose.choice(("+3600", "-3600")),
        "power": lambda: "cut",
        "memory": lambda: "trainer",
        "abort": lambda: "server",
        RANK: lambda: "rank",
        DATABASE: lambda: "postgresql",
    }
    what = draws[kind]()
    if what == "eio-trainer":
        phase, at_step = "Training", min(at_step, steps // 2)  # it saves every eight steps
    lasts_s = choose.uniform(0.2, longest_s) + (CLOCK_STEPS_WITHIN_S if kind == "clock" else 0)
    return Fault(kind, what, phase, at_step if phase == "Training" else 0, lasts_s)


def _draw_part(choose: random.Random, parts: list[str]) -> str:
    return choose.choices(parts, weights=[PARTS[part] for part in parts])[0]


def find_missing_requirement(kind: str, what: str, instance: ChaosInstance) -> str | None:
    """Return what this machine lacks for a fault; None if it lacks nothing."""
    if kind == "power" and instance.disk is None:
        return "needs a loop device"
    if kind == "disk" and what == "full" and instance.disk is None:
        return "needs a loop device"
    if (
        kind == "disk"
        and what.startswith("eio")
        and (os.geteuid() != 0 or shutil.which("strace") is None)
    ):
        return "needs strace, as root"
    if kind == "memory" and not os.access(MEMORY / "cgroup.procs", os.W_OK):
        return "needs a writable memory cgroup (version 1)"
    if kind == DATABASE and not instance.has_postgresql:
        return "needs PostgreSQL"
    return "needs libfaketime" if kind == "clock" and not instance.has_clock else None


def inject(fault: Fault, instance: ChaosInstance) -> Repair | None:
    """Inject a fault now; return its repair, or None without a target."""
    match fault.kind:
        case "kill" | "abort" | "database" | "rank":
            return _signal_part(
                instance, fault.what, signal.SIGABRT if fault.kind == "abort" else signal.SIGKILL
            )
        case "stop":
            return _suspend_part(instance, fault.what)
        case "link":
            instance.link.break_with(fault.what)  # type: ignore[arg-type]
            return _repair_with(instance.link.heal)
        case "power":
            instance.cut_power()
            return _repair_with(lambda: None)
        case "disk" if fault.what == "full":
            assert instance.disk is not None
            instance.disk.fill()
            return _repair_with(instance.disk.free)
        case "disk":
            return fail_fsync(instance, fault.what.partition("-")[2])
        case "memory":
            return _exhaust_memory(instance)
        case _:
            instance.set_clock_offset(int(fault.what))
            return _repair_with(lambda: instance.set_clock_offset(0))


def _repair_with(repair: Callable[[], None]) -> Repair:
    """Return the repair of a fault that always takes effect."""

    def repair_and_confirm() -> bool:
        repair()
        return True

    return repair_and_confirm


def _signal_part(instance: ChaosInstance, part: str, number: int) -> Repair | None:
    identity = instance.find_process(part)
    if identity is None or not processes.send_signal(identity, number):
        return None
    return _repair_with(lambda: None)


def _suspend_part(instance: ChaosInstance, part: str) -> Repair | None:
    identity = instance.find_process(part)
    if identity is None or not processes.send_signal(identity, signal.SIGSTOP):
        return None
    return _repair_with(lambda: _send_signal(identity, signal.SIGCONT))


def _send_signal(identity: Identity, number: int) -> None:
    processes.send_signal(identity, number)


def fail_fsync(instance: ChaosInstance, part: str, *, which: str = "1") -> Repair | None:
    """Let a tracer fail the next fsync or fdatasync of a process with EIO, or all with ``1+``."""
    identity = instance.find_process(part)
    if identity is None:
        return None
    seen = instance.logs / f"strace-{identity.pid}"
    command = ["strace", "-f", "-q", "-o", str(seen), "-p", str(identity.pid)]
    command += [
        "-e",
        "trace=fsync,fdatasync",
        "-e",
        f"inject=fsync,fdatasync:error=EIO:when={which}",
    ]
    tracer = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def has_struck() -> bool:
        with contextlib.suppress(OSError):
            return "(INJECTED)" in seen.read_text()
        return False

    def let_go() -> bool:
        _wait_for(lambda: has_struck() or tracer.poll() is not None)
        tracer.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.wait(5)
        if tracer.poll() is None:
            tracer.kill()
            tracer.wait()
        return has_struck()

    return let_go


def _exhaust_memory(instance: ChaosInstance) -> Repair | None:
    """Move the trainer to a memory cgroup without free memory, so that the kernel kills it."""
    identity = instance.find_process("trainer")
    if identity is None:
        return None
    group = MEMORY / f"runyard-chaos-{os.getpid()}-{instance.port}-{identity.pid}"
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text("1048576")
    with contextlib.suppress(OSError):
        (group / "cgroup.procs").write_text(str(identity.pid))

    def has_struck() -> bool:
        return "oom_kill 0" not in (group / "memory.oom_control").read_text().splitlines()

    def remove() -> bool:
        _wait_for(lambda: has_struck() or processes.check_liveness(identity) == "dead")
        (group / "memory.limit_in_bytes").write_text("-1")
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (MEMORY / "cgroup.procs").write_text(pid)
        struck = has_struck()
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.02)
        return struck

    return remove


def _wait_for(is_over: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + INJECT_TIMEOUT_S
    while not is_over() and time.monotonic() < deadline_s:
        time.sleep(0.01)
