"""Images are found by the names that rows give, in folders and in packs alike, and never outside of
them.
"""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.blobs import FolderBlobs
from runyard.datasets.findings import Finding
from runyard.datasets.naming.image_names import ImageFacts
from runyard.datasets.packs import build_pack
from runyard.datasets.sources import FolderSource, PackSource

MakePng = Callable[..., bytes]
Made = tuple[FolderSource | PackSource, list[Finding]]


def make_folder_source(tmp_path: Path, files: dict[str, bytes]) -> Made:
    for path, data in files.items():
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(data)
    findings: list[Finding] = []
    source = FolderSource(tmp_path / "in", findings.append)
    source.find_files()
    assert sum(source.inspect()) == sum(map(len, files.values()))
    return source, findings


def store_blob(tmp_path: Path, data: bytes) -> tuple[FolderBlobs, str]:
    blobs, sha256 = FolderBlobs(tmp_path / "blobs"), hashlib.sha256(data).hexdigest()
    blobs.put(io.BytesIO(data), sha256=sha256, size_bytes=len(data))
    return blobs, sha256


def make_pack_source(tmp_path: Path, files: dict[str, bytes]) -> Made:
    data = build_pack(files.items())
    blobs, sha256 = store_blob(tmp_path, data)
    findings: list[Finding] = []
    source = PackSource(blobs, findings.append)
    assert sum(source.add_pack(sha256, len(data))) == sum(map(len, files.values()))
    return source, findings


@pytest.fixture(params=[make_folder_source, make_pack_source])
def make_source(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[[dict[str, bytes]], Made]:
    return lambda files: request.param(tmp_path, files)


def test_files_are_listed_and_read(
    make_source: Callable[[dict[str, bytes]], Made], make_png: MakePng
) -> None:
    source, findings = make_source({"b/rows.csv": b"0123456789", "a.png": make_png()})
    assert list(source.paths()) == ["a.png", "b/rows.csv"]
    assert source.size_bytes("b/rows.csv") == 10
    with source.open("b/rows.csv") as file:
        assert (file.read(3), file.seek(8), file.read(), file.seek(-9, io.SEEK_END)) == (
            b"012",
            8,
            b"89",
            1,
        )
    assert (source.is_image("a.png"), source.is_image("b/rows.csv")) == (True, False)
    assert findings == []


@pytest.mark.parametrize(
    ("name", "relative_to", "found"),
    [
        ("a/1.png", "", "a/1.png"),
        ("./a/1.png", "", "a/1.png"),
        ("a\\1.png", "", "a/1.png"),
        ("1.png", "a/rows.csv", "a/1.png"),
        ("../b/1.png", "a/rows.csv", "b/1.png"),
        ("3.png", "b/rows.csv", "b/3.png"),
        ("3.png", "c/rows.csv", "3.png"),
        ("b/3.png", "b/rows.csv", "b/3.png"),
        ("2.png", "rows.csv", "b/2.png"),
        ("/home/me/b/2.png", "", "b/2.png"),
        ("/home/me/photos/2.png", "", None),
        ("/home/me/photos/4.png", "", "images/4.png"),
        ("C:\\photos\\4.png", "", "images/4.png"),
        ("photos/4.png", "", None),
        ("photos/b/1.png", "", "b/1.png"),
        ("a/3.png", "", None),
        ("x/3.png", "", "3.png"),
        ("3.png", "a/rows.csv", None),
        ("1.PNG", "b/rows.csv", "b/1.png"),
        ("B/2.jpg", "", "b/2.png"),
        ("1", "a/rows.csv", "a/1.png"),
        ("2%2Epng", "", "b/2.png"),
        ("/data/local-files/?d=shelf%2Fimages%2F4.png", "", "images/4.png"),
        ("https://example.com/shelf/4.png?signature=1", "", "images/4.png"),
        ("https://example.com/a/2.png", "", None),
        ("file:///home/me/b/2.png", "", "b/2.png"),
        ("u\u0308.png", "", "\u00fc.png"),
        ("\u00fc.png", "", "\u00fc.png"),
        ("1.png", "", None),
        ("../../etc/passwd", "", None),
    ],
)
def test_images_are_found_by_path_folder_or_base_name(
    make_source: Callable[[dict[str, bytes]], Made],
    make_png: MakePng,
    name: str,
    relative_to: str,
    found: str | None,
) -> None:
    names = ["a/1.png", "b/1.png", "b/2.png", "\u00fc.png", "3.png", "b/3.png", "images/4.png"]
    source, _ = make_source({path: make_png(20 + number, 20) for number, path in enumerate(names)})
    facts = source.find_image(name, relative_to=relative_to)
    assert (facts and facts.path) == found


def test_a_name_that_several_images_have_is_ambiguous(
    make_source: Callable[[dict[str, bytes]], Made], make_png: MakePng
) -> None:
    source, _ = make_source({"a/1.png": make_png(20, 20), "b/1.png": make_png(21, 20)})
    found = source.resolve_image("1.png")
    assert (found.status, found.code) == ("ambiguous", "ImageAmbiguous")
    assert found.why == "2 images have this name, such as 'a/1.png' and 'b/1.png'"
    assert source.resolve_image("a/1.png").is_exact


@pytest.mark.parametrize(
    ("name", "relative_to", "status", "candidates"),
    [
        ("cat.jpg", "", "found", ()),
        ("cut.png", "", "rejected", ("cut.png",)),
        ("x/cut.png", "", "rejected", ("cut.png",)),
        ("b/7.png", "", "rejected", ("b/7.png",)),
        ("7.png", "", "ambiguous", ("a/7.png", "b/7.png")),
        ("7.png", "b/rows.csv", "rejected", ("b/7.png",)),
        ("c/7.png", "", "missing", ("a/7.png",)),
        ("8.png", "b/rows.csv", "missing", ("a/8.png",)),
        ("9.png", "labels/train.json", "missing", ("test/9.png",)),
        ("9.png", "labels/test.json", "found", ()),
        ("5.jpg", "", "missing", ("masks/5.png",)),
        ("masks/5.jpg", "", "found", ()),
        ("dog.jpg", "", "missing", ()),
    ],
)
def test_a_rejected_or_other_image_never_stands_in_for_the_named_one(
    make_source: Callable[[dict[str, bytes]], Made],
    make_png: MakePng,
    name: str,
    relative_to: str,
    status: str,
    candidates: tuple[str, ...],
) -> None:
    whole = ["a/Cat.PNG", "a/7.png", "a/8.png", "test/9.png", "masks/5.png"]
    files = {path: make_png(20 + number, 20) for number, path in enumerate(whole)}
    source, _ = make_source({**files, "cut.png": make_png()[:60], "b/7.png": make_png()[:61]})
    found = source.resolve_image(name, relative_to=relative_to)
    assert (found.status, found.candidates) == (status, candidates)
    assert (found.image is None) == (status != "found")


@pytest.mark.parametrize(
    ("relative_to", "found"),
    [
        ("annotations/instances_train.json", "images/train/1.png"),
        ("annotations/instances_val2017.json", "images/val/1.png"),
        ("setB/annotations/labels.json", "setB/images/1.png"),
        ("annotations/instances.json", None),
        ("setC/Annotations/1.xml", "setC/JPEGImages/1.png"),
    ],
)
def test_a_bare_name_means_the_image_nearest_to_its_annotations(
    make_source: Callable[[dict[str, bytes]], Made],
    make_png: MakePng,
    relative_to: str,
    found: str | None,
) -> None:
    names = ["images/train/1.png", "images/val/1.png", "setA/images/1.png", "setB/images/1.png"]
    names += ["setC/JPEGImages/1.png", "setC/AnnotationsVisualization/1.png"]
    source, _ = make_source({path: make_png(20 + number, 20) for number, path in enumerate(names)})
    facts = source.find_image("1.png", relative_to=relative_to)
    assert (facts and facts.path) == found


def test_images_of_the_same_bytes_are_reported(
    make_source: Callable[[dict[str, bytes]], Made], make_png: MakePng
) -> None:
    _, findings = make_source({"a.png": make_png(), "b.png": make_png(), "c.png": make_png(50, 50)})
    assert [(found.code, found.file, found.cause) for found in findings] == [
        ("ImageDuplicate", "b.png", "it has the same bytes as 'a.png'")
    ]


def test_system_files_in_a_pack_are_not_images(tmp_path: Path) -> None:
    source, findings = make_pack_source(
        tmp_path, {"._a.jpg": b"\0\5\x16\7", "__MACOSX/b.png": b"x", "Thumbs.db": b"y"}
    )
    assert findings == []
    assert not any(source.is_image(path) for path in source.paths())


def test_an_image_of_a_container_is_accepted_once(
    make_source: Callable[[dict[str, bytes]], Made], make_png: MakePng
) -> None:
    source, findings = make_source({"rows.parquet": b""})
    first = source.add_image("x/1.png", make_png(), found_in="rows.parquet", line=1)
    again = source.add_image("x/1.png", make_png(), found_in="rows.parquet", line=2)
    other = source.add_image("x/1.png", make_png(9, 9), found_in="rows.parquet", line=3)
    broken = source.add_image("x/2.png", make_png()[:50], found_in="rows.parquet", line=4)
    unsafe = source.add_image("../3.png", make_png(8, 9), found_in="rows.parquet", line=5)
    assert first is again is not None
    assert (other, broken, unsafe) == (None, None, None)
    assert [(found.code, found.line) for found in findings] == [
        ("ImageAmbiguous", 3),
        ("ImageTruncated", 4),
        ("NameUnsafe", 5),
    ]


def test_links_that_leave_the_folder_are_reported_and_not_followed(
    tmp_path: Path, make_png: MakePng
) -> None:
    (tmp_path / "secret.png").write_bytes(make_png())
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(make_png(30, 30))
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "round").symlink_to(folder)
    (folder / "inside.png").symlink_to(folder / "a.png")
    os.mkfifo(folder / "pipe.png")
    findings: list[Finding] = []
    source = FolderSource(folder, findings.append)
    source.find_files()
    assert list(source.paths()) == ["a.png", "inside.png"]
    assert sorted((found.code, found.file) for found in findings) == [
        ("NameUnsafe", "out.png"),
        ("NameUnsafe", "pipe.png"),
        ("NameUnsafe", "round"),
        ("NameUnsafe", "up"),
    ]


def test_an_invalid_pack_is_reported(tmp_path: Path) -> None:
    blobs, sha256 = store_blob(tmp_path, b"no pack at all, but a blob")
    findings: list[Finding] = []
    assert list(PackSource(blobs, findings.append).add_pack(sha256, 26)) == []
    assert [found.code for found in findings] == ["FileUnreadable"]


def test_unsafe_names_in_a_pack_are_reported(tmp_path: Path) -> None:
    index = b'[["../../etc/x",1],["ok.txt",1]]'
    data = b"RYPACK1\n" + len(index).to_bytes(8, "little") + index + b"ab"
    blobs, sha256 = store_blob(tmp_path, data)
    findings: list[Finding] = []
    source = PackSource(blobs, findings.append)
    assert list(source.add_pack(sha256, len(data))) == [1, 1]
    assert (list(source.paths()), [found.code for found in findings]) == (
        ["ok.txt"],
        ["NameUnsafe"],
    )


def test_a_blob_may_be_one_file_with_its_name(tmp_path: Path, make_png: MakePng) -> None:
    data = make_png()
    blobs, sha256 = store_blob(tmp_path, data)
    result: list[ImageFacts] = []
    source = PackSource(blobs, lambda _: None, lambda facts, *_: result.append(facts))
    list(source.add_file(sha256, len(data), "a.png"))
    assert [(facts.path, facts.sha256, facts.width) for facts in result] == [("a.png", sha256, 40)]


def test_the_fraction_read_is_reported(make_source: Callable[[dict[str, bytes]], Made]) -> None:
    source, _ = make_source({"rows.csv": bytes(1 << 18)})
    source.expect(["rows.csv"])
    with source.open("rows.csv") as file:
        file.read(1 << 17)
        assert 0.4 < source.fraction_read() < 0.8
        file.read()
    assert source.fraction_read() == 1.0
