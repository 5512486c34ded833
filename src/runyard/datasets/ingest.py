"""From files to records: detect the format, read, check, keep.

An import on the server and a check of a local folder share this module. It does not depend on where
the files are stored or where the records go.
"""

import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from runyard.datasets.archives import expand_archives
from runyard.datasets.checks import Checker, OnError
from runyard.datasets.findings import Finding, ReportFinding, Tally, make_finding
from runyard.datasets.naming.image_names import is_mask
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Reader, TypeFinder
from runyard.datasets.readers.registry import detect_format, report_unread
from runyard.datasets.readers.shards.webdataset import is_shard
from runyard.datasets.records import DatasetType, Record
from runyard.datasets.sources import (
    FolderSource,
    ImageIndex,
    OnImage,
    PackSource,
    Source,
    ignore_image,
)
from runyard.datasets.split_lists import read_split_lists
from runyard.datasets.splits import SplitAssigner, SplitPolicy

Phase = Literal["Receiving", "Inspecting", "Reading", "Checking", "Done"]
# An estimate from less is off by orders of magnitude.
MIN_ESTIMATE_S, MIN_ESTIMATE_SHARE = 2.0, 0.02
ROWS_TO_FIND_TYPE = 100
ON_ERROR: tuple[OnError, ...] = ("Warn", "RejectRow", "RejectFile", "RejectAll")


class RecordSink(Protocol):
    """The destination of accepted records."""

    def add(self, record: Record) -> None: ...

    def begin_file(self) -> None:
        """Start a new annotation file."""
        ...

    def discard_file(self) -> int:
        """Discard the records of the current file; return how many there were."""
        ...

    def drop(self, numbers: Collection[int]) -> None:
        """Remove the records with these numbers, counted from 0 in the order of adding."""
        ...


class RecordCounter:
    """A record sink that only counts."""

    def __init__(self) -> None:
        self.count = self._marked = 0

    def add(self, record: Record) -> None:
        self.count += 1

    def begin_file(self) -> None:
        self._marked = self.count

    def discard_file(self) -> int:
        discarded, self.count = self.count - self._marked, self._marked
        return discarded

    def drop(self, numbers: Collection[int]) -> None:
        self.count -= len(numbers)


@dataclass
class IngestProgress:
    """The progress of an import. ``files`` is the announced number; 0 if none was announced."""

    now_s: Callable[[], float] = time.monotonic
    phase: Phase = "Receiving"
    files: int = 0
    files_done: int = 0
    bytes_done: int = 0
    images: int = 0
    rows: int = 0
    rows_kept: int = 0
    tally: Tally = field(default_factory=Tally)
    fraction_read: Callable[[], float] = lambda: 0.0  # of the annotation files' bytes
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
        """Return files or rows per second, and the seconds left in this phase.

        Return None where unknown, such as in the first seconds.
        """
        elapsed_s = self.now_s() - self._began_s
        if self.phase in ("Checking", "Done") or elapsed_s < MIN_ESTIMATE_S:
            return None, None
        is_reading = self.phase == "Reading"
        done = self.rows if is_reading else self.files_done
        share = (
            self.fraction_read()
            if is_reading
            else self.files_done / self.files
            if self.files
            else 0.0
        )
        per_second = round(done / elapsed_s, 1)
        if not MIN_ESTIMATE_SHARE <= share <= 1:
            return per_second, None
        return per_second, round(elapsed_s * (1 - share) / share, 1)


class FindingSink:
    """The consumer of an import's findings: counts them, tracks files with errors, and forwards
    them.
    """

    def __init__(self, forward: ReportFinding, on_error: OnError, tally: Tally) -> None:
        self.files_with_errors: set[str] = set()
        self._forward = forward
        self._on_error = on_error
        self._tally = tally

    def __call__(self, found: Finding) -> None:
        if found.severity == "error" and found.action == "RowRejected":
            self.files_with_errors.add(found.file)
            if self._on_error in ("RejectFile", "RejectAll"):
                found = msgspec.structs.replace(found, action="FileRejected")
        self._tally.add(found)
        self._forward(found)


@dataclass(frozen=True)
class IngestOutcome:
    """The outcome of an import."""

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


def ingest_rows(
    source: Source,
    images: ImageIndex,
    records: RecordSink,
    sink: FindingSink,
    progress: IngestProgress,
    *,
    format: str,
    task: DatasetType | None,
    on_error: OnError,
    tick: Callable[[], None],
    unpack_into: Path,
    options: ReadOptions = DEFAULT_OPTIONS,
    splits: SplitAssigner | None = None,
) -> IngestOutcome:
    """Detect the format, read and check every row, keep what is valid, and decide.

    ``splits`` gets the split of every image; the outcome has the counts.

    With ``task`` None the type of the first row is used. ``tick`` is called for every row. Archive
    members other than images are kept below ``unpack_into``, a folder of the caller's that may be
    removed afterwards.
    """
    splits = splits or SplitAssigner()
    progress.begin("Reading")
    source = expand_archives(source, unpack_into, sink, keeps_packed=is_shard)
    reader, files = detect_format(source, sink, requested=format)
    used: set[str] = set()
    if reader is not None:
        task = task or _find_type(reader, source, files, options)
        checker = Checker(source, task, on_error, sink, options)
        used = checker.used
        splits.begin(images, read_split_lists(source, images))
        if task in reader.types:
            _read_files(
                *(reader, source, files, task, checker, records, sink, progress, on_error, options),
                *(tick, splits),
            )
        else:
            sink(_explain_type_mismatch(reader, files[0], task))
        progress.begin("Checking")
    report_unread(source, files, sink, reader=reader, has_rows=progress.rows > 0)
    _report_unused_images(images, used, sink)
    splits.assign(images, sink)
    progress.images = len(images)  # containers may have added some
    outcome = _decide(reader, task, progress, sink, on_error)
    outcome.counts["splits"] = {} if outcome.why else splits.counts
    return outcome


def _read_files(
    reader: Reader,
    source: Source,
    files: list[str],
    task: DatasetType,
    checker: Checker,
    records: RecordSink,
    sink: FindingSink,
    progress: IngestProgress,
    on_error: OnError,
    options: ReadOptions,
    tick: Callable[[], None],
    splits: SplitAssigner,
) -> None:
    if isinstance(source, FolderSource | PackSource):
        source.expect(files)
    file, kept_before = None, 0
    rejects_files = on_error == "RejectFile"
    unparsed = _UnparsedRows(sink, progress)

    def end_file() -> None:
        if rejects_files and file in sink.files_with_errors:
            progress.rows_kept -= records.discard_file()
            checker.claims.forget_from(kept_before)

    for row in reader.read(source, files, task, unparsed.report, options):
        if row.file != file:
            end_file()
            file, kept_before = row.file, progress.rows_kept
            records.begin_file()
        progress.rows += 1
        record = checker.check(row)
        if record is not None:
            checker.claims.add_kept(progress.rows_kept)
            records.add(record)
            splits.add_row(record.asset.filename, record.split, file=row.file, line=row.line)
            progress.rows_kept += 1
        tick()
    end_file()
    if checker.claims.withdrawn:
        records.drop(checker.claims.withdrawn)
        progress.rows_kept -= len(checker.claims.withdrawn)


class _UnparsedRows:
    """Counts the rows that a reader reports because it cannot parse them.

    The findings about one row follow each other.
    """

    def __init__(self, forward: ReportFinding, progress: IngestProgress) -> None:
        self._forward, self._progress = forward, progress
        self._last: tuple[str, int | None, str | None] | None = None

    def report(self, found: Finding) -> None:
        row = (found.file, found.line, None if found.line else _get_row_field(found.field))
        if found.rows is not None:
            self._progress.rows += found.rows
        elif found.action == "RowRejected" and row != self._last:
            self._progress.rows += 1
            self._last = row
        self._forward(found)


def _get_row_field(field: str | None) -> str | None:
    """Return the part of a path that names the row: ``annotations[3]`` of
    ``annotations[3].bbox``.
    """
    return None if field is None else field.partition(".")[0]


def _find_type(
    reader: Reader, source: Source, files: list[str], options: ReadOptions
) -> DatasetType:
    """Return the type of the first row that can be read and belongs to one type only.

    A file of conversations may have none among its first rows; then vqa is used. Without rows, it
    is a type that the rows are meant for.
    """
    if len(reader.types) == 1:
        return reader.types[0]
    if isinstance(reader, TypeFinder) and (found := reader.find_type(source, files)) is not None:
        return found
    fitting: tuple[DatasetType, ...] = ()
    meant: list[DatasetType] = []
    codes: set[str] = set()
    for task in reader.types:
        codes.clear()
        rows = reader.read(source, files, task, lambda found: codes.add(found.code), options)
        for row in islice(rows, ROWS_TO_FIND_TYPE):
            fitting = row.record.dataset_types
            if len(fitting) == 1:
                return fitting[0]
        if "ContentsUnfit" not in codes:
            meant.append(task)
    return (*fitting, *meant, *reader.types)[0]


def _explain_type_mismatch(reader: Reader, file: str, task: DatasetType) -> Finding:
    cause = f"{reader.name} carries {' and '.join(reader.types)}, but the dataset is for {task}"
    types = " or ".join(f"--type {name}" for name in reader.types)
    fix = f"import the files into a dataset of their own with {types}"
    return make_finding("ContentsUnfit", file=file, cause=cause, fix=fix, action="FileRejected")


def _report_unused_images(images: ImageIndex, used: set[str], report: ReportFinding) -> None:
    """Report all images without rows in one finding; the dataset shows which they are."""
    others = [facts.path for facts in images if facts.path not in used]
    unused = [path for path in others if not is_mask(path)]
    if unused:
        names = ", ".join(repr(path) for path in unused[:3])
        masks = len(others) - len(unused)
        cause = (
            f"{len(unused)} of {len(images)} images have no rows: "
            f"{names}{', …' if len(unused) > 3 else ''}"
            f"{f'; {masks} more are in folders of masks' if masks else ''}"
        )
        report(make_finding("AnnotationsAbsent", file=unused[0], cause=cause, value=len(unused)))


def _decide(
    reader: Reader | None,
    task: DatasetType | None,
    progress: IngestProgress,
    sink: FindingSink,
    on_error: OnError,
) -> IngestOutcome:
    tally = progress.tally
    why = None
    if tally.by_code["FormatUnknown"]:
        why = "the format of the annotations could not be detected; see the findings"
    elif on_error == "RejectAll" and tally.errors:
        why = (
            f"there {_count_errors(tally)}, and onError is RejectAll; RejectRow leaves out "
            "only the invalid rows"
        )
    elif not progress.images and not progress.rows_kept:
        why = "no image and no row could be accepted"
    elif (progress.rows or tally.errors) and reader is not None and not progress.rows_kept:
        why = f"none of the rows could be accepted; there {_count_errors(tally)}"
    counts = {
        "files": progress.files_done,
        "bytes": progress.bytes_done,
        "images": progress.images,
        "rows": progress.rows,
        "rowsKept": 0 if why else progress.rows_kept,
        "rowsRejected": progress.rows - (0 if why else progress.rows_kept),
        **tally.document(),
    }
    return IngestOutcome(
        "Rejected" if why else "Accepted", why, reader.name if reader else None, task, counts
    )


def _count_errors(tally: Tally) -> str:
    return "is 1 error" if tally.errors == 1 else f"are {tally.errors:,} errors"


def check_folder(
    path: Path | str,
    *,
    dataset_type: DatasetType | None = None,
    format: str = "auto",
    on_error: OnError = "RejectRow",
    options: ReadOptions = DEFAULT_OPTIONS,
    split: SplitPolicy = "keep",
    on_finding: ReportFinding = lambda _: None,
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
    on_image: OnImage = ignore_image,
    records: RecordSink | None = None,
) -> IngestOutcome:
    """Check what an import of this folder, archive or table would report and accept.

    Nothing is changed, and no server is needed.

    ``on_finding`` gets each finding at once, ``on_progress`` the document of ``progress.json`` four
    times per second.

    Raises NotADirectoryError or FileNotFoundError.
    """
    top = Path(path)
    if top.exists() and not (top.is_dir() or top.is_file()):
        raise NotADirectoryError(f"{path} is neither a folder nor a file")
    progress = IngestProgress()
    sink = FindingSink(on_finding, on_error, progress.tally)
    source = FolderSource(top, sink, on_image)
    tick = Throttle(lambda: on_progress(progress.document()))
    progress.begin("Inspecting")
    progress.files = source.find_files()
    for size_bytes in source.inspect():
        progress.files_done += 1
        progress.bytes_done += size_bytes
        progress.images = len(source.images)
        tick()
    progress.fraction_read = source.fraction_read
    with tempfile.TemporaryDirectory(prefix="runyard-archives-") as unpacked:
        outcome = ingest_rows(
            source,
            source.images,
            records or RecordCounter(),
            sink,
            progress,
            format=format,
            task=dataset_type,
            on_error=on_error,
            options=options,
            tick=tick,
            unpack_into=Path(unpacked),
            splits=SplitAssigner(split),
        )
    progress.images = len(source.images)
    progress.begin("Done")
    on_progress(progress.document())
    return outcome


class Throttle:
    """A call that runs an action at most four times per second."""

    def __init__(
        self,
        do: Callable[[], None],
        *,
        every_s: float = 0.25,
        now_s: Callable[[], float] = time.monotonic,
    ):
        self._do, self._every_s, self._now_s = do, every_s, now_s
        self._due_s = 0.0

    def __call__(self) -> None:
        now_s = self._now_s()
        if now_s >= self._due_s:
            self._due_s = now_s + self._every_s
            self._do()
