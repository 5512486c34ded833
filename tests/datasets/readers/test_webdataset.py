import gzip
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

from runyard.datasets.records import Freeform, Vqa


def shard(*members: tuple[str, bytes | str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            raw = data.encode() if isinstance(data, str) else data
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def test_pictures_with_captions_in_shards(shelf: Any, picture: Callable[..., bytes]) -> None:
    shelf.put("train-000000.tar", shard(("0001.png", picture(30)), ("0001.txt", "red\n")))
    shelf.put("train-000001.tar.gz", gzip.compress(shard(("x/0002.txt", "wide"), ("x/0002.png", picture(50)))))
    taken = shelf.take("freeform")
    assert taken.outcome.format == "WebDataset"
    assert [(r.asset.filename, r.asset.width, r.contents) for r in taken.records] == [
        ("train-000000.tar/0001.png", 30, Freeform(text="red")),
        ("train-000001.tar.gz/x/0002.png", 50, Freeform(text="wide")),
    ]
    assert taken.findings == []


def test_json_and_classes(shelf: Any, picture: Callable[..., bytes]) -> None:
    said = json.dumps({"question": "What?", "answer": "a tin", "id": "q1"})
    shelf.put("a.tar", shard(("1.png", picture(30)), ("1.json", said)))
    shelf.put("b.tar", shard(("2.cls", "1"), ("2.png", picture(31)))).put("classes.txt", "box\ntin\n")
    taken = shelf.take("vqa", format="WebDataset")
    assert [record.contents for record in taken.records] == [
        Vqa(interactions=taken.records[0].contents.interactions),
        Vqa(interactions=taken.records[1].contents.interactions),
    ]
    assert [(r.contents.interactions[0].question, r.contents.interactions[0].answer) for r in taken.records] == [
        ("What?", "a tin"),
        ("What is this?", "tin"),
    ]
    assert taken.records[0].id == "q1"


def test_groups_that_cannot_be_read_are_told_and_the_others_taken(shelf: Any, picture: Callable[..., bytes]) -> None:
    members = [
        ("1.png", picture(30)),
        ("1.txt", "good"),
        ("2.png", picture(31)),
        ("2.json", "{"),
        ("3.txt", "no picture"),
        ("4.png", picture(32)),
        ("4.txt", b"\xff\xfe"),
        ("5.png", b"broken"),
        ("5.txt", "x"),
        ("6.png", picture(33)),
        ("6.jpg", picture(33)),
        ("6.txt", "good, too"),
        ("6.npy", b"..."),
    ]
    taken = shelf.put("a.tar", shard(*members)).take("freeform")
    assert [record.contents for record in taken.records] == [Freeform(text="good"), Freeform(text="good, too")]
    assert [(f.code, f.line) for f in taken.findings if f.severity == "error"] == [
        ("RowInvalid", 2),
        ("ImageMissing", 3),
        ("EncodingWrong", 4),
        ("ImageBroken", 5),
        ("ImageMissing", 5),
    ]
    assert {f.file for f in taken.findings if f.code != "AnnotationsAbsent"} == {"a.tar"}


def test_a_shard_that_is_cut_off_or_unsafe_is_refused(shelf: Any, picture: Callable[..., bytes]) -> None:
    whole = shard(*((f"{n}.{e}", d) for n in range(9) for e, d in (("png", picture(30 + n)), ("txt", "red"))))
    shelf.put("cut.tar", whole[: len(whole) // 3])
    taken = shelf.take("freeform")
    assert [(f.code, f.action) for f in taken.findings] == [("FileUnreadable", "FileRejected")]
    shelf.put(
        "cut.tar",
        shard(("1.png", picture()), ("1.txt", "red"), *((f"{n}.txt", "") for n in range(2, 30)), ("../x", "")),
    )
    taken = shelf.take("freeform")
    assert [(f.code, f.value) for f in taken.findings] == [("ArchiveUnsafe", "../x")]


def test_a_tar_of_another_format_is_opened_as_an_archive(shelf: Any, picture: Callable[..., bytes]) -> None:
    yolo = [("images/a.png", picture()), ("labels/a.txt", "0 0.5 0.5 0.5 0.5\n"), ("classes.txt", "tin\n")]
    taken = shelf.put("yolo.tar", shard(*yolo)).take()
    assert (taken.outcome.format, taken.outcome.type, len(taken.records)) == ("YoloDarknet", "phrase-grounding", 1)
    flat = [("a.png", picture()), ("a.txt", "0 0.5 0.5 0.5 0.5\n"), ("classes.txt", "tin\n")]
    taken = shelf.put("yolo.tar", shard(*flat)).take()
    assert (taken.outcome.format, len(taken.records)) == ("YoloDarknet", 1)
