"""An import, run as a process on a folder: ``python -m runyard.datasets.importing <folder>``.

Files are the only protocol between the server and this worker. Each file has one writer:

    job.json        server   {"org", "datasetId", "datasetType", "format", "policies": {"onError",
                             "boxUnit", "boxForm", "onBadBox", "split"}, "blobsDir"}; also, if
                             known, "files" (how many to expect), "known" (name of a file in this
                             folder: lines as in images.jsonl, of images that the dataset already
                             has), "limits" {"memoryBytes", "cpuSeconds", "seconds"}
    packs.jsonl     server   appended and fsynced for each pack received: {"sha256", "size",
                             "number"}; with "path" it is a single file instead of a pack
    sealed.json     server   all files have been sent
    progress.json   worker   the progress, rewritten at most four times per second
    findings.jsonl  worker   one ``Finding`` per line, as found
    images.jsonl    worker   one accepted image per line, see ``ImageLine``
    packs/000001    worker   packs of images from containers; the "blob" of such an image is the
                             SHA-256 of its pack
    records.jsonl   worker   one accepted record per line
    splits.jsonl    worker   {"path", "split"} of each image whose split changes; written at the end
    unpacked/       worker   archive members other than images; removed after reading
    result.json     worker   the result, written atomically: {"decision", "why", "format", "type",
                             "counts"}

Images are inspected while files still arrive; annotations are read after the last file. A restarted
worker starts from the beginning: it empties every output except result.json, so leftovers of a
crash are overwritten and the same input gives the same output. A worker that finds result.json has
nothing to do.

The input is not trusted, so the worker runs with limits on memory and time, and ends with the
process that started it.
"""

import argparse
import contextlib
import logging
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from runyard import processes, rundir
from runyard.blobs import BlobError, FolderBlobs
from runyard.datasets import images
from runyard.datasets.findings import Finding
from runyard.datasets.ingest import (
    ON_ERROR,
    FindingSink,
    IngestOutcome,
    IngestProgress,
    Throttle,
    ingest_rows,
)
from runyard.datasets.naming.image_names import ImageFacts
from runyard.datasets.options import parse_choice, parse_read_options
from runyard.datasets.packs import PACK_BYTES, build_pack
from runyard.datasets.records import Record, encode
from runyard.datasets.sources import BlobSpan, PackSource
from runyard.datasets.splits import SPLIT_POLICIES, KnownImage, Split, SplitAssigner, SplitPolicy

JOB = "job.json"
PACKS = "packs.jsonl"
SEALED = "sealed.json"
PROGRESS = "progress.json"
FINDINGS = "findings.jsonl"
IMAGES = "images.jsonl"
OWN_PACKS = "packs"
RECORDS = "records.jsonl"
SPLITS = "splits.jsonl"
UNPACKED = "unpacked"
RESULT = "result.json"

MEMORY_BYTES = 2 << 30
CPU_SECONDS = 2 * 3600
SECONDS = 4 * 3600  # from the seal on
POLL_INTERVAL_S = 0.05
MAX_FINDINGS = 200_000  # written; further ones are only counted

log = logging.getLogger(__name__)


class OutOfTime(Exception):
    """The worker has used up its time."""


class ImageLine(msgspec.Struct, rename="camel", omit_defaults=True):
    """One line of ``images.jsonl``.

    The last two are of images that the dataset already has.
    """

    path: str
    sha256: str
    size: int
    width: int
    height: int
    mime: str
    crc32c: int
    frames: int
    is_turned: bool
    orientation: int
    blob: str
    offset: int
    split: Split | None = None
    is_annotated: bool = False


class SplitLine(msgspec.Struct):
    """One line of ``splits.jsonl``; ``split`` is None for an image that is in no split any more."""

    path: str
    split: Split | None


def run(folder: Path) -> None:
    """Run the import of this folder and write its result."""
    if rundir.read_json(folder / RESULT) is not None:
        return
    job = rundir.read_json(folder / JOB)
    if job is None:
        raise FileNotFoundError(f"{folder / JOB} is missing or not a JSON object")
    with _Outputs(folder) as outputs:
        try:
            outcome = _Import(folder, job, outputs).run()
        except MemoryError:
            outcome = _reject(
                "checking these files takes more memory than an import may use; import fewer at "
                "once"
            )
        except OutOfTime:
            outcome = _reject(
                "checking these files takes more time than an import may use; import fewer at once"
            )
        except BlobError as error:
            outcome = _reject(f"the uploaded files cannot be read back: {error}")
        outputs.sync()
    rundir.write_json(folder / RESULT, outcome.document())


def parse_on_error(policies: dict[str, Any]) -> Any:
    """Return ``onError`` of a job's policies; raise ValueError for an unknown value."""
    return parse_choice(policies, "onError", ON_ERROR, default="RejectRow")


def parse_split_policy(policies: dict[str, Any]) -> SplitPolicy:
    """Return ``split`` of a job's policies; raise ValueError for an unknown value."""
    policy: SplitPolicy = parse_choice(policies, "split", SPLIT_POLICIES, default="keep")
    return policy


class _Import:
    def __init__(self, folder: Path, job: dict[str, Any], outputs: "_Outputs") -> None:
        self._folder, self._job, self._outputs = folder, job, outputs
        self._limits = job.get("limits") or {}
        policies = job.get("policies") or {}
        self._on_error = parse_on_error(policies)
        self._options = parse_read_options(policies)
        self._split_policy = parse_split_policy(policies)
        self._known: dict[str, KnownImage] = {}
        self._progress = IngestProgress(files=job.get("files") or 0)
        self._sink = FindingSink(outputs.report, self._on_error, self._progress.tally)
        self._source = PackSource(FolderBlobs(Path(job["blobsDir"])), self._sink, outputs.on_image)
        self._tick = Throttle(self._write_progress)
        self._deadline_s = float("inf")

    def run(self) -> IngestOutcome:
        self._progress.begin("Receiving")
        self._add_known_images()
        for size_bytes in self._inspect_received():
            self._progress.files_done += 1
            self._progress.bytes_done += size_bytes
            self._progress.images = len(self._source.images)
            self._tick()
        self._progress.fraction_read = self._source.fraction_read
        splits = SplitAssigner(self._split_policy, self._known)
        outcome = ingest_rows(
            self._source,
            self._source.images,
            self._outputs,
            self._sink,
            self._progress,
            format=self._job.get("format") or "auto",
            task=self._job.get("datasetType"),
            on_error=self._on_error,
            options=self._options,
            tick=self._tick,
            unpack_into=self._folder / UNPACKED,
            splits=splits,
        )
        shutil.rmtree(self._folder / UNPACKED, ignore_errors=True)
        self._outputs.finish_pack()
        self._outputs.write_splits(splits.changes)
        self._progress.begin("Done")
        self._write_progress()
        return outcome

    def _add_known_images(self) -> None:
        """Add the images that the dataset already has: rows may refer to them."""
        if name := self._job.get("known"):
            with open(self._folder / name, "rb") as file:
                for line in file:
                    image = msgspec.json.decode(line, type=ImageLine)
                    self._source.images.add_known(_make_facts(image))
                    self._known[image.path] = KnownImage(image.split, image.is_annotated)

    def _inspect_received(self) -> Iterator[int]:
        """Inspect files as they arrive, until the import is sealed."""
        packs = self._folder / PACKS
        offset = 0
        while True:
            is_sealed = (
                self._folder / SEALED
            ).exists()  # checked first: packs listed before the seal are read below
            if is_sealed and self._progress.phase == "Receiving":
                self._progress.phase = "Inspecting"
                self._deadline_s = time.monotonic() + self._limits.get("seconds", SECONDS)
            lines, offset = rundir.read_lines(packs, offset)
            for line in lines:
                yield from self._add_received(msgspec.json.decode(line))
            if not lines:
                if is_sealed:
                    return
                self._tick()
                time.sleep(POLL_INTERVAL_S)

    def _add_received(self, received: dict[str, Any]) -> Iterator[int]:
        sha256, size_bytes = received["sha256"], received["size"]
        if path := received.get("path"):
            return self._source.add_file(sha256, size_bytes, path)
        return self._source.add_pack(sha256, size_bytes)

    def _write_progress(self) -> None:
        self._outputs.write_progress(self._progress.document())
        if time.monotonic() > self._deadline_s:
            raise OutOfTime


class _Outputs:
    """The files that the worker writes, emptied on opening: an earlier worker's output is written
    again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for leftover in (OWN_PACKS, UNPACKED):
            shutil.rmtree(folder / leftover, ignore_errors=True)
        self._findings, self._images, self._records, self._splits = (
            open(folder / name, "wb", buffering=1 << 16)  # noqa: SIM115 - closed by __exit__
            for name in (FINDINGS, IMAGES, RECORDS, SPLITS)
        )
        self._findings_left = MAX_FINDINGS
        self._kept = self._marked = self._marked_at = 0
        self._packed: list[tuple[ImageFacts, int, bytes]] = []
        self._packed_bytes = 0
        self._pack_number = 0
        self._spans: dict[str, BlobSpan] = {}

    def __enter__(self) -> "_Outputs":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files():
            file.close()

    def report(self, found: Finding) -> None:
        if self._findings_left > 0:
            self._findings_left -= 1
            self._findings.write(msgspec.json.encode(found) + b"\n")

    def write_progress(self, progress: dict[str, Any]) -> None:
        """Publish the progress and the findings so far."""
        self._findings.flush()
        # Not fsynced: after a power loss no worker is left whose progress this could be.
        temporary = self._folder / f".{PROGRESS}"
        temporary.write_bytes(msgspec.json.encode(progress))
        os.replace(temporary, self._folder / PROGRESS)

    def on_image(self, facts: ImageFacts, crc32c: int, data: bytes, span: BlobSpan | None) -> None:
        span = span or self._spans.get(facts.sha256)
        if span is None:
            self._add_to_pack(facts, crc32c, data)
        else:
            self._images.write(msgspec.json.encode(_make_line(facts, crc32c, span)) + b"\n")

    def add(self, record: Record) -> None:
        self._records.write(encode(record) + b"\n")
        self._kept += 1

    def begin_file(self) -> None:
        self._marked, self._marked_at = self._kept, self._records.tell()

    def discard_file(self) -> int:
        self._records.flush()
        self._records.truncate(self._marked_at)
        self._records.seek(self._marked_at)
        discarded, self._kept = self._kept - self._marked, self._marked
        return discarded

    def drop(self, numbers: Collection[int]) -> None:
        self._records.flush()
        path = self._folder / RECORDS
        with open(path, "rb") as file, open(path.with_suffix(".kept"), "wb") as kept:
            kept.writelines(line for number, line in enumerate(file) if number not in numbers)
        self._records.close()
        os.replace(path.with_suffix(".kept"), path)
        self._records = open(path, "ab", buffering=1 << 16)  # noqa: SIM115 - closed by __exit__
        self._kept -= len(numbers)

    def finish_pack(self) -> None:
        """Write the pending container images as a pack, and then their lines."""
        if not self._packed:
            return
        content = build_pack((facts.path, data) for facts, _, data in self._packed)
        name = images.sha256(content)
        (self._folder / OWN_PACKS).mkdir(exist_ok=True)
        self._pack_number += 1
        rundir.write_bytes(self._folder / OWN_PACKS / f"{self._pack_number:06}", content)
        offset = len(content) - self._packed_bytes
        for facts, crc32c, _ in self._packed:
            self._spans[facts.sha256] = span = BlobSpan(name, offset, facts.size_bytes)
            self._images.write(msgspec.json.encode(_make_line(facts, crc32c, span)) + b"\n")
            offset += facts.size_bytes
        self._packed, self._packed_bytes = [], 0

    def write_splits(self, changes: Mapping[str, Split | None]) -> None:
        self._splits.writelines(
            msgspec.json.encode(SplitLine(path, split)) + b"\n" for path, split in changes.items()
        )

    def sync(self) -> None:
        """Flush everything to disk; the result is written only after this."""
        for file in self._files():
            file.flush()
            os.fsync(file.fileno())

    def _add_to_pack(self, facts: ImageFacts, crc32c: int, data: bytes) -> None:
        if self._packed_bytes + len(data) > PACK_BYTES:
            self.finish_pack()
        self._packed.append((facts, crc32c, data))
        self._packed_bytes += len(data)

    def _files(self) -> tuple[IO[bytes], ...]:
        return self._findings, self._images, self._records, self._splits


def _make_line(facts: ImageFacts, crc32c: int, span: BlobSpan) -> ImageLine:
    return ImageLine(
        facts.path,
        facts.sha256,
        facts.size_bytes,
        facts.width,
        facts.height,
        facts.mime,
        crc32c,
        facts.frames,
        facts.is_turned,
        facts.orientation,
        span.blob,
        span.offset,
    )


def _make_facts(image: ImageLine) -> ImageFacts:
    return ImageFacts(
        path=image.path,
        sha256=image.sha256,
        size_bytes=image.size,
        width=image.width,
        height=image.height,
        mime=image.mime,
        is_turned=image.is_turned,
        frames=image.frames,
        orientation=image.orientation,
    )


def _reject(why: str) -> IngestOutcome:
    return IngestOutcome("Rejected", why, None, None, {})


def set_limits(folder: Path) -> None:
    """Limit memory and processor time; a lower limit that is already set stays."""
    limits = (rundir.read_json(folder / JOB) or {}).get("limits") or {}
    memory_bytes, cpu_s = (
        limits.get("memoryBytes", MEMORY_BYTES),
        limits.get("cpuSeconds", CPU_SECONDS),
    )
    # The soft limit of processor time raises OutOfTime; the hard limit ends a worker that does not
    # react to it.
    for which, soft, hard in (
        (resource.RLIMIT_AS, memory_bytes, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 60),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            _, most = resource.getrlimit(which)
            bounded = hard if most == resource.RLIM_INFINITY else min(hard, most)
            resource.setrlimit(which, (min(soft, bounded), bounded))


def _raise_out_of_time(*_: object) -> None:
    raise OutOfTime


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runyard.datasets.importing", description="Run one import."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--parent", type=int, help="process id of the server; the worker ends with it"
    )
    arguments = parser.parse_args()
    if arguments.parent is not None:
        processes.die_with_parent(arguments.parent)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGXCPU, _raise_out_of_time)
    set_limits(arguments.folder)
    run(arguments.folder)


if __name__ == "__main__":
    main()
