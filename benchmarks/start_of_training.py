"""Measure the time from reading the data to the first step, with and without encoded images.

    .venv/bin/python benchmarks/start_of_training.py [--images 5000] [--side 640x480]

Makes that many JPEGs (photograph-like noise), lays them out as a version of a dataset, and starts
the same run three times on one thread: without a cache, with an empty one, and with what the second
has left there. Each is a process of its own; the time is that between the trainer's first event and
its first step, model included. Prints seconds, the ratio of an empty to a filled cache, the images
encoded per second, and the peak memory of a process.
"""

import argparse
import hashlib
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

VERSION = "0" * 16
PACK_BYTES = 16 << 20


def make_version(folder: Path, count: int, size: tuple[int, int]) -> None:
    import numpy as np
    from PIL import Image

    from runyard.datasets.records import Interaction, Vqa
    from runyard.datasets.versions import (
        CONTENTS,
        MANIFEST,
        PACKS,
        ManifestWriter,
        VersionImage,
        encode_contents_line,
    )
    from runyard.rundir import COMPLETE

    (folder / PACKS).mkdir(parents=True)
    random, places, pack = np.random.default_rng(0), [], bytearray()

    def close_pack() -> None:
        name = hashlib.sha256(pack).hexdigest()
        (folder / PACKS / name).write_bytes(pack)
        lines.extend(
            encode_contents_line(sha256, name, offset, length) for sha256, offset, length in places
        )
        places.clear()
        pack.clear()

    lines: list[bytes] = []
    with open(folder / MANIFEST, "wb") as file:
        writer = ManifestWriter(file)
        for number in range(count):
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            held = io.BytesIO()
            coarse.resize(size, Image.Resampling.BICUBIC).save(held, "JPEG", quality=85)
            data = held.getvalue()
            sha256 = hashlib.sha256(data).hexdigest()
            asked = Vqa(
                interactions=[
                    Interaction(order=1, question="Which shelf is this?", answer=str(number % 10))
                ]
            )
            writer.add(
                VersionImage(
                    filename=f"{number:07}.jpg",
                    sha256=sha256,
                    size=len(data),
                    width=size[0],
                    height=size[1],
                    mime="image/jpeg",
                    records=[asked],
                )
            )
            places.append((sha256, len(pack), len(data)))
            pack += data
            if len(pack) >= PACK_BYTES:
                close_pack()
    close_pack()
    (folder / CONTENTS).write_bytes(b"".join(sorted(lines)))
    (folder / COMPLETE).write_text("{}")


def make_attempt(root: Path, run: str, *, cache_bytes: int) -> Path:
    folder = root / "runs" / "org" / run / "attempts" / "1"
    folder.mkdir(parents=True)
    data = {
        "datasetId": "shelves",
        "datasetVersion": VERSION,
        "projectKind": "vqa",
        "augmentation": {},
    }
    model = {"hyperparameters": {"maxSteps": 1}, "validation": {"maxSamples": 1}}
    config = {
        "run": make_run(run, data, model),
        "attempt": 1,
        "threads": 1,
        "dataDir": str(root),
        "cacheBytes": cache_bytes,
    }
    (folder / "run.json").write_text(json.dumps(config))
    version = {"folder": str(root / "version"), "dataset": "shelves", "version": VERSION}
    (folder / "dataset.json").write_text(json.dumps(version))
    return folder


def make_run(run: str, data: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Return a run's document with these settings of its blocks."""
    blocks = [
        {"block": "vi-dataset", "settings": data, "style": {}},
        {"block": "vi-model", "settings": model, "style": {}},
    ]
    flow = {
        "name": "benchmark",
        "schema": "v1",
        "tolerations": {},
        "settings": {},
        "blocks": blocks,
    }
    return {"kind": "Run", "workspaceId": "org", "runId": run, "spec": {"flow": flow}}


def train(folder: Path, results: Any) -> None:
    from runyard.trainer.main import preload, train_attempt

    preload()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    code = train_attempt(folder)
    results.put((code, before_mib, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))


def timed(folder: Path) -> tuple[float, int]:
    """Return the seconds up to the first step, and the peak MiB beyond the imports."""
    context = get_context("spawn")
    results = context.Queue()
    process = context.Process(target=train, args=(folder, results))
    process.start()
    code, before_mib, most_mib = results.get()
    process.join()
    assert code == 0, f"the run in {folder} ended with {code}"
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    first_step = next(line["t"] for line in lines if line["ev"] == "step")
    return (first_step - lines[0]["t"]) / 1000, most_mib - before_mib


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--side", default="640x480", help="width x height of each image")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder without it")
    given = parser.parse_args()
    width, _, height = given.side.partition("x")
    root = given.folder or Path(tempfile.mkdtemp(prefix="runyard-benchmark-"))
    try:
        began = time.monotonic()
        make_version(root / "version", given.images, (int(width), int(height)))
        print(f"{given.images} images of {given.side} made in {time.monotonic() - began:.0f} s")
        without, _ = timed(make_attempt(root, "without", cache_bytes=0))
        empty, empty_mib = timed(make_attempt(root, "empty", cache_bytes=1 << 40))
        filled, filled_mib = timed(make_attempt(root, "filled", cache_bytes=1 << 40))
        kept = sum(path.stat().st_size for path in (root / "cache").rglob("*") if path.is_file())
        print(f"without a cache   {without:8.2f} s to the first step")
        print(
            f"empty cache       {empty:8.2f} s, {given.images / empty:.0f} images/s, {empty_mib} "
            "MiB more held"
        )
        print(
            f"filled cache      {filled:8.2f} s, {filled_mib} MiB more held; {kept / 2**20:.0f} "
            "MiB on disk"
        )
        print(f"ratio             {empty / filled:8.1f} (empty / filled)")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
