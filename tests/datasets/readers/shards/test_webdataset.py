import gzip
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from runyard.datasets.records import Freeform, Vqa

Member = tuple[str, bytes | str]


def shard(*read_members: Member) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in read_members:
            info = tarfile.TarInfo(name)
            raw = data.encode() if isinstance(data, str) else data
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def test_images_with_captions_in_shards(source_folder: Any, make_png: Callable[..., bytes]) -> None:
    source_folder.put("train-000000.tar", shard(("0001.png", make_png(30)), ("0001.txt", "red\n")))
    source_folder.put(
        "train-000001.tar.gz",
        gzip.compress(shard(("x/0002.txt", "wide"), ("x/0002.png", make_png(50)))),
    )
    result = source_folder.check("freeform")
    assert result.outcome.format == "WebDataset"
    assert [(r.asset.filename, r.asset.width, r.contents) for r in result.records] == [
        ("train-000000.tar/0001.png", 30, Freeform(text="red")),
        ("train-000001.tar.gz/x/0002.png", 50, Freeform(text="wide")),
    ]
    assert result.findings == []


def test_json_and_classes(source_folder: Any, make_png: Callable[..., bytes]) -> None:
    sidecar = json.dumps({"question": "What?", "answer": "a tin", "id": "q1"})
    source_folder.put("a.tar", shard(("1.png", make_png(30)), ("1.json", sidecar)))
    source_folder.put("b.tar", shard(("2.cls", "1"), ("2.png", make_png(31)))).put(
        "classes.txt", "box\ntin\n"
    )
    result = source_folder.check("vqa", format="WebDataset")
    assert [record.contents for record in result.records] == [
        Vqa(interactions=result.records[0].contents.interactions),
        Vqa(interactions=result.records[1].contents.interactions),
    ]
    assert [
        (r.contents.interactions[0].question, r.contents.interactions[0].answer)
        for r in result.records
    ] == [
        ("What?", "a tin"),
        ("What is this?", "tin"),
    ]
    assert result.records[0].id == "q1"


def test_groups_that_cannot_be_read_are_reported_and_the_others_accepted(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    read_members: list[Member] = [
        ("1.png", make_png(30)),
        ("1.txt", "good"),
        ("2.png", make_png(31)),
        ("2.json", "{"),
        ("3.txt", "no image"),
        ("4.png", make_png(32)),
        ("4.txt", b"\xff\xfe"),
        ("5.png", b"broken"),
        ("5.txt", "x"),
        ("6.png", make_png(33)),
        ("6.jpg", make_png(33)),
        ("6.txt", "good, too"),
        ("6.npy", b"..."),
    ]
    result = source_folder.put("a.tar", shard(*read_members)).check("freeform")
    assert [record.contents for record in result.records] == [
        Freeform(text="good"),
        Freeform(text="good, too"),
    ]
    assert [(f.code, f.line) for f in result.findings if f.severity == "error"] == [
        ("RowInvalid", 2),
        ("ImageMissing", 3),
        ("EncodingWrong", 4),
        ("ImageBroken", 5),
        ("ImageMissing", 5),
    ]
    assert {f.file for f in result.findings if f.code != "AnnotationsAbsent"} == {"a.tar"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("22.05.png 22.05.txt 22.06.png 22.06.txt", "22.05.png 22.06.png"),
        ("v1.0.2.png v1.0.2.txt v1.0.3.png v1.0.3.txt", "v1.0.2.png v1.0.3.png"),
        ("1.png 1.seg.png 1.txt 2.png 2.txt", "1.png 2.png"),
        ("a.b.png a.b.seg.png a.b.txt", "a.b.png"),
        ("x/1.png y/1.png x/1.txt y/1.txt", "x/1.png y/1.png"),
        ("1.png 2.png 3.png 3.txt 1.txt 2.txt", "1.png 2.png 3.png"),
        ("2.txt 1.txt 1.png 2.png", "1.png 2.png"),
    ],
)
def test_members_are_joined_by_their_keys_in_any_order(
    source_folder: Any, make_png: Callable[..., bytes], names: str, expected: str
) -> None:
    members: list[Member] = [
        (name, make_png(30 + number) if name.endswith("png") else name.removesuffix(".txt"))
        for number, name in enumerate(names.split())
    ]
    result = source_folder.put("00000.tar", shard(*members)).check("freeform")
    assert result.outcome.format == "WebDataset"
    assert [(record.asset.filename, record.contents) for record in result.records] == [
        (f"00000.tar/{name}", Freeform(text=name.removesuffix(".png"))) for name in expected.split()
    ]


def test_members_apart_that_have_no_partner_are_reported(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    members: list[Member] = [
        *(("1.png", make_png(30)), ("2.png", make_png(31)), ("1.txt", "red"), ("9.txt", "none")),
        *(("2.txt", "blue"), ("1.jpg", make_png(32))),
    ]
    result = source_folder.put("00000.tar", shard(*members)).check("freeform")
    assert [record.contents for record in result.records] == [
        Freeform(text="red"),
        Freeform(text="blue"),
    ]
    assert [(f.code, f.field) for f in result.findings if f.severity == "error"] == [
        ("ImageMissing", "9")
    ]
    assert [f.value for f in result.findings if f.code == "FileIgnored"] == ["1.jpg"]


@pytest.mark.parametrize("folder", ["", "shards/", "a/b/"])
def test_the_tables_of_img2dataset_next_to_shards_are_not_read(
    source_folder: Any, make_png: Callable[..., bytes], folder: str
) -> None:
    members: list[Member] = [("0.png", make_png()), ("0.txt", "red"), ("0.json", '{"key": "0"}')]
    source_folder.put(f"{folder}00000.tar", shard(*members))
    source_folder.put(f"{folder}00000.parquet", b"PAR1").put(f"{folder}00000_stats.json", "{}")
    result = source_folder.check("freeform")
    assert (result.outcome.format, len(result.records)) == ("WebDataset", 1)
    assert [(f.code, f.file) for f in result.findings] == [
        ("FileIgnored", f"{folder}00000.parquet"),
        ("FileIgnored", f"{folder}00000_stats.json"),
    ]


def test_class_numbers_without_names_are_reported(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    source_folder.put("a.tar", shard(("1.cls", "3"), ("1.png", make_png())))
    result = source_folder.check("vqa")
    assert [f.code for f in result.findings if f.severity == "error"] == ["ClassUnknown"]


def test_a_shard_that_is_cut_off_or_unsafe_is_rejected(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    whole = shard(
        *((f"{n}.{e}", d) for n in range(9) for e, d in (("png", make_png(30 + n)), ("txt", "red")))
    )
    source_folder.put("cut.tar", whole[: len(whole) // 3])
    result = source_folder.check("freeform")
    assert [(f.code, f.action) for f in result.findings] == [("FileUnreadable", "FileRejected")]
    source_folder.put(
        "cut.tar",
        shard(
            ("1.png", make_png()),
            ("1.txt", "red"),
            *((f"{n}.txt", "") for n in range(2, 30)),
            ("../x", ""),
        ),
    )
    result = source_folder.check("freeform")
    assert [(f.code, f.value) for f in result.findings] == [("ArchiveUnsafe", "../x")]


def test_a_tar_of_another_format_is_opened_as_an_archive(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    yolo: list[Member] = [
        ("images/a.png", make_png()),
        ("labels/a.txt", "0 0.5 0.5 0.5 0.5\n"),
        ("classes.txt", "tin\n"),
    ]
    result = source_folder.put("yolo.tar", shard(*yolo)).check()
    assert (result.outcome.format, result.outcome.type, len(result.records)) == (
        "YoloDarknet",
        "phrase-grounding",
        1,
    )
    flat: list[Member] = [
        ("a.png", make_png()),
        ("a.txt", "0 0.5 0.5 0.5 0.5\n"),
        ("classes.txt", "tin\n"),
    ]
    result = source_folder.put("yolo.tar", shard(*flat)).check()
    assert (result.outcome.format, len(result.records)) == ("YoloDarknet", 1)
