"""Fork the trainer and hold it behind a gate until it may begin.

The trainer is forked first of all, from the main thread, while the supervisor has no other thread and no connection:
the parent-death signal follows the parent's *thread*, and a fork beside running threads may inherit their locks. The
child waits at a pipe for one byte. When the supervisor dies or decides otherwise the pipe closes, and the trainer ends
without having begun. That also gives the folder's ``process.json`` the trainer's identity before anything is trained.

The run's lock travels as an inherited descriptor: supervisor and trainer share one open file, the supervisor takes the
lock on it and closes its own copy when the gate opens. From then on the lock is held exactly as long as the trainer, or
a child it forked, has it open: by inode, whatever becomes of the name.
"""

import fcntl
import itertools
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runyard import processes, rundir

Train = Callable[[Path], int]

_GO = b"g"
_KEPT = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "LD_PRELOAD", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONWARNINGS", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "NVIDIA_VISIBLE_DEVICES", "RUNYARD_DATA_DIR", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM",
    "CUBLAS_WORKSPACE_CONFIG",
}  # fmt: skip
_KEPT_PREFIXES = ("LC_", "HF_", "CUDA_", "TORCH_", "PYTORCH_", "OMP_", "MKL_", "OPENBLAS_", "NCCL_", "XDG_")
_NEVER = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "_KEY")


def trainer_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables a trainer may see: what the machine and the libraries need, nothing of the server, no secret."""
    return {
        name: value
        for name, value in environ.items()
        if (name in _KEPT or name.startswith(_KEPT_PREFIXES)) and not any(word in name for word in _NEVER)
    }


@dataclass(slots=True)
class RunLock:
    """``run.lock``, opened but not yet taken."""

    descriptor: int

    @classmethod
    def open(cls, folder: Path) -> "RunLock":
        path = folder.parent.parent / rundir.LOCK
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def take(self) -> bool:
        """Take the lock if nobody holds it."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of our copy; whoever inherited it keeps the lock."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(slots=True)
class Trainer:
    """A forked trainer and the gate it waits at."""

    pid: int
    gate: int

    def open_gate(self) -> None:
        os.write(self.gate, _GO)
        self.close_gate()

    def close_gate(self) -> None:
        """A trainer that has not begun ends with the code of one that was stopped."""
        if self.gate >= 0:
            os.close(self.gate)
            self.gate = -1


def fork_trainer(folder: Path, *, mark: str, lock: RunLock, train: Train | None) -> Trainer:
    """Fork the trainer; ``train`` is called in it, or without one ``python -m runyard.trainer`` is executed."""
    (folder / rundir.STDOUT).parent.mkdir(exist_ok=True)
    gate_of_child, gate = os.pipe()
    supervisor_pid = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become_trainer(folder, mark=mark, lock=lock, train=train, gate=gate_of_child, supervisor_pid=supervisor_pid)
    os.close(gate_of_child)
    return Trainer(pid, gate)


def _become_trainer(
    folder: Path, *, mark: str, lock: RunLock, train: Train | None, gate: int, supervisor_pid: int
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        processes.die_with_parent(supervisor_pid)
        _close_all_but(0, 1, 2, gate, lock.descriptor)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        processes.forgo_new_privileges()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        _redirect(folder)
        _scrub(mark)
        if os.read(gate, 1) != _GO:
            os._exit(rundir.EXIT_STOPPED)
        os.close(gate)
        os.set_inheritable(lock.descriptor, True)
        if train is None:
            command = [sys.executable, "-P", "-m", "runyard.trainer", str(folder)]
            os.execve(sys.executable, command, dict(os.environ))  # noqa: S606 - an argument list, no shell
        code = train(folder)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # the last frame of a process: the trace goes to its log, the code to its parent
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # whatever a full disk says: a fork that went on from here would be a second supervisor
            os._exit(code)


def _close_all_but(*kept: int) -> None:
    """The supervisor's lock and pipes must end with the supervisor, not with its trainer."""
    limit = os.sysconf("SC_OPEN_MAX")
    edges = [-1, *sorted(kept), limit]
    for below, above in itertools.pairwise(edges):
        if below + 1 < above:  # an empty range that begins at 0 closes everything
            os.closerange(below + 1, above)


def _redirect(folder: Path) -> None:
    """Output goes to files and never to a pipe that somebody must read."""
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for descriptor, path, flags in (
        (0, Path(os.devnull), os.O_RDONLY),
        (1, folder / rundir.STDOUT, append),
        (2, folder / rundir.STDERR, append),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)


def _scrub(mark: str) -> None:
    kept = trainer_environment(os.environ)
    processes.set_mark(processes.SUPERVISOR_MARK, "")
    os.environ.clear()
    os.environ.update(kept)
    processes.set_mark(processes.ATTEMPT_MARK, mark)
