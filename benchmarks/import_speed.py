"""Measure the import of images, compared with copying and hashing the same files.

Makes really encoded JPEGs with a question each (50,000 of about 10 KB, or ``--count`` and
``--side``), then measures in turn, each in a separate process: ``cp -r`` of the folder with a
SHA-256 of every file, without and with ``sync``; ``client.datasets.import_folder`` into a fresh
server, from the call to the version that a run can be pinned to; and of that the part of the
process that checks. All read from the page cache. Ratios are of speeds: above 1, the import is the
faster.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from first_comparison import server
from PIL import Image, ImageDraw

from runyard.blobs import FolderBlobs
from runyard.datasets.packs import build_pack, plan_packs

COPY = """
import hashlib, os, subprocess, sys
from pathlib import Path
source, target, then = sys.argv[1:]
subprocess.run(["cp", "-r", source, target], check=True)
if then == "sync":
    os.sync()
for path in Path(source).rglob("*"):
    if path.is_file():
        with open(path, "rb") as file:
            hashlib.file_digest(file, "sha256").hexdigest()
"""


SDK = """
import sys
import vi
with vi.Client() as client:
    imported = client.datasets.import_folder(sys.argv[1], dataset_type="vqa", progress=False)
    assert imported.version is not None, imported.summary()
    assert imported.version.records == int(sys.argv[2]), imported.summary()
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50_000, help="images")
    parser.add_argument("--side", type=int, default=256, help="their width")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    arguments = parser.parse_args()
    count = arguments.count
    with tempfile.TemporaryDirectory(prefix="runyard-import-speed-") as name:
        folder = Path(name)
        images, size_bytes = make_images(folder / "images", count, arguments.side)
        print(f"{count:,} JPEGs, {size_bytes / count / 1000:.1f} KB each")
        packs = make_packs(folder / "blobs", images, arguments.side)
        copies, durable, imports, checks = [], [], [], []
        for number in range(arguments.rounds):
            for times, then in ((copies, ""), (durable, "sync")):
                times.append(
                    timed([sys.executable, "-c", COPY, str(images), str(folder / "copy"), then])
                )
                shutil.rmtree(folder / "copy")
            with server(folder / f"server-{number}") as environ, highest_mib() as peak:
                imports.append(timed([sys.executable, "-c", SDK, str(images), str(count)], environ))
            shutil.rmtree(folder / f"server-{number}")
            checks.append(check_s(folder / f"import-{number}", folder / "blobs", packs, count))
            print(
                f"  cp -r + sha256 {copies[-1]:.2f} s, with sync {durable[-1]:.2f} s, import "
                f"{imports[-1]:.2f} s ({max(peak):.0f} MiB at most in a process), checks alone "
                f"{checks[-1]:.2f} s",
                flush=True,
            )
    copy_s, durable_s, import_s, check = (
        statistics.median(times) for times in (copies, durable, imports, checks)
    )
    print(
        f"import: {import_s / count * 1e6:.0f} microseconds an image, {count / import_s:,.0f} "
        "images a second"
    )
    print(f"whole import: {copy_s / import_s:.2f} times the speed of cp -r + sha256 (medians)")
    print(
        f"whole import: {min(copies) / min(imports):.2f} times (fastest rounds, in which cp waits "
        "least for the disk)"
    )
    print(
        f"whole import: {durable_s / import_s:.2f} times that of cp -r + sync + sha256, as durable "
        "as the import"
    )
    print(f"checks alone: {copy_s / check:.2f} times")


@contextmanager
def highest_mib() -> Iterator[list[float]]:
    """Return the peak memory of this process's children."""
    peak, is_over = [0.0], threading.Event()

    def look() -> None:
        while not is_over.wait(0.2):
            for pid in descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    peak[0] = max(
                        [
                            peak[0],
                            *(int(kib) / 1024 for kib in re.findall(r"VmHWM:\s+(\d+)", status)),
                        ]
                    )

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = [int(child) for child in (task / "children").read_text().split()]
            found += [*children, *(below for child in children for below in descendants(child))]
    return found


def make_images(folder: Path, count: int, width: int) -> tuple[Path, int]:
    """JPEGs of four to three with shapes and grain, in folders of 1,000.

    Returns their size, too.
    """
    numbers, size_bytes = random.Random(7), 0  # noqa: S311 - images, no secrets
    grain = [Image.effect_noise((width, width * 3 // 4), 24).convert("RGB") for _ in range(16)]
    for number in range(count):
        image = grain[number % len(grain)].copy()
        draw = ImageDraw.Draw(image)
        for _ in range(4):
            x, y = numbers.randrange(200), numbers.randrange(150)
            colour = tuple(numbers.randrange(256) for _ in range(3))
            draw.rectangle(
                (x, y, x + numbers.randrange(8, 56), y + numbers.randrange(8, 42)), fill=colour
            )
        file = io.BytesIO()
        image.save(file, "JPEG", quality=45)
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
        size_bytes += file.tell()
    return folder, size_bytes


def make_packs(blobs: Path, images: Path, width: int) -> list[dict[str, object]]:
    """Write the same files as packs into a blob store, after a question for every image."""
    paths = sorted(path for path in images.rglob("*") if path.is_file())
    rows = [
        {
            "id": number,
            "asset": {
                "filename": path.relative_to(images).as_posix(),
                "width": width,
                "height": width * 3 // 4,
            },
            "contents": {
                "type": "Vqa",
                "interactions": [{"order": 1, "question": "How many?", "answer": "Four"}],
            },
        }
        for number, path in enumerate(paths)
    ]
    annotations = images / "annotations.jsonl"
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store, lines = FolderBlobs(blobs), []
    for number, group in enumerate(
        plan_packs((path, path.stat().st_size) for path in [*paths, annotations]), start=1
    ):
        content = build_pack(
            (path.relative_to(images).as_posix(), path.read_bytes()) for path in group
        )
        sha256 = hashlib.sha256(content).hexdigest()
        store.put(io.BytesIO(content), sha256=sha256, size_bytes=len(content))
        lines.append({"sha256": sha256, "size": len(content), "number": number})
    return lines


def check_s(folder: Path, blobs: Path, packs: list[dict[str, object]], count: int) -> float:
    """Return how long the worker takes from its start to its result."""
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"datasetType": "vqa", "blobsDir": str(blobs)}))
    (folder / "packs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in packs))
    (folder / "sealed.json").write_text("{}")
    took_s = timed([sys.executable, "-m", "runyard.datasets.importing", str(folder)])
    result = json.loads((folder / "result.json").read_bytes())
    assert result["counts"]["images"] == result["counts"]["rowsKept"] == count, result
    return took_s


def timed(command: list[str], environ: Mapping[str, str] | None = None) -> float:
    os.sync()  # what was written before is not to be waited for now
    began_s = time.perf_counter()
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
