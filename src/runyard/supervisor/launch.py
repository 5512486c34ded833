"""Forks the trainer and holds it at a gate until training may start.

The trainer is forked first, from the main thread, before the supervisor has other threads or
connections. The reasons: the parent-death signal follows the parent's *thread*, and a fork among
running threads may inherit their locks. The child waits at a pipe for one byte. When the supervisor
dies or decides against it, the pipe closes, and the trainer exits without having started. The gate
also allows ``process.json`` to name the trainer before it trains.

The run's lock is passed as an inherited descriptor. Supervisor and trainer share one open file: the
supervisor acquires the lock and closes its copy when the gate opens. From then on the lock is held
as long as the trainer, or a child it forked, has the file open. It belongs to the inode, not the
name.

A run with several workers has as many trainers, called ranks, which wait at the same gate.
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
from runyard.rundir import AttemptDir

Train = Callable[[Path], int]

_GATE_BYTE = b"g"
_KEPT = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONWARNINGS",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "NVIDIA_VISIBLE_DEVICES", "RUNYARD_DATA_DIR",
    "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "CUBLAS_WORKSPACE_CONFIG",
}  # fmt: skip
_KEPT_PREFIXES = (
    "LC_",
    "HF_",
    "CUDA_",
    "TORCH_",
    "PYTORCH_",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TRITON_",
    # AMD: ROCm, its runtime, HIP and their libraries of kernels.
    "HIP_",
    "HSA_",
    "ROCR_",
    "ROCM_",
    "ROCBLAS_",
    "HIPBLASLT_",
    "MIOPEN_",
    "AMD_",
    "GPU_",
    # Intel.
    "ZE_",
    "SYCL_",
    "ONEAPI_",
    "UR_",
    "NCCL_",
    "RCCL_",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "XDG_",
)
_NEVER = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "_KEY")


def filter_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables a trainer may see: those of machine and libraries, none of the server,
    no secret.
    """
    return {
        name: value
        for name, value in environ.items()
        if (name in _KEPT or name.startswith(_KEPT_PREFIXES))
        and not any(word in name for word in _NEVER)
    }


@dataclass(slots=True)
class RunLock:
    """The open file of ``run.lock``; ``acquire`` locks it."""

    descriptor: int

    @classmethod
    def open(cls, folder: Path) -> "RunLock":
        path = AttemptDir(folder).run_lock
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def acquire(self) -> bool:
        """Acquire the lock if it is free; return whether it was."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Close our copy; a process that inherited the descriptor keeps the lock."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(slots=True)
class Trainer:
    """A forked trainer and the gate it waits at, together with the other ranks of the attempt.

    ``pid`` is rank 0, which leads; ``peers`` are the process ids of ranks 1, 2, ...
    """

    pid: int
    gate: int
    peers: tuple[int, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of all ranks."""
        return self.pid, *self.peers

    def open_gate(self) -> None:
        os.write(self.gate, _GATE_BYTE * (1 + len(self.peers)))  # each rank reads one
        self.close_gate()

    def close_gate(self) -> None:
        """Close the gate; a trainer that has not started exits with the code for stopped."""
        if self.gate >= 0:
            os.close(self.gate)
            self.gate = -1


def fork_trainer(
    folder: Path, *, mark: str, lock: RunLock, train: Train | None, workers: int = 1
) -> Trainer:
    """Fork the trainer, with several workers one process for each rank.

    ``train`` is called in it, or without one ``python -m runyard.trainer`` is executed.
    """
    AttemptDir(folder).stdout.parent.mkdir(exist_ok=True)
    gate_of_child, gate = os.pipe()
    supervisor_pid = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pids = []
    for rank in range(workers):
        pid = os.fork()
        if pid == 0:
            _become_trainer(
                folder,
                mark=mark,
                lock=lock,
                train=train,
                gate=gate_of_child,
                supervisor_pid=supervisor_pid,
                place=(rank, workers),
            )
        pids.append(pid)
    os.close(gate_of_child)
    return Trainer(pids[0], gate, tuple(pids[1:]))


def _become_trainer(
    folder: Path,
    *,
    mark: str,
    lock: RunLock,
    train: Train | None,
    gate: int,
    supervisor_pid: int,
    place: tuple[int, int],
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        processes.die_with_parent(supervisor_pid)
        _close_descriptors_except(0, 1, 2, gate, lock.descriptor)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        processes.forgo_new_privileges()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        _redirect_output(folder, rank=place[0])
        _scrub_environment(mark)
        os.environ |= describe_rank(*place)
        if os.read(gate, 1) != _GATE_BYTE:
            os._exit(rundir.EXIT_STOPPED)
        os.close(gate)
        os.set_inheritable(lock.descriptor, True)
        if train is None:
            command = [sys.executable, "-P", "-m", "runyard.trainer", str(folder)]
            # An argument list, no shell.
            os.execve(sys.executable, command, dict(os.environ))  # noqa: S606
        code = train(folder)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    # The outermost frame of the process: log the traceback, return the exit code
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        # Even if flushing fails on a full disk: a fork that returned would be a second supervisor
        finally:
            os._exit(code)


def _close_descriptors_except(*kept: int) -> None:
    """Close all other descriptors: the supervisor's lock and pipes must not outlive it in the
    trainer.
    """
    limit = os.sysconf("SC_OPEN_MAX")
    edges = [-1, *sorted(kept), limit]
    for below, above in itertools.pairwise(edges):
        if below + 1 < above:  # an empty range that starts at 0 closes everything
            os.closerange(below + 1, above)


def describe_rank(rank: int, size: int) -> dict[str, str]:
    """Return the variables that say which of several ranks a trainer is."""
    if size == 1:
        return {}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}


def _redirect_output(folder: Path, *, rank: int) -> None:
    """Redirect output to files, never to a pipe that another process must read."""
    stdout, stderr = AttemptDir(folder).stdout, AttemptDir(folder).stderr
    if rank:  # only the log of rank 0 is shipped
        stdout, stderr = (path.with_suffix(f".{rank}.log") for path in (stdout, stderr))
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for descriptor, path, flags in (
        (0, Path(os.devnull), os.O_RDONLY),
        (1, stdout, append),
        (2, stderr, append),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)


def _scrub_environment(mark: str) -> None:
    kept = filter_environment(os.environ)
    processes.set_mark(processes.SUPERVISOR_MARK, "")
    os.environ.clear()
    os.environ.update(kept)
    processes.set_mark(processes.ATTEMPT_MARK, mark)
