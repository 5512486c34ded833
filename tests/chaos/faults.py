"""The faults: what is broken, for how long, and whether this machine lets us.

A fault is chosen from a seed. ``strike`` breaks something now and answers how to mend it, or None when there was
nothing to break, such as a process that does not live at this moment; mending tells whether the fault has really
struck. Kinds that need more than an ordinary user has say in ``why_not`` what is missing, and are counted as not run.
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

from link import SPOILT
from world import CLOCK_STEPS_WITHIN_S, World

from runyard import processes
from runyard.ports import Identity

# How often each part is hit. A dead warm parent costs its machine five seconds of importing, and teaches least.
PARTS = {"server": 3, "controller": 2, "supervisor": 3, "trainer": 3, "warm": 1}
# How often each kind is drawn; the shares of a thousand.
WEIGHTS = {"kill": 300, "stop": 200, "link": 200, "power": 100, "disk": 80, "memory": 40, "clock": 40, "abort": 40}
# Not part of the thousand: on PostgreSQL the database has a server of its own, which gets SIGKILL.
DATABASE = "database"
SHORT = ("kill", "stop", "link", "memory", "disk", "kill", "clock", "link", "abort", "stop", "kill", "power")
PARTS_WITHOUT_RUN = ("server", "controller", "warm")
PHASES = ("Waiting", "Preparing", "Training", "Training", "Evaluating", "Saving", "Reporting")
MEMORY = Path("/sys/fs/cgroup/memory")
Mend = Callable[[], bool]  # whether it has struck
STRIKES_WITHIN_S = 5.0  # a fault that waits for its victim's next step or save waits that long


@dataclass(frozen=True)
class Fault:
    """``what`` refines the kind: the part that is hit, or how the link is spoilt."""

    kind: str
    what: str
    phase: str
    at_step: int
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.what} at {self.phase}" + (f" {self.at_step}" if self.phase == "Training" else "")


def shares(faults: int) -> list[str]:
    """As many of each kind as ``WEIGHTS`` says, exactly; largest remainders get what rounding leaves."""
    exact = {kind: faults * weight / sum(WEIGHTS.values()) for kind, weight in WEIGHTS.items()}
    counts = {kind: int(share) for kind, share in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: counts[kind] - exact[kind])
    for kind in by_remainder[: faults - sum(counts.values())]:
        counts[kind] += 1
    return [kind for kind, count in counts.items() for _ in range(count)]


def draw_all(choose: random.Random, kinds: tuple[str, ...], *, steps: int, longest_s: float) -> list[Fault]:
    """The faults of one run, in the order of their moments; a memory fault, which ends the run, comes last.

    Beside a memory fault no other sends SIGKILL to a trainer: the kernel counts its kills for the whole machine.
    """
    ends_by_memory = "memory" in kinds
    drawn = [_draw(choose, kind, ends_by_memory, steps=steps, longest_s=longest_s) for kind in kinds]
    return sorted(drawn, key=lambda fault: (fault.kind == "memory", PHASES.index(fault.phase), fault.at_step))


def _draw(choose: random.Random, kind: str, ends_by_memory: bool, *, steps: int, longest_s: float) -> Fault:
    """One fault of a kind, with part, moment and length."""
    phase = choose.choice(PHASES[:4] if ends_by_memory else PHASES)
    at_step = choose.randrange(1, steps // 4) if ends_by_memory else choose.randrange(1, steps)
    if kind == "memory":
        phase, at_step = "Training", choose.randrange(steps // 4, steps // 2)
    parts = [part for part in PARTS if part in PARTS_WITHOUT_RUN or phase != "Waiting"]
    parts = [part for part in parts if part != "trainer" or phase != "Reporting"]
    what = {
        "kill": lambda: _part(choose, [part for part in parts if not ends_by_memory or part in PARTS_WITHOUT_RUN]),
        "stop": lambda: _part(choose, parts),
        "link": lambda: choose.choice(SPOILT),
        "disk": lambda: choose.choice(("full", "eio-trainer", "eio-server")),
        "clock": lambda: choose.choice(("+3600", "-3600")),
    }.get(kind, lambda: {"power": "cut", "memory": "trainer", "abort": "server", DATABASE: "postgresql"}[kind])()
    if what == "eio-trainer":
        phase, at_step = "Training", min(at_step, steps // 2)  # it saves every eight steps
    lasts_s = choose.uniform(0.2, longest_s) + (CLOCK_STEPS_WITHIN_S if kind == "clock" else 0)
    return Fault(kind, what, phase, at_step if phase == "Training" else 0, lasts_s)


def _part(choose: random.Random, parts: list[str]) -> str:
    return choose.choices(parts, weights=[PARTS[part] for part in parts])[0]


def why_not(kind: str, what: str, world: World) -> str | None:
    """Why a fault cannot be tried on this machine; None when it can."""
    if kind == "power" and world.disk is None:
        return "needs a loop device"
    if kind == "disk" and what == "full" and world.disk is None:
        return "needs a loop device"
    if kind == "disk" and what.startswith("eio") and (os.geteuid() != 0 or shutil.which("strace") is None):
        return "needs strace, as root"
    if kind == "memory" and not os.access(MEMORY / "cgroup.procs", os.W_OK):
        return "needs a writable memory cgroup (version 1)"
    if kind == DATABASE and not world.has_postgresql:
        return "needs PostgreSQL"
    return "needs libfaketime" if kind == "clock" and not world.has_clock else None


def strike(fault: Fault, world: World) -> Mend | None:
    """Break it now; None when there is nothing to break."""
    match fault.kind:
        case "kill" | "abort" | "database":
            return _signal(world, fault.what, signal.SIGABRT if fault.kind == "abort" else signal.SIGKILL)
        case "stop":
            return _stop(world, fault.what)
        case "link":
            world.link.spoil(fault.what)  # type: ignore[arg-type]
            return _then(world.link.heal)
        case "power":
            world.cut_power()
            return _then(lambda: None)
        case "disk" if fault.what == "full":
            assert world.disk is not None
            world.disk.fill()
            return _then(world.disk.free)
        case "disk":
            return fail_fsync(world, fault.what.partition("-")[2])
        case "memory":
            return _take_memory(world)
        case _:
            world.step_clock(int(fault.what))
            return _then(lambda: world.step_clock(0))


def _then(mend: Callable[[], None]) -> Mend:
    """A fault that strikes without fail."""

    def mended() -> bool:
        mend()
        return True

    return mended


def _signal(world: World, part: str, number: int) -> Mend | None:
    identity = world.find(part)
    if identity is None or not processes.send_signal(identity, number):
        return None
    return _then(lambda: None)


def _stop(world: World, part: str) -> Mend | None:
    identity = world.find(part)
    if identity is None or not processes.send_signal(identity, signal.SIGSTOP):
        return None
    return _then(lambda: _send(identity, signal.SIGCONT))


def _send(identity: Identity, number: int) -> None:
    processes.send_signal(identity, number)


def fail_fsync(world: World, part: str, *, which: str = "1") -> Mend | None:
    """Let the next fsync or fdatasync of a part fail with EIO, or all with ``1+``, by a tracer that then lets go."""
    identity = world.find(part)
    if identity is None:
        return None
    seen = world.logs / f"strace-{identity.pid}"
    command = ["strace", "-f", "-q", "-o", str(seen), "-p", str(identity.pid)]
    command += ["-e", "trace=fsync,fdatasync", "-e", f"inject=fsync,fdatasync:error=EIO:when={which}"]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

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


def _take_memory(world: World) -> Mend | None:
    """Put the trainer where there is no memory left: the kernel kills it."""
    identity = world.find("trainer")
    if identity is None:
        return None
    group = MEMORY / f"runyard-chaos-{os.getpid()}-{world.port}-{identity.pid}"
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text("1048576")
    with contextlib.suppress(OSError):
        (group / "cgroup.procs").write_text(str(identity.pid))

    def has_struck() -> bool:
        return "oom_kill 0" not in (group / "memory.oom_control").read_text().splitlines()

    def remove() -> bool:
        _wait_for(lambda: has_struck() or processes.liveness(identity) == "dead")
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
    deadline_s = time.monotonic() + STRIKES_WITHIN_S
    while not is_over() and time.monotonic() < deadline_s:
        time.sleep(0.01)
