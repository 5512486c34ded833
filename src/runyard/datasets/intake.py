"""From files to records: find the format, read, check, keep. What an import on the server and a check of a local folder
have in common; it knows neither where the files lie nor where the records go.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from runyard.datasets.archives import with_archives_open
from runyard.datasets.checks import Checker, OnError
from runyard.datasets.findings import Finding, Say, Tally, finding
from runyard.datasets.readers import Reader, detect
from runyard.datasets.readers.webdataset import is_shard
from runyard.datasets.records import DatasetType, Record
from runyard.datasets.sources import Accepted, FolderSource, PackSource, Pictures, Source, ignore_accepted

Phase = Literal["Receiving", "Inspecting", "Reading", "Checking", "Done"]
ON_ERROR: tuple[OnError, ...] = ("Warn", "RejectRow", "RejectFile", "RejectAll")


class Records(Protocol):
    """Where kept records go."""

    def add(self, record: Record) -> None: ...

    def mark(self) -> None:
        """A new annotation file begins."""
        ...

    def take_back(self) -> int:
        """Forget what came since the last mark; returns how many records that were."""
        ...


class CountedRecords:
    """Keeps nothing but the number."""

    def __init__(self) -> None:
        self.count = self._marked = 0

    def add(self, record: Record) -> None:
        self.count += 1

    def mark(self) -> None:
        self._marked = self.count

    def take_back(self) -> int:
        taken, self.count = self.count - self._marked, self._marked
        return taken


@dataclass
class Progress:
    """How far an import has got. ``expected_*`` is what was announced; 0 where nothing was."""

    now_s: Callable[[], float] = time.monotonic
    phase: Phase = "Receiving"
    files: int = 0
    files_done: int = 0
    bytes_done: int = 0
    images: int = 0
    rows: int = 0
    rows_kept: int = 0
    tally: Tally = field(default_factory=Tally)
    share_read: Callable[[], float] = lambda: 0.0  # of the annotation files' bytes
    _began_s: float = 0.0

    def begin(self, phase: Phase) -> None:
        self.phase = phase
        self._began_s = self.now_s()

    def document(self) -> dict[str, Any]:
        per_second, seconds_left = self._rate()
        return {
            "phase": self.phase,
            "files": max(self.files, self.files_done),
            "filesDone": self.files_done,
            "bytesDone": self.bytes_done,
            "images": self.images,
            "rows": self.rows,
            "rowsKept": self.rows_kept,
            **self.tally.document(),
            "perSecond": per_second,
            "secondsLeft": seconds_left,
        }

    def _rate(self) -> tuple[float | None, float | None]:
        """Files or rows a second, and how long this phase takes on at this pace; None where that cannot be told."""
        took_s = self.now_s() - self._began_s
        if self.phase == "Done" or took_s <= 0:
            return None, None
        is_reading = self.phase in ("Reading", "Checking")
        done = self.rows if is_reading else self.files_done
        share = self.share_read() if is_reading else self.files_done / self.files if self.files else 0.0
        left_s = took_s * (1 - share) / share if 0 < share <= 1 else None
        return round(done / took_s, 1), None if left_s is None else round(left_s, 1)


class Told:
    """Takes every finding of an import: counts it, knows which files have errors, and passes it on."""

    def __init__(self, pass_on: Say, on_error: OnError, tally: Tally) -> None:
        self.files_with_errors: set[str] = set()
        self._pass_on = pass_on
        self._on_error = on_error
        self._tally = tally

    def __call__(self, found: Finding) -> None:
        if found.severity == "error" and found.action == "RowRejected":
            self.files_with_errors.add(found.file)
            if self._on_error in ("RejectFile", "RejectAll"):
                found = msgspec.structs.replace(found, action="FileRejected")
        self._tally.add(found)
        self._pass_on(found)


@dataclass(frozen=True)
class Outcome:
    """What became of an import."""

    decision: Literal["Accepted", "Rejected"]
    why: str | None
    format: str | None
    type: DatasetType | None
    counts: dict[str, Any]

    def document(self) -> dict[str, Any]:
        return {
            "decision": self.decision,
            "why": self.why,
            "format": self.format,
            "type": self.type,
            "counts": self.counts,
        }


def take_rows(
    source: Source,
    pictures: Pictures,
    records: Records,
    told: Told,
    progress: Progress,
    *,
    format: str,
    task: DatasetType | None,
    on_error: OnError,
    tick: Callable[[], None],
    unpack_into: Path,
) -> Outcome:
    """Find the format, read and check every row, keep what may be kept, and decide.

    ``task`` None takes the type of the first row. ``tick`` is called for every row. What archives hold beside pictures
    is kept below ``unpack_into``, a folder of the caller's that may be removed afterwards.
    """
    progress.begin("Reading")
    source = with_archives_open(source, unpack_into, told, is_left=is_shard)
    detected = detect(source, told, wanted=format)
    reader, files = detected or (None, [])
    if reader is not None:
        task = task or _type_of(reader, source, files)
        checker = Checker(source, task, on_error, told)
        if task in reader.types:
            _read_all(reader, source, files, task, checker, records, told, progress, on_error, tick)
        else:
            told(_unfit(reader, files[0], task))
        progress.begin("Checking")
        _tell_unused(pictures, checker.used, told)
    else:
        _tell_unused(pictures, set(), told)
    progress.images = len(pictures)  # containers have brought some meanwhile
    return _decided(reader, task, progress, told, on_error)


def _read_all(
    reader: Reader,
    source: Source,
    files: list[str],
    task: DatasetType,
    checker: Checker,
    records: Records,
    told: Told,
    progress: Progress,
    on_error: OnError,
    tick: Callable[[], None],
) -> None:
    if isinstance(source, FolderSource | PackSource):
        source.expect(files)
    file = None
    rejects_files = on_error == "RejectFile"
    for row in reader.read(source, files, task, told):
        if row.file != file:
            if rejects_files and file in told.files_with_errors:
                progress.rows_kept -= records.take_back()
            file = row.file
            records.mark()
        progress.rows += 1
        record = checker.check(row)
        if record is not None:
            records.add(record)
            progress.rows_kept += 1
        tick()
    if rejects_files and file in told.files_with_errors:
        progress.rows_kept -= records.take_back()


def _type_of(reader: Reader, source: Source, files: list[str]) -> DatasetType:
    """The type of the first row that can be read."""
    for task in reader.types:
        for row in reader.read(source, files, task, lambda _: None):
            return row.record.dataset_type
    return reader.types[0]


def _unfit(reader: Reader, file: str, task: DatasetType) -> Finding:
    cause = f"{reader.name} carries {' and '.join(reader.types)}, and the dataset is for {task}"
    return finding("ContentsUnfit", file=file, cause=cause, action="FileRejected")


def _tell_unused(pictures: Pictures, used: set[str], say: Say) -> None:
    """One finding for all pictures without rows: which they are is seen in the dataset."""
    unused = [facts.path for facts in pictures if facts.path not in used]
    if unused:
        names = ", ".join(repr(path) for path in unused[:3])
        cause = f"{len(unused)} of {len(pictures)} pictures have no rows: {names}{', …' if len(unused) > 3 else ''}"
        say(finding("AnnotationsAbsent", file=unused[0], cause=cause, value=len(unused)))


def _decided(
    reader: Reader | None, task: DatasetType | None, progress: Progress, told: Told, on_error: OnError
) -> Outcome:
    tally = progress.tally
    why = None
    if tally.by_code["FormatUnknown"]:
        why = "the format of the annotations could not be told; see the findings"
    elif on_error == "RejectAll" and tally.errors:
        why = f"there are {tally.errors} errors, and onError is RejectAll"
    elif not progress.images and not progress.rows_kept:
        why = "no picture and no row could be taken"
    elif (progress.rows or tally.errors) and reader is not None and not progress.rows_kept:
        why = f"none of the rows could be taken; there are {tally.errors} errors"
    counts = {
        "files": progress.files_done,
        "bytes": progress.bytes_done,
        "images": progress.images,
        "rows": progress.rows,
        "rowsKept": 0 if why else progress.rows_kept,
        **tally.document(),
    }
    return Outcome("Rejected" if why else "Accepted", why, reader.name if reader else None, task, counts)


def check_folder(
    path: Path | str,
    *,
    dataset_type: DatasetType | None = None,
    format: str = "auto",
    on_error: OnError = "RejectRow",
    say: Say = lambda _: None,
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
    accepted: Accepted = ignore_accepted,
    records: Records | None = None,
) -> Outcome:
    """What an import of this folder would find and take; changes nothing, and needs no server.

    ``say`` gets each finding as it is found, ``on_progress`` the document of ``progress.json`` four times a second.

    Raises NotADirectoryError or FileNotFoundError.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{path} is no folder")
    progress = Progress()
    told = Told(say, on_error, progress.tally)
    source = FolderSource(folder, told, accepted)
    tick = Ticks(lambda: on_progress(progress.document()))
    progress.begin("Inspecting")
    progress.files = source.find_files()
    for size_bytes in source.inspect():
        progress.files_done += 1
        progress.bytes_done += size_bytes
        progress.images = len(source.pictures)
        tick()
    progress.share_read = source.share_read
    with tempfile.TemporaryDirectory(prefix="runyard-archives-") as unpacked:
        outcome = take_rows(
            source,
            source.pictures,
            records or CountedRecords(),
            told,
            progress,
            format=format,
            task=dataset_type,
            on_error=on_error,
            tick=tick,
            unpack_into=Path(unpacked),
        )
    progress.images = len(source.pictures)
    progress.begin("Done")
    on_progress(progress.document())
    return outcome


class Ticks:
    """Does something at most four times a second, however often it is called."""

    def __init__(self, do: Callable[[], None], *, every_s: float = 0.25, now_s: Callable[[], float] = time.monotonic):
        self._do, self._every_s, self._now_s = do, every_s, now_s
        self._due_s = 0.0

    def __call__(self) -> None:
        now_s = self._now_s()
        if now_s >= self._due_s:
            self._due_s = now_s + self._every_s
            self._do()
