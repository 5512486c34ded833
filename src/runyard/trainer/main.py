"""One attempt from its folder to an exit code: take the lock, train, say how it ended.

``result.json`` is the last file written, after the manifest of the last checkpoint, and a result on disk is never
retried. So it is written for what is final (done, stopped on request, the recipe's or the data's fault, a defect of
ours) and not for what another try may mend, such as a failing disk. A full one is waited for.
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
    EXIT_STOPPED,
    LOCK,
    NO_ROOM,
    RESULT,
    RESUME,
    RUN,
    STOP,
    WEIGHTS,
    EventWriter,
    is_permit_fresh,
    read_json,
    write_json,
)
from runyard.trainer import environment
from runyard.trainer.disk_space import LOOK_EVERY_S, as_system_error
from runyard.trainer.errors import InvalidFlow, LockHeld, TrainingFailed

EXIT_FAILED = 1
LOCK_WAIT_S = 10.0
# Faults of the machine: another try, perhaps elsewhere, may go well.
MACHINE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)

logger = logging.getLogger(__name__)


def train_attempt(folder: Path) -> int:
    """Train what ``folder/run.json`` asks for; returns the exit code (see ``runyard.rundir``).

    Runs in a process of its own, started by ``python -m runyard.trainer`` or forked from the warm parent. SIGTERM and
    ``stop.json`` both mean: save, then end with ``EXIT_STOPPED``.
    """
    is_told = _listen_for_sigterm()

    def should_stop() -> bool:
        return bool(is_told) or _is_told_by_files(folder)

    with contextlib.ExitStack() as held:
        code, result = _attempt(folder, should_stop, held)
        if result is not None:
            _wait_for_room(lambda: write_json(folder / RESULT, result), should_stop)
    return code


def _attempt(
    folder: Path, should_stop: Callable[[], bool], held: contextlib.ExitStack
) -> tuple[int, dict[str, Any] | None]:
    """Train, and say how it ended: the exit code, and ``result.json`` if that is final. ``held`` keeps the lock."""
    try:
        held.callback(os.close, hold_run_lock(folder.parent.parent / LOCK, wait_s=LOCK_WAIT_S))
        events = EventWriter(folder, _now_ms)
        held.callback(events.close)
        outcome = _train(folder, events, should_stop)
        _wait_for_room(events.flush, should_stop)
    except TrainingFailed as error:
        _say(f"{error.reason}: {error}")
        return EXIT_CANNOT_RUN, {"outcome": "Failed", "reason": error.reason, "message": str(error)}
    except LockHeld as error:
        _say(str(error))
        return EXIT_FAILED, None
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        refused = as_system_error(error)
        if refused is not None and refused.errno in MACHINE_FAULTS:
            return EXIT_FAILED, None
        message = explain_missing_extra(error) or f"{type(error).__name__}: {error}"
        return EXIT_FAILED, {"outcome": "Failed", "reason": "TrainerError", "message": message}
    return EXIT_STOPPED if outcome["outcome"] == "Stopped" else EXIT_DONE, outcome


def _wait_for_room(write: Callable[[], None], should_stop: Callable[[], bool]) -> None:
    """Write the last words as soon as the disk takes them; whoever wants us to stop wants no more than one try."""
    while True:
        try:
            write()
            return
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if should_stop():
                return
        time.sleep(LOOK_EVERY_S)


def preload() -> None:
    """Import all that training the tiny model takes; starts no thread and touches no accelerator.

    The warm parent calls this once, so that a fork of it takes its first step at once.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would start on import and not survive a fork
    wait_briefly()
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
    """Hold the run's lock; returns the descriptor to keep open as long as the trainer lives.

    A supervisor hands the lock on as an open descriptor, which is found by inode among those inherited. Without one the
    lock is taken here. Closing every copy of the descriptor, as the kernel does when we die, gives it up.

    Raises:
        LockHeld: another trainer of this run is alive.
    """
    with contextlib.suppress(FileNotFoundError):
        wanted = path.stat()
        for descriptor in _open_descriptors():
            with contextlib.suppress(OSError):
                found = os.fstat(descriptor)
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
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
                raise LockHeld(f"another trainer of this run holds {path.name}; end it first") from error
        time.sleep(0.05)


def _is_told_by_files(folder: Path) -> bool:
    """Whether the supervisor wants us to stop, or has itself been stopped for longer than we may go on without it."""
    return (folder / STOP).exists() or not is_permit_fresh(folder, time.monotonic())


def _train(folder: Path, events: EventWriter, should_stop: Any) -> dict[str, Any]:
    """Read what is asked for, train, and put the ending into words for ``result.json``."""
    environment.stay_offline()
    wait_briefly()
    config = read_json(folder / RUN)
    if config is None:
        raise InvalidFlow(f"{RUN} is missing or unreadable in {folder}")
    import torch
    import transformers

    from runyard.trainer.checkpoints.checkpoint import is_proven
    from runyard.trainer.plan import choose_threads
    from runyard.trainer.prepare import Job
    from runyard.trainer.train import train

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    run, recipe = _read_run(config)
    threads = choose_threads(recipe, offered=int(config.get("threads") or os.cpu_count() or 1))
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    # Else every new tensor is filled before it is written to, which is a twentieth of a short step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    resume, wanted = None, read_json(folder / RESUME)
    if wanted is not None:
        resume = Path(str(wanted.get("folder")))
    if resume is None or not is_proven(resume):
        name = resume.name if resume is not None else "to resume from"
        if run.spec.resume_from is not None:  # the beginning is not where this run shall begin; another try may find it
            raise OSError(errno.EIO, f"checkpoint {name} is damaged or gone")
        if resume is not None:
            events.write("warning", message=f"checkpoint {name} is damaged or gone; training from the beginning")
        resume = None
    job = Job(
        folder=folder,
        run=run,
        recipe=recipe,
        models=_weights_of_runs(folder, are_needed=resume is None),
        folders=_model_folders(config),
        resume=resume,
        continued_run=(wanted or {}).get("runId"),
        cache=Path(str(config["dataDir"])) / "cache" if config.get("dataDir") else None,
        cache_bytes=int(config.get("cacheBytes") or 0),
        spare_bytes=int(config.get("freeDiskBytes") or 0),
    )
    outcome = train(job, _machine(threads), events, should_stop=should_stop, say=_say)
    ending = {"outcome": "Stopped" if outcome.reason == "Stopped" else "Succeeded", "reason": outcome.reason}
    return ending | {"message": outcome.message, "checkpoint": outcome.checkpoint, "metrics": outcome.metrics}


def _weights_of_runs(folder: Path, *, are_needed: bool) -> dict[str, str]:
    """Where the supervisor has put the weights of another run, by the name that the flow gives them."""
    brought = read_json(folder / WEIGHTS)
    if brought is None:
        return {}
    if brought.get("problem"):
        if not are_needed:
            return {}
        raise InvalidFlow(str(brought["problem"]))
    return {str(brought["weights"]): str(brought["folder"])}


def _model_folders(config: dict[str, Any]) -> ModelFolders:
    data_dir = Path(str(config.get("dataDir") or "/nonexistent"))
    return ModelFolders(tuple(Path(str(path)) for path in config.get("modelFolders") or ()), data_dir)


def _read_run(config: dict[str, Any]) -> tuple[Any, Any]:
    """The run's document and its recipe with every default filled in."""
    import msgspec

    from runyard.flows import FlowProblems, resolve
    from vi.api.resources.runs.responses import Run

    try:
        run = msgspec.convert(config.get("run"), Run)
        return run, resolve(run.spec.flow, dataset_kind=config.get("datasetKind"))
    except msgspec.ValidationError as error:
        raise InvalidFlow(f"{RUN} holds no run document: {error}") from error
    except FlowProblems as error:
        raise InvalidFlow("; ".join(problem.message for problem in error.problems)) from error


def _machine(threads: int) -> Any:
    """What the plan has to know of this machine."""
    import torch

    from runyard.trainer.plan import Machine

    # Emulated bfloat16 is slower than float32; the processor says whether it has instructions for it.
    device, name = "cpu", "CPU"
    has_good_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if torch.cuda.is_available():
        device, name = "cuda", torch.cuda.get_device_name()
        has_good_bfloat16 = torch.cuda.is_bf16_supported()
    return Machine(
        device=device,
        device_name=name,
        has_good_bfloat16=has_good_bfloat16,
        threads=threads,
        versions=environment.versions(),
        revision=environment.revision(),
        hardware={**environment.hardware(), "accelerators": environment.accelerators()},
    )


def _listen_for_sigterm() -> list[int]:
    """A list that is no longer empty once SIGTERM has come. The step under way is finished first."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    return told


def wait_briefly() -> None:
    """Let threads that wait for each other spin for microseconds and then sleep; called before torch is imported.

    By default they spin for milliseconds, which on a busy machine is the time slice of the thread they wait for: beside
    four busy processes a step of two threads took 2.5 to 3.8 times as long.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _open_descriptors() -> Iterator[int]:
    folder = "/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd"
    yield from sorted(int(item.name) for item in Path(folder).iterdir())


_unsaid: list[str] = []  # pieces that a full disk did not take yet, in order
PIECE = 1024  # characters; what is longer than Python's buffer (a block of the disk) would not be held back by it


def _say(line: str) -> None:
    """A line of the trainer's own log; stdout is a file of the attempt's folder.

    What Python holds back when a write fails it writes first the next time, so a piece goes into its buffer only when
    that is empty: nothing is lost, torn for good, or said twice.
    """
    _unsaid.extend(f"{line}\n"[start : start + PIECE] for start in range(0, len(line) + 1, PIECE))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        while _unsaid:
            sys.stdout.write(_unsaid.pop(0))
            sys.stdout.flush()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
