"""The folder of an attempt: names, readers and writers. Files are the only protocol between supervisor and trainer.

    <runs>/<organization>/<run>/run.lock            held (flock) by whoever trains; by inode, not by name
    <runs>/<organization>/<run>/attempts/3/
        placed.json     controller   which attempt this is and which machine holds it; no secret
        run.json        controller   the run's document and the settings of this attempt
        supervisor.lock              held (flock) by the one supervisor that looks after this folder
        resume.json     supervisor   where the checkpoint to resume from lies; absent on a fresh start
        weights.json    supervisor   where the weights of another run are; absent when the run takes none
        dataset.json    supervisor   where the version of the uploaded dataset lies; absent for built-in data
        stop.json       supervisor   appears when the trainer shall save and stop
        permit          supervisor   when it was last well: a trainer whose permit has run out saves and stops
        process.json    supervisor   who the supervisor and the trainer are (boot id, pid, start ticks)
        exit.json       supervisor   how the trainer ended, once nothing of it lives
        closed.json     supervisor   the server has taken the last word, or wants none: nothing is left to report
        events.jsonl    trainer      numbered lines, see ``EVENTS``
        logs/stdout.log, logs/stderr.log             the trainer's own output, files and never pipes
        checkpoints/epoch-3/ ... manifest.json        complete once the manifest is there
        predictions/step-400.jsonl   trainer   every answer of the evaluation behind that step, beside the truth
        resume/checkpoints/epoch-2/ ... manifest.json supervisor   what it fetched from the server to resume from
        result.json     trainer      the last word: outcome, reason, message, newest checkpoint

One writer a file. JSON is written whole: beside, fsynced, renamed, folder fsynced. A file that cannot be read counts as
absent. Standard library only, so that every part may import this.
"""

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
STDOUT = "logs/stdout.log"
STDERR = "logs/stderr.log"
SUPERVISOR_LOG = "logs/supervisor.log"
CHECKPOINTS = "checkpoints"
PREDICTIONS = "predictions"
FETCHED = "resume"  # laid out as an attempt's folder, so that the same readers find the checkpoint in it
MANIFEST = "manifest.json"
LOCK = "run.lock"
SUPERVISOR_LOCK = "supervisor.lock"
COMPLETE = "complete.json"  # last file of a folder that the attempts of a machine share: its files and their lengths

# How long a permit holds, and how often a supervisor that is well makes it new.
PERMIT_S = 60.0
PERMIT_EVERY_S = 2.0

# What lies in a checkpoint folder: what people download, and what only a resume needs.
MODEL_FULL = "model_full"
MODEL_ADAPTER = "model_adapter"
TRAINING_STATE = "training_state"
PREDICTIONS_FILE = "predictions.jsonl"  # of the evaluation that belongs to the checkpoint, if there was one

# What the system says when a file finds no room: somebody may make some.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

# Trainer exit codes.
EXIT_DONE = 0
EXIT_CANNOT_RUN = 64  # recipe or data at fault: trying again would fail again
EXIT_STOPPED = 75  # stopped on request, after saving what there was room for

# The reasons in the result.json of an attempt that did not fail: each way of ending has its own.
Ending = Literal["Completed", "TimeLimit", "EarlyStopped", "Stopped"]

# The lines of events.jsonl. Each is {"n": 1, 2, ..., "t": epoch ms, "ev": name, ...} with these further fields.
# A step has values loss, learningRate, samplesPerSecond ...; an evaluation validation/loss and validation/<metric>.
EVENTS = {
    "phase": ("phase", "message"),  # Preparing | Training | Evaluating | Saving | WaitingForDisk
    "plan": ("plan",),  # every number of the recipe, written out
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
}


def attempt_dir(runs_dir: Path, organization_id: str, run_id: str, attempt: int) -> Path:
    """Return the folder of one attempt.

    Raises:
        PathEscapes: it would not be inside ``runs_dir``.
    """
    return resolve_folder(runs_dir, organization_id, run_id, "attempts", str(int(attempt)))


def write_json(path: Path, value: Any, *, mode: int = 0o666) -> None:
    """Write a JSON file so that after loss of power it is there whole or not at all."""
    write_bytes(path, json.dumps(value, ensure_ascii=False, allow_nan=False).encode(), mode=mode)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file so that after loss of power it is there whole or not at all; ``mode`` as for ``os.open``."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # what a crash left there may have another mode
    with open(beside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    fsync_dir(path.parent)


def fsync_dir(path: Path) -> None:
    """Make renames and new names in a folder survive loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when it is absent, torn, or anything but an object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def is_complete(shared: Path) -> bool:
    """Whether every file of a shared folder is there, at its length. Hashes were proven when they came."""
    document = read_json(shared / COMPLETE)
    try:
        return document is not None and all(
            (shared / path).stat().st_size == size for path, size in document["sizes"].items()
        )
    except (OSError, KeyError, AttributeError):
        return False


def write_permit(folder: Path, now_s: float) -> None:
    """Let the trainer go on for another ``PERMIT_S``; ``now_s`` is the machine's monotonic clock.

    Written over in place, always as long, and not fsynced: it takes no space on a full disk, and after loss of power
    no trainer is left to read it.
    """
    descriptor = os.open(folder / PERMIT, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, f"{now_s:020.3f}\n".encode(), 0)
    finally:
        os.close(descriptor)


def permit_age_s(folder: Path, now_s: float) -> float | None:
    """How long ago the supervisor of this folder was last well; None when it has not said so yet."""
    try:
        return now_s - float((folder / PERMIT).read_bytes())
    except (OSError, ValueError):
        return None


def permit_is_fresh(folder: Path, now_s: float) -> bool:
    """Whether a trainer may go on; a folder without a permit has no supervisor to wait for."""
    age_s = permit_age_s(folder, now_s)
    return age_s is None or age_s <= PERMIT_S


class EventWriter:
    """Appends numbered lines to ``events.jsonl``, so that a reader sees whole lines or none.

    What a full or failing disk does not take is kept here, in order, and tried again with the next line: whoever
    trains is not ended by it. A line of which only a part arrived is taken back. Several threads may write.
    """

    def __init__(self, folder: Path, now_ms: Callable[[], int]):
        self._path = folder / EVENTS_FILE
        self._now_ms = now_ms
        before = self._path.read_bytes() if self._path.exists() else b""
        self._number = before.count(b"\n")
        self._file: IO[bytes] = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._size_bytes, self._is_torn = len(before), False
        self._waiting: deque[bytes] = deque()
        self._lock = threading.RLock()
        if before and not before.endswith(b"\n"):  # whoever wrote before us died within a line; ours begins anew
            self._waiting.append(b"\n")
            self._number += 1

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. Raises ValueError for a name or a field that ``EVENTS`` does not list."""
        if unknown := set(fields) - set(EVENTS.get(event, ())):
            raise ValueError(f"event {event!r} has no field {sorted(unknown)}; EVENTS lists what it has")
        with self._lock, contextlib.suppress(OSError):
            self._number += 1
            line = json.dumps({"n": self._number, "t": self._now_ms(), "ev": event, **fields}, ensure_ascii=False)
            self._waiting.append(line.encode() + b"\n")
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OSError when the disk does not take all of it; the rest goes on waiting."""
        with self._lock:
            self._take_back_a_part()
            while self._waiting:
                line = self._waiting[0]
                if self._file.write(line) != len(line):
                    self._is_torn = True
                    self._take_back_a_part()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                self._size_bytes += len(self._waiting.popleft())

    def _take_back_a_part(self) -> None:
        if self._is_torn:
            os.ftruncate(self._file.fileno(), self._size_bytes)
            self._is_torn = False

    def sync(self) -> None:
        """Make what was written survive loss of power: before a checkpoint, whose resume would never tell it again."""
        self.flush()
        os.fsync(self._file.fileno())
        fsync_dir(self._path.parent)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.flush()
        self._file.close()


def read_lines(path: Path, offset: int, limit_bytes: int = 1 << 20, *, is_final: bool = False) -> tuple[list[str], int]:
    """Whole lines of a growing file from byte ``offset`` on, and the offset after the last of them.

    A torn last line stays for the next call, unless ``is_final`` says that nobody writes any more; a line longer than
    ``limit_bytes`` is cut there and marked. Bytes that are no UTF-8 are replaced.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(limit_bytes)
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) == limit_bytes:
        return [_text(data) + " [line cut]"], offset + len(data)
    if end == 0 and data and is_final:
        return [_text(data)], offset + len(data)
    return _text(data[:end]).split("\n")[:-1], offset + end


def _text(data: bytes) -> str:
    return data.decode(errors="replace").replace("\x00", "\ufffd")


def checkpoints(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The complete checkpoints of an attempt's folder with their manifests, oldest first.

    A folder without a readable manifest is being written, being removed, or torn: it does not count.
    """
    found = []
    for path in sorted((folder / CHECKPOINTS).glob(f"[!.]*/{MANIFEST}")):  # what begins with a dot is being written
        manifest = read_json(path)
        if manifest is not None and _is_manifest(manifest):
            found.append((path.parent, manifest))
    return sorted(found, key=lambda item: (item[1]["step"], item[1]["time"]))


def _is_manifest(manifest: dict[str, Any]) -> bool:
    kinds = {"checkpoint": str, "step": int, "time": int, "files": list}
    return all(isinstance(manifest.get(name), kind) for name, kind in kinds.items())


def is_proven(checkpoint: Path, manifest: dict[str, Any]) -> bool:
    """Whether every file the manifest lists is there with its length and hash. Reads all of it."""
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
    """Return the name of the folder that keeps weights of another run, from path and hash of each of its files."""
    listed = sorted(f"{sha256} {path}\n" for path, sha256 in files)
    return hashlib.sha256("".join(listed).encode()).hexdigest()[:32]


def free_bytes(folder: Path) -> int:
    """Space that an ordinary user may still fill below a folder."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every regular file below a folder, as (path inside it with forward slashes, full path), in stable order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(folder).as_posix(), path


def sha256_of(path: Path) -> str:
    """The hash of a file's content, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
