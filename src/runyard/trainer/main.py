"""One attempt, from its folder to an exit code: take the lock, train, write the result.

``result.json`` is the last file written, after the manifest of the last checkpoint, and an attempt
with a result is never retried. So it is written for final outcomes: completed, stopped on request,
an error in flow or data, a bug of ours. It is not written where another attempt may succeed, such
as after a disk error. On a full disk the trainer waits.
"""

import contextlib
import errno
import fcntl
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runyard.extras import explain_missing_extra
from runyard.model_folders import ModelFolders
from runyard.rundir import (
    EXIT_CANNOT_RUN,
    EXIT_DONE,
    EXIT_PEER_LOST,
    EXIT_STOPPED,
    NO_ROOM,
    RUN,
    AttemptDir,
    EventWriter,
    is_permit_fresh,
    read_json,
    write_json,
)
from runyard.trainer import environment
from runyard.trainer.activity import ActivityReporter
from runyard.trainer.disk_space import POLL_INTERVAL_S, as_system_error
from runyard.trainer.errors import (
    InvalidFlow,
    LockHeld,
    PeerLost,
    TrainingFailed,
    is_device_failure,
)

EXIT_FAILED = 1
LOCK_WAIT_S = 10.0
# Errors of the machine: another attempt, perhaps on another machine, may succeed.
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)

logger = logging.getLogger(__name__)


def train_attempt(folder: Path) -> int:
    """Train the attempt in ``folder``; return the exit code (see ``runyard.rundir``).

    Runs in a separate process, started by ``python -m runyard.trainer`` or forked from the warm
    parent. SIGTERM and ``stop.json`` both mean: save, then exit with ``EXIT_STOPPED``. A process
    whose RANK is not 0 leaves all of that to rank 0.
    """
    if rank := int(os.environ.get("RANK", "0")):
        return _follow_attempt(folder, rank)
    signals = _record_sigterm()

    def should_stop() -> bool:
        return bool(signals) or is_stop_requested(folder)

    with contextlib.ExitStack() as stack:
        code, result = _run_attempt(folder, should_stop, stack)
        if result is not None:
            _write_when_space(lambda: write_json(AttemptDir(folder).result, result), should_stop)
    return code


def _run_attempt(
    folder: Path, should_stop: Callable[[], bool], stack: contextlib.ExitStack
) -> tuple[int, dict[str, Any] | None]:
    """Train; return the exit code, and ``result.json`` if it is final. ``stack`` has the lock."""
    try:
        lock = hold_run_lock(AttemptDir(folder).run_lock, wait_s=LOCK_WAIT_S)
        stack.callback(os.close, lock)
        events = EventWriter(folder, _now_ms)
        stack.callback(events.close)
        with ActivityReporter(events, "Loading libraries"):
            job, machine = load_job(folder, events)
            from runyard.trainer.train import train  # imports torch, so only after load_job

        outcome = train(job, machine, events, should_stop=should_stop, say=_say)
        _write_when_space(events.sync, should_stop)  # what follows the last checkpoint, too
    except TrainingFailed as error:
        _say(f"{error.reason}: {error}")
        failure = {"outcome": "Failed", "reason": error.reason, "message": str(error)}
        return EXIT_CANNOT_RUN, failure
    except PeerLost as error:
        _say(str(error))
        reported = _read_failure_of_rank(folder)
        return (EXIT_PEER_LOST, None) if reported is None else (EXIT_CANNOT_RUN, reported)
    except LockHeld as error:
        _say(str(error))
        return EXIT_FAILED, None
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        system_error = as_system_error(error)
        if system_error is not None and system_error.errno in MACHINE_ERRORS:
            return EXIT_FAILED, None
        if is_device_failure(error):
            first_line = str(error).partition("\n")[0]
            return EXIT_FAILED, {"outcome": "MachineFailure", "message": first_line}
        message = explain_missing_extra(error) or f"{type(error).__name__}: {error}"
        return EXIT_FAILED, {"outcome": "Failed", "reason": "TrainerError", "message": message}
    is_stopped = outcome.reason == "Stopped"
    result: dict[str, Any] = {
        "outcome": "Stopped" if is_stopped else "Succeeded",
        "reason": outcome.reason,
        "message": outcome.message,
        "checkpoint": outcome.checkpoint,
        "metrics": outcome.metrics,
    }
    if outcome.findings:
        result["findings"] = [finding.to_dict() for finding in outcome.findings]
    return EXIT_STOPPED if is_stopped else EXIT_DONE, result


def _read_failure_of_rank(folder: Path) -> dict[str, Any] | None:
    """Return the result of an attempt that ended because another rank cannot train, if it did."""
    directory, size = AttemptDir(folder), int(os.environ.get("WORLD_SIZE", "1"))
    found = [read_json(directory.failure(rank)) for rank in range(1, size)]
    return next((failure for failure in found if failure is not None), None)


def _follow_attempt(folder: Path, rank: int) -> int:
    """Train as a rank that does not lead; return the exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # rank 0 completes the step, saves and ends
    own_folder = AttemptDir(folder).rank(rank)
    own_folder.mkdir(parents=True, exist_ok=True)
    events = EventWriter(own_folder, _now_ms)
    try:
        job, machine = load_job(folder, events)
        from runyard.trainer.follow import follow  # imports torch, so only after load_job

        follow(job, machine, events)
    except (PeerLost, TrainingFailed) as error:
        _say(f"rank {rank}: {error}")
        if isinstance(error, PeerLost):
            return EXIT_PEER_LOST
        # Rank 0 mostly fails in the same way. If not, it misses this rank, and then reports this.
        message = f"rank {rank}: {error}"
        failure = {"outcome": "Failed", "reason": error.reason, "message": message}
        with contextlib.suppress(OSError):
            write_json(AttemptDir(folder).failure(rank), failure)
        return EXIT_CANNOT_RUN
    except Exception:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return EXIT_FAILED
    finally:
        events.close()
    return EXIT_DONE


def _write_when_space(write: Callable[[], None], should_stop: Callable[[], bool]) -> None:
    """Write the last files once the disk accepts them; after a stop request, try only once."""
    while True:
        try:
            write()
            return
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if should_stop():
                return
        time.sleep(POLL_INTERVAL_S)


def preload() -> None:
    """Import everything that training the tiny model needs.

    Starts no thread and uses no accelerator. The warm parent calls this once, so that its forks
    start training without delay.
    """
    # Its threads would start on import and not survive a fork.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    shorten_spinning()
    environment.stay_offline()
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    environment.read_once()


PRELOADED = (
    "torch",
    "torch.optim",
    "torch._dynamo",
    "transformers",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.models.idefics3.modeling_idefics3",
    "transformers.models.idefics3.processing_idefics3",
    "transformers.models.idefics3.image_processing_pil_idefics3",
    "transformers.models.llama.modeling_llama",
    "safetensors.torch",
    "sklearn.datasets",
    "PIL.Image",
    "PIL.ImageEnhance",
    "runyard.trainer.train",
)


def hold_run_lock(path: Path, *, wait_s: float) -> int:
    """Hold the run's lock; return the descriptor to keep open as long as the trainer runs.

    A supervisor passes the lock as an open descriptor, which is found by inode among those
    inherited. Without one, the lock is taken here. It is released when every copy of the descriptor
    is closed, as the kernel does when the process dies.

    Raises:
        LockHeld: another trainer of this run is alive.
    """
    with contextlib.suppress(FileNotFoundError):
        requested = path.stat()
        for descriptor in _open_descriptors():
            with contextlib.suppress(OSError):
                found = os.fstat(descriptor)
                if (found.st_dev, found.st_ino) == (requested.st_dev, requested.st_ino):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.set_inheritable(descriptor, False)
                    return descriptor
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise LockHeld(
                    f"another trainer of this run holds {path.name}; try: stop that trainer first"
                ) from error
        time.sleep(0.05)


def is_stop_requested(folder: Path) -> bool:
    """Return whether the supervisor requests a stop, or its permit to train has expired."""
    return AttemptDir(folder).stop.exists() or not is_permit_fresh(folder, time.monotonic())


def load_job(folder: Path, events: EventWriter) -> tuple[Any, Any]:
    """Read ``run.json`` and the files of the supervisor; return the job and this machine.

    Imports and configures torch.
    """
    environment.stay_offline()
    shorten_spinning()
    config = read_json(AttemptDir(folder).run)
    if config is None:
        raise InvalidFlow(f"{RUN} is missing or unreadable in {folder}")
    import torch
    import transformers

    from runyard.trainer.devices import CPU, find_device, get_device_name
    from runyard.trainer.plan import choose_threads
    from runyard.trainer.prepare import Job
    from runyard.trainer.ranks import join, read_world

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    run, flow = parse_run(config)
    world = read_world(os.environ, folder)
    if flow.settings.resources.ranks != world.size:
        raise InvalidFlow(
            f"settings.resources asks for {flow.settings.resources.ranks} processes, but "
            f"{world.size} trainers were started; try: start the run with runyard, which starts "
            "all of them"
        )
    offered = int(config.get("threads") or os.cpu_count() or 1)
    threads = choose_threads(flow, offered=offered // world.size)
    torch.set_num_threads(threads)
    device = find_device()
    torch.use_deterministic_algorithms(device == CPU)
    # Otherwise every new tensor is filled before it is written, a twentieth of a short step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    resume, origin_run = _find_checkpoint(folder, run, events)
    if device.type not in ("cpu", "cuda") and not world.is_single:
        raise InvalidFlow(
            f"settings.resources.workers is {world.size}, but several workers cannot use "
            f"{get_device_name(device)} together; try: 1"
        )
    join(world, folder, has_cuda=device.type == "cuda")
    job = Job(
        folder=folder,
        run=run,
        flow=flow,
        models=_find_weights_of_runs(folder, are_needed=resume is None),
        folders=parse_model_folders(config),
        resume=resume,
        origin_run=origin_run,
        cache=Path(str(config["dataDir"])) / "cache" if config.get("dataDir") else None,
        cache_bytes=int(config.get("cacheBytes") or 0),
        spare_bytes=int(config.get("freeDiskBytes") or 0),
        world=world,
        cores=max(1, offered // world.size),
    )
    return job, detect_machine(threads)


def _find_checkpoint(folder: Path, run: Any, events: EventWriter) -> tuple[Path | None, str | None]:
    """Return the checkpoint to resume from, and the other run that it is of, if either.

    Raises:
        OSError: the flow says where to resume from, and that checkpoint is damaged or missing.
    """
    from runyard.trainer.checkpoints.checkpoint import is_proven

    offered = read_json(AttemptDir(folder).resume)
    resume = Path(str(offered.get("folder"))) if offered is not None else None
    origin_run = offered.get("runId") if offered is not None else None
    if resume is not None and is_proven(resume):
        return resume, origin_run
    if run.spec.resume_from is not None:
        # Training from the beginning is not what the run is for; another attempt may find it.
        name = resume.name if resume is not None else "to resume from"
        raise OSError(errno.EIO, f"checkpoint {name} is damaged or missing")
    if resume is not None:
        message = f"checkpoint {resume.name} is damaged or missing; training from the beginning"
        events.write("warning", message=message)
    return None, origin_run


def _find_weights_of_runs(folder: Path, *, are_needed: bool) -> dict[str, str]:
    """Return the folder of another run's weights, by the name that the flow gives them."""
    fetched = read_json(AttemptDir(folder).weights)
    if fetched is None:
        return {}
    if fetched.get("problem"):
        if not are_needed:
            return {}
        raise InvalidFlow(str(fetched["problem"]))
    return {str(fetched["weights"]): str(fetched["folder"])}


def parse_model_folders(config: dict[str, Any]) -> ModelFolders:
    """Return the folders that base models may be read from."""
    data_dir = Path(str(config.get("dataDir") or "/nonexistent"))
    return ModelFolders(
        tuple(Path(str(path)) for path in config.get("modelFolders") or ()), data_dir
    )


def parse_run(config: dict[str, Any]) -> tuple[Any, Any]:
    """Return the run's document, and its flow with every default filled in."""
    import msgspec

    from runyard.flows import FlowProblems, resolve
    from vi.api.resources.runs.responses import Run

    try:
        run = msgspec.convert(config.get("run"), Run)
        return run, resolve(run.spec.flow, dataset_kind=config.get("datasetKind"))
    except msgspec.ValidationError as error:
        raise InvalidFlow(f"{RUN} is not a valid run document: {error}") from error
    except FlowProblems as error:
        raise InvalidFlow("; ".join(problem.message for problem in error.problems)) from error


def detect_machine(threads: int) -> Any:
    """Return the properties of this machine that the plan depends on."""
    from runyard.trainer import devices
    from runyard.trainer.plan import Hardware

    device = devices.find_device()
    return Hardware(
        device=device.type,
        device_name=devices.get_device_name(device),
        has_good_bfloat16=devices.has_good_bfloat16(device),
        threads=threads,
        versions=environment.versions(),
        revision=environment.revision(),
        hardware={**environment.hardware(), "accelerators": devices.list_device_names()},
    )


def _record_sigterm() -> list[int]:
    """Return a list that SIGTERM is added to. The step in progress is completed first."""
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    return signals


def shorten_spinning() -> None:
    """Let threads that wait for each other spin for microseconds, then sleep.

    Called before torch is imported. By default they spin for milliseconds. On a busy machine that
    is the time slice of the thread that they wait for. With four other busy processes, a step with
    two threads took 2.5 to 3.8 times as long.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _open_descriptors() -> Iterator[int]:
    folder = "/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd"
    yield from sorted(int(item.name) for item in Path(folder).iterdir())


_unwritten: list[str] = []  # pieces that a full disk has not accepted yet, in order
PIECE = 1024  # characters; Python does not buffer what is longer than its buffer (a disk block)


def _say(line: str) -> None:
    """Write a line of the trainer's own log; stdout is a file of the attempt's folder.

    Python keeps what a failed write left in its buffer, and writes that first the next time. So a
    piece enters the buffer only when it is empty: nothing is lost, cut for good, or written twice.
    """
    starts = range(0, len(line) + 1, PIECE)
    _unwritten.extend(f"{line}\n"[start : start + PIECE] for start in starts)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        while _unwritten:
            sys.stdout.write(_unwritten.pop(0))
            sys.stdout.flush()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
