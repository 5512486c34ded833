"""A version's files: written and read again, its name, and the errors for invalid files."""

import hashlib
import io
import json
from pathlib import Path

import pytest

from runyard.datasets.records import Freeform, Interaction, PhraseGrounding, Vqa
from runyard.datasets.versions import (
    CONTENTS,
    MANIFEST,
    PACKS,
    ManifestWriter,
    VersionError,
    VersionFolder,
    VersionImage,
    encode_contents_line,
    read_manifest,
)

IMAGES = [b"first image", b"second", b"third one"]


def item(filename: str, data: bytes, *records: Vqa | PhraseGrounding | Freeform) -> VersionImage:
    digest = hashlib.sha256(data).hexdigest()
    return VersionImage(
        filename=filename,
        sha256=digest,
        size=len(data),
        width=4,
        height=3,
        mime="image/png",
        records=list(records),
    )


def make_items() -> list[VersionImage]:
    asked = Vqa(interactions=[Interaction(order=1, question="What?", answer="Ein Tor — größer")])
    return [
        item("Z.png", IMAGES[0], asked),
        item("a/b.png", IMAGES[1], asked, asked),
        item("a/c.png", IMAGES[1], asked),
        item("é.png", IMAGES[2], asked),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack = b"head" + b"".join(IMAGES)
    name = hashlib.sha256(pack).hexdigest()
    (tmp_path / PACKS).mkdir()
    (tmp_path / PACKS / name).write_bytes(pack)
    with open(tmp_path / MANIFEST, "wb") as file:
        writer = ManifestWriter(file)
        for each in make_items():
            writer.add(each)
    lines, offset = [], 4
    for data in IMAGES:
        lines.append(
            encode_contents_line(hashlib.sha256(data).hexdigest(), name, offset, len(data))
        )
        offset += len(data)
    (tmp_path / CONTENTS).write_bytes(b"".join(sorted(lines)))
    return tmp_path


def test_a_version_is_read_back_as_it_was_written(folder: Path) -> None:
    version = VersionFolder(folder)
    assert list(version.items()) == make_items() == list(read_manifest(folder / MANIFEST))
    assert version.item(3).filename == "é.png"
    assert len(version) == 4
    assert [version.read(each.sha256) for each in make_items()] == [
        IMAGES[0],
        IMAGES[1],
        IMAGES[1],
        IMAGES[2],
    ]
    version.close()


def test_a_manifest_line_is_camel_case_json_as_other_programs_read_it(folder: Path) -> None:
    line = json.loads((folder / MANIFEST).read_text().splitlines()[0])
    assert list(line) == ["filename", "sha256", "size", "width", "height", "mime", "records"]
    assert line["records"] == [
        {
            "type": "Vqa",
            "interactions": [{"order": 1, "question": "What?", "answer": "Ein Tor — größer"}],
        }
    ]


def test_the_name_of_a_version_is_the_hash_of_its_manifest(folder: Path) -> None:
    writers = [ManifestWriter(io.BytesIO()) for _ in range(2)]
    for each in make_items():
        writers[0].add(each)
    for each in make_items()[1:]:
        writers[1].add(each)
    whole = (folder / MANIFEST).read_bytes()
    assert writers[0].version == hashlib.sha256(whole).hexdigest()[:16]
    assert writers[0].size_bytes == len(whole)
    assert writers[1].version != writers[0].version


@pytest.mark.parametrize("second", ["a.png", "b.png"])
def test_items_must_be_sorted_and_unique(second: str) -> None:
    writer = ManifestWriter(io.BytesIO())
    writer.add(item("b.png", b"x"))
    with pytest.raises(ValueError, match="sort items by filename"):
        writer.add(item(second, b"x"))


def test_a_pack_that_holds_other_bytes_is_not_served(folder: Path) -> None:
    pack = next((folder / PACKS).iterdir())
    pack.write_bytes(pack.read_bytes().replace(b"second", b"sicond"))
    version = VersionFolder(folder)
    assert version.read(make_items()[0].sha256) == IMAGES[0]
    with pytest.raises(VersionError, match=f"does not hold image {make_items()[1].sha256}"):
        version.read(make_items()[1].sha256)
    version.close()


@pytest.mark.parametrize(
    "line",
    [
        b'["ab","cd",0,1]\n',
        b'["' + b"A" * 64 + b'","' + b"0" * 64 + b'",0,1]\n',
        b"{}\n",
        b"[",
        b"\xff\n",
    ],
)
def test_contents_that_cannot_be_read_name_file_and_line(folder: Path, line: bytes) -> None:
    path = folder / CONTENTS
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(VersionError, match=r"contents.jsonl line 4 "):
        VersionFolder(folder)


def test_an_invalid_manifest_line_is_named(folder: Path) -> None:
    with open(folder / MANIFEST, "ab") as file:
        file.write(b'{"filename": 5}\n')
    version = VersionFolder(folder)
    with pytest.raises(VersionError, match=r"manifest.jsonl line 5 "):
        version.item(4)
    version.close()


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(VersionError, match=r"manifest.jsonl is missing"):
        VersionFolder(folder)
