import gzip
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

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
