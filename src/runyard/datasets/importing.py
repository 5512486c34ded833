"""An import from files to records, as a process with a folder: ``python -m runyard.datasets.importing <folder>``.

Files are the only protocol between the server and this worker; one writer a file:

    job.json        server   {"org", "datasetId", "datasetType", "format", "policies": {"onError"}, "blobsDir"}; also,
                             if known, "files" (how many are to come), "known" (name of a file in this folder: lines as
                             in images.jsonl, of pictures that the dataset has already), "limits" {"memoryBytes",
                             "cpuSeconds", "seconds"}
    packs.jsonl     server   appended and fsynced for each pack received: {"sha256", "size", "number"}; with "path"
                             it is one file and no pack
    sealed.json     server   everything has been sent
    progress.json   worker   how far it has got, rewritten at most four times a second
    findings.jsonl  worker   one ``Finding`` a line, as found
    images.jsonl    worker   one accepted picture a line, see ``Image``
    packs/000001    worker   packs of pictures that containers carried; "blob" of such a picture is the SHA-256 of one
    records.jsonl   worker   one kept record a line
    unpacked/       worker   what archives held beside pictures; removed when it has been read
    result.json     worker   the last word, whole or not at all: {"decision", "why", "format", "type", "counts"}

Pictures are inspected while they still arrive; annotations are read once everything is there. A worker that is started
again begins anew: every output but result.json is emptied first, so whatever a crash left behind is overwritten, and
the same input gives the same output. A worker that finds result.json has nothing left to do.

It reads what strangers sent, so it runs with limits of memory and time, and ends with the process that started it.
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
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from runyard import processes, rundir
from runyard.blobs import BlobError, FolderBlobs
from runyard.datasets import images
from runyard.datasets.findings import Finding
from runyard.datasets.intake import ON_ERROR, Outcome, Progress, Ticks, Told, take_rows
from runyard.datasets.packs import PACK_BYTES, pack
from runyard.datasets.records import Record, encode
from runyard.datasets.sources import ImageFacts, PackSource, Place

JOB = "job.json"
PACKS = "packs.jsonl"
SEALED = "sealed.json"
PROGRESS = "progress.json"
FINDINGS = "findings.jsonl"
IMAGES = "images.jsonl"
OWN_PACKS = "packs"
RECORDS = "records.jsonl"
UNPACKED = "unpacked"
RESULT = "result.json"

MEMORY_BYTES = 2 << 30
CPU_SECONDS = 2 * 3600
SECONDS = 4 * 3600  # from the seal on
LOOK_EVERY_S = 0.05
MOST_FINDINGS = 200_000  # written; more are only counted

log = logging.getLogger(__name__)


class OutOfTime(Exception):
    """The worker has used up its time."""


class Image(msgspec.Struct, rename="camel"):
    """One line of ``images.jsonl``."""

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


def run(folder: Path) -> None:
    """Do the import of this folder, to its last word."""
    if rundir.read_json(folder / RESULT) is not None:
        return
    job = rundir.read_json(folder / JOB)
    if job is None:
        raise FileNotFoundError(f"{folder / JOB} is missing or no JSON object")
    with _Outputs(folder) as outputs:
        try:
            outcome = _Import(folder, job, outputs).run()
        except MemoryError:
            outcome = _rejected("checking these files takes more memory than an import may use; import fewer at once")
        except OutOfTime:
            outcome = _rejected("checking these files takes more time than an import may use; import fewer at once")
        except BlobError as error:
            outcome = _rejected(f"what was sent cannot be read back: {error}")
        outputs.sync()
    rundir.write_json(folder / RESULT, outcome.document())


def on_error_of(policies: dict[str, Any]) -> Any:
    """``onError`` as our own imports name it; raises ValueError for another word."""
    named = policies.get("onError", "RejectRow")
    if named not in ON_ERROR:
        raise ValueError(f"onError is {named!r}; it may be {', '.join(ON_ERROR)}")
    return named


class _Import:
    def __init__(self, folder: Path, job: dict[str, Any], outputs: "_Outputs") -> None:
        self._folder, self._job, self._outputs = folder, job, outputs
        self._limits = job.get("limits") or {}
        self._on_error = on_error_of(job.get("policies") or {})
        self._progress = Progress(files=job.get("files") or 0)
        self._told = Told(outputs.say, self._on_error, self._progress.tally)
        self._source = PackSource(FolderBlobs(Path(job["blobsDir"])), self._told, outputs.accepted)
        self._tick = Ticks(self._show)
        self._ends_s = float("inf")

    def run(self) -> Outcome:
        self._progress.begin("Receiving")
        self._know()
        for size_bytes in self._received():
            self._progress.files_done += 1
            self._progress.bytes_done += size_bytes
            self._progress.images = len(self._source.pictures)
            self._tick()
        self._progress.share_read = self._source.share_read
        outcome = take_rows(
            self._source,
            self._source.pictures,
            self._outputs,
            self._told,
            self._progress,
            format=self._job.get("format") or "auto",
            task=self._job.get("datasetType"),
            on_error=self._on_error,
            tick=self._tick,
            unpack_into=self._folder / UNPACKED,
        )
        shutil.rmtree(self._folder / UNPACKED, ignore_errors=True)
        self._outputs.finish_pack()
        self._progress.begin("Done")
        self._show()
        return outcome

    def _know(self) -> None:
        """Count in the pictures that the dataset has already: rows may be about them."""
        if name := self._job.get("known"):
            with open(self._folder / name, "rb") as file:
                for line in file:
                    self._source.pictures.know(_facts(msgspec.json.decode(line, type=Image)))

    def _received(self) -> Iterator[int]:
        """Inspect what has been received, as it comes, until everything is there."""
        packs = self._folder / PACKS
        offset = 0
        while True:
            is_sealed = (self._folder / SEALED).exists()  # looked at first: what comes before the seal is read after it
            if is_sealed and self._progress.phase == "Receiving":
                self._progress.phase = "Inspecting"
                self._ends_s = time.monotonic() + self._limits.get("seconds", SECONDS)
            lines, offset = rundir.read_lines(packs, offset)
            for line in lines:
                yield from self._take(msgspec.json.decode(line))
            if not lines:
                if is_sealed:
                    return
                self._tick()
                time.sleep(LOOK_EVERY_S)

    def _take(self, received: dict[str, Any]) -> Iterator[int]:
        sha256, size_bytes = received["sha256"], received["size"]
        if path := received.get("path"):
            return self._source.take_file(sha256, size_bytes, path)
        return self._source.take_pack(sha256, size_bytes)

    def _show(self) -> None:
        self._outputs.show(self._progress.document())
        if time.monotonic() > self._ends_s:
            raise OutOfTime


class _Outputs:
    """What the worker writes. Opened empty: whatever a worker before us wrote is written again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for left in (OWN_PACKS, UNPACKED):
            shutil.rmtree(folder / left, ignore_errors=True)
        self._findings, self._images, self._records = (
            open(folder / name, "wb", buffering=1 << 16)  # noqa: SIM115 - closed by __exit__
            for name in (FINDINGS, IMAGES, RECORDS)
        )
        self._findings_left = MOST_FINDINGS
        self._kept = self._marked = self._marked_at = 0
        self._packed: list[tuple[ImageFacts, int, bytes]] = []
        self._packed_bytes = 0
        self._pack_number = 0
        self._places: dict[str, Place] = {}

    def __enter__(self) -> "_Outputs":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._all():
            file.close()

    def say(self, found: Finding) -> None:
        if self._findings_left > 0:
            self._findings_left -= 1
            self._findings.write(msgspec.json.encode(found) + b"\n")

    def show(self, progress: dict[str, Any]) -> None:
        """Let people see how far it is, and what was found so far."""
        self._findings.flush()
        # Not fsynced: after loss of power there is no worker whose progress this could be.
        beside = self._folder / f".{PROGRESS}"
        beside.write_bytes(msgspec.json.encode(progress))
        os.replace(beside, self._folder / PROGRESS)

    def accepted(self, facts: ImageFacts, crc32c: int, data: bytes, place: Place | None) -> None:
        place = place or self._places.get(facts.sha256)
        if place is None:
            self._into_pack(facts, crc32c, data)
        else:
            self._images.write(msgspec.json.encode(_line(facts, crc32c, place)) + b"\n")

    def add(self, record: Record) -> None:
        self._records.write(encode(record) + b"\n")
        self._kept += 1

    def mark(self) -> None:
        self._marked, self._marked_at = self._kept, self._records.tell()

    def take_back(self) -> int:
        self._records.flush()
        self._records.truncate(self._marked_at)
        self._records.seek(self._marked_at)
        taken, self._kept = self._kept - self._marked, self._marked
        return taken

    def finish_pack(self) -> None:
        """Write the pictures of containers that wait, as a pack, and then their lines."""
        if not self._packed:
            return
        content = pack((facts.path, data) for facts, _, data in self._packed)
        name = images.sha256(content)
        (self._folder / OWN_PACKS).mkdir(exist_ok=True)
        self._pack_number += 1
        rundir.write_bytes(self._folder / OWN_PACKS / f"{self._pack_number:06}", content)
        offset = len(content) - self._packed_bytes
        for facts, crc32c, _ in self._packed:
            self._places[facts.sha256] = place = Place(name, offset)
            self._images.write(msgspec.json.encode(_line(facts, crc32c, place)) + b"\n")
            offset += facts.size_bytes
        self._packed, self._packed_bytes = [], 0

    def sync(self) -> None:
        """Make everything survive loss of power: the last word is said after it."""
        for file in self._all():
            file.flush()
            os.fsync(file.fileno())

    def _into_pack(self, facts: ImageFacts, crc32c: int, data: bytes) -> None:
        if self._packed_bytes + len(data) > PACK_BYTES:
            self.finish_pack()
        self._packed.append((facts, crc32c, data))
        self._packed_bytes += len(data)

    def _all(self) -> tuple[IO[bytes], ...]:
        return self._findings, self._images, self._records


def _line(facts: ImageFacts, crc32c: int, place: Place) -> Image:
    return Image(
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
        place.blob,
        place.offset,
    )


def _facts(image: Image) -> ImageFacts:
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


def _rejected(why: str) -> Outcome:
    return Outcome("Rejected", why, None, None, {})


def limit(folder: Path) -> None:
    """Bound memory and processor time; a limit that is lower already stays."""
    limits = (rundir.read_json(folder / JOB) or {}).get("limits") or {}
    memory_bytes, cpu_s = limits.get("memoryBytes", MEMORY_BYTES), limits.get("cpuSeconds", CPU_SECONDS)
    # The soft limit of processor time raises OutOfTime; the hard one is for a worker that does not hear it.
    for which, soft, hard in (
        (resource.RLIMIT_AS, memory_bytes, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 60),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            _, most = resource.getrlimit(which)
            bounded = hard if most == resource.RLIM_INFINITY else min(hard, most)
            resource.setrlimit(which, (min(soft, bounded), bounded))


def _out_of_time(*_: object) -> None:
    raise OutOfTime


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runyard.datasets.importing", description="Do one import.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, help="process id of the server; the worker ends with it")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        processes.die_with_parent(arguments.parent)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGXCPU, _out_of_time)
    limit(arguments.folder)
    run(arguments.folder)


if __name__ == "__main__":
    main()
