"""The folder of an attempt: paths, readers, and writers.

Files are the only protocol between supervisor and trainer.

    <runs>/<organization>/<run>/run.lock            locked (flock) by the training process, by inode
    <runs>/<organization>/<run>/attempts/3/
        placed.json     controller   which attempt this is and which machine holds it; no secret
        run.json        controller   the run's document and the settings of this attempt
        supervisor.lock              locked (flock) by the one supervisor of this folder
        resume.json     supervisor   location of the checkpoint to resume from; absent in a new run
        weights.json    supervisor   location of another run's weights; absent if none are used
        dataset.json    supervisor   location of the dataset version; absent for built-in data
        stop.json       supervisor   asks the trainer to save and stop
        permit          supervisor   time of the last renewal; when it expires, the trainer saves
                                     and stops
        process.json    supervisor   identity of supervisor and trainer (boot id, pid, start ticks)
        exit.json       supervisor   how the trainer ended, once none of its processes is alive
        closed.json     supervisor   the server has accepted the final report, or needs none
        events.jsonl    trainer      numbered lines, see ``EVENTS``
        logs/           trainer      stdout.log and stderr.log, its own output: files, never pipes
        checkpoints/    trainer      epoch-3/manifest.json, ...: complete once the manifest exists
        samples.jsonl   trainer      some predictions of each evaluation, for people; shipped like
                                     events
        rank-1.beat     trainer      what a rank is doing, where there are several
        ranks/          trainer      1/events.jsonl, 1/failure.json, ...: of ranks that do not lead
        predictions/    trainer      step-400.jsonl, ...: each answer of an evaluation, with its
                                     reference answer
        resume/         supervisor   checkpoints/epoch-2/manifest.json, ...: fetched to resume from
        result.json     trainer      the result: outcome, reason, message, newest checkpoint

Each file has one writer. JSON files appear atomically: written to a temporary sibling, fsynced,
renamed, and the folder fsynced. A file that cannot be read counts as absent. ``AttemptDir`` and
``CheckpointDir`` have the path of every file. This module needs only the standard library, so that
every package may import it.
"""

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from runyard.ids import is_path, resolve_folder

PLACED = "placed.json"
RUN = "run.json"
RESUME = "resume.json"
WEIGHTS = "weights.json"
DATASET = "dataset.json"
STOP = "stop.json"
PROCESS = "process.json"
PERMIT = "permit"
EXIT = "exit.json"
CLOSED = "closed.json"
RESULT = "result.json"
EVENTS_FILE = "events.jsonl"
SAMPLES = "samples.jsonl"
STDOUT = "logs/stdout.log"
STDERR = "logs/stderr.log"
SYSTEM = "system.jsonl"
SUPERVISOR_LOG = "logs/supervisor.log"
CHECKPOINTS = "checkpoints"
PREDICTIONS = "predictions"
FAILURE = "failure.json"
RANKS = "ranks"  # below it, a folder of each rank other than 0
# Has the layout of an attempt's folder, so that the same readers find checkpoints in it
FETCHED = "resume"
MANIFEST = "manifest.json"
LOCK = "run.lock"
SUPERVISOR_LOCK = "supervisor.lock"
# Written last in a folder that attempts share: its files and their lengths
BASE_MODEL_PREFIX = "base-"  # of fetched base models among the weights
COMPLETE = "complete.json"

# How long a permit is valid, and how often a supervisor renews it.
PERMIT_S = 60.0
PERMIT_EVERY_S = 2.0

# The parts of a checkpoint folder: what people download, and what only a resume needs.
MODEL_FULL = "model_full"
MODEL_ADAPTER = "model_adapter"
TRAINING_STATE = "training_state"
# Of the evaluation that belongs to the checkpoint, if there was one
PREDICTIONS_FILE = "predictions.jsonl"

# The errors of a full disk or quota, which may pass when space is freed.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

# Trainer exit codes.
EXIT_DONE = 0
EXIT_CANNOT_RUN = 64  # the flow or the data is invalid: another attempt would fail too
EXIT_STOPPED = 75  # stopped on request, after saving as far as disk space allowed
EXIT_PEER_LOST = 76  # another rank of the attempt is gone

# The reasons in the result.json of an attempt that did not fail.
Ending = Literal["Completed", "TimeLimit", "EarlyStopped", "Stopped"]

# The lines of events.jsonl. Each is {"n": 1, 2, ..., "t": epoch ms, "ev": name, ...} with these
# further fields. A step has values loss, learningRate, samplesPerSecond ...; an evaluation
# validation/loss and validation/<metric>.
EVENTS = {
    "phase": ("phase", "message"),  # Preparing | Training | Evaluating | Saving | WaitingForDisk
    "plan": ("plan",),  # every number of the training plan, written out
    "step": (
        "step",
        "epoch",
        "totalSteps",
        "secondsLeft",
        "values",
    ),
    "evaluation": ("step", "epoch", "metricName", "values", "previews"),
    "checkpoint": ("checkpoint", "step", "epoch", "folder", "metrics", "isBest"),
    "warning": ("message",),
    "finding": ("code", "message", "suggestions"),
}


def locate_run_lock(run_folder: Path) -> Path:
    """Return the lock that the trainer of a run holds, in the folder of the run."""
    return run_folder / LOCK


@dataclass(frozen=True, slots=True)
class AttemptDir:
    """The folder of one attempt, with the path of every file and folder in it."""

    path: Path

    @classmethod
    def locate(
        cls, runs_dir: Path, organization_id: str, run_id: str, attempt: int
    ) -> "AttemptDir":
        """Return the folder of an attempt, which need not exist.

        Raises:
            PathEscapes: it would not be inside ``runs_dir``.
        """
        return cls(resolve_folder(runs_dir, organization_id, run_id, "attempts", str(int(attempt))))

    @property
    def run_lock(self) -> Path:
        return locate_run_lock(self.path.parent.parent)

    @property
    def placed(self) -> Path:
        return self.path / PLACED

    @property
    def run(self) -> Path:
        return self.path / RUN

    @property
    def supervisor_lock(self) -> Path:
        return self.path / SUPERVISOR_LOCK

    @property
    def resume(self) -> Path:
        return self.path / RESUME

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def dataset(self) -> Path:
        return self.path / DATASET

    @property
    def stop(self) -> Path:
        return self.path / STOP

    @property
    def permit(self) -> Path:
        return self.path / PERMIT

    @property
    def process(self) -> Path:
        return self.path / PROCESS

    @property
    def exit(self) -> Path:
        return self.path / EXIT

    @property
    def closed(self) -> Path:
        return self.path / CLOSED

    @property
    def events(self) -> Path:
        return self.path / EVENTS_FILE

    @property
    def samples(self) -> Path:
        return self.path / SAMPLES

    @property
    def logs(self) -> Path:
        return self.stdout.parent

    def rank(self, number: int) -> Path:
        """Return the folder of a rank that does not lead."""
        return self.path / RANKS / str(number)

    def beat(self, rank: int) -> Path:
        """Return the file in which a rank, where there are several, writes what it is doing."""
        return self.path / f"rank-{rank}.beat"

    def failure(self, rank: int) -> Path:
        """Return the file in which a rank that does not lead writes why it cannot train."""
        return self.rank(rank) / FAILURE

    @property
    def stdout(self) -> Path:
        return self.path / STDOUT

    @property
    def stderr(self) -> Path:
        return self.path / STDERR

    @property
    def system(self) -> Path:
        return self.path / SYSTEM

    @property
    def supervisor_log(self) -> Path:
        return self.path / SUPERVISOR_LOG

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def predictions(self) -> Path:
        return self.path / PREDICTIONS

    @property
    def fetched(self) -> "AttemptDir":
        """The folder of fetched checkpoints, which has the layout of an attempt's."""
        return AttemptDir(self.path / FETCHED)

    @property
    def result(self) -> Path:
        return self.path / RESULT


@dataclass(frozen=True, slots=True)
class CheckpointDir:
    """The folder of a checkpoint, or of a model of the same layout, with the path of each part."""

    path: Path

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST

    @property
    def model_full(self) -> Path:
        return self.path / MODEL_FULL

    @property
    def model(self) -> Path:
        """The folder of the full weights: ``model_full``, or the folder itself if it has none."""
        return self.model_full if self.model_full.is_dir() else self.path

    @property
    def run(self) -> Path:
        """The run that trained the checkpoint, with its resolved flow."""
        return self.model_full / RUN

    @property
    def model_adapter(self) -> Path:
        return self.path / MODEL_ADAPTER

    @property
    def has_adapter(self) -> bool:
        return self.model_adapter.is_dir()

    @property
    def training_state(self) -> Path:
        return self.path / TRAINING_STATE

    @property
    def predictions(self) -> Path:
        return self.path / PREDICTIONS_FILE


def write_json(path: Path, value: Any, *, mode: int = 0o666) -> None:
    """Write a JSON file atomically: after a power failure it is complete or absent."""
    write_bytes(path, json.dumps(value, ensure_ascii=False, allow_nan=False).encode(), mode=mode)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file atomically: after a power failure it is complete or absent.

    ``mode`` is that of ``os.open``.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)  # left by a crash, perhaps with another mode
    with open(staged, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    fsync_dir(path.parent)


def fsync_dir(path: Path) -> None:
    """Make renames and new names in a folder survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None when it is absent, torn, or not an object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def is_complete(shared: Path) -> bool:
    """Return whether every file of a shared folder exists with its length.

    Hashes were checked on arrival.
    """
    document = read_json(shared / COMPLETE)
    try:
        return document is not None and all(
            (shared / path).stat().st_size == size for path, size in document["sizes"].items()
        )
    except (OSError, KeyError, AttributeError):
        return False


def write_permit(folder: Path, now_s: float) -> None:
    """Renew the trainer's permit for ``PERMIT_S``; ``now_s`` is the machine's monotonic clock.

    The file is overwritten in place with the same length and not fsynced. So it needs no space on a
    full disk; after a power failure no trainer is left to read it.
    """
    descriptor = os.open(folder / PERMIT, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, f"{now_s:020.3f}\n".encode(), 0)
    finally:
        os.close(descriptor)


def read_permit_age_s(folder: Path, now_s: float) -> float | None:
    """Return the time since the supervisor last renewed the permit.

    None when there is no permit.
    """
    try:
        return now_s - float((folder / PERMIT).read_bytes())
    except (OSError, ValueError):
        return None


def is_permit_fresh(folder: Path, now_s: float) -> bool:
    """Return whether a trainer may continue.

    A folder without a permit has no supervisor to obey.
    """
    age_s = read_permit_age_s(folder, now_s)
    return age_s is None or age_s <= PERMIT_S


class EventWriter:
    """Writer of numbered lines to ``events.jsonl``, of which a reader sees complete lines only.

    Lines that a full or failing disk rejects are kept in memory, in order, and retried with the
    next line, so that training continues. A partly written line is truncated. Several threads may
    write.
    """

    def __init__(self, folder: Path, now_ms: Callable[[], int]):
        self._path = folder / EVENTS_FILE
        self._now_ms = now_ms
        before = self._path.read_bytes() if self._path.exists() else b""
        self._number = before.count(b"\n")
        # Closed by close().
        self._file: IO[bytes] = open(self._path, "ab", buffering=0)  # noqa: SIM115
        self._size_bytes, self._is_torn = len(before), False
        self._pending: deque[bytes] = deque()
        self._lock = threading.RLock()
        if before and not before.endswith(b"\n"):  # the previous writer died within a line: end it
            self._pending.append(b"\n")
            self._number += 1

    def write(self, event: str, **fields: Any) -> None:
        """Append one event.

        Raises:
            ValueError: ``EVENTS`` does not list the name or a field.
        """
        if unknown := set(fields) - set(EVENTS.get(event, ())):
            raise ValueError(
                f"event {event!r} has no field {sorted(unknown)}; try: a field that EVENTS lists"
            )
        with self._lock, contextlib.suppress(OSError):
            self._number += 1
            line = json.dumps(
                {"n": self._number, "t": self._now_ms(), "ev": event, **fields}, ensure_ascii=False
            )
            self._pending.append(line.encode() + b"\n")
            self.flush()

    def flush(self) -> None:
        """Write the pending lines.

        Raises:
            OSError: the disk is full or failing; the lines not written stay pending.
        """
        with self._lock:
            self._truncate_partial_line()
            while self._pending:
                line = self._pending[0]
                if self._file.write(line) != len(line):
                    self._is_torn = True
                    self._truncate_partial_line()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                self._size_bytes += len(self._pending.popleft())

    def _truncate_partial_line(self) -> None:
        if self._is_torn:
            os.ftruncate(self._file.fileno(), self._size_bytes)
            self._is_torn = False

    def sync(self) -> None:
        """Make the events survive a power failure.

        Call before a checkpoint: a run resumed from it never writes the earlier events again.
        """
        self.flush()
        os.fsync(self._file.fileno())
        fsync_dir(self._path.parent)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.flush()
        self._file.close()


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file, all of it or nothing.

    Raises:
        OSError: the disk is full or failing.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, line) != len(line):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def read_lines(
    path: Path, offset: int, limit_bytes: int = 1 << 20, *, is_final: bool = False
) -> tuple[list[str], int]:
    """Return the complete lines of a growing file from byte ``offset``, and the offset after the
    last one.

    An incomplete last line is left for the next call, unless ``is_final`` says that the file has no
    writer any more. A line longer than ``limit_bytes`` is cut there and marked. Bytes that are not
    valid UTF-8 are replaced.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(limit_bytes)
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) == limit_bytes:
        return [_decode(data) + " [line cut]"], offset + len(data)
    if end == 0 and data and is_final:
        return [_decode(data)], offset + len(data)
    return _decode(data[:end]).split("\n")[:-1], offset + end


def _decode(data: bytes) -> str:
    return data.decode(errors="replace").replace("\x00", "\ufffd")


def list_checkpoints(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the complete checkpoints of an attempt's folder with their manifests, oldest first.

    A folder without a readable manifest is being written, being removed, or torn, and is left out.
    """
    found = []
    # A name with a dot is being written
    for path in sorted((folder / CHECKPOINTS).glob(f"[!.]*/{MANIFEST}")):
        manifest = read_json(path)
        if manifest is not None and _is_manifest(manifest):
            found.append((path.parent, manifest))
    return sorted(found, key=lambda item: (item[1]["step"], item[1]["time"]))


def _is_manifest(manifest: dict[str, Any]) -> bool:
    kinds = {"checkpoint": str, "step": int, "time": int, "files": list}
    return all(isinstance(manifest.get(name), kind) for name, kind in kinds.items())


def is_proven(checkpoint: Path, manifest: dict[str, Any]) -> bool:
    """Return whether every file in the manifest exists with its length and hash.

    Reads all bytes.
    """
    try:
        return all(
            is_path(file["path"])
            and (checkpoint / file["path"]).stat().st_size == file["sizeBytes"]
            and sha256_of(checkpoint / file["path"]) == file["sha256"]
            for file in manifest["files"]
        )
    except (OSError, KeyError, TypeError):
        return False


def weights_name(files: Iterable[tuple[str, str]]) -> str:
    """Return the folder name for weights of another run, derived from the path and hash of each
    file.
    """
    listed = sorted(f"{sha256} {path}\n" for path, sha256 in files)
    return hashlib.sha256("".join(listed).encode()).hexdigest()[:32]


def free_bytes(folder: Path) -> int:
    """Return the disk space available to an ordinary user below a folder, in bytes."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every regular file below a folder as (relative path with forward slashes, path), in
    stable order.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(folder).as_posix(), path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
