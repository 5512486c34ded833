"""Files of every format with random damage: each outcome is a finding or a clean refusal.

The default suite takes some seconds; ``make fuzz-datasets EXAMPLES=20000`` takes longer.
"""

import gzip
import io
import json
import math
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from runyard.datasets.findings import Finding
from runyard.datasets.records import DatasetType, PhraseGrounding, encode

EXAMPLES = int(os.environ.get("RUNYARD_FUZZ_EXAMPLES", "120"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="RUNYARD_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

Change = tuple[str, float, float, bytes]
# Tokens that are difficult for readers of text, and bytes for readers of headers.
NASTY = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"9" * 5000,
    b"null",
    b"true",
    b'"',
    b"{}",
    b"[]",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"../../x",
    b"/etc/passwd",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\r",
    b"\n",
    b",,",
    b"<!DOCTYPE x>",
    b"&lol;",
    b"<a>" * 3000,
    b"- &a [*a]",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"PK\x05\x06",
    b"PAR1",
    b"\xe2\x80\xae",
    b" " * 999,
]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "drop", "double", "insert", "replace", "swap"]),
        st.floats(0, 1),
        st.floats(0, 0.3),
        st.one_of(st.sampled_from(NASTY), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=4,
)


def apply_changes(data: bytes, changes: list[Change]) -> bytes:
    for kind, place, share, payload in changes:
        start = int(place * len(data))
        end = min(len(data), start + 1 + int(share * share * len(data)))
        before, part, after = data[:start], data[start:end], data[end:]
        data = {
            "flip": before + bytes(byte ^ payload[0] for byte in part) + after,
            "cut": before,
            "drop": before + after,
            "double": before + part + part + after,
            "insert": before + payload + part + after,
            "replace": before + payload + data[start + len(payload) :],
            "swap": after + part + before,
        }[kind]
    return data


def make_tar(*files: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_zip(*files: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return out.getvalue()


def make_table(rows: list[dict[str, Any]], ending: str) -> bytes:
    table, out = pa.Table.from_pylist(rows), io.BytesIO()
    if ending == "parquet":
        parquet.write_table(table, out)
    else:
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()


VI = {
    "id": "1",
    "asset": {"type": "Image", "filename": "a.png", "width": 40, "height": 20},
    "contents": {
        "type": "PhraseGrounding",
        "caption": "a red tin",
        "groundedPhrases": [
            {
                "phrase": "tin",
                "startTokenIndex": 2,
                "endTokenIndex": 3,
                "bounds": [[0.1, 0.2, 0.3, 0.4]],
            }
        ],
    },
}
COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 20},
        {"id": 2, "file_name": "b.png"},
    ],
    "annotations": [
        {
            "id": n,
            "image_id": 1 + n % 2,
            "category_id": 1,
            "bbox": [1, 2, 10, 9.5],
            "area": 95,
            "iscrowd": 0,
        }
        for n in range(4)
    ],
    "categories": [{"id": 1, "name": "tin"}],
}
VOC = """<annotation><filename>a.png</filename>
<size><width>40</width><height>20</height><depth>3</depth></size>
<object><name>tin</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object></annotation>"""
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A tin."}]
BOXES = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": ["tin"]}
LINES = "".join(json.dumps(VI | {"id": n}) + "\n" for n in range(3)).encode()


def formats(png: bytes) -> dict[str, tuple[DatasetType, dict[str, bytes], str]]:
    """A small dataset of every format: its type, its files, and the one that is broken."""
    rows = [
        {
            "image": {"bytes": png, "path": None},
            "objects": BOXES,
            "question": "What?",
            "answer": "tin",
        }
    ] * 3
    talks = [{"id": n, "image": "a.png", "conversations": TALK} for n in range(3)]
    texts = {"classes.txt": b"tin\nbox\n"}
    pair = [
        ("1.png", png),
        ("1.json", json.dumps({"question": "What?", "answer": "tin"}).encode()),
        ("2.png", png),
        ("2.txt", b"red"),
    ]
    corners = b"filename,xmin,ymin,xmax,ymax,class\na.png,1,2,9,9,tin\na.png,1,2,3,4,box\n"
    table = b"file_name,question,answer\na.png,What?,tin\nb.png,Who?,she\n"
    objects = (json.dumps({"file_name": "a.png", "objects": BOXES}) + "\n").encode() * 2
    yaml = b"path: .\ntrain: images\nnames:\n  0: tin\n  1: box\n"
    return {
        "ViJsonl": ("phrase-grounding", {"a.jsonl": LINES}, "a.jsonl"),
        "Coco": ("phrase-grounding", {"a.json": json.dumps(COCO).encode()}, "a.json"),
        "PascalVoc": ("phrase-grounding", {"a.xml": VOC.encode()}, "a.xml"),
        "YoloDarknet": (
            "phrase-grounding",
            {"a.txt": b"0 0.5 0.5 0.25 0.25\n1 .2 .2 .1 .1\n", **texts},
            "a.txt",
        ),
        "YoloDarknet names": (
            "phrase-grounding",
            {"a.txt": b"0 0.5 0.5 0.25 0.25\n", **texts},
            "classes.txt",
        ),
        "YoloKerasPytorch": (
            "phrase-grounding",
            {"a.txt": b"0 .5 .5 .2 .2\n", "data.yaml": yaml},
            "data.yaml",
        ),
        "CsvFourCorner": (
            "phrase-grounding",
            {"a.csv": corners},
            "a.csv",
        ),
        "CsvWidthHeight": (
            "phrase-grounding",
            {"a.csv": corners.replace(b"xmin,ymin,xmax,ymax", b"x,y,width,height")},
            "a.csv",
        ),
        "Conversations": ("vqa", {"a.json": json.dumps(talks, indent=1).encode()}, "a.json"),
        "Conversations lines": (
            "freeform",
            {"a.jsonl": "\n".join(map(json.dumps, talks)).encode()},
            "a.jsonl",
        ),
        "Parquet": ("phrase-grounding", {"a.parquet": make_table(rows, "parquet")}, "a.parquet"),
        "Parquet arrow": ("vqa", {"a.arrow": make_table(rows, "arrow")}, "a.arrow"),
        "WebDataset": ("vqa", {"a.tar": make_tar(*pair)}, "a.tar"),
        "WebDataset gzip": ("freeform", {"a.tgz": gzip.compress(make_tar(*pair))}, "a.tgz"),
        "Captions": ("freeform", {"a.txt": b"red", "b.txt": b"blue"}, "a.txt"),
        "Table cells": ("vqa", {"metadata.csv": table}, "metadata.csv"),
        "Table lines": (
            "phrase-grounding",
            {"metadata.jsonl": objects},
            "metadata.jsonl",
        ),
        "auto zip": (
            "phrase-grounding",
            {"a.zip": make_zip(("a.png", png), ("a.jsonl", LINES))},
            "a.zip",
        ),
        "auto tar": (
            "phrase-grounding",
            {"x.tar": make_tar(("p/a.png", png), ("l/a.jsonl", LINES))},
            "x.tar",
        ),
        "auto image": ("phrase-grounding", {"a.jsonl": LINES, "a.png": png}, "a.png"),
    }


FORMATS = list(formats(b""))


@pytest.fixture(scope="module")
def disk() -> Any:
    """Return a folder in memory, if possible: small imports write and remove many folders."""
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)  # noqa: S108
    yield Path(folder)
    shutil.rmtree(folder)


def assert_sound(result: Any, folder: Path) -> None:
    """Assert the properties of any import."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    for found in result.findings:
        assert isinstance(found, Finding)
        assert found.cause and found.fix and found.code
        assert found.line is None or found.line >= 1
        assert len(found.value or "") <= 80
        msgspec.json.encode(found)
    for record in result.records:
        encode(record)
        assert record.asset.width > 0 and record.asset.height > 0
        assert record.asset.filename in names or "/" in record.asset.filename
        assert ".." not in record.asset.filename.split("/")
        if isinstance(record.contents, PhraseGrounding):
            boxes = [box for phrase in record.contents.grounded_phrases for box in phrase.bounds]
            assert all(math.isfinite(v) and 0 <= v <= 1 for box in boxes for v in box)
            assert all(box[0] < box[2] and box[1] < box[3] for box in boxes)
    if not result.records:
        assert result.findings


@pytest.mark.parametrize("name", FORMATS)
def test_intact_files_are_accepted(
    source_folder: Any, make_png: Callable[..., bytes], name: str
) -> None:
    task, files, _ = formats(make_png())[name]
    source_folder.put("a.png", make_png()).put("b.png", make_png(41))
    for path, data in files.items():
        source_folder.put(path, data)
    result = source_folder.check(task)
    assert result.records, result.findings
    assert name.startswith("auto") or result.outcome.format == name.split()[0]
    assert_sound(result, source_folder.folder)


@pytest.mark.parametrize("name", FORMATS)
def test_no_corrupt_file_crashes_an_import(
    disk: Path, source_folder: Any, make_png: Callable[..., bytes], name: str
) -> None:
    task, files, target = formats(make_png())[name]
    home, outside = disk / "home", disk / "outside"
    outside.mkdir(exist_ok=True)

    @fuzz
    @given(CHANGES)
    def attempt(changes: list[Change]) -> None:
        shutil.rmtree(home, ignore_errors=True)
        source_folder.folder = home / "in" / "shelf"
        source_folder.put("a.png", make_png()).put("b.png", make_png(41))
        for path, data in files.items():
            source_folder.put(path, apply_changes(data, changes) if path == target else data)
        before = sorted(disk.rglob("*"))
        result = source_folder.check(task, format=name.split()[0])
        assert sorted(disk.rglob("*")) == before
        assert_sound(result, source_folder.folder)

    attempt()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_contents_of_an_archive_stay_within_the_folder(
    disk: Path, tmp_path: Path, source_folder: Any, make_png: Callable[..., bytes], kind: str
) -> None:
    """The same where an import writes uploaded files: names lead nowhere else."""
    from runyard.datasets.archives import ExpandedSource
    from runyard.datasets.sources import FolderSource

    names = st.sampled_from(
        [
            "a.txt",
            "../a.txt",
            "/var/a.txt",
            "b/../../a",
            "b",
            "b/c",
            ".",
            "..\\a",
            "ä",
            "con",
            "a\0b",
            "x" * 300,
        ]
    )
    make = {"zip": make_zip, "tar": make_tar}[kind]

    @fuzz
    @given(st.lists(names, min_size=1, max_size=4, unique=True), st.one_of(st.just([]), CHANGES))
    def attempt(read_members: list[str], changes: list[Change]) -> None:
        shutil.rmtree(disk / "home", ignore_errors=True)
        source_folder.folder = disk / "home" / "in"
        source_folder.put(
            f"a.{kind}", apply_changes(make(*((name, b"text") for name in read_members)), changes)
        )
        findings: list[Finding] = []
        source = FolderSource(source_folder.folder, findings.append)
        source.find_files()
        unpacked = ExpandedSource(source, disk / "home" / "kept", findings.append)
        made = {path.relative_to(disk).as_posix() for path in disk.rglob("*") if path.is_file()}
        assert all(
            path == f"home/in/a.{kind}" or path.startswith("home/kept/0000") for path in made
        )
        for path in unpacked.paths():
            with unpacked.open(path) as file:
                assert len(file.read()) == unpacked.size_bytes(path)

    attempt()
