"""Which processes there are, who they are, and how to signal exactly the one that is meant.

A process id alone names nobody for long: the kernel uses ids again. So a process is boot id, pid and start ticks
(``Identity``); before any signal it is opened as a pidfd and compared, and a process that cannot be looked at is
*unknown*: never signalled, never counted as dead. What belongs to an attempt is found three ways, because each alone
has a hole: as a descendant of its supervisor (complete while the supervisor lives, which is why the supervisor is a
child subreaper), by the mark in its environment (survives the supervisor; lost by ``env -i``), and by holding the run's
lock file open (survives both; lost by closing descriptors).

The mark is read from ``/proc/<pid>/environ``, which shows the bytes a process was *started* with. A trainer forked from
the warm parent was never started, so ``set_mark`` also writes the mark into those very bytes, where the warm parent was
given room for it (``MARK_ROOM``).

Linux has everything here. Elsewhere identities come from ``ps``, and marks, descendants and lock holders are not to be
had: the supervisor then ends the process group it knows and nothing beyond.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from pathlib import Path

from runyard.ports import Identity, Liveness

ATTEMPT_MARK = "RUNYARD_ATTEMPT"  # in the environment of a trainer and of all that it starts
SUPERVISOR_MARK = "RUNYARD_SUPERVISOR"  # in the environment of a supervisor
UNKNOWN_BOOT = "unknown"
MARK_ROOM = "-" * 300  # what a warm parent carries in both variables, for its children to write their marks over

IS_LINUX = sys.platform == "linux"
_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def attempt_mark(organization_id: str, run_id: str, attempt: int) -> str:
    """The word that all processes of one attempt carry."""
    return f"{organization_id}/{run_id}/{attempt}"


@cache
def boot_id() -> str:
    """What tells this boot of the machine from every other."""
    if IS_LINUX:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return _output("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid") or UNKNOWN_BOOT


def identify(pid: int) -> Identity | None:
    """Who has this process id now; None when nobody has, or only a zombie that waits to be reaped.

    Raises:
        PermissionError: the process may not be looked at.
    """
    stat = _stat(pid) if IS_LINUX else _stat_by_ps(pid)
    return None if stat is None or stat.state in "ZX" else Identity(boot_id(), pid, stat.start_ticks)


def liveness(identity: Identity) -> Liveness:
    """Whether this very process lives."""
    if identity.boot_id != boot_id():
        return "dead"
    try:
        return "alive" if identify(identity.pid) == identity else "dead"
    except (PermissionError, ValueError):
        return "unknown"


def age_s(identity: Identity) -> float | None:
    """How long ago a living process was started; None where that cannot be known."""
    try:
        uptime_s = float((_PROC / "uptime").read_text().split()[0])
    except OSError:
        return None
    return max(0.0, uptime_s - identity.start_ticks / os.sysconf("SC_CLK_TCK"))


def send_signal(identity: Identity, signal_number: int) -> bool:
    """Signal this very process; False when it is gone or may not be signalled.

    The pidfd is opened before the comparison: from then on the id cannot pass to another process unnoticed.
    """
    if not IS_LINUX:
        return _send_without_pidfd(identity, signal_number)
    try:
        descriptor = os.pidfd_open(identity.pid)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        if liveness(identity) != "alive":
            return False
        signal.pidfd_send_signal(descriptor, signal_number)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(descriptor)


def _send_without_pidfd(identity: Identity, signal_number: int) -> bool:
    if liveness(identity) != "alive":
        return False
    try:
        os.kill(identity.pid, signal_number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def marked(variable: str, matches: Callable[[str], bool]) -> list[tuple[Identity, str]]:
    """Every process whose environment has ``variable`` with a value that ``matches``, and that value."""
    prefix = variable.encode() + b"="
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            entries = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
            value = next((entry[len(prefix) :].decode() for entry in entries if entry.startswith(prefix)), None)
            if value and matches(value) and (identity := identify(pid)):
                found.append((identity, value))
    return found


def descendants(pid: int) -> list[Identity]:
    """Every living process below ``pid``: children, their children, and so on."""
    children: dict[int, list[Identity]] = {}
    for other in _pids():
        with contextlib.suppress(OSError):
            stat = _stat(other)
            if stat is not None and stat.state not in "ZX":
                children.setdefault(stat.parent, []).append(Identity(boot_id(), other, stat.start_ticks))
    found, next_up = [], [pid]
    while next_up:
        below = children.get(next_up.pop(), [])
        found += below
        next_up += [identity.pid for identity in below]
    return found


def holders(path: Path) -> list[Identity]:
    """Every process that has this file open, by inode and not by name."""
    try:
        wanted = path.stat()
    except OSError:
        return []
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if any(_is_same_file(entry, wanted) for entry in (_PROC / str(pid) / "fd").iterdir()):
                identity = identify(pid)
                found += [identity] if identity else []
    return found


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory: on the machine, or in this memory cgroup."""
    return max([_counter(_PROC / "vmstat", "oom_kill"), *(_counter(path, "oom_kill") for path in _memory_events())])


def set_mark(variable: str, value: str) -> None:
    """Let this process and all that it starts carry a mark; the empty value takes it off."""
    os.environ[variable] = value
    if IS_LINUX:
        _write_start_environment(variable.encode() + b"=", value.encode())


def become_subreaper() -> None:
    """From now on orphans among our descendants become our children, so that we can wait for every one of them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent's forking thread ends; end now if that was already too late."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(128 + signal.SIGKILL)


def call_when_stdin_ends(call: Callable[[], object]) -> None:
    """Call once standard input has ended, from a thread: whoever held its other end is gone, however it ended."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        call()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def forgo_new_privileges() -> None:
    """Whatever this process executes from now on, a set-user-id program included, gains no rights by it."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


class _Stat:
    """The three fields of /proc/<pid>/stat that matter here; the name before them may hold spaces and brackets."""

    __slots__ = ("parent", "start_ticks", "state")

    def __init__(self, line: str):
        fields = line[line.rindex(")") + 2 :].split()
        self.state, self.parent, self.start_ticks = fields[0], int(fields[1]), int(fields[19])


def _stat(pid: int) -> _Stat | None:
    try:
        return _Stat((_PROC / str(pid) / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def _stat_by_ps(pid: int) -> _Stat | None:
    """The same from ``ps``, whose start times are whole seconds."""
    words = _output("/bin/ps", "-o", "state=,ppid=,lstart=", "-p", str(pid)).split(maxsplit=2)
    if len(words) < 3:
        return None
    started = datetime.strptime(words[2].strip(), "%a %b %d %H:%M:%S %Y").astimezone()
    return _Stat(f"() {words[0][0]} {words[1]} {'0 ' * 17}{int(started.timestamp())}")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout.strip()


def _pids() -> Iterator[int]:
    """All process ids but our own."""
    if IS_LINUX:
        names = [entry.name for entry in _PROC.iterdir()]
        yield from (int(name) for name in names if name.isdigit() and int(name) != os.getpid())


def _is_same_file(link: Path, wanted: os.stat_result) -> bool:
    try:
        found = link.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def _counter(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _memory_events() -> Iterator[Path]:
    """The files that count memory kills of our own cgroup: version 2, then version 1."""
    try:
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.oom_control"


def _write_start_environment(prefix: bytes, value: bytes) -> None:
    """Write over the bytes that /proc/self/environ shows, if this process was started with room there."""
    entries = (_PROC / "self/environ").read_bytes().split(b"\0")
    offset = 0
    for entry in entries:
        room = len(entry) - len(prefix)
        if entry.startswith(prefix) and len(value) <= room:
            line = (_PROC / "self/stat").read_text()
            start = int(line[line.rindex(")") + 2 :].split()[47])
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(start + offset + len(prefix))
                memory.write(value.ljust(room, b"\0"))
            return
        offset += len(entry) + 1


def _prctl(option: int, argument: int) -> None:
    if not IS_LINUX:
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
