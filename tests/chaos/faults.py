"""The faults: what is broken, for how long, and whether this machine lets us.

A fault is chosen from a seed and does two things: ``strike`` breaks something now and returns how to mend it, or None
when nothing is to be mended. Kinds that need more than an ordinary user has say in ``why_not`` what is missing, and are
then counted as not run.
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
from world import World

from runyard import processes

PARTS = ("server", "controller", "supervisor", "trainer", "warm")
# How often each kind is drawn; the shares of a thousand.
WEIGHTS = {"kill": 300, "stop": 200, "link": 200, "power": 100, "disk": 80, "memory": 40, "clock": 40, "abort": 40}
SHORT = ("kill", "stop", "link", "memory", "disk", "kill", "clock", "link", "abort", "stop", "kill", "power")
PHASES = ("Waiting", "Preparing", "Training", "Training", "Evaluating", "Saving", "Reporting")
MEMORY = Path("/sys/fs/cgroup/memory")
Mend = Callable[[], None]


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


def draw(choose: random.Random, kind: str, *, steps: int, longest_s: float) -> Fault:
    """One fault of a kind, with part, moment and length."""
    what = {
        "kill": lambda: choose.choice(PARTS),
        "stop": lambda: choose.choice(PARTS),
        "link": lambda: choose.choice(SPOILT),
        "disk": lambda: choose.choice(("full", "eio-trainer", "eio-server")),
        "clock": lambda: choose.choice(("+3600", "-3600")),
    }.get(kind, lambda: {"power": "cut", "memory": "trainer", "abort": "server"}[kind])()
    phase = "Training" if kind == "memory" else choose.choice(PHASES)
    return Fault(kind, what, phase, choose.randrange(1, steps), choose.uniform(0.2, longest_s))


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
    return "needs libfaketime" if kind == "clock" and not world.has_clock else None


def strike(fault: Fault, world: World) -> Mend | None:
    """Break it now. A part that does not live at this moment is not hit, which is as good a moment as any."""
    match fault.kind:
        case "kill" | "abort":
            _signal(world, fault.what, signal.SIGKILL if fault.kind == "kill" else signal.SIGABRT)
        case "stop":
            return _stop(world, fault.what)
        case "link":
            world.link.spoil(fault.what)  # type: ignore[arg-type]
            return world.link.heal
        case "power":
            world.cut_power()
        case "disk" if fault.what == "full":
            assert world.disk is not None
            world.disk.fill()
            return world.disk.free
        case "disk":
            return _fail_fsync(world, fault.what.partition("-")[2])
        case "memory":
            return _take_memory(world)
        case "clock":
            world.step_clock(int(fault.what))
            return lambda: world.step_clock(0)
    return None


def _signal(world: World, part: str, number: int) -> None:
    identity = world.find(part)
    if identity is not None:
        processes.send_signal(identity, number)


def _stop(world: World, part: str) -> Mend | None:
    identity = world.find(part)
    if identity is None:
        return None
    processes.send_signal(identity, signal.SIGSTOP)

    def go_on() -> None:
        processes.send_signal(identity, signal.SIGCONT)

    return go_on


def _fail_fsync(world: World, part: str) -> Mend | None:
    """Let the next fsync and fdatasync of a part fail with EIO, by a tracer that then lets go."""
    identity = world.find(part)
    if identity is None:
        return None
    command = ["strace", "-f", "-q", "-o", "/dev/null", "-p", str(identity.pid)]
    command += ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=1"]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def let_go() -> None:
        tracer.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.wait(5)
        if tracer.poll() is None:
            tracer.kill()
            tracer.wait()

    return let_go


def _take_memory(world: World) -> Mend | None:
    """Put the trainer where there is no memory left: the kernel kills it."""
    identity = world.find("trainer")
    if identity is None:
        return None
    group = MEMORY / f"runyard-chaos-{os.getpid()}"
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text("1048576")
    with contextlib.suppress(OSError):
        (group / "cgroup.procs").write_text(str(identity.pid))

    def remove() -> None:
        with contextlib.suppress(OSError):
            (group / "memory.limit_in_bytes").write_text("-1")
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (MEMORY / "cgroup.procs").write_text(pid)
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                return
            time.sleep(0.02)

    return remove
