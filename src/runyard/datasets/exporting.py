"""An export, run as a process on a folder: ``python -m runyard.datasets.exporting <folder>``.

    job.json       server   {"format", "blobsDir", "seed", "count",
                            "options": {"splitRatio", "normalized", "pictures"}}
    items.jsonl    server   one image per line, see ``ItemLine``
    export.zip     worker   the files of the format's writer; preview.png for the format ``Preview``
    result.json    worker   the result: {"file"} or {"why"}; "note": what was left out

Images are decoded only for a preview. The input is not trusted, so the worker runs with limits on
memory and time.
"""

import argparse
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from runyard import processes, rundir
from runyard.blobs import FolderBlobs
from runyard.datasets.importing import set_limits
from runyard.datasets.records import AssetRef, Contents, Conversation, Record
from runyard.datasets.splits import Split
from runyard.datasets.writers.base import ExportedImage, Writer
from runyard.datasets.writers.csv import CsvFourCornerWriter, CsvWidthHeightWriter
from runyard.datasets.writers.registry import find_writer
from runyard.datasets.writers.vi_full import ViFullWriter

JOB, ITEMS, RESULT = "job.json", "items.jsonl", "result.json"
ZIP, PREVIEW = "export.zip", "preview.png"
TREE = "tree"
# Images are compressed already. A fixed date gives the same dataset the same bytes.
STORED = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".parquet")
DATE = (1980, 1, 1, 0, 0, 0)
WITH_IMAGES = ("ViFull", "Parquet")
WITHOUT_CONVERSATIONS = ("Coco",)  # of the formats for datasets that may have some


class LineRecord(msgspec.Struct, omit_defaults=True):
    """One record of an image."""

    id: str
    contents: Contents
    category: str | None = None


class ItemLine(msgspec.Struct):
    """A line of ``items.jsonl``: an image, its records, and where its bytes are."""

    filename: str
    sha256: str
    size: int
    width: int
    height: int
    blob: str
    offset: int
    records: list[LineRecord]
    split: Split | None = None


def run(folder: Path) -> None:
    """Run the export of this folder and write its result."""
    job = rundir.read_json(folder / JOB) or {}
    items = _read_items(folder, FolderBlobs(Path(job["blobsDir"])))
    if job["format"] == "Preview":
        _write_preview(folder, items, count=job["count"], seed=job["seed"])
        rundir.write_json(folder / RESULT, {"file": PREVIEW})
        return
    options = job.get("options") or {}
    writer = _make_writer(job["format"], options, seed=job["seed"])
    if writer is None:
        rundir.write_json(folder / RESULT, {"why": f"format {job['format']!r} is not supported"})
        return
    tree = folder / TREE
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    images = options.get("pictures")
    left_out = Counter[str]()
    if writer.name in WITHOUT_CONVERSATIONS:
        items = _count_conversations(items, left_out)
    writer.write(items, tree, with_images=writer.name in WITH_IMAGES if images is None else images)
    _write_zip(tree, folder / ZIP)
    result = {"file": ZIP}
    if left_out:
        count = left_out["conversations"]
        result["note"] = f"conversations that {writer.name} cannot carry were left out: {count}"
    rundir.write_json(folder / RESULT, result)


def _count_conversations(
    items: Iterator[ExportedImage], counts: Counter[str]
) -> Iterator[ExportedImage]:
    """Yield the items, and count their conversations."""
    for item in items:
        for record in item.records:
            if isinstance(record.contents, Conversation):
                counts["conversations"] += 1
        yield item


def _make_writer(format: str, options: dict[str, Any], *, seed: int) -> Writer | None:
    """Make the writer of a format, with the options that it supports."""
    split_ratio, is_normalized = options.get("splitRatio"), options.get("normalized", True)
    writer = find_writer(format)
    if isinstance(writer, ViFullWriter):
        return ViFullWriter(
            held_out_fraction=None if split_ratio is None else 1 - split_ratio, seed=seed
        )
    if isinstance(writer, CsvFourCornerWriter | CsvWidthHeightWriter):
        return type(writer)(is_normalized=is_normalized)
    return writer


def _read_items(folder: Path, blobs: FolderBlobs) -> Iterator[ExportedImage]:
    decoder = msgspec.json.Decoder(ItemLine)
    with open(folder / ITEMS, "rb") as file:
        for row in file:
            yield _make_item(decoder.decode(row), blobs)


def _make_item(line: ItemLine, blobs: FolderBlobs) -> ExportedImage:
    asset = AssetRef(filename=line.filename, width=line.width, height=line.height)

    def read() -> bytes:
        with blobs.open(line.blob) as file:
            file.seek(line.offset)
            return file.read(line.size)

    records = [
        Record(
            id=record.id,
            asset=asset,
            contents=record.contents,
            category=record.category,
            split=line.split,
        )
        for record in line.records
    ]
    return ExportedImage(
        asset=asset, sha256=line.sha256, records=records, read=read, split=line.split
    )


def _write_preview(folder: Path, items: Iterator[ExportedImage], *, count: int, seed: int) -> None:
    # Imported here because the server imports this module for its constants and must not load
    # Pillow.
    from runyard.datasets.preview import choose_items, render_contact_sheet

    (folder / PREVIEW).write_bytes(
        render_contact_sheet(choose_items(list(items), count=count, seed=seed))
    )


def _write_zip(tree: Path, target: Path) -> None:
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
    parser = argparse.ArgumentParser(
        prog="python -m runyard.datasets.exporting", description="Run one export."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--parent", type=int, help="process id of the server; the worker ends with it"
    )
    arguments = parser.parse_args()
    if arguments.parent is not None:
        processes.die_with_parent(arguments.parent)
    set_limits(arguments.folder)
    run(arguments.folder)


if __name__ == "__main__":
    main()
