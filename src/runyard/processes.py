"""Process identities, marks, and signals to exactly the intended process.

The kernel reuses process ids. So a process is identified by boot id, process id, and start ticks
(``Identity``). Before a signal it is opened as a pidfd and compared. A process that may not be
inspected is *unknown*: it is never signaled and never counts as dead.

The processes of an attempt are found in three ways, because each alone misses some:

- as descendants of the supervisor: complete while it lives, since it is a child subreaper;
- by the mark in their environment: survives the supervisor; lost by ``env -i``;
- by holding the run's lock file open: survives both; lost by closing descriptors.

A mark is read from ``/proc/<pid>/environ``, which shows the bytes that a process was executed with.
A trainer forked from the warm parent was never executed. So ``set_mark`` also overwrites those
bytes, for which the warm parent reserves space (``MARK_PLACEHOLDER``).

Only Linux supports all of this. Elsewhere identities come from ``ps``, and marks, descendants, and
lock holders are not available: the supervisor then kills the process group that it knows.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from runyard.ports import Identity, Liveness

ATTEMPT_MARK = "RUNYARD_ATTEMPT"  # in the environment of a trainer and of every process it starts
SUPERVISOR_MARK = "RUNYARD_SUPERVISOR"  # in the environment of a supervisor
UNKNOWN_BOOT = "unknown"
# Both variables of a warm parent; its children overwrite them with their marks
MARK_PLACEHOLDER = "-" * 300

IS_LINUX = sys.platform == "linux"
_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def format_mark(organization_id: str, run_id: str, attempt: int) -> str:
    """Return the mark of an attempt's processes."""
    return f"{organization_id}/{run_id}/{attempt}"


@cache
def boot_id() -> str:
    """Return the id of the machine's current boot."""
    if IS_LINUX:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return _run_command("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid") or UNKNOWN_BOOT


def identify(pid: int) -> Identity | None:
    """Return the process with this id; None when there is none, or only a zombie.

    Raises:
        PermissionError: the process may not be inspected.
    """
    stat = _read_stat(pid) if IS_LINUX else _read_stat_by_ps(pid)
    return (
        None if stat is None or stat.state in "ZX" else Identity(boot_id(), pid, stat.start_ticks)
    )


def check_liveness(identity: Identity) -> Liveness:
    """Return whether this process is alive, dead, or unknown because it may not be inspected."""
    if identity.boot_id != boot_id():
        return "dead"
    try:
        return "alive" if identify(identity.pid) == identity else "dead"
    except (PermissionError, ValueError):
        return "unknown"


def get_age_s(identity: Identity) -> float | None:
    """Return the age of a living process in seconds; None if it is unknown."""
    try:
        uptime_s = float((_PROC / "uptime").read_text().split()[0])
    except OSError:
        return None
    return max(0.0, uptime_s - identity.start_ticks / os.sysconf("SC_CLK_TCK"))


def send_signal(identity: Identity, signal_number: int) -> bool:
    """Send a signal to this process; return False if it is gone or may not be signaled.

    The pidfd is opened before the comparison, so the id cannot pass to another process in between.
    """
    if not IS_LINUX:
        return _send_without_pidfd(identity, signal_number)
    try:
        descriptor = os.pidfd_open(identity.pid)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        if check_liveness(identity) != "alive":
            return False
        signal.pidfd_send_signal(descriptor, signal_number)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(descriptor)


def _send_without_pidfd(identity: Identity, signal_number: int) -> bool:
    if check_liveness(identity) != "alive":
        return False
    try:
        os.kill(identity.pid, signal_number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def find_marked(variable: str, matches: Callable[[str], bool]) -> list[tuple[Identity, str]]:
    """Return each process whose ``variable`` has a matching value, with that value."""
    prefix = variable.encode() + b"="
    found = []
    for pid in _list_pids():
        with contextlib.suppress(OSError):
            entries = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
            value = next(
                (entry[len(prefix) :].decode() for entry in entries if entry.startswith(prefix)),
                None,
            )
            if value and matches(value) and (identity := identify(pid)):
                found.append((identity, value))
    return found


def list_descendants(pid: int) -> list[Identity]:
    """Return every living descendant of ``pid``."""
    children: dict[int, list[Identity]] = {}
    for other in _list_pids():
        with contextlib.suppress(OSError):
            stat = _read_stat(other)
            if stat is not None and stat.state not in "ZX":
                children.setdefault(stat.parent, []).append(
                    Identity(boot_id(), other, stat.start_ticks)
                )
    found, next_up = [], [pid]
    while next_up:
        below = children.get(next_up.pop(), [])
        found += below
        next_up += [identity.pid for identity in below]
    return found


@dataclass(frozen=True, slots=True)
class Use:
    """What a process uses: CPU time since its start, and resident memory.

    Memory that processes share counts in each. ``is_stopped``: by a signal such as SIGSTOP.
    """

    cpu_s: float
    memory_bytes: int
    is_stopped: bool = False


def read_use(pid: int) -> Use | None:
    """Return what a process uses; None if it has ended, or where there is no ``/proc``."""
    try:
        line = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = line[line.rindex(")") + 2 :].split()
    ticks = int(fields[11]) + int(fields[12])  # in user and in system mode
    return Use(
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
        memory_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        is_stopped=fields[0] in "Tt",
    )


def list_holders(path: Path) -> list[Identity]:
    """Return every process that has this file open, compared by inode, not by name."""
    try:
        inode = path.stat()
    except OSError:
        return []
    found = []
    for pid in _list_pids():
        with contextlib.suppress(OSError):
            if any(_is_same_file(entry, inode) for entry in (_PROC / str(pid) / "fd").iterdir()):
                identity = identify(pid)
                found += [identity] if identity else []
    return found


def count_memory_kills() -> int:
    """Return the number of out-of-memory kills by the kernel, on the machine or in this memory
    cgroup.
    """
    return max(
        [
            _read_counter(_PROC / "vmstat", "oom_kill"),
            *(_read_counter(path, "oom_kill") for path in _list_memory_event_files()),
        ]
    )


def set_mark(variable: str, value: str) -> None:
    """Mark this process and every process it starts; an empty value removes the mark."""
    os.environ[variable] = value
    if IS_LINUX:
        _write_start_environment(variable.encode() + b"=", value.encode())


def become_subreaper() -> None:
    """Become the parent of orphaned descendants, so that each of them can be reaped."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent's forking thread ends; exit if it has ended
    already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(128 + signal.SIGKILL)


def call_when_stdin_ends(call: Callable[[], object]) -> None:
    """Call ``call`` from a thread once standard input ends, which means that its writer is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        call()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def forgo_new_privileges() -> None:
    """Prevent programs executed from now on, even set-user-id ones, from gaining privileges."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


class _Stat:
    """The three fields of /proc/<pid>/stat used here.

    The name before them may have spaces and brackets.
    """

    __slots__ = ("parent", "start_ticks", "state")

    def __init__(self, line: str):
        fields = line[line.rindex(")") + 2 :].split()
        self.state, self.parent, self.start_ticks = fields[0], int(fields[1]), int(fields[19])


def _read_stat(pid: int) -> _Stat | None:
    try:
        return _Stat((_PROC / str(pid) / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def _read_stat_by_ps(pid: int) -> _Stat | None:
    """Return the same fields from ``ps``, whose start times are whole seconds."""
    words = _run_command("/bin/ps", "-o", "state=,ppid=,lstart=", "-p", str(pid)).split(maxsplit=2)
    if len(words) < 3:
        return None
    started = datetime.strptime(words[2].strip(), "%a %b %d %H:%M:%S %Y").astimezone()
    return _Stat(f"() {words[0][0]} {words[1]} {'0 ' * 17}{int(started.timestamp())}")


def _run_command(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=5
    ).stdout.strip()


def _list_pids() -> Iterator[int]:
    """Yield all process ids except our own."""
    if IS_LINUX:
        names = [entry.name for entry in _PROC.iterdir()]
        yield from (int(name) for name in names if name.isdigit() and int(name) != os.getpid())


def _is_same_file(link: Path, inode: os.stat_result) -> bool:
    try:
        found = link.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (inode.st_dev, inode.st_ino)


def _read_counter(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _list_memory_event_files() -> Iterator[Path]:
    """Yield the files that count out-of-memory kills of our cgroup: version 2, then version 1."""
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
    """Overwrite the bytes that /proc/self/environ shows, if this process was executed with a
    placeholder.
    """
    entries = (_PROC / "self/environ").read_bytes().split(b"\0")
    offset = 0
    for entry in entries:
        capacity = len(entry) - len(prefix)
        if entry.startswith(prefix) and len(value) <= capacity:
            line = (_PROC / "self/stat").read_text()
            start = int(line[line.rindex(")") + 2 :].split()[47])
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(start + offset + len(prefix))
                memory.write(value.ljust(capacity, b"\0"))
            return
        offset += len(entry) + 1


def _prctl(option: int, argument: int) -> None:
    if not IS_LINUX:
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
