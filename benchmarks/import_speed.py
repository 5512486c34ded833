"""How fast an import checks pictures, beside copying and hashing the same files.

Makes really encoded JPEGs of about 10 KB (50,000, or ``--count``), then measures, by turns and each in a process of its
own: ``cp -r`` of the folder with a SHA-256 of every file, and an import's worker over the same bytes as packs. Both
read from the page cache; ratios are printed (above 1: the import is faster).
"""

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

from runyard.blobs import FolderBlobs
from runyard.datasets.packs import pack, planned

COPY = """
import hashlib, subprocess, sys
from pathlib import Path
source, target = sys.argv[1:]
subprocess.run(["cp", "-r", source, target], check=True)
for path in Path(source).rglob("*"):
    if path.is_file():
        with open(path, "rb") as file:
            hashlib.file_digest(file, "sha256").hexdigest()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000, help="pictures")
    parser.add_argument("--small", action="store_true", help="2,000 pictures")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    arguments = parser.parse_args()
    count = 2_000 if arguments.small else arguments.count
    with tempfile.TemporaryDirectory(prefix="runyard-import-speed-") as name:
        folder = Path(name)
        pictures, size_bytes = make_pictures(folder / "pictures", count)
        print(f"{count:,} JPEGs, {size_bytes / count / 1000:.1f} KB each")
        packs = make_packs(folder / "blobs", pictures)
        copies, imports = [], []
        for number in range(arguments.rounds):
            copies.append(timed([sys.executable, "-c", COPY, str(pictures), str(folder / "copy")]))
            shutil.rmtree(folder / "copy")
            imports.append(import_s(folder / f"import-{number}", folder / "blobs", packs, count))
            print(f"  cp -r + sha256 {copies[-1]:.2f} s, import {imports[-1]:.2f} s", flush=True)
    copy_s, took_s = statistics.median(copies), statistics.median(imports)
    print(f"import: {took_s / count * 1e6:.0f} microseconds a picture, {count / took_s:,.0f} pictures a second")
    print(f"ratio: {copy_s / took_s:.2f} times the speed of cp -r + sha256 (medians)")
    # cp writes, and some of its rounds wait for the disk; its fastest round did so least.
    print(f"ratio: {min(copies) / min(imports):.2f} times its speed (fastest rounds of each)")


def make_pictures(folder: Path, count: int) -> tuple[Path, int]:
    """JPEGs of 256 x 192 with shapes and grain, in folders of 1,000; returns their size, too."""
    numbers, size_bytes = random.Random(7), 0  # noqa: S311 - pictures, no secrets
    grain = [Image.effect_noise((256, 192), 24).convert("RGB") for _ in range(16)]
    for number in range(count):
        picture = grain[number % len(grain)].copy()
        draw = ImageDraw.Draw(picture)
        for _ in range(4):
            x, y = numbers.randrange(200), numbers.randrange(150)
            colour = tuple(numbers.randrange(256) for _ in range(3))
            draw.rectangle((x, y, x + numbers.randrange(8, 56), y + numbers.randrange(8, 42)), fill=colour)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=45)
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
        size_bytes += file.tell()
    return folder, size_bytes


def make_packs(blobs: Path, pictures: Path) -> list[dict[str, object]]:
    """The same files as packs in a store of blobs, with one annotation for every picture."""
    paths = sorted(path for path in pictures.rglob("*") if path.is_file())
    rows = [
        {
            "id": number,
            "asset": {"filename": path.relative_to(pictures).as_posix(), "width": 256, "height": 192},
            "contents": {"type": "Vqa", "interactions": [{"order": 1, "question": "How many?", "answer": "Four"}]},
        }
        for number, path in enumerate(paths)
    ]
    annotations = pictures / "annotations.jsonl"
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store, lines = FolderBlobs(blobs), []
    for number, group in enumerate(planned((path, path.stat().st_size) for path in [*paths, annotations]), start=1):
        content = pack((path.relative_to(pictures).as_posix(), path.read_bytes()) for path in group)
        sha256 = hashlib.sha256(content).hexdigest()
        store.put(io.BytesIO(content), sha256=sha256, size_bytes=len(content))
        lines.append({"sha256": sha256, "size": len(content), "number": number})
    return lines


def import_s(folder: Path, blobs: Path, packs: list[dict[str, object]], count: int) -> float:
    """How long the worker takes from its start to its last word."""
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"datasetType": "vqa", "blobsDir": str(blobs)}))
    (folder / "packs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in packs))
    (folder / "sealed.json").write_text("{}")
    took_s = timed([sys.executable, "-m", "runyard.datasets.importing", str(folder)])
    result = json.loads((folder / "result.json").read_bytes())
    assert result["counts"]["images"] == result["counts"]["rowsKept"] == count, result
    return took_s


def timed(command: list[str]) -> float:
    os.sync()  # what was written before is not to be waited for now
    began_s = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
