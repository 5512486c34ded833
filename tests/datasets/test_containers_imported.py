"""Images in containers, imported by the real worker with its limits: where bytes are stored."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from runyard.blobs import FolderBlobs
from runyard.datasets.packs import build_pack

VI = {"id": "1", "asset": {"filename": "in/a.png"}, "contents": {"type": "Freeform", "text": "red"}}


def run_import(folder: Path, files: dict[str, bytes], task: str) -> dict[str, Any]:
    """Run the worker over one pack; return the documents that it left."""
    content = build_pack(files.items())
    sha256 = hashlib.sha256(content).hexdigest()
    FolderBlobs(folder / "blobs").put(io.BytesIO(content), sha256=sha256, size_bytes=len(content))
    job = folder / "job"
    job.mkdir()
    (job / "packs.jsonl").write_text(
        json.dumps({"sha256": sha256, "size": len(content), "number": 1}) + "\n"
    )
    (job / "sealed.json").write_text("{}")
    (job / "job.json").write_text(
        json.dumps({"datasetType": task, "format": "auto", "blobsDir": str(folder / "blobs")})
    )
    subprocess.run(
        [sys.executable, "-m", "runyard.datasets.importing", str(job)], check=True, timeout=60
    )
    lines = {
        name: (job / f"{name}.jsonl").read_text().splitlines()
        for name in ("images", "records", "findings")
    }
    assert not (job / "unpacked").exists()
    return {"result": json.loads((job / "result.json").read_text())} | {
        name: [json.loads(line) for line in rows] for name, rows in lines.items()
    }


def make_zip(image: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("in/a.png", image)
        archive.writestr("vi.jsonl", json.dumps(VI))
    return out.getvalue()


def make_parquet(image: bytes) -> bytes:
    out = io.BytesIO()
    parquet.write_table(
        pa.Table.from_pylist([{"image": {"bytes": image, "path": "in/a.png"}, "text": "red"}]), out
    )
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "make", "format"),
    [("data.zip", make_zip, "ViJsonl"), ("a.parquet", make_parquet, "Parquet")],
)
def test_images_of_containers_are_in_packs_of_the_import(
    tmp_path: Path,
    make_png: Callable[..., bytes],
    name: str,
    make: Callable[[bytes], bytes],
    format: str,
) -> None:
    left = run_import(tmp_path, {name: make(make_png())}, "freeform")
    assert (left["result"]["decision"], left["result"]["format"]) == ("Accepted", format)
    assert (left["result"]["counts"]["images"], left["findings"]) == (1, [])
    [image], [record] = left["images"], left["records"]
    assert record["asset"]["filename"] == image["path"]
    content = (tmp_path / "job/packs/000001").read_bytes()
    assert image["blob"] == hashlib.sha256(content).hexdigest()
    assert content[image["offset"] : image["offset"] + image["size"]] == make_png()
