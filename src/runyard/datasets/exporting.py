"""A dataset on its way out, as a process with a folder: ``python -m runyard.datasets.exporting <folder>``.

    job.json       server   {"format", "blobsDir", "options": {"splitRatio", "normalized", "pictures"}, "seed", "count"}
    items.jsonl    server   one picture a line, see ``Line``
    export.zip     worker   the files that the format's writer laid out; or preview.png, for the format ``Preview``
    result.json    worker   the last word: {"file"} or {"why"}

Pictures are decoded only for a preview, but whoever looks at what strangers sent runs with limits of memory and time.
"""

import argparse
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from runyard import processes, rundir
from runyard.blobs import FolderBlobs
from runyard.datasets.importing import limit
from runyard.datasets.records import AssetRef, Contents, Record
from runyard.datasets.writers import Item, Writer, by_name
from runyard.datasets.writers.csv import CsvFourCorner, CsvWidthHeight
from runyard.datasets.writers.vi_full import ViFull

JOB, ITEMS, RESULT = "job.json", "items.jsonl", "result.json"
ZIP, PREVIEW = "export.zip", "preview.png"
TREE = "tree"
# Pictures are compressed already; a fixed date makes the same dataset the same bytes.
STORED = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".parquet")
DATE = (1980, 1, 1, 0, 0, 0)
WITH_PICTURES = ("ViFull", "Parquet")


class LineRecord(msgspec.Struct, omit_defaults=True):
    """One record of a picture."""

    id: str
    contents: Contents
    category: str | None = None


class Line(msgspec.Struct):
    """A line of ``items.jsonl``: a picture, what is said of it, and where its bytes lie."""

    filename: str
    sha256: str
    size: int
    width: int
    height: int
    blob: str
    offset: int
    records: list[LineRecord]


def run(folder: Path) -> None:
    """Do the export of this folder, to its last word."""
    job = rundir.read_json(folder / JOB) or {}
    items = _items(folder, FolderBlobs(Path(job["blobsDir"])))
    if job["format"] == "Preview":
        _preview(folder, items, count=job["count"], seed=job["seed"])
        rundir.write_json(folder / RESULT, {"file": PREVIEW})
        return
    options = job.get("options") or {}
    writer = _writer(job["format"], options, seed=job["seed"])
    if writer is None:
        rundir.write_json(folder / RESULT, {"why": f"format {job['format']!r} is not known here"})
        return
    tree = folder / TREE
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    pictures = options.get("pictures")
    writer.write(items, tree, with_pictures=writer.name in WITH_PICTURES if pictures is None else pictures)
    _zip(tree, folder / ZIP)
    rundir.write_json(folder / RESULT, {"file": ZIP})


def _writer(format: str, options: dict[str, Any], *, seed: int) -> Writer | None:
    """The writer of a format with those options that it knows."""
    split_ratio, is_normalized = options.get("splitRatio"), options.get("normalized", True)
    writer = by_name(format)
    if isinstance(writer, ViFull):
        return ViFull(held_out_fraction=None if split_ratio is None else 1 - split_ratio, seed=seed)
    if isinstance(writer, CsvFourCorner | CsvWidthHeight):
        return type(writer)(is_normalized=is_normalized)
    return writer


def _items(folder: Path, blobs: FolderBlobs) -> Iterator[Item]:
    decoder = msgspec.json.Decoder(Line)
    with open(folder / ITEMS, "rb") as file:
        for row in file:
            yield _item(decoder.decode(row), blobs)


def _item(line: Line, blobs: FolderBlobs) -> Item:
    asset = AssetRef(filename=line.filename, width=line.width, height=line.height)

    def read() -> bytes:
        with blobs.open(line.blob) as file:
            file.seek(line.offset)
            return file.read(line.size)

    records = [
        Record(id=record.id, asset=asset, contents=record.contents, category=record.category) for record in line.records
    ]
    return Item(asset=asset, sha256=line.sha256, records=records, read=read)


def _preview(folder: Path, items: Iterator[Item], *, count: int, seed: int) -> None:
    # Here, because the server imports this module for its names, and shall not load Pillow for that.
    from runyard.datasets.preview import chosen, contact_sheet

    (folder / PREVIEW).write_bytes(contact_sheet(chosen(list(items), count=count, seed=seed)))


def _zip(tree: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", allowZip64=True) as archive:
        for path in sorted(path for path in tree.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(path.relative_to(tree).as_posix(), DATE)
            info.external_attr = 0o644 << 16
            is_stored = path.suffix.lower() in STORED
            info.compress_type = zipfile.ZIP_STORED if is_stored else zipfile.ZIP_DEFLATED
            with open(path, "rb") as source, archive.open(info, "w", force_zip64=True) as out:
                shutil.copyfileobj(source, out, 1 << 20)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runyard.datasets.exporting", description="Do one export.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, help="process id of the server; the worker ends with it")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        processes.die_with_parent(arguments.parent)
    limit(arguments.folder)
    run(arguments.folder)


if __name__ == "__main__":
    main()
