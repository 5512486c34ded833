"""The import worker: its folder is the protocol, it may be killed at any time, and it respects its
limits.
"""

import hashlib
import io
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runyard.blobs import FolderBlobs
from runyard.datasets import importing
from runyard.datasets.importing import (
    FINDINGS,
    IMAGES,
    JOB,
    PACKS,
    PROGRESS,
    RECORDS,
    RESULT,
    SEALED,
    run,
)
from runyard.datasets.packs import build_pack
from runyard.processes import IS_LINUX, check_liveness, identify

OUTPUTS = (FINDINGS, IMAGES, RECORDS, RESULT)
WAIT_S = 30.0


def row(number: int, *, filename: str = "a.png", answer: str = "yes") -> bytes:
    contents = {
        "type": "Vqa",
        "interactions": [{"order": 1, "question": f"Number {number}?", "answer": answer}],
    }
    asset = {"filename": filename, "width": 40, "height": 20}
    return json.dumps({"id": number, "asset": asset, "contents": contents}).encode() + b"\n"


@dataclass
class Import:
    """The folder of an import, seen from the server's side."""

    folder: Path
    blobs: FolderBlobs
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def job(self, **more: Any) -> "Import":
        document = {
            "org": "o",
            "datasetId": "d",
            "datasetType": "vqa",
            "format": "auto",
            "policies": {},
        }
        (self.folder / JOB).write_text(
            json.dumps({**document, "blobsDir": str(self.blobs.root), **more})
        )
        return self

    def send(self, files: dict[str, bytes]) -> "Import":
        data = build_pack(files.items())
        return self._receive(data, {})

    def send_file(self, path: str, data: bytes) -> "Import":
        return self._receive(data, {"path": path})

    def seal(self) -> "Import":
        (self.folder / SEALED).write_text("{}")
        return self

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "runyard.datasets.importing", str(self.folder), *arguments]
        worker = subprocess.Popen(command, stderr=subprocess.PIPE)
        self.workers.append(worker)
        return worker

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return (
            [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        )

    def codes(self) -> list[str]:
        return [found["code"] for found in self.lines(FINDINGS)]

    @property
    def result(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / RESULT).read_bytes())
        return document

    @property
    def progress(self) -> dict[str, Any]:
        path = self.folder / PROGRESS
        document: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return document

    def _receive(self, data: bytes, more: dict[str, Any]) -> "Import":
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs.put(io.BytesIO(data), sha256=sha256, size_bytes=len(data))
        with open(self.folder / PACKS, "a") as file:
            file.write(
                json.dumps({"sha256": sha256, "size": len(data), "number": 1, **more}) + "\n"
            )
        return self


@pytest.fixture
def an_import(tmp_path: Path) -> Iterator[Import]:
    folder = tmp_path / "import"
    folder.mkdir()
    made = Import(folder, FolderBlobs(tmp_path / "blobs"))
    yield made
    for worker in made.workers:
        worker.kill()
        worker.communicate()


MakePng = Callable[..., bytes]


def test_images_and_records_are_written_with_the_location_of_their_bytes(
    an_import: Import, make_png: MakePng
) -> None:
    files = {"x/a.png": make_png(), "rows.jsonl": row(1) + row(2)}
    worker = an_import.job().send(files).send_file("b.png", make_png(30, 30)).seal().start()
    assert worker.wait(WAIT_S) == 0
    assert an_import.result["decision"] == "Accepted"
    assert an_import.result["format"] == "ViJsonl"
    assert [record["asset"] for record in an_import.lines(RECORDS)] == [
        {"filename": "x/a.png", "width": 40, "height": 20}
    ] * 2
    for image, data in zip(an_import.lines(IMAGES), (make_png(), make_png(30, 30)), strict=True):
        with an_import.blobs.open(image["blob"]) as file:
            file.seek(image["offset"])
            assert file.read(image["size"]) == data
        assert image["sha256"] == hashlib.sha256(data).hexdigest()
    assert [image["crc32c"] for image in an_import.lines(IMAGES)] == [
        crc32c(make_png()),
        crc32c(make_png(30, 30)),
    ]
    assert an_import.progress["phase"] == "Done"
    assert (an_import.progress["filesDone"], an_import.progress["rowsKept"]) == (3, 2)


def crc32c(data: bytes) -> int:
    """Compute the checksum bit by bit, by definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_findings_are_reported_while_files_still_arrive(
    an_import: Import, make_png: MakePng, eventually: Any
) -> None:
    worker = an_import.job(files=3).send({"cut.png": make_png()[:50]}).start()
    eventually(
        lambda: an_import.codes() == ["ImageTruncated"],
        timeout_s=WAIT_S,
        what="the first finding is reported",
    )
    eventually(
        lambda: an_import.progress.get("filesDone") == 1, timeout_s=WAIT_S, what="progress shows it"
    )
    assert (an_import.progress["phase"], an_import.progress["files"]) == ("Receiving", 3)
    assert not (an_import.folder / RESULT).exists()
    an_import.send({"a.png": make_png(), "rows.jsonl": row(1, answer="")}).seal()
    assert worker.wait(WAIT_S) == 0
    assert an_import.codes()[:2] == ["ImageTruncated", "AnswerEmpty"]


def test_a_line_that_is_still_being_written_is_waited_for(
    an_import: Import, make_png: MakePng, eventually: Any
) -> None:
    an_import.job().send({"a.png": make_png()}).send({"rows.jsonl": row(1)})
    packs = an_import.folder / PACKS
    whole = packs.read_bytes()
    packs.write_bytes(whole[:-30])
    worker = an_import.start()
    eventually(
        lambda: an_import.progress.get("filesDone") == 1,
        timeout_s=WAIT_S,
        what="the first pack is taken",
    )
    packs.write_bytes(whole)
    an_import.seal()
    assert worker.wait(WAIT_S) == 0
    assert an_import.result["counts"]["rowsKept"] == 1


@pytest.mark.parametrize("killed_in", [IMAGES, RECORDS])
def test_a_killed_worker_restarts_and_gives_the_same_output(
    an_import: Import, make_png: MakePng, eventually: Any, killed_in: str
) -> None:
    """Killed while it inspects, and while it writes records."""
    images = {
        f"{number}.png": make_png(40, 20, (number % 256, number // 256, 7))
        for number in range(1500)
    }
    rows = b"".join(
        row(n, filename=f"{n % 1500}.png", answer="" if n % 500 == 7 else "yes")
        for n in range(30_000)
    )
    an_import.job().send(images).send({"rows.jsonl": rows})
    if killed_in == RECORDS:
        an_import.seal()
    worker = an_import.start()
    written = an_import.folder / killed_in
    eventually(
        lambda: written.exists() and written.stat().st_size > 1 << 16,
        timeout_s=WAIT_S,
        what=killed_in,
    )
    worker.kill()
    assert worker.wait(WAIT_S) == -signal.SIGKILL
    assert not (an_import.folder / RESULT).exists()
    with open(an_import.folder / RECORDS, "ab") as file:
        file.write(b'{"torn')
    assert an_import.seal().start().wait(WAIT_S) == 0
    after = {name: (an_import.folder / name).read_bytes() for name in OUTPUTS}
    for name in OUTPUTS:
        (an_import.folder / name).unlink()
    run(an_import.folder)  # undisturbed
    assert {name: (an_import.folder / name).read_bytes() for name in OUTPUTS} == after
    assert an_import.result["counts"]["rowsKept"] == 30_000 - 60


def test_an_import_with_a_result_is_left_unchanged(an_import: Import, make_png: MakePng) -> None:
    an_import.job().send({"a.png": make_png()}).seal()
    (an_import.folder / RESULT).write_text('{"decision":"Rejected"}')
    run(an_import.folder)
    assert an_import.result == {"decision": "Rejected"}
    assert not (an_import.folder / RECORDS).exists()


@pytest.mark.parametrize(
    ("on_error", "decision", "kept", "actions"),
    [
        ("RejectRow", "Accepted", ["1", "3", "4"], ["RowRejected"]),
        ("Warn", "Accepted", ["1", "3", "4"], ["RowRejected"]),
        ("RejectFile", "Accepted", ["3", "4"], ["FileRejected"]),
        ("RejectAll", "Rejected", None, ["FileRejected"]),
    ],
)
def test_an_error_rejects_what_the_policy_requires(
    an_import: Import,
    make_png: MakePng,
    on_error: str,
    decision: str,
    kept: list[str] | None,
    actions: list[str],
) -> None:
    files = {"a.png": make_png(), "1.jsonl": row(1) + row(2, answer=""), "2.jsonl": row(3) + row(4)}
    an_import.job(policies={"onError": on_error}).send(files).seal()
    run(an_import.folder)
    assert (
        an_import.result["decision"],
        [found["action"] for found in an_import.lines(FINDINGS)],
    ) == (
        decision,
        actions,
    )
    if kept is not None:
        assert [record["id"] for record in an_import.lines(RECORDS)] == kept
        assert an_import.result["counts"]["rowsKept"] == len(kept)


def test_an_error_in_the_last_file_discards_only_its_rows(
    an_import: Import, make_png: MakePng
) -> None:
    files = {"a.png": make_png(), "1.jsonl": row(1), "2.jsonl": row(2) + row(3, answer="")}
    an_import.job(policies={"onError": "RejectFile"}).send(files).seal()
    run(an_import.folder)
    assert [record["id"] for record in an_import.lines(RECORDS)] == ["1"]


def test_rows_may_refer_to_images_that_the_dataset_already_has(
    an_import: Import, make_png: MakePng
) -> None:
    an_import.job().send({"x/a.png": make_png()}).seal()
    run(an_import.folder)
    known = (an_import.folder / IMAGES).read_bytes()
    for name in (*OUTPUTS, PACKS):
        (an_import.folder / name).unlink()
    (an_import.folder / "known.jsonl").write_bytes(known)
    an_import.job(known="known.jsonl").send({"rows.jsonl": row(1)})
    run(an_import.folder)
    assert [record["asset"]["filename"] for record in an_import.lines(RECORDS)] == ["x/a.png"]
    assert an_import.lines(IMAGES) == []
    assert an_import.result["decision"] == "Accepted"


def test_findings_beyond_the_limit_are_counted_and_not_written(
    an_import: Import, make_png: MakePng, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "MAX_FINDINGS", 3)
    an_import.job().send(
        {"a.png": make_png(), "rows.jsonl": b"".join(row(n, answer="") for n in range(9)) + row(10)}
    )
    run(an_import.seal().folder)
    assert (len(an_import.codes()), an_import.result["counts"]["errors"]) == (3, 9)


def test_a_worker_ends_with_the_process_that_started_it(
    an_import: Import, make_png: MakePng, eventually: Any
) -> None:
    an_import.job().send({"a.png": make_png()})
    starts = (
        "import os, subprocess, sys, time;w = subprocess.Popen([sys.executable, '-m', "
        "'runyard.datasets.importing', sys.argv[1], '--parent', str(os.getpid())]); print(w.pid, "
        "flush=True); time.sleep(60)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", starts, str(an_import.folder)], stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        eventually(
            lambda: an_import.progress.get("filesDone") == 1,
            timeout_s=WAIT_S,
            what="the worker works",
        )
        worker = identify(pid)
        assert worker is not None
    finally:
        server.kill()
        server.communicate()
    eventually(
        lambda: check_liveness(worker) == "dead", timeout_s=WAIT_S, what="the worker is gone"
    )


def test_an_image_above_the_memory_limit_is_reported_and_the_others_are_accepted(
    an_import: Import, make_png: MakePng
) -> None:
    large = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(large, "TIFF", compression="tiff_adobe_deflate")
    an_import.job(limits={"memoryBytes": 200 << 20}).send(
        {"a.png": make_png(), "large.tif": large.getvalue()}
    )
    worker = an_import.seal().start()
    assert worker.wait(WAIT_S) == 0
    assert [(found["code"], found["file"]) for found in an_import.lines(FINDINGS)] == [
        ("ImageTooLarge", "large.tif"),
        ("AnnotationsAbsent", "a.png"),
    ]
    assert an_import.result["counts"]["images"] == 1


def test_a_worker_that_runs_out_of_time_says_so(an_import: Import, make_png: MakePng) -> None:
    an_import.job(limits={"seconds": -1}).send({"a.png": make_png(), "rows.jsonl": row(1)}).seal()
    run(an_import.folder)
    assert an_import.result["decision"] == "Rejected"
    assert "more time than an import may use" in an_import.result["why"]


def test_a_worker_that_runs_out_of_processor_time_says_so(
    an_import: Import, make_png: MakePng, eventually: Any
) -> None:
    worker = an_import.job(limits={"cpuSeconds": 50}).send({"a.png": make_png()}).start()
    eventually(
        lambda: an_import.progress.get("filesDone") == 1, timeout_s=WAIT_S, what="the worker works"
    )
    assert resource.prlimit(worker.pid, resource.RLIMIT_CPU) == (50, 110)
    worker.send_signal(signal.SIGXCPU)  # as the kernel does at 50 seconds
    assert worker.wait(WAIT_S) == 0
    assert "more time than an import may use" in an_import.result["why"]


def test_a_missing_pack_rejects_the_import(an_import: Import, make_png: MakePng) -> None:
    an_import.job().send({"a.png": make_png()}).seal()
    an_import.blobs.delete(an_import.lines(PACKS)[0]["sha256"])
    run(an_import.folder)
    assert an_import.result["decision"] == "Rejected"
    assert "cannot be read back" in an_import.result["why"]


# Not the peak that wait4 returns: that includes the parent's memory at the fork.
PEAK = """
import pathlib, sys
from runyard.datasets.importing import run
run(pathlib.Path(sys.argv[1]))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not IS_LINUX, reason="reads /proc")
def test_memory_does_not_depend_on_the_length_of_files(
    an_import: Import, make_png: MakePng
) -> None:
    def peak_bytes(answer: str) -> int:
        for path in an_import.folder.iterdir():
            path.unlink()
        rows = b"".join(row(number, answer=answer) for number in range(20_000))
        an_import.job().send({"a.png": make_png(), "rows.jsonl": rows}).seal()
        command = [sys.executable, "-c", PEAK, str(an_import.folder)]
        peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert an_import.result["counts"]["rowsKept"] == 20_000
        return int(peak) * 1024

    short, long = peak_bytes("y"), peak_bytes("y" * 1500)  # 3 MB and 33 MB
    assert long - short < 6_000_000
    assert long < 80_000_000


def test_an_unknown_policy_is_rejected(an_import: Import) -> None:
    an_import.job(policies={"onError": "Ignore"})
    with pytest.raises(ValueError, match="'Ignore'; it must be one of Warn, RejectRow"):
        run(an_import.folder)
